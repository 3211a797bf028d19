"""AutoMix: the one-step POMDP by hand, the verifiers, thresholds, recovery."""

import jax
import numpy as np
import pytest
from fake_outcomes import make, separable

from trim_jax.errors import DataError
from trim_jax.query import automix
from trim_jax.query.automix import AutoMix, AutoMixPRM, OneStep, estimate, read_rewards, separation


def test_belief_and_decision_by_hand():
    # Two observations, low and high. P(low | good, needy, hopeless) = 0.1, 0.5, 0.9.
    model = OneStep(edges=np.array([0.5]), seen=np.array([[0.1, 0.5, 0.9], [0.9, 0.5, 0.1]]),
                    prior=np.array([0.5, 0.3, 0.2]), rescue=np.array([-0.1, 1.0, 0.0]))
    low = np.array([0.05, 0.15, 0.18]) / 0.38
    high = np.array([0.45, 0.15, 0.02]) / 0.62
    np.testing.assert_allclose(model.belief(np.array([0.2, 0.5])), [low, high])
    np.testing.assert_allclose(model.advantage(np.array([0.2, 0.9])),
                               [low[1] - 0.1 * low[0], high[1] - 0.1 * high[0]])
    # At a price of 0.3 per routed question only the low observation is worth it (0.382, 0.169).
    assert (model.advantage(np.array([0.2, 0.9])) > 0.3).tolist() == [True, False]


def test_estimate_by_hand():
    v = np.array([0.1, 0.2, 0.8, 0.9])
    small = np.array([False, False, True, True])
    large = np.array([True, False, True, False])
    model = estimate(v, small, large, bins=2)
    np.testing.assert_allclose(model.edges, [0.5])
    # Counts (low, high): good 0, 2; needy 1, 0; hopeless 1, 0; half a count in every bin.
    np.testing.assert_allclose(model.seen, [[0.5 / 3, 0.75, 0.75], [2.5 / 3, 0.25, 0.25]])
    np.testing.assert_allclose(model.prior, [3 / 7, 2 / 7, 2 / 7])
    np.testing.assert_allclose(model.rescue, [2 / 3 - 1, 1, 0])


def test_the_pomdp_leaves_hopeless_questions_alone_and_the_threshold_does_not():
    # Lowest rewards: nobody solves it. Middle: only the large model. High: both.
    level = [0.1, 0.5, 0.9] * 40
    small, large = [[v > 0.7] for v in level], [[v > 0.3] for v in level]
    outcomes = make(small, large, scores=[[[v]] for v in level])
    judged = {d: AutoMixPRM(d, bins=(3,)).fit(outcomes, jax.random.key(0)).score(outcomes)[:3, 0]
              for d in ("threshold", "pomdp")}
    assert np.argsort(-judged["threshold"]).tolist() == [0, 1, 2]
    assert judged["pomdp"].argmax() == 1 and judged["pomdp"][1] > 0.8
    assert judged["pomdp"][0] < 0.2


def test_aggregates_ignore_what_was_not_seen():
    outcomes = make([[1], [1]], [[1], [1]], scores=[[[0.5, 0.25]], [[0.9, 0.8, 0.7]]])
    found = {a: read_rewards(outcomes, a)[:, 0] for a in automix.AGGREGATES}
    np.testing.assert_allclose(found["min"], [0.25, 0.7])
    np.testing.assert_allclose(found["product"], [0.125, 0.504], rtol=1e-6)
    np.testing.assert_allclose(found["mean"], [0.375, 0.8])
    np.testing.assert_allclose(found["last"], [0.25, 0.7])
    with pytest.raises(DataError, match="no process rewards"):
        read_rewards(make([[1]], [[1]]), "min")


def test_separation_by_hand():
    # Pairs (right, wrong): 0.9 > 0.5, 0.9 > 0.2, 0.5 = 0.5, 0.5 > 0.2.
    value, right = np.array([0.9, 0.5, 0.5, 0.2]), np.array([True, True, False, False])
    assert separation(value, right) == 3.5 / 4
    assert separation(-value, right) == 0.5 / 4


def test_logistic_regression_is_at_its_optimum():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    y = rng.random(200) < 1 / (1 + np.exp(-(x[:, 0] * 2 - 1)))
    w = np.asarray(automix._logistic(x, y.astype(np.float32), 0.1))
    slope = np.column_stack([x, np.ones(200)]).T @ (
        1 / (1 + np.exp(-(x @ w[:3] + w[3]))) - y) / 200
    np.testing.assert_allclose(slope + 0.1 * w * [1, 1, 1, 0], 0, atol=1e-4)


@pytest.mark.parametrize("decision", ["threshold", "pomdp"])
def test_the_stand_in_learns_to_judge_solutions(decision):
    train, test = separable(120), separable(60, seed=1, seeds=2)
    fitted = AutoMix(decision, bins=(4,)).fit(train, jax.random.key(0))
    scores = fitted.score(test)
    assert scores.shape == (60, 2)
    assert separation(scores, ~test.small_correct) > 0.95
    np.testing.assert_array_equal(
        AutoMix(decision, bins=(4,)).fit(train, jax.random.key(0)).score(test), scores)


def test_names_tell_the_decisions_apart():
    assert AutoMix("pomdp").name == "query-automix-pomdp"
    assert AutoMixPRM("threshold").name == "query-automix-prm-threshold"
