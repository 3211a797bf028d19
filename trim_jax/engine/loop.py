"""The routed loop: one jitted program that keeps three models busy over many solutions.

Every slot is in a phase of its own. A tick runs the model with the most useful work waiting, on the
rows that wait for it, and then takes every row as far as it goes without a model. Finished rows go
to `out`, free slots are refilled from `queue`; no row waits for another, and the host is asked only
when one of the two has run dry or full.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.engine import rows as R
from trim_jax.engine import steps, work
from trim_jax.engine.rows import Rows, where
from trim_jax.engine.sampling import Sampling
from trim_jax.engine.tokens import TokenTables
from trim_jax.engine.work import Tile
from trim_jax.models.qwen2 import KV, ModelConfig, Qwen2, empty_kv
from trim_jax.policies.base import Policy, held_weights

# Kinds of work, in the order of preference where two have equally full batches waiting.
CATCH_UP_SMALL, CATCH_UP_LARGE, SCORE, DECODE_LARGE, DECODE_SMALL, PEEK, JUDGE = range(7)
_MODEL_OF = (R.SMALL, R.LARGE, R.PRM, R.LARGE, R.SMALL, R.SMALL, R.LARGE)
_DECODING = (DECODE_LARGE, DECODE_SMALL)
# What every run does, and what it does only where one of its policies asks for it.
WORK = ("catch_up_small", "catch_up_large", "score", "decode_large", "decode_small")
ASKED_FOR = {PEEK: "peek", JUDGE: "judge"}


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Static settings of the loop, for one shard of the data axis.

    Those with equal skeletons share a program: their policies may differ in settings and weights,
    which are traced, but not in those of a policy inside another, which the program holds unless
    the outer one sees to it.

    Attributes:
      models: configurations of small, large and PRM.
      policies: the policies of the run, whose settings, end to end, are the cells of a row.
      tables: token tables of the shared vocabulary.
      sampling: how tokens are drawn.
      slots: rows in flight. rows: rows a model call works on (at most `slots`; equal: masking, no
        gather). tail_rows: the smallest batch that calls are compiled for; when few rows wait, they
        run in this one or in the smallest of its doublings that holds them.
      context: S. prm_context: P. max_steps: M. max_step_tokens: a step is cut there.
      decode_chunk: tokens a decode call writes at most. extend_chunk: tokens an extend call reads.
      past_sizes: numbers of cache slots below S that decoding full batches is compiled for,
        ascending. Each costs compile time and saves the reading of empty slots.
      queue, out: capacity of the two buffers.
      fork_reserve: slots that stay free of new problems, for forks.
    """

    models: tuple[ModelConfig, ModelConfig, ModelConfig]
    policies: tuple[Policy, ...]
    tables: TokenTables
    sampling: Sampling
    slots: int
    rows: int
    tail_rows: int
    context: int
    prm_context: int
    max_steps: int
    max_step_tokens: int
    decode_chunk: int
    extend_chunk: int
    past_sizes: tuple[int, ...]
    queue: int
    out: int
    fork_reserve: int
    _held: tuple[int, ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        # By identity: whoever compares two of them keeps both, and so the weights, alive.
        object.__setattr__(self, "_held", tuple(map(id, held_weights(self.policies))))

    @property
    def skeleton(self) -> LoopConfig:
        """What a program is compiled for; see `Policy.skeleton`."""
        return dataclasses.replace(self, policies=tuple(p.skeleton() for p in self.policies))

    @property
    def traced(self) -> tuple[Any, ...]:
        """What it is given when it runs: `Policy.traced` of every policy."""
        return tuple(policy.traced for policy in self.policies)

    def at(self, traced: tuple[Any, ...]) -> LoopConfig:
        """This one with the policies at other `traced` values."""
        policies = tuple(p.at(own) for p, own in zip(self.policies, traced, strict=True))
        return dataclasses.replace(self, policies=policies)

    @property
    def cells(self) -> int:
        """C, the settings of all policies."""
        return sum(len(policy.settings) for policy in self.policies)

    @property
    def references(self) -> bool:
        return any(policy.needs_reference for policy in self.policies)

    @property
    def kinds(self) -> dict[int, str]:
        """The kinds of work of this run, with their names."""
        asked = {
            PEEK: any(policy.peeks for policy in self.policies),
            JUDGE: any(policy.judges for policy in self.policies),
        }
        return dict(enumerate(WORK)) | {k: name for k, name in ASKED_FOR.items() if asked[k]}

    def blank(self, rows: int) -> Rows:
        """`rows` free rows with the shapes of this run."""
        states = steps.initial_states(self.policies, rows)
        return R.empty_rows(
            rows, self.cells, self.context, self.prm_context, self.max_steps, self.references,
            states, peeks=PEEK in self.kinds, judges=JUDGE in self.kinds,
        )  # fmt: skip


@flax.struct.dataclass
class Carry:
    """State of the loop. Scalars are arrays [1], so that a mesh can hold one per data shard.

    Attributes:
      rows: the slots. kv: caches of small, large, PRM.
      queue: items; head, tail: int32 [1], the next one and the end.
      out: records; n_out: int32 [1].
      more: bool [1], the host has more items than the queue.
      work: int32 [1, kinds, 3], per kind of work: slots executed, slots used, calls (in this run
        call).
      ticks: int32 [1].
    """

    rows: Rows
    kv: tuple[KV, KV, KV]
    queue: Rows
    head: jax.Array
    tail: jax.Array
    out: Rows
    n_out: jax.Array
    more: jax.Array
    work: jax.Array
    ticks: jax.Array


def when(condition: jax.Array, function: Callable[[Any], Any], value: Any) -> Any:
    """`function(value)` if `condition` else `value`.

    As a loop of at most one round: a conditional would copy the caches, a loop works in place.
    """
    once = lambda c: (jnp.zeros_like(condition), function(c[1]))  # noqa: E731
    return jax.lax.while_loop(lambda c: c[0], once, (condition, value))[1]


def initial_carry(config: LoopConfig) -> Carry:
    """An idle loop; call it inside jit, so the caches are born where they live."""
    c = config
    zero = jnp.zeros([1], jnp.int32)
    sizes = (c.context, c.context, c.prm_context)
    return Carry(
        rows=jax.tree.map(jnp.asarray, c.blank(c.slots)),
        kv=tuple(empty_kv(m, c.slots, size) for m, size in zip(c.models, sizes)),
        queue=jax.tree.map(jnp.asarray, c.blank(c.queue)),
        head=zero, tail=zero,
        out=jax.tree.map(jnp.asarray, c.blank(c.out)),
        n_out=zero,
        more=jnp.zeros([1], bool),
        work=jnp.zeros([1, len(c.kinds), 3], jnp.int32),
        ticks=zero,
    )  # fmt: skip


def run(
    config: LoopConfig, params: tuple[Any, Any, Any], traced: tuple, carry: Carry, max_ticks: int
) -> Carry:
    """Work until the host is needed: queue dry with more to come, `out` nearly full, or all done.

    `traced` are the settings and weights of the policies, see `LoopConfig.traced`.
    """
    config = config.at(traced)
    carry = carry.replace(
        head=jnp.zeros_like(carry.head), n_out=jnp.zeros_like(carry.n_out),
        work=jnp.zeros_like(carry.work), ticks=jnp.zeros_like(carry.ticks),
    )  # fmt: skip

    def go_on(c: Carry) -> jax.Array:
        free = (c.rows.phase == R.FREE).sum()
        queued = c.tail[0] > c.head[0]
        # Refill early only if slots would stand idle for want of items.
        starved = c.more[0] & ~queued & (free > config.fork_reserve + config.rows // 2)
        alive = (free < config.slots) | queued
        return alive & _has_room(config, c.n_out) & ~starved & (c.ticks[0] < max_ticks)

    return jax.lax.while_loop(go_on, lambda c: _tick(config, params, c), carry)


def _has_room(config: LoopConfig, n_out: jax.Array) -> jax.Array:
    """Whether `out` could take every slot as a finished solution and once more as a spilled fork."""
    return config.out - n_out[0] >= 2 * config.slots


def _tick(config: LoopConfig, params, carry: Carry) -> Carry:
    carry = _settle(config, carry)
    waiting = _waiting(carry.rows, config.kinds)
    full = jnp.minimum(waiting.sum(axis=1), config.rows)  # [kinds]
    # Steps rarely fill the last chunk that the PRM reads of them. Such ends gather until they are a
    # full batch, which takes half a chunk; until then they fill up batches of others. So that they
    # do gather, the larger of the two groups counts, not their sum.
    half = config.extend_chunk // 2
    ends = waiting[SCORE] & (work.unscored(carry.rows) <= half)
    gathered = ends.sum() >= config.rows
    larger = jnp.maximum(ends.sum(), waiting[SCORE].sum() - ends.sum())
    chosen = jnp.argmax(full.at[SCORE].min(larger))
    waiting = waiting.at[SCORE].set(jnp.where(gathered, ends, waiting[SCORE]))
    carry = carry.replace(ticks=carry.ticks + 1)
    for at, kind in enumerate(config.kinds):
        here = (chosen == at) & (full[at] > 0)
        carry = _work(config, params, carry, here, waiting[at], kind, at)
    return carry


def _tiles(config: LoopConfig, kind: int) -> list[Tile]:
    """The sizes that a kind of work is compiled for; a call takes the first that holds its rows.

    Only full batches of decoding come in several lengths of the past: an extend reads no more of it
    than there is, and few rows read little.
    """
    end = config.prm_context if kind == SCORE else config.context
    chunk = config.decode_chunk if kind in _DECODING else config.extend_chunk
    chunk = 1 if kind == PEEK else chunk
    rows = [config.tail_rows]
    while rows[-1] < config.rows:
        rows.append(min(2 * rows[-1], config.rows))
    tiles = [Tile(n, end, chunk) for n in rows]
    if kind in _DECODING:
        tiles[-1:-1] = [Tile(config.rows, size, chunk) for size in config.past_sizes]
    if kind == SCORE and chunk > 1:
        tiles.insert(-1, Tile(config.rows, end, chunk // 2))
    return tiles


def _waiting(rows: Rows, kinds: Iterable[int]) -> jax.Array:
    """bool [kinds, B]: the rows that wait for each kind of work."""
    in_phase = lambda phase: rows.phase == phase  # noqa: E731
    behind = rows.length[:, :2] < work.read_before(rows)[:, None]
    small, large = behind[:, R.SMALL], behind[:, R.LARGE]
    waiting = {
        CATCH_UP_SMALL: (in_phase(R.DRAFTING) | in_phase(R.PEEKING)) & small,
        CATCH_UP_LARGE: (in_phase(R.WRITING) | in_phase(R.JUDGING)) & large,
        SCORE: in_phase(R.SCORING),
        DECODE_LARGE: in_phase(R.WRITING) & ~large,
        DECODE_SMALL: in_phase(R.DRAFTING) & ~small,
        PEEK: in_phase(R.PEEKING) & ~small,
        JUDGE: in_phase(R.JUDGING) & ~large,
    }
    return jnp.stack([waiting[kind] for kind in kinds])


def _work(
    config: LoopConfig, params, carry: Carry, here: jax.Array, mask: jax.Array, kind: int, at: int
) -> Carry:
    """Run one kind of work, the `at`-th of the run, on rows of `mask` [B], if it is wanted `here`."""
    index = _MODEL_OF[kind]
    model, own, tiles = Qwen2(config.models[index]), params[index], _tiles(config, kind)
    chunk = tiles[-1].chunk

    def do(state):
        rows, kv, counts = state
        # The shortest rows are served first: the last of them decides how much of the past is read.
        order = length = rows.length[:, index]
        if kind == SCORE:  # and those last that take half a chunk, once enough of them wait
            order = length + (work.unscored(rows) <= chunk // 2) * (work.FAR // 2)
        fewer = [tile.rows for tile in tiles if tile.rows < config.rows]
        batch = work.first(mask, order, config.rows, smaller=max(fewer, default=0))
        highest = lambda x: jnp.where(batch.valid, batch.get(x), 0).max()  # noqa: E731
        count, past = batch.valid.sum(), highest(length)
        unread = highest(work.unscored(rows)) if kind == SCORE else 0

        def run(call, state):
            taken = jnp.bool_(False)
            for tile in tiles:
                holds = (count <= tile.rows) & (past <= tile.past)
                if tile.chunk < chunk:
                    holds &= unread <= tile.chunk
                state = when(holds & ~taken, functools.partial(call, tile), state)
                taken |= holds
            return state

        args = model, own, kv, rows, batch, run
        if kind in (CATCH_UP_SMALL, CATCH_UP_LARGE):
            rows, kv, slots = work.catch_up(*args, index, chunk)
        elif kind == SCORE:
            rows, kv, slots = work.score(*args, config.tables.separator, chunk)
        elif kind == JUDGE:
            rows, kv, slots = work.judge(*args, config.tables, chunk)
        else:
            rows, kv, slots = work.decode(
                *args, index, chunk, config.tables, config.sampling, config.max_step_tokens,
                peek=kind == PEEK,
            )  # fmt: skip
        counted = jnp.concatenate([slots, jnp.ones([1], slots.dtype)]).astype(jnp.int32)
        return rows, kv, counts.at[0, at].add(counted)

    # Only what the work changes goes through the loop: the compiler's time grows with its state.
    rows, kv, counts = when(here, do, (carry.rows, carry.kv[index], carry.work))
    kvs = tuple(kv if i == index else old for i, old in enumerate(carry.kv))
    return carry.replace(rows=rows, kv=kvs, work=counts)


def _settle(config: LoopConfig, carry: Carry) -> Carry:
    """Take every row as far as it goes without a model; DONE rows leave, new ones enter."""
    queue, tail, reserve = carry.queue, carry.tail, config.fork_reserve
    forking = lambda rows: (rows.phase == R.PARTING) | (rows.phase == R.PARTING_PLANS)  # noqa: E731
    done = lambda rows: (rows.phase == R.DONE).any()  # noqa: E731

    def admits(rows, head):
        return (tail[0] > head[0]) & ((rows.phase == R.FREE).sum() > reserve)

    def unsettled(state):
        rows, _, _, n_out, head = state
        waits = steps.goes_on(rows) | (rows.phase == R.DECIDING) | forking(rows)
        return (waits.any() | done(rows) | admits(rows, head)) & _has_room(config, n_out)

    def settle(state):
        rows, kv, out, n_out, head = state
        # A few rows at a time: most of them are with a model, and passes over all are not free.
        move = lambda rows: steps.move_on(  # noqa: E731
            rows, config.policies, config.tables, config.max_step_tokens, config.rows
        )
        rows = when(steps.goes_on(rows).any(), move, rows)
        rows = steps.decide(rows, config.policies, config.rows)
        rows, kv, out, n_out = jax.lax.while_loop(
            lambda s: forking(s[0]).any(),
            lambda s: _fork(*s, forking(s[0])),
            (rows, kv, out, n_out),
        )
        rows, out, n_out = when(done(rows), _emit, (rows, out, n_out))
        admit = lambda s: _admit(*s, queue, tail, reserve)  # noqa: E731
        rows, head = when(admits(rows, head), admit, (rows, head))
        return rows, kv, out, n_out, head

    rows, kv, out, n_out, head = jax.lax.while_loop(
        unsettled, settle, (carry.rows, carry.kv, carry.out, carry.n_out, carry.head)
    )
    return carry.replace(rows=rows, kv=kv, out=out, n_out=n_out, head=head)


def _fork(rows: Rows, kv, out: Rows, n_out: jax.Array, forking: jax.Array):
    """Part one row: the cells of `leaving` move to a free slot, or out to the queue.

    Both halves then plan or decide again, each for the cells that it has left.
    """
    parent = jnp.argmax(forking)
    free = rows.phase == R.FREE
    child = jnp.where(free.any(), jnp.argmax(free), rows.phase.shape[0])
    one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, parent, keepdims=False), rows)
    again = jnp.where(one.phase == R.PARTING_PLANS, R.PLANNING, R.DECIDING)
    moved = one.replace(cells=one.leaving, phase=again, spilled=~free.any())
    put = lambda full, value, at: full.at[at].set(value, mode="drop")  # noqa: E731
    rows = rows.replace(
        cells=rows.cells.at[parent].set(one.cells & ~one.leaving),
        phase=rows.phase.at[parent].set(again),
    )
    rows = jax.tree.map(lambda full, value: put(full, value, child), rows, moved)
    out_at = jnp.where(free.any(), out.phase.shape[0], n_out[0])
    out = jax.tree.map(lambda full, value: put(full, value, out_at), out, moved)

    def copy_row(full):
        row = jax.lax.dynamic_index_in_dim(full, parent, keepdims=False)
        return put(full, row, child)

    return rows, jax.tree.map(copy_row, kv), out, n_out + ~free.any()


def _emit(state: tuple[Rows, Rows, jax.Array]) -> tuple[Rows, Rows, jax.Array]:
    """DONE rows go to `out`, their slots are free."""
    rows, out, n_out = state
    done = rows.phase == R.DONE
    size = out.phase.shape[0]
    at = jnp.where(done, n_out[0] + jnp.cumsum(done) - 1, size)
    out = jax.tree.map(lambda o, x: o.at[at].set(x, mode="drop"), out, rows)
    rows = rows.replace(phase=jnp.where(done, R.FREE, rows.phase))
    return rows, out, n_out + done.sum()


def _admit(rows: Rows, head, queue: Rows, tail, reserve: int) -> tuple[Rows, jax.Array]:
    """Free slots beyond the reserve take the next items of the queue."""
    free = rows.phase == R.FREE
    rank = jnp.cumsum(free) - 1
    ready = jnp.minimum(tail[0] - head[0], free.sum() - reserve)
    take = free & (rank < ready)
    at = jnp.clip(head[0] + rank, 0, queue.phase.shape[0] - 1)
    items = jax.tree.map(lambda x: x[at], queue)
    return where(take, items, rows), head + jnp.maximum(ready, 0)


def host_carry(carry: Carry, queue: Rows, tail: np.ndarray, more: np.ndarray) -> Carry:
    """The carry with a new queue from the host."""
    return carry.replace(queue=queue, tail=tail, more=more)
