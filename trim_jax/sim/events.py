"""What the traces of a routed run say about the step process: one event a draft, one a rewrite.

Traces of one problem share most of their history (the engine's luck is a function of the text), so
every (problem, seed, text so far) is counted once, whatever number of settings passed through it.
"""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np

from trim_jax.errors import ResultError
from trim_jax.eval.traces import Result, StepTrace
from trim_jax.sim.process import S0, S1, S2


class _Table:
    """Rows as columns of equal length."""

    def __len__(self) -> int:
        return len(self.problem)

    def __getitem__(self, rows: np.ndarray) -> Self:
        """Those of a mask or of indices."""
        columns = (getattr(self, f.name)[rows] for f in dataclasses.fields(self))
        return type(self)(*columns)


@dataclasses.dataclass(frozen=True)
class Events(_Table):
    """One row an event; see the columns. Missing numbers are -1, missing scores nan.

    Attributes:
      problem: int [E], index of the problem.
      seed: int [E].
      t: int [E], index of the step. n: int [E], number of steps of the trace it was first met in.
      prefix_right: bool [E], every earlier step is right.
      right: bool [E], and this one is.
      min_score: float [E], least score accepted before; 1 at first.
      score: float [E], of this step. tokens: int [E], of this step.
      draft_right: int [E], 1, 0 or, without a draft, -1 (rewrites only, as the next two).
      draft_score: float [E]. draft_tokens: int [E].
    """

    problem: np.ndarray
    seed: np.ndarray
    t: np.ndarray
    n: np.ndarray
    prefix_right: np.ndarray
    right: np.ndarray
    min_score: np.ndarray
    score: np.ndarray
    tokens: np.ndarray
    draft_right: np.ndarray
    draft_score: np.ndarray
    draft_tokens: np.ndarray

    @property
    def state(self) -> np.ndarray:
        """Latent state of the text with this step, int [E]."""
        return np.where(self.prefix_right, np.where(self.right, S0, S2), S1)


@dataclasses.dataclass(frozen=True)
class Solutions(_Table):
    """Of every problem and seed (R), one trace and what came of all.

    Attributes:
      problem: int [R], index of the problem.
      n: int [R], steps of the trace: one that is right to the end, if any.
      tokens: int [R, most], draft length of each of its steps (the step's own, where none).
      wrong, lucky: float [R], share of the traces with a wrong step, and of those that have one
        and the right answer all the same.
    """

    problem: np.ndarray
    n: np.ndarray
    tokens: np.ndarray
    wrong: np.ndarray
    lucky: np.ndarray


def read_events(result: Result) -> tuple[Events, Events, Solutions]:
    """Drafts, steps of the large model, and solutions of a run.

    Raises:
      ResultError: the run carries no labels of right and wrong steps.
    """
    problem_at = {p.id: i for i, p in enumerate(result.problems)}
    drafts: dict[tuple, list] = {}
    rewrites: dict[tuple, list] = {}
    endings: dict[tuple, list] = {}
    for trace in result.traces:
        at, text, prefix_right, least = problem_at[trace.problem_id], "", True, 1.0
        lengths = []
        for t, step in enumerate(trace.steps):
            if step.right is None:
                raise ResultError(
                    f"{result.folder / 'traces.jsonl'}: a step without a label (problem "
                    f"{trace.problem_id}); the simulator is fitted on runs with reference "
                    "solutions, such as those of arith"
                )
            where = [at, trace.seed, t, len(trace.steps), prefix_right]
            draft = _draft_of(step)
            if draft is not None:
                found = [*where, draft[0], least, draft[1], draft[2], -1, np.nan, -1]
                _keep(drafts, (at, trace.seed, text), found)
            if step.writer == "large":
                own = [*where, step.right, least, _number(step.score), step.n_tokens]
                known = (-1, np.nan, -1) if draft is None else draft
                _keep(rewrites, (at, trace.seed, text), [*own, *known], at_index=9)
            lengths.append(step.n_tokens if draft is None else draft[2])
            least = least if step.score is None else min(least, step.score)
            prefix_right, text = step.right, f"{text}{step.text}\n\n"
        ending = (prefix_right, trace.correct and not prefix_right, lengths)
        endings.setdefault((at, trace.seed), []).append(ending)
    # A step written without a draft, or with one that nobody scored, may have one in another trace
    # of the same text.
    for key, row in rewrites.items():
        if np.isnan(row[10]) and key in drafts:
            row[9:] = [drafts[key][5], *drafts[key][7:9]]
    return _columns(drafts), _columns(rewrites), _solutions(endings)


def _number(score: float | None) -> float:
    return np.nan if score is None else score


def _draft_of(step: StepTrace) -> tuple[bool, float, int] | None:
    """Right, score and tokens of the draft of a step."""
    if step.action == "direct":
        return None
    if step.action == "accept":
        return step.right, _number(step.score_draft), step.n_tokens
    return step.draft_right, _number(step.score_draft), step.draft_tokens


def _keep(events: dict[tuple, list], key: tuple, row: list, at_index: int = 7) -> None:
    """Keeps the first event of a key; one scored (or drafted) replaces one that was not."""
    old = events.get(key)
    blank = lambda x: x == -1 or x != x  # noqa: E731
    if old is None or (blank(old[at_index]) and not blank(row[at_index])):
        events[key] = row


def _columns(events: dict[tuple, list]) -> Events:
    kinds = (int, int, int, int, bool, bool, float, float, int, int, float, int)
    columns = zip(*events.values()) if events else ((),) * len(kinds)
    return Events(*(np.array(c, kind) for c, kind in zip(columns, kinds)))


def _solutions(endings: dict[tuple[int, int], list[tuple]]) -> Solutions:
    groups = endings.values()
    chosen = [max(group, key=lambda ending: ending[0])[2] for group in groups]
    tokens = np.zeros((len(groups), max(map(len, chosen))), int)
    for row, lengths in zip(tokens, chosen):
        row[: len(lengths)] = lengths
    right, lucky = (np.array([np.mean([e[i] for e in g]) for g in groups]) for i in range(2))
    problem = np.array([at for at, _ in endings])
    return Solutions(problem, np.array([len(c) for c in chosen]), tokens, 1 - right, lucky)
