"""The step process as a policy on the large model's opinion meets it (`policies.judged`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from trim_jax.errors import ResultError
from trim_jax.eval.traces import Result, StepTrace, Trace
from trim_jax.sim.fit import Report, fit_result, resampled_fits
from trim_jax.sim.process import LARGE, Process


def fit_judged(result: Result, max_steps: int) -> tuple[Process, Report]:
    """The simulator fitted to a run's judged solutions, with likelihoods for scores.

    Raises:
      ResultError: no draft was judged, or the run has no labels or no steps of the large model.
    """
    process, report = fit_result(likelihoods_as_scores(result), max_steps)
    return _large_is_right(process), report


def resampled_judged(result: Result, fits: int, max_steps: int) -> Iterator[Process]:
    """As `sim.fit.resampled_fits`, with likelihoods for scores.

    Raises:
      ResultError: see `fit_judged`.
    """
    return map(_large_is_right, resampled_fits(likelihoods_as_scores(result), fits, max_steps))


def _large_is_right(process: Process) -> Process:
    # The fit draws scarce cells towards the small model's; here what a rewrite has is known.
    return process.replace(scores=process.scores.at[LARGE].set(1.0))


def likelihoods_as_scores(result: Result) -> Result:
    """A run's judged solutions, with likelihoods in the place of the PRM's scores.

    Raises:
      ResultError: no draft was judged.
    """
    seen = [_seen(trace) for trace in result.traces if _is_judged(trace)]
    if not seen:
        raise ResultError(f"{result.folder}: the large model judged no draft; run a policy that "
                          "has it do so, such as loglik")  # fmt: skip
    return dataclasses.replace(result, traces=tuple(seen))


def _is_judged(trace: Trace) -> bool:
    return any(step.draft_likelihood is not None for step in trace.steps)


def _seen(trace: Trace) -> Trace:
    return dataclasses.replace(trace, steps=tuple(map(_seen_step, trace.steps)))


def _seen_step(step: StepTrace) -> StepTrace:
    kept = 1.0 if step.writer == "large" else step.draft_likelihood
    return dataclasses.replace(step, score_draft=step.draft_likelihood, score=kept)
