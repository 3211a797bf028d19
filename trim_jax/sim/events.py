"""What the traces of a routed run say about the step process: one event a draft, one a rewrite.

Traces of one problem share most of their history (the engine's luck is a function of the text), so
every (problem, seed, text so far) is counted once, whatever number of settings passed through it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from trim_jax.errors import ResultError
from trim_jax.eval.traces import Result, StepTrace
from trim_jax.sim.process import S0, S1, S2


@dataclasses.dataclass(frozen=True)
class Events:
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
      before_tokens: int [E], draft length at the step before (the step's, where it had no draft).
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
    before_tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, mask: np.ndarray) -> Events:
        columns = (getattr(self, f.name)[mask] for f in dataclasses.fields(self))
        return Events(*columns)

    @property
    def state(self) -> np.ndarray:
        """Latent state of the text with this step, int [E]."""
        return np.where(self.prefix_right, np.where(self.right, S0, S2), S1)


@dataclasses.dataclass(frozen=True)
class Endings:
    """One row a trace: number of steps, whether all are right, whether the answer is, its weight
    (the traces of one problem and seed together weigh 1)."""

    n: np.ndarray
    right: np.ndarray
    correct: np.ndarray
    weight: np.ndarray


def read_events(result: Result) -> tuple[Events, Events, Endings]:
    """Drafts, steps of the large model, and endings of a run.

    Raises:
      ResultError: the run carries no labels of right and wrong steps.
    """
    problem_at = {p.id: i for i, p in enumerate(result.problems)}
    drafts: dict[tuple, list] = {}
    rewrites: dict[tuple, list] = {}
    endings = []
    for trace in result.traces:
        at, text, prefix_right, least, before = problem_at[trace.problem_id], "", True, 1.0, -1
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
                found = [*where, draft[0], least, draft[1], draft[2], -1, np.nan, -1, before]
                _keep(drafts, (at, trace.seed, text), found)
            if step.writer == "large":
                own = [*where, step.right, least, _number(step.score), step.n_tokens]
                known = (-1, np.nan, -1) if draft is None else draft
                _keep(rewrites, (at, trace.seed, text), [*own, *known, before], at_index=9)
            before = step.n_tokens if draft is None else draft[2]
            least = least if step.score is None else min(least, step.score)
            prefix_right, text = step.right, f"{text}{step.text}\n\n"
        endings.append((at, trace.seed, len(trace.steps), prefix_right, trace.correct))
    return _columns(drafts), _columns(rewrites), _endings(endings)


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
    """Keeps the first event of a key; one that was scored (or drafted) replaces one that was not."""
    old = events.get(key)
    blank = lambda x: x == -1 or x != x  # noqa: E731
    if old is None or (blank(old[at_index]) and not blank(row[at_index])):
        events[key] = row


def _columns(events: dict[tuple, list]) -> Events:
    kinds = (int, int, int, int, bool, bool, float, float, int, int, float, int, int)
    columns = zip(*events.values()) if events else ((),) * len(kinds)
    return Events(*(np.array(c, kind) for c, kind in zip(columns, kinds)))


def _endings(rows: list[tuple]) -> Endings:
    problem, seed, n, right, correct = (np.array(c) for c in zip(*rows))
    _, group, counts = np.unique([problem, seed], axis=1, return_inverse=True, return_counts=True)
    return Endings(n, right.astype(bool), correct.astype(bool), 1.0 / counts[group])
