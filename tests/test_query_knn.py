"""k-NN: the vote by hand, and recovery of a rule that the words give away."""

import jax
import numpy as np
from fake_outcomes import make, separable

from trim_jax.query.automix import separation
from trim_jax.query.knn import NearestNeighbours, vote


def test_vote_by_hand():
    similarity = np.array([[0.9, 0.1, 0.8, 0.5], [0.2, 0.3, 0.3, 0.3]])
    values = np.array([1.0, 0.0, -1.0, 0.5])
    np.testing.assert_allclose(vote(similarity, values, 1), [1.0, 0.0])
    np.testing.assert_allclose(vote(similarity, values, 3), [0.5 / 3, -0.5 / 3])
    np.testing.assert_allclose(vote(similarity, values, 9), [0.125, 0.125])


def test_learns_which_questions_are_hard():
    fitted = NearestNeighbours().fit(separable(120), jax.random.key(0))
    test = separable(60, seed=1, seeds=2)
    scores = fitted.score(test)
    assert scores.shape == (60, 2) and scores.dtype == np.float32
    assert separation(scores, ~test.small_correct) > 0.98


def test_any_embedding_plugs_in():
    # An embedding that knows the answer: two orthogonal directions.
    embed = lambda texts: np.array([[t == "a", t == "b"] for t in texts], np.float32)  # noqa: E731
    train = make([[1], [0]] * 10, [[1], [1]] * 10, ["a", "b"] * 10)
    fitted = NearestNeighbours(lambda texts: embed, neighbours=(5,)).fit(train, jax.random.key(0))
    test = make([[0], [0]], [[0], [0]], ["b", "a"])
    np.testing.assert_allclose(fitted.score(test)[:, 0], [1, 0])


def test_k_is_chosen_on_held_out_questions():
    # Gains without any pattern: the widest vote has the least held-out error.
    rng = np.random.default_rng(0)
    noise = make(rng.random((100, 1)) < 0.5, np.ones((100, 1)))
    assert NearestNeighbours(neighbours=(1, 60)).fit(noise, jax.random.key(0)).chosen == {"k": 60}
    hard = NearestNeighbours(neighbours=(5, 90)).fit(separable(120), jax.random.key(0))
    assert hard.chosen == {"k": 5}
