"""The fit to traces finds the process that made them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sim_runs import simulated_result
from trim_jax.errors import ResultError
from trim_jax.eval import traces as T
from trim_jax.policies.learned import Agg
from trim_jax.policies.sequence import Seq
from trim_jax.policies.simple import Threshold
from trim_jax.sim import compare, env, fit, tables
from trim_jax.sim.events import read_events
from trim_jax.sim.process import S1, S2, plans, simple_process

THRESHOLDS = (0.0, 0.3, 0.6, 0.9, 1.0)


@pytest.fixture(scope="module")
def truth():
    """Hard and easy problems, overlapping scores, 3 to 10 steps."""
    process = simple_process(0.8, 0.9)
    right, wrong = np.linspace(0, 1, 5) ** 0.3, np.linspace(0, 1, 5) ** 3
    scores = np.stack([right, wrong, wrong])[None, :, None, None]
    n_steps = jnp.arange(3, 11)
    return process.replace(
        n_steps=n_steps, kinds=plans(n_steps, 30), effect_sd=jnp.array([1.2, 0.8]),
        effect_correlation=jnp.asarray(0.7), draft_wrong=jnp.array([1.0, 0.0]),
        scores=jnp.asarray(np.broadcast_to(scores, (2, 3, 3, 1, 5)), jnp.float32),
        lucky=jnp.asarray(0.1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(truth, tmp_path_factory):
    return simulated_result(truth, 1500, THRESHOLDS, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def fitted(result):
    return fit.fit_events(*read_events(result))


def test_parameters_are_recovered(truth, fitted):
    process, report = fitted
    want = {"sd.small": 1.2, "sd.large": 0.8, "rho": 0.7, "slope.small": 0, "trend.small": 0,
            "draft_wrong.constant": 1.0, "draft_wrong.score": 0, "draft_doubted": 0}  # fmt: skip
    for name, value in want.items():
        found, error = report.parameters[name]
        assert abs(found - value) < 3 * error + 0.05, (name, found, error)
    assert report.parameters["sd.small"][1] < 0.15
    assert float(process.logit[0, 2, 4]) == pytest.approx(float(truth.logit[0, 2, 4]), abs=0.25)
    assert float(process.lucky) == pytest.approx(0.1, abs=0.03)
    assert float(process.same.max()) == 0


def test_score_quantiles_are_recovered(truth, fitted):
    middle = np.arange(10, 119) / 128
    for state, power in ((0, 0.3), (S1, 3), (S2, 3)):
        knots = np.linspace(0, 1, 5)
        want = np.interp(middle, knots, knots**power)
        found = np.asarray(fitted[0].scores[0, state, 2]).mean(axis=0)[10:119]
        assert np.abs(found - want).mean() < 0.05


def test_what_the_number_of_steps_and_a_doubt_change_is_recovered(truth, tmp_path_factory):
    """First errors in long solutions are found, in short ones not; a rewrite after a doubt errs."""
    short, long = np.linspace(0, 1, 5) ** 0.3, np.linspace(0, 1, 5) ** 3
    scores = np.stack([truth.scores[..., 0, :]] * 2, axis=3)
    scores[:, S2, :, 0], scores[:, S2, :, 1] = short, long
    other = truth.replace(
        step_edges=jnp.array([7]), scores=jnp.asarray(scores, jnp.float32),
        draft_doubted=jnp.asarray(3.0), draft_wrong=jnp.array([0.0, 0.0]),
    )  # fmt: skip
    run = simulated_result(other, 1500, THRESHOLDS, tmp_path_factory.mktemp("doubt"))
    process, report = fit.fit_events(*read_events(run))
    found, error = report.parameters["draft_doubted"]
    assert abs(found - 3.0) < 3 * error + 0.05 and error < 0.5
    edges = np.asarray(process.step_edges)
    median = np.asarray(process.scores[0, S2, 2, :, 64]).reshape(len(edges) + 1, -1).mean(axis=1)
    assert edges[0] <= 7 <= edges[-1]
    assert median[0] > 0.55 > 0.4 > median[-1]  # 0.81 and 0.13 without shrinkage
    ks = (0.0, 0.3, 0.6, 0.9, 1.0)
    both = [env.rollout(p, Threshold(ks), jax.random.key(9), 20_000) for p in (other, process)]
    np.testing.assert_allclose(both[1].accuracy, both[0].accuracy, atol=0.035)
    # A rewrite without a draft is as hard as after one that it would have had.
    assert float(both[1].accuracy[-1]) == pytest.approx(float(both[0].accuracy[-1]), abs=0.02)


def test_the_frontier_is_predicted(truth, fitted, result):
    ks = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
    both = [env.rollout(p, Threshold(ks), jax.random.key(9), 20_000) for p in (truth, fitted[0])]
    np.testing.assert_allclose(both[1].accuracy, both[0].accuracy, atol=0.035)
    np.testing.assert_allclose(both[1].strong_tokens, both[0].strong_tokens, rtol=0.1, atol=0.5)


def test_comparison_and_figure(fitted, result):
    (found,) = compare.compare(fitted[0], result, fitted=result)
    assert found.policy == "thr" and len(found.accuracy.predicted) == len(THRESHOLDS)
    for series in (found.accuracy, found.share):
        assert np.abs(series.predicted - series.recorded).mean() < 0.03
        np.testing.assert_allclose(series.fitted, series.recorded)
    assert found.accuracy.inside(found.accuracy.predicted).all()
    assert not found.accuracy.inside(found.accuracy.high + 0.01).any()
    assert (found.share.predicted[[0, -1]] == [0, 1]).all()
    _, line = compare.table_of([found]).splitlines()
    assert line.count("5 inside, 0.00 points") == 2 and line.count("inside") == 4
    assert "agree" not in line
    (known,) = compare.compare(fitted[0], result, fitted=result, refits=[fitted[0]] * 3)
    _, line = compare.table_of([known]).splitlines()
    assert line.count("5 agree, 5 inside") == 2
    assert (compare.figure([known]).axes[0].collections[-1].get_alpha()) < 0.5  # a band
    # What ran at other settings, or was not given, says nothing.
    few = dataclasses.replace(found.accuracy, fitted=None)
    assert " - " in compare.table_of([dataclasses.replace(found, accuracy=few)])
    assert [ax.get_title("left") for ax in compare.figure([found]).axes] == ["TRIM-Thr"]


def test_refits_spread_as_the_standard_errors_say(result, fitted):
    process, report = fitted
    fits = list(fit.resampled_fits(result, 8))
    assert len({jax.tree.map(jnp.shape, p) == jax.tree.map(jnp.shape, fits[0]) for p in fits}) == 1
    spread = lambda read: np.std([float(read(p)) for p in fits], ddof=1)  # noqa: E731
    for name, read in (("sd.small", lambda p: p.effect_sd[0]),
                       ("draft_wrong.constant", lambda p: p.draft_wrong[0])):  # fmt: skip
        # Of 8, with 7 degrees of freedom: 99 % of the time within these.
        assert 0.35 < spread(read) / report.parameters[name][1] < 1.8, name
    # Numbers of steps are 3 to 10, all as likely: 2.3 is their standard deviation.
    mean = np.mean([np.asarray(p.n_steps).mean() for p in fits])
    assert mean == pytest.approx(float(process.n_steps.mean()), abs=4 * 2.3 / 1500**0.5)
    assert 0.35 < spread(lambda p: p.n_steps.mean()) / (2.3 / 1500**0.5) < 1.8


def test_problems_drawn_once_each_give_the_fit_itself(result, fitted):
    observed = fit._Observed.of(*read_events(result))
    effects = fit._most_likely(observed.evidence, np.ones(observed.problems), observed.start)
    pseudo = fitted[1].pseudo_counts
    again = observed.drawn(np.ones(observed.problems, int)).process(effects, 30, pseudo)[0]
    jax.tree.map(np.testing.assert_array_equal, again, fitted[0])
    # Twice as many of the same: the prior says less, and the search ends elsewhere by a little.
    twice = np.full(observed.problems, 2)
    effects = fit._most_likely(observed.evidence, twice, effects)
    again = observed.drawn(twice).process(effects, 30, pseudo)[0]
    assert len(again.n_steps) == 2 * len(fitted[0].n_steps)
    np.testing.assert_allclose(again.effect_sd, fitted[0].effect_sd, atol=0.03)
    np.testing.assert_array_equal(again.draft_tokens, fitted[0].draft_tokens)


def test_the_error_of_a_prediction_is_that_of_the_fits_and_not_of_chance(truth):
    policy, key = Threshold((0.0, 1.0)), jax.random.key(3)

    def errors(processes):
        keys = jax.random.split(key, len(processes))
        each = (compare._problems(p, own, 2000) for p, own in zip(processes, keys))
        return compare._errors([compare._predicted(problems, policy) for problems in each])

    alike = errors([truth] * 60)
    assert (alike < 0.007).all()  # by chance alone they would differ by 0.011
    shifts = np.linspace(-0.6, 0.6, 12)
    apart = [truth.replace(logit=truth.logit.at[0].add(shift)) for shift in shifts]
    each = [env.rollout(p, policy, key, 20_000).accuracy[0] for p in apart]
    accuracy, share = errors(apart)
    assert accuracy[0] == pytest.approx(np.std(each, ddof=1), rel=0.1) and accuracy[0] > 0.05
    assert accuracy[1] < 0.01 and (share < 1e-6).all()  # the ends cost nothing, and everything


def test_predictions_agree_where_the_difference_is_within_its_interval():
    three = lambda *x: np.array(x, float)  # noqa: E731
    series = compare.Series(
        predicted=three(0.54, 0.54, 0.45), recorded=three(0.5, 0.5, 0.5),
        low=three(0.4, 0.4, 0.46), high=three(0.53, 0.53, 0.6), error=three(0.01, 0.02, 0.0),
    )  # fmt: skip
    # Limits: hypot(0.03, 0.0196) = 0.036; hypot(0.03, 0.039) = 0.049; 0.04.
    assert series.agrees.tolist() == [False, True, False]
    assert not series.inside(series.predicted).any()


def test_networks_of_their_own_are_simulated_one_by_one_to_the_same_end(truth):
    policy = Agg((10.0, 100.0, 1000.0))
    keys = jax.random.split(jax.random.key(1), 3)
    weights = jax.tree.map(lambda x: 5.0 * x, jax.vmap(policy.init_weights)(keys))
    policy = dataclasses.replace(policy, weights=weights)
    want = env.rollout(truth, policy, jax.random.key(0), 400)
    got = compare._simulate(truth, policy, jax.random.key(0), 400)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert len(np.unique(got.strong_tokens)) == 3


def test_a_sequence_policy_needs_no_room_for_steps_that_there_are_not(truth):
    policy = Seq((10.0, 1000.0))
    weights = jax.tree.map(lambda x: 3.0 * x[None], policy.init_weights(jax.random.key(3)))
    policy = dataclasses.replace(policy, weights=weights)
    process = dataclasses.replace(truth, history=True)
    want = env.rollout(process, policy, jax.random.key(0), 2000)
    got = compare._simulate(process.trimmed(), policy, jax.random.key(0), 2000)
    np.testing.assert_allclose(got.accuracy, want.accuracy, atol=0.003)
    np.testing.assert_allclose(got.strong_tokens, want.strong_tokens, rtol=0.005)
    assert 0 < want.strong_steps.min() and (want.strong_steps < want.steps).all()


def test_events_are_counted_once(result):
    drafts, rewrites, solutions = read_events(result)
    assert len(solutions.n) == 1500 and solutions.n.max() <= 10
    first = drafts[drafts.t == 0]
    assert len(first) == 1500 and (first.min_score == 1).all()  # five settings, one draft
    assert (rewrites.draft_right[rewrites.t == 0] >= 0).all()  # direct steps know the draft
    assert set(np.unique(drafts.state)) == {0, 1, 2}


def test_runs_without_labels_or_scores_are_refused(result):
    bare = [dataclasses.replace(s, right=None) for s in result.traces[0].steps]
    trace = dataclasses.replace(result.traces[0], steps=tuple(bare))
    with pytest.raises(ResultError, match="a step without a label"):
        read_events(dataclasses.replace(result, traces=(trace,)))
    unscored = dataclasses.replace(result, traces=result.traces[:1])  # k = 0
    with pytest.raises(ResultError, match="scored drafts and steps of the large model"):
        fit.fit_result(unscored)


def test_a_draft_that_one_run_left_unscored_has_the_score_of_another(result):
    """Whoever rejects it without the PRM, and whoever accepts it with, met the same draft."""
    accepts = T.StepTrace("d", "small", "accept", 0.9, 0.9, 5, None, None, False, None, None)
    rejects = T.StepTrace("l", "large", "regenerate", None, None, 6, "d", 5, True, False, None)
    traces = [dataclasses.replace(result.traces[0], policy=policy, steps=(step,))
              for policy, step in (("loglik", rejects), ("thr", accepts))]  # fmt: skip
    rewrites = read_events(dataclasses.replace(result, traces=tuple(traces)))[1]
    assert (rewrites.draft_right, rewrites.draft_score, rewrites.draft_tokens) == (0, 0.9, 5)


def test_lengths_are_cut_where_rightness_changes():
    tokens = np.repeat([5, 6, 7, 8, 9, 10], 200)
    right = np.where(tokens < 8, np.arange(1200) % 10 > 0, np.arange(1200) % 10 > 6)
    np.testing.assert_array_equal(tables.cut_lengths(tokens, right, 4), [8])
    assert len(tables.cut_lengths(tokens, np.arange(1200) % 10 > 3, 4)) == 0


def test_entries_stand_for_a_sample():
    np.testing.assert_array_equal(tables.entries(np.array([3, 1, 2, 2]), 4), [1, 2, 2, 3])
    assert np.mean(tables.entries(np.r_[np.zeros(75), np.ones(25)])) == 0.25


def test_cells_of_scores_draw_on_coarser_ones():
    """By hand, with one pseudo-observation (four at the last cut); columns are scores."""
    large, s0, s2 = 1, 0, 2
    where = np.array([
        [0, 0, 0, 0, 0, large],  # writer
        [s0, s0, s0, s2, s2, s2],  # state
        [2, 2, 3, 2, 3, 2],  # kind
        [0, 1, 0, 0, 1, 1],  # bin of the number of steps
        [0, 0, 0, 1, 0, 1],  # bin of the least score
    ])  # fmt: skip

    def weights(*cell):
        return tables._cell_weights(where, cell, 1.0)

    mix = lambda prior, level, pseudo=1: (pseudo * prior + level) / (pseudo + level.sum())  # noqa: E731
    level = lambda *places: np.isin(np.arange(6), places).astype(float)  # noqa: E731
    every = np.full(6, 1 / 6)
    # Right: the state, then the kind, then the number of steps; the least score cuts nothing.
    want = mix(mix(mix(every, level(0, 1, 2)), level(0, 1)), level(0))
    np.testing.assert_allclose(weights(0, s0, 2, 0, 0), want)
    # No such least score: the last cut has nothing to add, and takes nothing away.
    np.testing.assert_allclose(weights(0, s0, 2, 0, 1), want)
    # First errors: the number of steps, then the kind; of this kind none has as many.
    want = mix(mix(every, level(3, 4)), level(4))
    np.testing.assert_allclose(weights(0, s2, 2, 1, 0), want)
    # The large model's cells begin with the small model's.
    np.testing.assert_allclose(weights(large, s2, 2, 1, 1), mix(want, level(5)))
    # Nobody cuts the number of steps: the kind comes first again.
    where[3] = 0
    want = mix(mix(mix(every, level(3, 4)), level(3)), level(5))
    np.testing.assert_allclose(weights(large, s2, 2, 0, 1), want)
    where[4, 0] = 1
    want = mix(mix(mix(every, level(0, 1, 2)), level(0, 1)), level(1), 4)
    np.testing.assert_allclose(weights(0, s0, 2, 0, 0), want)


def test_one_odd_score_stays_one_odd_score():
    # Of 2,000 right steps one has a score near 0; a straight line to it would be half the tail.
    score = np.sort(np.append(np.random.default_rng(0).uniform(0.97, 1, 1999), 0.01))
    reached = (np.arange(2000) + 0.5) / 2000
    table = tables._quantiles(reached, score)
    assert np.all(np.diff(table) >= 0)
    assert np.trapezoid(table, dx=1 / tables.QUANTILES) == pytest.approx(score.mean(), abs=2e-4)
    drawn = np.interp(np.random.default_rng(1).random(100_000), np.linspace(0, 1, len(table)), table)
    assert (drawn < 0.6).mean() < 0.001
