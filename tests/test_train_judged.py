"""What a judged policy learns from: likelihoods for scores, rewrites held to be right."""

import dataclasses

import numpy as np
import pytest
from fake_traces import write_result

from trim_jax.errors import ResultError
from trim_jax.eval.traces import load_result
from trim_jax.sim.events import read_events
from trim_jax.sim.process import LARGE
from trim_jax.train.judged import fit_judged, likelihoods_as_scores


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A run in which every draft with a PRM score was judged too, with its square."""
    result = load_result(write_result(tmp_path_factory.mktemp("a") / "run", range(40)))
    judged = [
        dataclasses.replace(trace, steps=tuple(
            dataclasses.replace(s, draft_likelihood=s.score_draft and s.score_draft**2)
            for s in trace.steps))
        for trace in result.traces
    ]  # fmt: skip
    return dataclasses.replace(result, traces=tuple(judged))


def test_scores_are_replaced_and_unjudged_solutions_left_out(result):
    seen = likelihoods_as_scores(result)
    judged = [t for t in result.traces if any(s.draft_likelihood is not None for s in t.steps)]
    assert 0 < len(seen.traces) == len(judged) < len(result.traces)
    for old, new in zip(judged, seen.traces):
        for a, b in zip(old.steps, new.steps):
            assert b.score_draft == a.draft_likelihood
            assert b.score == (1.0 if a.writer == "large" else a.draft_likelihood)


def test_the_fitted_process_has_the_likelihoods(result):
    process, _ = fit_judged(result, 12)
    drafts = read_events(likelihoods_as_scores(result))[0]
    right = drafts.score[drafts.prefix_right & drafts.right & ~np.isnan(drafts.score)]
    table = np.asarray(process.scores[0, 0])
    assert abs(np.median(table) - np.median(right)) < 0.05
    np.testing.assert_array_equal(process.scores[LARGE], 1.0)


def test_a_run_without_a_judge_is_refused(result):
    steps = [dataclasses.replace(s, draft_likelihood=None) for s in result.traces[0].steps]
    bare = dataclasses.replace(result.traces[0], steps=tuple(steps))
    with pytest.raises(ResultError, match="the large model judged no draft"):
        likelihoods_as_scores(dataclasses.replace(result, traces=(bare,)))
