"""What lies behind the frontier: where a policy intervenes, what it spends in vain, and how well
the process reward model tells right drafts from wrong ones.

The states are those of TRIM-POMDP: S0, everything so far is right; S2, only the newest step is
wrong; S1, an earlier accepted step was already wrong (irrecoverable). They come from the true step
labels of a trace; where a benchmark has none, each analysis returns None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trim_jax.eval.bootstrap import Interval, Resamples, interval
from trim_jax.eval.traces import Result, StepTrace, Table, Trace

# What an intervention met, by the state of the draft that it replaced.
CAUGHT, NEEDLESS, TOO_LATE = "caught", "needless", "too_late"


def labelled(traces: Iterable[Trace]) -> bool:
    """Whether every step carries a true label."""
    return all(s.right is not None and (s.action != "regenerate" or s.draft_right is not None)
               for t in traces for s in t.steps)


def _prefix_right(trace: Trace, at: int) -> bool:
    return at == 0 or bool(trace.steps[at - 1].right)


def _draft_is_right(step: StepTrace) -> bool | None:
    """Label of the small model's draft, kept or discarded; None when it wrote none."""
    return {"accept": step.right, "regenerate": step.draft_right}.get(step.action)


# --------------------------------------------------------------------------------- interventions


@dataclass(frozen=True)
class Interventions:
    """Counts over the traces of one policy setting, grouped by step position or by operation.

    Attributes:
      groups: positions (from 1) or names of operations, in the order of the counts.
      drafts: drafts that were judged, [groups].
      regenerated: those that were replaced, [groups].
      first_errors: drafts that were the first wrong step of their solution, whether caught or
        not, [groups]; None without true labels.
    """

    groups: tuple
    drafts: np.ndarray
    regenerated: np.ndarray
    first_errors: np.ndarray | None


def _count_by(rows: list[tuple], labels: bool, groups: Sequence) -> Interventions:
    at = {g: i for i, g in enumerate(groups)}
    counts = np.zeros((3, len(at)), np.int64)
    for group, regenerated, first_error in rows:
        counts[:, at[group]] += (1, regenerated, first_error)
    return Interventions(tuple(groups), counts[0], counts[1], counts[2] if labels else None)


def interventions(result: Result, table: Table, setting: int
                  ) -> tuple[Interventions, Interventions | None]:
    """Interventions of one setting, by step position and by operation (None: not recorded)."""
    traces = [result.traces[i] for i in table.trace_index[setting].ravel()]
    labels = labelled(traces)
    by_position, by_kind = [], []
    for trace in traces:
        for t, step in enumerate(trace.steps):
            if step.action == "direct":
                continue
            first_error = labels and _prefix_right(trace, t) and not _draft_is_right(step)
            row = (step.action == "regenerate", first_error)
            by_position.append((t + 1, *row))
            if step.kind is not None:
                by_kind.append((step.kind, *row))
    last = max((r[0] for r in by_position), default=0)
    kinds: dict[str, None] = {}
    for kind, *_ in by_kind:
        kinds.setdefault(kind)
    positions = _count_by(by_position, labels, range(1, last + 1))
    return positions, _count_by(by_kind, labels, sorted(kinds)) if by_kind else None


def what_interventions_met(result: Result, table: Table, setting: int) -> dict[str, int] | None:
    """How many interventions replaced a first error, a right draft, or came too late."""
    traces = [result.traces[i] for i in table.trace_index[setting].ravel()]
    if not labelled(traces):
        return None
    met = {CAUGHT: 0, NEEDLESS: 0, TOO_LATE: 0}
    for trace in traces:
        for t, step in enumerate(trace.steps):
            if step.action == "regenerate":
                met[TOO_LATE if not _prefix_right(trace, t)
                    else NEEDLESS if step.draft_right else CAUGHT] += 1
    return met


def wasted_tokens(result: Result) -> np.ndarray | None:
    """Strong tokens after the first wrong accepted step, per trace, [traces]; None unlabelled."""
    if not labelled(result.traces):
        return None
    return np.array([sum(s.n_tokens for t, s in enumerate(trace.steps)
                         if s.writer == "large" and not _prefix_right(trace, t))
                     for trace in result.traces], np.int64)


# ------------------------------------------------------------------- process reward: reliability


