"""Rows taken as far as known steps go, before the models are asked.

The rules are those of the loop, by its own functions (`steps.py`); where the loop would call a
model, what the model did before is looked up in a `StepStore`, and written and charged as
`work.py` does. A row whose next piece of work is not known goes to the loop as it stands, without
caches: like a fork that found no slot, it reads its text again and pays for nothing twice.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.engine import rows as R
from trim_jax.engine import steps
from trim_jax.engine.loop import LoopConfig
from trim_jax.engine.rows import Rows
from trim_jax.engine.store import StepStore, Text
from trim_jax.engine.tokens import START_STATE
from trim_jax.xla import shared

WIDTH = 128  # rows that are taken on at once
_FAR = np.iinfo(np.int32).max


@shared
def _settled(config: LoopConfig) -> Callable[[list[Any], Rows], Rows]:
    """Of `LoopConfig.traced` and rows: each taken on until done, parting, or waiting for a model."""

    def settled(traced: list[Any], rows: Rows) -> Rows:
        policies = config.at(traced).policies

        def settle(rows: Rows) -> Rows:
            rows = steps.move_on(rows, policies, config.tables, config.max_step_tokens, WIDTH)
            return steps.decide(rows, policies, WIDTH)

        unsettled = lambda rows: (steps.goes_on(rows) | (rows.phase == R.DECIDING)).any()  # noqa: E731
        return jax.lax.while_loop(unsettled, settle, jax.tree.map(jnp.asarray, rows))

    return jax.jit(settled)


class Replay:
    """Takes the rows of a loop on with the steps of a store.

    Attributes:
      served: pieces of work, steps written or judged, that were taken from stores.
    """

    def __init__(self, config: LoopConfig):
        self.config, self.served = config, 0
        self._traced = list(config.traced)
        self._settle = _settled(config.skeleton)

    def load_weights(self, policy: int, weights: Any) -> None:
        """Give a policy other weights, of the same shapes."""
        self._traced[policy] = (self._traced[policy][0], weights)

    def advance(self, items: Iterable[Rows], store: StepStore) -> Iterator[Rows]:
        """Each of `items`, rows without a leading axis, as far as the store goes, parted as they do.

        Those that are DONE are records of finished solutions, the others wait for a model.
        """
        todo = collections.deque(items)
        batch = jax.tree.map(np.array, self.config.blank(WIDTH))
        while True:
            for i in np.flatnonzero(batch.phase == R.FREE)[: len(todo)]:
                _put(batch, i, todo.popleft())
            busy = np.flatnonzero(batch.phase != R.FREE)
            if not len(busy):
                return
            batch = jax.tree.map(np.array, self._settle(self._traced, batch))
            for i in busy:
                phase = batch.phase[i]
                if phase in (R.PARTING, R.PARTING_PLANS):
                    todo.appendleft(_part(batch, i))
                elif phase != R.DONE and self._serve(batch, i, store):
                    self.served += 1
                else:
                    yield _take(batch, i)
                    batch.phase[i] = R.FREE

    def _serve(self, rows: Rows, i: int, store: StepStore) -> bool:
        """Do what row i waits for, if the store knows what comes of it."""
        serve = {
            R.PEEKING: self._peek, R.DRAFTING: self._draft, R.SCORING: self._score,
            R.JUDGING: self._judge, R.WRITING: self._write,
        }  # fmt: skip
        return serve[int(rows.phase[i])](rows, i, store)

    def _draft(self, rows: Rows, i: int, store: StepStore) -> bool:
        return self._written(rows, i, store, R.SMALL, R.DRAFTED)

    def _write(self, rows: Rows, i: int, store: StepStore) -> bool:
        return self._written(rows, i, store, R.LARGE, R.WRITTEN)

    def _written(
        self, rows: Rows, i: int, store: StepStore, writer: int, phase: int
    ) -> bool:
        found = store.step(writer, rows.key[i], rows.tokens[i, : rows.n_tokens[i]])
        if found is None:
            return False
        self._append(rows, i, writer, found)
        rows.phase[i] = phase
        return True

    def _peek(self, rows: Rows, i: int, store: StepStore) -> bool:
        found = store.peek(rows.key[i], rows.tokens[i, : rows.n_tokens[i]])
        if found is None:
            return False
        token, entropy = found
        stopped = bool(self.config.tables.is_eos[token])
        tokens = np.array([] if stopped else [token], np.int32)
        self._append(rows, i, R.SMALL, Text(tokens, stopped))
        rows.first_entropy[i, rows.t[i]] = entropy
        rows.first_token[i, rows.t[i]] = token
        rows.phase[i] = R.PLANNING
        return True

    def _append(self, rows: Rows, i: int, writer: int, text: Text) -> None:
        """`text` is the step in progress, written by a language model that first caught up."""
        tables, begin, n = self.config.tables, int(rows.n_tokens[i]), len(text.tokens)
        rows.tokens[i, begin : begin + n] = text.tokens
        state, boxed = START_STATE, 0
        for token in text.tokens.tolist():
            state, boxed = tables.step_next[token, state], tables.boxed_next[token, boxed]
        blank = tables.stripped[text.tokens[::-1]] < 0
        rows.draft_n[i], rows.decoded[i], rows.ended[i] = n, n + text.stopped, text.stopped
        rows.step_state[i], rows.boxed_state[i] = state, boxed
        rows.newlines[i] = n if blank.all() else int(np.argmin(blank))
        _read(rows, i, writer, begin - 1, prefilled=_FAR)
        _hold(rows, i, writer, begin - 1 + n + text.stopped)

    def _score(self, rows: Rows, i: int, store: StepStore) -> bool:
        stream, seen = rows.prm_tokens[i, : rows.n_prm[i]], int(rows.hits[i])
        ends = np.flatnonzero(stream == self.config.tables.separator)
        ends = ends[ends >= rows.prm_prompt[i]] + 1
        scores = [store.score(stream[:end]) for end in ends[seen:]]
        if None in scores:
            return False
        rows.score[i, seen : rows.t[i]] = scores[:-1]
        rows.draft_score[i, rows.t[i]] = scores[-1]
        _read(rows, i, R.PRM, len(stream), prefilled=int(rows.prm_prompt[i]))
        _hold(rows, i, R.PRM, len(stream))
        rows.ledger[i, R.PRM, R.CALLS] += 1
        rows.hits[i], rows.phase[i] = len(ends), R.DECIDING
        return True

    def _judge(self, rows: Rows, i: int, store: StepStore) -> bool:
        if not rows.draft_loglik.shape[1]:  # the engine will say what is wrong with this policy
            return False
        begin, n = int(rows.n_tokens[i]), int(rows.draft_n[i])
        draft = Text(rows.tokens[i, begin : begin + n], bool(rows.ended[i]))
        found = store.loglik(rows.tokens[i, :begin], draft)
        if found is None:
            return False
        rows.draft_loglik[i, rows.t[i]] = found
        end = begin - 1 + int(rows.decoded[i])
        _read(rows, i, R.LARGE, end, prefilled=begin - 1)
        _hold(rows, i, R.LARGE, end)
        rows.phase[i] = R.DECIDING
        return True


def _read(rows: Rows, i: int, model: int, end: int, prefilled: int) -> None:
    """Charge what a model reads up to `end`: prefilled before `prefilled`, scored from there on."""
    begin = int(rows.covered[i, model])
    rows.ledger[i, model, R.PREFILLED] += max(min(end, prefilled) - begin, 0)
    rows.ledger[i, model, R.SCORED] += max(end - max(begin, prefilled), 0)


def _hold(rows: Rows, i: int, model: int, length: int) -> None:
    """A model's cache would now hold `length` tokens, if there were one."""
    rows.length[i, model] = length
    rows.covered[i, model] = max(length, rows.covered[i, model])


def _part(rows: Rows, i: int) -> Rows:
    """Row i stays with some of its cells; the others, as a row of their own. As `loop._fork`."""
    again = R.PLANNING if rows.phase[i] == R.PARTING_PLANS else R.DECIDING
    rows.phase[i] = again
    child = _take(rows, i)
    rows.cells[i] &= ~rows.leaving[i]
    return child.replace(cells=child.leaving.copy())


def _take(rows: Rows, i: int) -> Rows:
    return jax.tree.map(lambda x: np.array(x[i]), rows)


def _put(rows: Rows, i: int, row: Rows) -> None:
    for full, value in zip(jax.tree.leaves(rows), jax.tree.leaves(row), strict=True):
        full[i] = value
