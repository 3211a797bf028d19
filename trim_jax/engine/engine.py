"""The host side of the routed loop: requests in, solutions out, in any order."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from trim_jax.engine import hosts
from trim_jax.engine import rows as R
from trim_jax.engine.loop import LoopConfig
from trim_jax.engine.machine import TICKS, Seen
from trim_jax.engine.queues import Queues
from trim_jax.engine.replay import Replay
from trim_jax.engine.rows import Rows
from trim_jax.engine.sampling import Sampling, row_key
from trim_jax.engine.store import StepStore
from trim_jax.engine.tokens import TokenTables
from trim_jax.errors import ConfigError, DataError
from trim_jax.models.qwen2 import ModelConfig
from trim_jax.policies.base import Policy
from trim_jax.sharding import DATA


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Size of the routed loop; `LoopConfig` explains the fields.

    `slots` and `rows` are for each shard of the data axis; shards that are cores of a CPU share
    them.
    """

    slots: int = 384
    rows: int = 64
    tail_rows: int = 16
    max_context: int = 384
    max_steps: int = 30
    max_step_tokens: int = 64
    decode_chunk: int = 16
    extend_chunk: int = 16

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ConfigError(f"engine.{field.name} must be at least 1")
        if self.rows > self.slots:
            raise ConfigError(
                f"engine.rows ({self.rows}) must not exceed engine.slots ({self.slots})"
            )

    def shard(self, mesh: Mesh | None) -> EngineConfig:
        """The part of one shard of the data axis."""
        if mesh is None or mesh.devices.flat[0].platform != "cpu":
            return self
        slots, rows = (math.ceil(size / mesh.shape[DATA]) for size in (self.slots, self.rows))
        return dataclasses.replace(self, slots=slots, rows=rows)


PRM_EXTRA = 64  # tokens that the PRM's prompt may be longer than the language models'


def too_long(prompt: int, prm_prompt: int, context: int, extra: int = PRM_EXTRA) -> str | None:
    """Why prompts of so many tokens have no room in an engine; None if they have."""
    if prompt > context - 2:
        return (f"its prompt has {prompt} tokens, engine.max_context ({context}) leaves room for "
                f"{context - 2}")  # fmt: skip
    if prm_prompt > prompt + extra:
        return (f"its prompt has {prm_prompt} tokens for the PRM, which may be {extra} more than "
                f"the language models' {prompt}: shorten data.prm_system")  # fmt: skip
    return None


class Cells(NamedTuple):
    """The settings [lo, hi) of the policy of this index."""

    policy: int = 0
    lo: int = 0
    hi: int = 1


@dataclasses.dataclass(frozen=True)
class Request:
    """One solution to write, or several, where the policies and settings in `cells` part ways.

    Attributes:
      problem_id, seed: what the random numbers depend on.
      prompt: token ids the language models start from. prm_prompt: those of the PRM.
      cells: what is to be known: settings of one policy or of many. They share every step until
        they plan or decide differently, and each is charged as if alone.
      reference: token ids of prompt and reference solution, without end-of-sequence, where a
        policy needs it.
    """

    problem_id: str
    seed: int
    prompt: Sequence[int]
    prm_prompt: Sequence[int]
    cells: tuple[Cells, ...] = (Cells(),)
    reference: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Step:
    """One accepted step: its tokens (delimiter included), who wrote it, and what it cost.

    `score` and `draft_score` are None where the PRM was not asked; `draft` holds the tokens of the
    discarded draft, None where there was none. `first_entropy` and `draft_loglik` (see
    `Observation`) are None where nobody peeked or judged.
    """

    tokens: tuple[int, ...]
    writer: int
    action: int
    cost: int
    score: float | None
    draft_score: float | None
    draft: tuple[int, ...] | None
    draft_cost: int | None
    first_entropy: float | None = None
    draft_loglik: float | None = None


