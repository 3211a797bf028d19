"""Interventions, waste and process-reward quality against direct counts."""

from dataclasses import replace

import fake_traces
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_jax.eval import analysis, bootstrap
from trim_jax.eval.traces import Result, StepTrace, Trace, load_result, tables

LEDGER = fake_traces.simulate([0], [0])[0].ledger


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return load_result(fake_traces.write_result(tmp_path_factory.mktemp("a") / "run", range(40)))


def step(action, right, draft_right=None, n=10, score_draft=None, score=None, kind="add"):
    rewritten = action == "regenerate"
    return StepTrace("t", "small" if action == "accept" else "large", action, score_draft, score,
                     n, "d" if rewritten else None, 7 if rewritten else None, right, draft_right,
                     kind)


def one_trace_result(*steps, like):
    strong = sum(s.n_tokens for s in steps if s.writer == "large")
    trace = Trace(like.problems[0].id, 0, "thr", (0, 1), "boxed", "1", False, strong, steps, LEDGER)
    policy = {"thr": replace(fake_traces.POLICIES["thr"], settings=(0.5,))}
    return Result(like.folder, "one", {}, {}, None, policy, like.problems[:1], (0,), (trace,), None)


def test_interventions_by_hand(result):
    made = one_trace_result(
        step("accept", True, kind="start"),
        step("regenerate", True, draft_right=False, kind="times"),  # a first error, caught
        step("regenerate", True, draft_right=True, kind="times"),   # needless
        step("accept", False, kind="add"),                          # a first error, missed
        step("regenerate", False, draft_right=False, kind="add"),   # too late
        like=result)
    table = tables(made)["thr"]
    by_position, by_kind = analysis.interventions(made, table, 0)
    assert by_position.groups == (1, 2, 3, 4, 5)
    np.testing.assert_array_equal(by_position.drafts, [1, 1, 1, 1, 1])
    np.testing.assert_array_equal(by_position.regenerated, [0, 1, 1, 0, 1])
    np.testing.assert_array_equal(by_position.first_errors, [0, 1, 0, 1, 0])
    assert by_kind.groups == ("add", "start", "times")
    np.testing.assert_array_equal(by_kind.drafts, [2, 1, 2])
    np.testing.assert_array_equal(by_kind.regenerated, [1, 0, 2])
    np.testing.assert_array_equal(by_kind.first_errors, [1, 0, 1])
    assert analysis.what_interventions_met(made, table, 0) == {
        "caught": 1, "needless": 1, "too_late": 1}


def test_waste_counts_strong_tokens_after_the_first_wrong_step(result):
    made = one_trace_result(
        step("regenerate", True, draft_right=False, n=5),
        step("regenerate", False, draft_right=False, n=7),  # the wrong step itself is not waste
        step("accept", False, n=11),
        step("regenerate", False, draft_right=False, n=13),
        step("regenerate", False, draft_right=False, n=17), like=result)
    np.testing.assert_array_equal(analysis.wasted_tokens(made), [30])


def test_unlabelled_traces_have_no_analysis_by_truth(result):
    made = one_trace_result(step("accept", None, score_draft=0.5), like=result)
    table = tables(made)["thr"]
    assert analysis.wasted_tokens(made) is None
    assert analysis.what_interventions_met(made, table, 0) is None
    assert analysis.interventions(made, table, 0)[0].first_errors is None
    assert analysis.scored_steps(made) is None


def test_oracle_never_intervenes_in_vain(result):
    table = tables(result)["oracle"]
    met = analysis.what_interventions_met(result, table, 0)
    assert met["caught"] > 20 and met["needless"] == met["too_late"] == 0
    waste = analysis.wasted_tokens(result)[table.trace_index]
    assert waste.sum() == 0
    assert analysis.wasted_tokens(result)[tables(result)["random"].trace_index].sum() > 0


