"""Parameters of the TRIM-POMDP: from collected traces, or as the authors published them.

What counts as a sample. Runs at many thresholds share histories, and the text of a step is decided
by the problem, the seed and the text before it. So each distinct (problem, seed, text before, and
for drafts: draft) counts once, however many settings went through it: the mixed process, not any
one setting's. Drafts count whether they were accepted or thrown away.

Labels. Where the traces know the truth, it is used. Elsewhere a correct solution is right
throughout, and in a wrong one the first error is the first step scored below 0.35, else the lowest
score; then a discarded draft after a right text is wrong iff it was scored below 0.35.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.scipy.special import ndtr

from trim_jax.errors import DataError
from trim_jax.eval.traces import StepTrace, Trace
from trim_jax.pomdp.solve import Parameters

# A wrong solution's first error is its first step scored below this (method, section 2).
WRONG_BELOW = 0.35
BINS = 20
STATES = ("S0", "S1", "S2")


@dataclass(frozen=True)
class Samples:
    """What the traces say, each distinct fact once.

    Attributes:
      state: int [D], state of each scored draft: 0, 1, 2 for S0, S1, S2.
      minimum, score: float [D], min r_{1:t-1} (1 at the first step) and r_t.
      first: bool [D], the draft is of the first step.
      small_right, large_right: bool, of each step of the model after a right text.
      large_tokens: int, length of each step of the large model.
      steps: int, number of steps of each solution.
    """

    state: np.ndarray
    minimum: np.ndarray
    score: np.ndarray
    first: np.ndarray
    small_right: np.ndarray
    large_right: np.ndarray
    large_tokens: np.ndarray
    steps: np.ndarray


def labels(trace: Trace) -> list[bool] | None:
    """For each accepted step: are it and all before it right? None where nobody can tell."""
    known = [step.right for step in trace.steps]
    if None not in known:
        return known
    if trace.correct:
        return [True] * len(trace.steps)
    scores = [step.score for step in trace.steps]
    if all(score is None for score in scores):
        return None
    scores = [1.0 if score is None else score for score in scores]
    low = [t for t, score in enumerate(scores) if score < WRONG_BELOW]
    error = low[0] if low else int(np.argmin(scores))
    return [t < error for t in range(len(scores))]


def collect(traces: Iterable[Trace]) -> Samples:
    """Reads the samples out of the traces."""
    drafts, small, large, steps = {}, {}, {}, {}
    for trace in traces:
        right = labels(trace)
        key = (trace.problem_id, trace.seed)
        steps[key, tuple(step.text for step in trace.steps)] = len(trace.steps)
        if right is None:
            continue
        before_right, minimum = True, 1.0
        for t, step in enumerate(trace.steps):
            if step.action != "direct":
                text = step.text if step.draft is None else step.draft
                draft_right = _draft_right(step, before_right, right[t])
                state = (0 if draft_right else 2) if before_right else 1
                if before_right:
                    small[key, text] = draft_right
                if step.score_draft is not None:
                    drafts[key, text] = (state, minimum, step.score_draft, t == 0)
            if step.writer == "large":
                large[key, step.text] = (before_right, right[t], step.n_tokens)
            before_right = right[t]
            minimum = min(minimum, 1.0 if step.score is None else step.score)
            key = (key, step.text)
    state, minimum, score, first = _columns(drafts, 4)
    after_right, large_right, large_tokens = _columns(large, 3)
    return Samples(
        state.astype(int), minimum, score, first.astype(bool), np.array([*small.values()], bool),
        large_right[after_right > 0].astype(bool), large_tokens, np.array([*steps.values()], int),
    )  # fmt: skip


def estimate(traces: Iterable[Trace], max_steps: int) -> Parameters:
    """Parameters of the process that the traces show (true labels or scores, see above).

    They need drafts that were scored, such as those of TRIM-Thr at several thresholds in (0, 1).

    Args:
      max_steps: step limit T of a solution.

    Raises:
      DataError: naming what the traces do not show.
    """
    samples = collect(traces)
    missing = [f"a scored draft in state {name}" for s, name in enumerate(STATES)
               if not (samples.state == s).any()]
    missing += [f"a step of the {name} model after a right text"
                for name, right in (("small", samples.small_right), ("large", samples.large_right))
                if not len(right)]
    if missing:
        raise DataError(f"POMDP parameters: the traces do not have {missing[0]}; collect them with "
                        "thr, on more problems or at more thresholds between 0 and 1")
    joint = np.stack([
        density(samples.minimum[samples.state == s], samples.score[samples.state == s])
        for s in range(3)
    ])  # fmt: skip
    first = _top_row(joint)
    for s in (0, 2):
        here = samples.score[samples.first & (samples.state == s)]
        if len(here):
            first[s] = density(np.ones_like(here), here).sum(axis=0)
    return Parameters(
        p_small=float(samples.small_right.mean()), p_large=float(samples.large_right.mean()),
        hazard=hazard(samples.steps, max_steps), step_tokens=float(samples.large_tokens.mean()),
        joint=joint, first=first,
    )  # fmt: skip


def hazard(steps: np.ndarray, max_steps: int) -> np.ndarray:
    """Probability that step t (0-based) is the last of those that reach it, float [max_steps].

    Where no solution got, and at the limit, it is 1.
    """
    t = np.arange(max_steps)
    reach = (steps[:, None] > t).sum(axis=0)
    end = (steps[:, None] == t + 1).sum(axis=0)
    result = np.where(reach > 0, end / np.maximum(reach, 1), 1.0)
    result[-1] = 1.0
    return result


def density(minimum: np.ndarray, score: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Gaussian kernel density of points in the unit square, reflected at its borders, by bins.

    The bandwidth of either axis is Scott's, n^(-1/6) times the deviation, and at least a fifth of
    a bin. One more sample, spread evenly, keeps every bin possible.

    Args:
      minimum, score: float [n], in [0, 1].

    Returns:
      float [bins, bins], probability of each bin [minimum][score]; sums to 1.
    """
    one, two = (_kernel_masses(np.asarray(x, float), bins) for x in (minimum, score))  # [n, bins]
    n = len(one)
    return (one.T @ two + 1 / bins**2) / (n + 1)