@dataclass(frozen=True)
class ScoredSteps:
    """Newest steps of right prefixes that the process reward model scored, one entry each.

    The text of a step is a function of (problem, seed, action history), so a step met by many
    settings and policies is one entry. The next step to be drafted depends on scores before it
    only, never on its own: no entry is selected by its own score.

    Attributes:
      score: [N], in [0, 1].  right: bool [N], S0 against S2.
      problem: [N], index of the problem.  position: [N], from 1.
      by_large: bool [N], written by the large model (a rewrite), else a draft of the small one.
    """

    score: np.ndarray
    right: np.ndarray
    problem: np.ndarray
    position: np.ndarray
    by_large: np.ndarray

    def where(self, mask: np.ndarray) -> ScoredSteps:
        return ScoredSteps(self.score[mask], self.right[mask], self.problem[mask],
                           self.position[mask], self.by_large[mask])


def scored_steps(result: Result) -> ScoredSteps | None:
    """Collects scored, labelled steps of all traces; None when there are none."""
    problem_at = {p.id: i for i, p in enumerate(result.problems)}
    found: dict[tuple, tuple] = {}
    for trace in result.traces:
        problem = problem_at[trace.problem_id]
        history = ""
        for t, step in enumerate(trace.steps):
            if not _prefix_right(trace, t):
                break
            rewritten = step.writer == "large"
            for by_large, score, right in (
                    (False, step.score_draft, _draft_is_right(step)),
                    (True, step.score if rewritten else None, step.right)):
                if score is not None and right is not None:
                    key = (problem, trace.seed, history, by_large)
                    found[key] = (score, right, problem, t + 1, by_large)
            history += "r" if rewritten else "a"
    if not found:
        return None
    score, right, problem, position, by_large = zip(*(found[k] for k in sorted(found)))
    return ScoredSteps(np.array(score), np.array(right), np.array(problem), np.array(position),
                       np.array(by_large))


def _weighted_auc(score: np.ndarray, right: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """AUC of score for right, with entry weights [B, N]; ties count half. nan: one class only."""
    order = np.argsort(score, kind="stable")
    score, right, weight = score[order], right[order], weight[:, order]
    starts = np.flatnonzero(np.concatenate([[True], score[1:] > score[:-1]]))
    every = np.add.reduceat(weight, starts, axis=1, dtype=float)
    bad = np.add.reduceat(weight * ~right, starts, axis=1, dtype=float)
    good = every - bad
    below = np.cumsum(bad, axis=1) - bad
    wins = (good * (below + bad / 2)).sum(1)
    pairs = good.sum(1) * bad.sum(1)
    return np.where(pairs > 0, wins / np.where(pairs > 0, pairs, 1.0), np.nan)


@dataclass(frozen=True)
class Auc:
    """AUC of one group: nan where only one class occurs. ``steps`` right and wrong together."""

    auc: float
    low: float
    high: float
    steps: int
    wrong: int


def auc(steps: ScoredSteps, drawn: Resamples) -> Auc:
    """AUC of the score, S0 against S2, with a bootstrap interval over problems."""
    if len(steps.score) == 0:
        return Auc(np.nan, np.nan, np.nan, 0, 0)
    point = _weighted_auc(steps.score, steps.right, np.ones((1, len(steps.score))))[0]
    counts = drawn.per_problem.astype(np.float32)
    samples = [_weighted_auc(steps.score, steps.right, counts[first:first + 100, steps.problem])
               for first in range(0, len(counts), 100)]
    found = interval(np.concatenate(samples))
    return Auc(float(point), float(found.low), float(found.high), len(steps.score),
               int((~steps.right).sum()))


@dataclass(frozen=True)
class Reliability:
    """Share of right steps by score, in bins of equal width, with intervals over problems.

    Attributes:
      edges: [bins + 1].  steps: [bins].
      mean_score, right: [bins], nan in an empty bin.
      band: interval of ``right``, [bins].
      calibration_error: mean of abs(mean_score - right), weighted by steps.
    """

    edges: np.ndarray
    steps: np.ndarray
    mean_score: np.ndarray
    right: np.ndarray
    band: Interval
    calibration_error: float


def reliability(steps: ScoredSteps, drawn: Resamples, bins: int = 10) -> Reliability:
    """How often a step of a given score is right (prefix right); score 1.0 is in the last bin."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    at = np.minimum((steps.score * bins).astype(int), bins - 1)
    per_problem = np.zeros((2, drawn.per_problem.shape[1], bins))  # steps, right steps
    np.add.at(per_problem, (0, steps.problem, at), 1)
    np.add.at(per_problem, (1, steps.problem, at), steps.right)
    count, right = per_problem.sum(1)
    total = np.bincount(at, steps.score, minlength=bins)
    weight = drawn.per_problem.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_score, share = total / count, right / count
        samples = (weight @ per_problem[1]) / (weight @ per_problem[0])
    error = np.nansum(count * np.abs(mean_score - share)) / count.sum()
    return Reliability(edges, count.astype(np.int64), mean_score, share, interval(samples),
                       float(error))