def test_scored_steps_are_the_newest_steps_of_right_prefixes(result):
    made = one_trace_result(
        step("accept", True, score_draft=0.9, score=0.9),
        step("regenerate", True, draft_right=False, score_draft=0.2, score=0.8),
        step("regenerate", False, draft_right=True, score_draft=0.7, score=None),
        step("accept", False, score_draft=0.1, score=0.1), like=result)
    found = analysis.scored_steps(made)
    # (draft 0.9 right), (draft 0.2 wrong), (rewrite 0.8 right), (draft 0.7 right); the rewrite of
    # step 3 was never scored, and step 4 follows a wrong step.
    rows = sorted(zip(found.score, found.right, found.position, found.by_large))
    assert rows == [(0.2, False, 2, False), (0.7, True, 3, False), (0.8, True, 2, True),
                    (0.9, True, 1, False)]


def test_a_step_met_by_many_settings_is_counted_once(result):
    found = analysis.scored_steps(result)
    first = found.where((found.position == 1) & ~found.by_large)
    assert len(first.score) == len(result.problems) * len(result.seeds)
    everything = [(t.problem_id, t.seed, tuple(s.action for s in t.steps[:i]))
                  for t in result.traces for i, s in enumerate(t.steps)
                  if s.score_draft is not None and (i == 0 or t.steps[i - 1].right)]
    assert (~found.by_large).sum() == len({(p, s, tuple(a == "accept" for a in h))
                                           for p, s, h in everything})


def _slow_auc(score, right):
    good, bad = score[right], score[~right]
    return np.mean([(g > b) + 0.5 * (g == b) for g in good for b in bad])


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
@settings(max_examples=100, deadline=None)
def test_auc_is_the_share_of_ordered_pairs(rows):
    score, right = np.array([r[0] for r in rows]) / 6, np.array([r[1] for r in rows])
    steps = analysis.ScoredSteps(score, right, np.zeros(len(rows), int), np.ones(len(rows), int),
                                 np.zeros(len(rows), bool))
    found = analysis.auc(steps, bootstrap.resample(1, 1, 3))
    assert found.steps == len(rows) and found.wrong == (~right).sum()
    if right.all() or not right.any():
        assert np.isnan(found.auc)
    else:
        assert found.auc == pytest.approx(_slow_auc(score, right))
        assert found.low == found.high == pytest.approx(found.auc)  # one problem: no variation


def test_auc_interval_resamples_problems(result):
    found = analysis.scored_steps(result)
    drawn = bootstrap.resample(40, 2, 150, seed=4)
    got = analysis.auc(found, drawn)
    assert got.low < got.auc < got.high
    few = analysis.ScoredSteps(*(getattr(found, f)[:400] for f in
                                 ("score", "right", "problem", "position", "by_large")))
    weights = drawn.per_problem[:3, few.problem].astype(float)
    for weight, value in zip(weights, analysis._weighted_auc(few.score, few.right, weights)):
        rows = np.repeat(np.arange(400), weight.astype(int))
        assert value == pytest.approx(_slow_auc(few.score[rows], few.right[rows]))


def test_reliability_by_hand():
    steps = analysis.ScoredSteps(
        np.array([0.05, 0.15, 0.19, 0.95, 1.0, 0.9]),
        np.array([False, True, False, True, True, False]),
        np.array([0, 0, 1, 0, 1, 1]), np.ones(6, int), np.zeros(6, bool))
    found = analysis.reliability(steps, bootstrap.resample(2, 1, 200))
    np.testing.assert_array_equal(found.steps, [1, 2, 0, 0, 0, 0, 0, 0, 0, 3])
    np.testing.assert_allclose(found.right[[0, 1, 9]], [0, 0.5, 2 / 3])
    np.testing.assert_allclose(found.mean_score[[0, 1, 9]], [0.05, 0.17, 0.95])
    assert np.isnan(found.right[2])
    # Problem 0 alone or problem 1 alone: bin 1 is all right or all wrong, bin 9 is 1 or 1/2.
    assert (found.band.low[1], found.band.high[1]) == (0.0, 1.0)
    assert (found.band.low[9], found.band.high[9]) == (0.5, 1.0)
    assert found.calibration_error == pytest.approx((0.05 + 2 * 0.33 + 3 * (0.95 - 2 / 3)) / 6)
