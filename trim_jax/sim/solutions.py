"""Recorded solutions of two models with a process reward per step, as the simulator reads them.

A solution is cut at `max_steps`, as a routed run would be; one that is cut has no answer and is
wrong. The records say whether a solution is right but not which steps are: `first_error` follows
the method (section 2), `resampled_errors` puts a distribution in the place of its rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trim_jax.errors import DataError
from trim_jax.query import recorded
from trim_jax.sim.events import Events

RULE_THRESHOLD = 0.35  # of the method's rule for the first wrong step
_BINS = 12
_ROUNDS = 50  # of expectation-maximisation; the likelihood moves no more after about 30


@dataclasses.dataclass(frozen=True)
class Solutions:
    """One model's solutions of P problems, M steps at most.

    Attributes:
      correct: bool [P]. n: int [P], steps, in 1..M.
      scores: float [P, M], NaN beyond the end. tokens: int [P, M], 0 beyond.
      error: int [P], index of the first wrong step; n where the solution is right.
    """

    correct: np.ndarray
    n: np.ndarray
    scores: np.ndarray
    tokens: np.ndarray
    error: np.ndarray

    def events(self, rows: np.ndarray) -> Events:
        """Every step of the problems at `rows` (int [R], repeats allowed), as an event."""
        t = np.arange(self.scores.shape[1])
        row, t = np.nonzero(t < self.n[rows][:, None])
        at = rows[row]
        least = np.fmin.accumulate(self.scores, axis=1)
        before = np.concatenate([np.ones((len(least), 1)), least[:, :-1]], axis=1)
        blank = np.full(len(t), -1)
        return Events(
            problem=at, seed=np.zeros_like(t), t=t, n=self.n[at],
            prefix_right=t <= self.error[at], right=t < self.error[at],
            min_score=before[at, t], score=self.scores[at, t], tokens=self.tokens[at, t],
            draft_right=blank, draft_score=np.full(len(t), np.nan), draft_tokens=blank,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pair:
    """Solutions of the small and the large model to the same problems.

    Attributes:
      ids: [P]. level: int [P], the group of similar problems each belongs to (the field `level` of
        the questions); one group where the file has none.
    """

    ids: tuple[str, ...]
    level: np.ndarray
    small: Solutions
    large: Solutions


def read(
    small: str | Path, large: str | Path, questions: str | Path,
    count: Callable[[str], int] | None = None, max_steps: int = 30,
) -> Pair:
    """The pair of two files of solutions, in the order of the first.

    Args:
      small, large, questions, count: as in `query.recorded.load_pair`.

    Raises:
      DataError: a file cannot be read, the three do not hold the same questions, or a solution does
        not have one process reward in [0, 1] per step.
    """  # fmt: skip
    count = count or recorded.proxy_count()
    fields = ("steps", "prm_scores", "correct")
    found = [recorded._rows(Path(path), fields) for path in (small, large)]
    asked = recorded._rows(Path(questions), ())
    ids = tuple(found[0])
    for path, rows in ((large, found[1]), (questions, asked)):
        if missing := found[0].keys() - rows.keys():
            raise DataError(f"{path}: no row for question {min(missing)} of {small}")
    levels = [str(asked[i].get("level")) for i in ids]
    models = [
        _solutions([rows[i] for i in ids], path, count, max_steps)
        for rows, path in zip(found, (small, large))
    ]
    return Pair(ids, np.unique(levels, return_inverse=True)[1], *models)


def _solutions(rows, path, count, max_steps: int) -> Solutions:
    shape = len(rows), max_steps
    scores, tokens = np.full(shape, np.nan), np.zeros(shape, int)
    correct, n = np.zeros(len(rows), bool), np.zeros(len(rows), int)
    for i, row in enumerate(rows):
        values = np.array(row["prm_scores"], float)
        if not row["steps"] or values.shape != (len(row["steps"]),):
            raise DataError(f"{path}: question {row['id']} needs one process reward per step")
        if not ((values >= 0) & (values <= 1)).all():
            raise DataError(f"{path}: question {row['id']}: prm_scores must be in [0, 1]")
        n[i] = min(len(values), max_steps)
        scores[i, : n[i]] = values[: n[i]]
        tokens[i, : n[i]] = [count(step) for step in row["steps"][: n[i]]]
        correct[i] = recorded._right(row) and len(values) <= max_steps
    return Solutions(correct, n, scores, tokens, first_error(scores, n, correct))


def first_error(scores: np.ndarray, n: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """First wrong step, int [P]: the first with a score below 0.35, else the lowest; n if right.

    Args:
      scores: float [P, M], NaN beyond the end. n: int [P], steps. correct: bool [P].
    """
    low = scores < RULE_THRESHOLD
    lowest = np.argmin(np.where(np.isnan(scores), np.inf, scores), axis=1)
    return np.where(correct, n, np.where(low.any(axis=1), low.argmax(axis=1), lowest))


def resampled_errors(
    solutions: Solutions, weights: np.ndarray, rng: np.random.Generator
) -> Solutions:
    """The solutions with the first wrong steps drawn from what the scores say about them.

    The rule of `first_error` makes the judge look better than it is: by construction no right step
    of a wrong solution, and next to every first wrong one, is below 0.35. Here right steps, first
    wrong ones and those after each have a distribution of scores (12 bins), every step of a right
    prefix errs with one probability, and all are fitted by expectation-maximisation. Right
    solutions, of which every step is right, tell how often the judge doubts a right step. The
    opposite extreme: where hard problems lower the scores of right steps, this sees early errors.

    Args:
      weights: [P], of the problems in the fit; first wrong steps are drawn for all.
    """
    scores, n, correct = solutions.scores, solutions.n, solutions.correct
    inside = ~np.isnan(scores)
    edges = np.unique(np.quantile(scores[inside], np.arange(1, _BINS) / _BINS))
    cell = np.where(inside, np.searchsorted(edges, scores, side="right"), len(edges) + 1)
    at = np.eye(len(edges) + 2)[cell][..., :-1]  # [P, M, bins]; nothing beyond the end
    posterior = np.zeros(scores.shape)
    posterior[np.arange(len(n)), first_error(scores, n, correct).clip(max=n - 1)] = 1.0
    posterior[correct] = 0.0
    for _ in range(_ROUNDS):
        after = np.cumsum(posterior, axis=1) - posterior
        states = [np.where(correct[:, None], 1.0, 1 - after - posterior), posterior, after]
        states = [weights[:, None] * inside * state for state in states]
        mass = [np.tensordot(state, at, 2) + 0.5 for state in states]
        right, first, wrong = (at @ np.log(m / m.sum()) for m in mass)
        hazard = states[1].sum() / (states[0].sum() + states[1].sum())
        log_p = np.cumsum(right, axis=1) - right + first - np.cumsum(wrong, axis=1)
        log_p += np.arange(scores.shape[1]) * np.log1p(-hazard)
        log_p = np.where(inside, log_p, -np.inf)
        posterior = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        posterior[correct] = 0.0
    reached = np.cumsum(posterior, axis=1)
    drawn = (reached < rng.uniform(size=(len(n), 1))).sum(axis=1)
    return dataclasses.replace(solutions, error=np.where(correct, n, drawn.clip(max=n - 1)))
