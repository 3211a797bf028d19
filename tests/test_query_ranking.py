"""Similarity-weighted ranking: weights and ratings by hand, and recovery."""

import jax
import jax.numpy as jnp
import numpy as np
from fake_outcomes import separable

from trim_jax.query.automix import separation
from trim_jax.query.ranking import SimilarityRanking, win_rates, bradley_terry, weights


def test_weights_by_hand():
    # 10 ** (s / max): 10, 10 ** 0.5 and 1, divided by their mean.
    raw = np.array([10, 10 ** 0.5, 1])
    np.testing.assert_allclose(weights(np.array([[0.8, 0.4, 0.0]]), 10.0),
                               [raw / raw.mean()], rtol=1e-6)
    assert np.isfinite(weights(np.zeros((1, 3)), 1e5)).all()


def test_two_models_give_the_weighted_share_of_wins():
    # With two models the optimum is in closed form: sum of weight * win over sum of weight.
    similarity = np.array([[0.5, 0.1, 0.9, 0.3], [0.1, 0.9, 0.1, 0.1]])
    win = np.array([1.0, 0.5, 0.0, 1.0], np.float32)
    w = weights(similarity, 10.0)
    np.testing.assert_allclose(win_rates(similarity, win, 10.0), (w @ win) / w.sum(1), atol=4e-3)


def test_three_models_recover_their_ratings():
    rating = np.array([0.8, 0.0, -0.8])
    first, second = np.array([0, 0, 1]), np.array([1, 2, 2])
    chance = 1 / (1 + np.exp(-(rating[first] - rating[second])))
    found = bradley_terry(jnp.array(first), jnp.array(second), jnp.array(chance, jnp.float32),
                          jnp.ones(3), 3)
    np.testing.assert_allclose(found, rating, atol=0.02)


def test_a_model_that_always_wins_has_a_finite_rating():
    found = bradley_terry(jnp.zeros(4, int), jnp.ones(4, int), jnp.ones(4), jnp.ones(4), 2)
    assert np.isfinite(found).all() and found[0] - found[1] > 3


def test_learns_which_questions_are_hard():
    fitted = SimilarityRanking().fit(separable(120), jax.random.key(0))
    test = separable(60, seed=1)
    assert separation(fitted.score(test), ~test.small_correct) > 0.98
    assert set(fitted.chosen) == {"base"}