@dataclasses.dataclass(frozen=True)
class Solution:
    """A finished solution of `request`, and the `cells` that wrote exactly this.

    `ledger` is int [3, 5]: useful tokens by model (small, large, PRM) and kind (kept, discarded,
    prefilled, scored, calls), charged as if this history had run alone.
    """

    request: Request
    cells: tuple[Cells, ...]
    steps: tuple[Step, ...]
    finish: str
    ledger: np.ndarray

    @property
    def strong_tokens(self) -> int:
        """The paper's cost: tokens the large model decoded, delimiters apart."""
        return sum(step.cost for step in self.steps if step.writer == R.LARGE)


class Engine:
    """Three models, a set of policies, and the compiled loop that runs them.

    Attributes:
      executed: int64 [kinds, 3], per kind of work (`LoopConfig.kinds`) the row-slots executed, those
        that did useful work, and the calls, summed over all runs of this engine.
      machine: its device side.
      store: the steps that are known; may be another one, or None, between two runs.
        A row is taken as far as they go when it begins; from there on the models write it.
    """

    def __init__(
        self,
        models: tuple[ModelConfig, ModelConfig, ModelConfig],
        params: tuple[Any, Any, Any],
        tables: TokenTables,
        policies: Sequence[Policy],
        config: EngineConfig = EngineConfig(),
        sampling: Sampling = Sampling(),
        mesh: Mesh | None = None,
        prm_extra: int = PRM_EXTRA,
        store: StepStore | None = None,
    ):
        """
        Args:
          models, params: of small, large and PRM; `params` already placed on `mesh`.
          tables: of the shared vocabulary.
          mesh: axes `data` and `model`; None runs on one device.
          prm_extra: see `too_long`.
          store: where steps that are known come from, and those of the models go.

        Raises:
          ConfigError: a policy was made for shorter solutions.
        """
        c = config.shard(mesh)
        for policy in policies:
            if policy.longest is not None and policy.longest < c.max_steps:
                raise ConfigError(
                    f"engine.max_steps ({c.max_steps}): policy {policy.full_name} was made for "
                    f"solutions of at most {policy.longest} steps"
                )
        prm_context = c.max_context + c.max_steps + prm_extra
        self.shards = mesh.shape[DATA] if mesh else 1
        # Halves of a long context: a call reads less than twice the slots that its longest row fills.
        # And one size less than the smallest half, since the shortest rows are served first.
        shares = [2.0**-k for k in range(int(math.log2(c.max_context / 192)), 0, -1)]
        shares = [share / 2**0.5 for share in shares[:1]] + shares
        sizes = tuple(math.ceil(c.max_context * share / 32) * 32 for share in shares)
        forks = sum(len(policy.settings) for policy in policies) > 1
        self.loop = LoopConfig(
            models=models,
            policies=tuple(policies),
            tables=tables,
            sampling=sampling,
            slots=c.slots,
            rows=c.rows,
            tail_rows=min(c.tail_rows, c.rows),
            context=c.max_context,
            prm_context=prm_context,
            max_steps=c.max_steps,
            max_step_tokens=c.max_step_tokens,
            decode_chunk=c.decode_chunk,
            extend_chunk=c.extend_chunk,
            past_sizes=sizes,
            queue=c.slots,
            out=3 * c.slots,
            fork_reserve=c.slots // 4 if forks else 0,
        )
        self.executed = np.zeros([len(self.loop.kinds), 3], np.int64)
        self.ticks = 0
        self._first_cell = np.cumsum([0] + [len(policy.settings) for policy in policies])
        self._blank: Rows = jax.tree.map(lambda x: x[0], self.loop.blank(1))
        self.machine = hosts.machine(self.loop, params, mesh)
        self.store = store
        self._replay = Replay(self.loop)
        self._idle = False  # whether the machine has caches, and nothing in them
        self._latest = 0  # number of the run that was begun last

    def load_weights(self, policy: int, weights: Any) -> None:
        """Give a policy other weights, of the same shapes, for the runs that follow.

        Raises:
          ValueError: they are not of the shapes that this policy has.
        """
        shapes = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)  # noqa: E731
        own = self.loop.policies[policy]
        if shapes(weights) != shapes(own.weights):
            raise ValueError(f"weights of policy {own.name}: other shapes")
        self.machine.load_weights(policy, weights)
        self._replay.load_weights(policy, weights)

    def check(self, request: Request) -> None:
        """Refuse a request before it runs.

        Raises:
          DataError: its prompt leaves no room for a solution.
          ValueError: it is for no cell, or has two settings of a policy with `state_knows_dial`.
        """
        c = self.loop
        stateful = [i for i, policy in enumerate(c.policies) if policy.state_knows_dial]
        if not request.cells or any(p in stateful and hi - lo > 1 for p, lo, hi in request.cells):
            raise ValueError(f"cells {request.cells}: none, or some that cannot share a row")
        extra = c.prm_context - c.context - c.max_steps
        reason = too_long(len(request.prompt), len(request.prm_prompt), c.context, extra)
        if reason:
            raise DataError(f"problem {request.problem_id!r}: {reason}")

    def run(self, requests: Iterable[Request], anew: bool = False) -> Iterator[Solution]:
        """Solve every request; solutions come as they finish.

        The text of a solution depends on its request alone, never on the others in flight.

        Args:
          anew: leave the store alone, and ask the models for everything; for measuring them.

        Raises:
          DataError, ValueError: see `check`. ConfigError: a policy plans what it does not announce.
          RuntimeError: another run of this engine was begun before the end of this one.
        """
        numbered: list[Request] = []
        source = iter(requests)
        pending: collections.deque[Rows] = collections.deque()
        queues = Queues(self._blank, self.shards, self.loop.queue)
        exhausted = False
        finished: list[Rows] = []
        store = None if anew else self.store
        seen: Seen | None = None
        self.machine.begin(fresh=not self._idle)
        self._idle = False  # until the end: what a run that raises has left is not gone on with
        self._latest = own = self._latest + 1
        while True:
            while not exhausted and len(pending) < self.loop.queue * self.shards:
                wanted = self.loop.queue * self.shards - len(pending)
                fresh = list(itertools.islice(source, wanted))
                exhausted = len(fresh) < wanted
                if not self.loop.fork_reserve:
                    # The longest first: at the end, few are left that others no longer fill up.
                    # Forks fill up as well, and a long one that finds no slot reads more again.
                    fresh.sort(key=lambda request: len(request.prompt), reverse=True)
                items: Iterable[Rows] = []
                for request in fresh:
                    self.check(request)
                    items.append(self._item(request, len(numbered)))
                    numbered.append(request)
                if store is not None:
                    items = self._replay.advance(items, store)
                for row in items:
                    if row.phase == R.DONE:
                        yield self._solution(row, numbered[int(row.item)])
                        self._check_latest(own)
                    else:
                        pending.append(self._without_caches(row))
            queues.deal(pending)
            idle = seen is None or (np.asarray(seen.phase) == R.FREE).all()
            if idle and not queues.waiting.any():
                break
            more = bool(pending) or not exhausted
            seen = self.machine.call(*queues.packed(), queues.waiting.copy(), more)
            # The devices are at work: time to hand over what was finished before.
            for record in finished:
                yield self._solution(record, numbered[int(record.item)])
            self._check_latest(own)
            queues.drop(np.asarray(seen.head))
            executed = np.asarray(seen.work, np.int64).sum(axis=0)
            ticks = int(np.asarray(seen.ticks).max())
            if ticks == TICKS and not executed.any():
                raise ConfigError(
                    "no row goes on: a policy planned a peek or a judgement without the class "
                    "attribute `peeks = True` or `judges = True`"
                )
            self.executed += executed
            self.ticks += ticks
            finished = []
            for record in self._records(np.asarray(seen.n_out)):
                if record.spilled:
                    pending.appendleft(self._without_caches(record))
                    continue
                finished.append(record)
                if store is not None:
                    prompt = len(numbered[int(record.item)].prompt)
                    store.learn(record, prompt, self.loop.tables)
        self._idle = True
        for record in finished:
            yield self._solution(record, numbered[int(record.item)])

    @property
    def served(self) -> int:
        """Pieces of work, steps written or judged, that stores have spared the models."""
        return self._replay.served

    def keep_steps(self) -> None:
        """Write what the store has learned to its folder; nothing without a store.

        Raises:
          ResultError: the folder cannot be written.
        """
        if self.store is not None:
            self.store.keep()

    def _check_latest(self, own: int) -> None:
        if self._latest != own:
            raise RuntimeError("an engine does one run at a time, and another was begun")

    def _item(self, request: Request, number: int) -> Rows:
        blank = self._blank
        cells = blank.cells.copy()
        for policy, lo, hi in request.cells:
            first = self._first_cell[policy]
            cells[first + lo : first + hi] = True

        def filled(field: np.ndarray, tokens: Sequence[int], rest: int = 0) -> np.ndarray:
            field = np.full_like(field, rest)
            tokens = tokens[: len(field)]
            field[: len(tokens)] = tokens
            return field

        number_of = lambda x: np.asarray(x, np.int32)  # noqa: E731
        n, n_prm = len(request.prompt), number_of(len(request.prm_prompt))
        return blank.replace(
            phase=number_of(R.PLANNING), item=number_of(number), cells=cells,
            tokens=filled(blank.tokens, request.prompt), n_tokens=number_of(n),
            prm_tokens=filled(blank.prm_tokens, request.prm_prompt), n_prm=n_prm, prm_prompt=n_prm,
            reference=filled(blank.reference, request.reference, rest=-1),
            key=np.asarray(row_key(request.seed, request.problem_id)),
        )  # fmt: skip

    def _without_caches(self, record: Rows) -> Rows:
        """A row as a queue item: its caches, if any, are gone, what they held stays paid for."""
        zero = np.zeros_like
        return record.replace(
            length=zero(record.length), hits=zero(record.hits), spilled=zero(record.spilled)
        )

    def _records(self, counts: np.ndarray) -> Iterator[Rows]:
        if not counts.any():
            return
        out = self.machine.out()
        for shard, count in enumerate(counts):
            begin = shard * self.loop.out
            # A copy of all: the next call writes over them. Each record is a view.
            records = jax.tree.map(lambda x: np.array(x[begin : begin + count]), out)  # noqa: B023
            for i in range(count):
                yield jax.tree.map(lambda x, i=i: x[i, ...], records)

    def _ranges(self, cells: np.ndarray) -> tuple[Cells, ...]:
        """The cells of a bool [C] as ranges of neighbouring settings."""
        found = []
        for policy, (begin, end) in enumerate(itertools.pairwise(self._first_cell)):
            padded = np.concatenate([[False], cells[begin:end], [False]])
            edges = np.flatnonzero(np.diff(padded.astype(np.int8)))
            found += [Cells(policy, int(lo), int(hi)) for lo, hi in edges.reshape(-1, 2)]
        return tuple(found)

    def _solution(self, record: Rows, request: Request) -> Solution:
        # As lists of Python's own numbers, once for all steps: one at a time is ten times slower.
        t, begin, draft_begin = int(record.t), len(request.prompt), 0
        listed = lambda x: x[:t].tolist()  # noqa: E731

        def known(x: np.ndarray) -> list[float | None]:
            """Without numbers that are missing, or a column for them."""
            return [None if math.isnan(each) else each for each in listed(x)] or [None] * t

        tokens, discarded = record.tokens.tolist(), record.discarded.tolist()
        writer, action, cost = map(listed, (record.writer, record.action, record.cost))
        draft_cost, draft_end = listed(record.draft_cost), listed(record.discarded_end)
        score, draft_score = known(record.score), known(record.draft_score)
        first_entropy, draft_loglik = known(record.first_entropy), known(record.draft_loglik)
        steps = []
        for i, end in enumerate(listed(record.step_end)):
            drafted = draft_cost[i] >= 0
            steps.append(
                Step(
                    tokens=tuple(tokens[begin:end]),
                    writer=writer[i],
                    action=action[i],
                    cost=cost[i],
                    score=score[i],
                    draft_score=draft_score[i],
                    draft=tuple(discarded[draft_begin : draft_end[i]]) if drafted else None,
                    draft_cost=draft_cost[i] if drafted else None,
                    first_entropy=first_entropy[i],
                    draft_loglik=draft_loglik[i],
                )
            )
            begin, draft_begin = end, draft_end[i] if drafted else draft_begin
        return Solution(
            request, self._ranges(record.cells), tuple(steps), R.FINISHES[int(record.finish)],
            np.array(record.ledger),
        )  # fmt: skip