def read_published(
    path: str | Path, small: str, large: str, problems: str = "math_train",
    process: str = "slm_llm", step_tokens: float = 60.0,
) -> Parameters:  # fmt: skip
    """Parameters that the authors released, re-encoded as JSON.

    The release has no densities of the first step: there they are those of a minimum near 1.

    Args:
      small, large: models, as under "transition" in the file.
      problems: which problems the observations are of, as under "observation".
      process: whose step counts the hazard has, as under "terminal_hazard_by_step".
      step_tokens: assumed length of a future step; the paper's by default.

    Raises:
      DataError: the file cannot be read, or lacks one of these.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        of_state = value["observation"][problems]["p_obs_given_state[min_prev][current]"]
        by_step = value["terminal_hazard_by_step"][process]
        joint = np.array([of_state[state] for state in STATES], float)
        return Parameters(
            p_small=value["transition"][small]["accuracy"],
            p_large=value["transition"][large]["accuracy"],
            hazard=np.array([by_step[str(t)] for t in range(1, len(by_step))]),
            step_tokens=step_tokens, joint=joint, first=_top_row(joint),
        )  # fmt: skip
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    except KeyError as error:
        raise DataError(f"{path}: has no {error}") from None
    except (TypeError, ValueError, DataError) as error:
        raise DataError(f"{path}: not the published parameters: {error}") from None


def _draft_right(step: StepTrace, before_right: bool, right: bool) -> bool:
    if step.action == "accept":
        return right
    if step.draft_right is not None:
        return step.draft_right
    return before_right and (step.score_draft is None or step.score_draft >= WRONG_BELOW)


def _columns(rows: dict[Any, tuple], width: int) -> np.ndarray:
    return np.array([*rows.values()], float).reshape(-1, width).T


def _top_row(joint: np.ndarray) -> np.ndarray:
    """p(newest score | minimum in the top bin, state), [3, bins]."""
    return joint[:, -1] / joint[:, -1].sum(axis=1, keepdims=True)


def _kernel_masses(x: np.ndarray, bins: int) -> np.ndarray:
    """Share of each point's reflected kernel in each bin, [n, bins]; a row sums to 1."""
    width = max(x.std() * len(x) ** (-1 / 6), 0.2 / bins)
    edges = np.linspace(0, 1, bins + 1)
    # Images of a point in the mirrors at 0 and 1; deviations are below 1/2, so these suffice.
    images = np.stack([x, -x, 2 - x, x - 2, x + 2], axis=1)[:, :, None]  # [n, 5, 1]
    below = np.asarray(ndtr((edges - images) / width), float).sum(axis=1)
    masses = np.diff(below, axis=1)
    return masses / masses.sum(axis=1, keepdims=True)
