"""The controls: random questions, and the best single model."""

import jax
import numpy as np
from fake_outcomes import make, separable

from trim_jax.query.evaluate import sweep
from trim_jax.query.simple import BestSingle, RandomQuestions


def test_random_routes_the_share_that_is_asked_for():
    outcomes = separable(400, seeds=2)
    fitted = RandomQuestions().fit(outcomes, jax.random.key(0))
    found = sweep(fitted, outcomes, (0.0, 0.3, 1.0))
    np.testing.assert_allclose(found.routed.mean((1, 2)), [0, 0.3, 1], atol=0.05)


def test_random_numbers_belong_to_the_question_not_to_its_batch():
    outcomes = separable(20, seeds=2)
    fitted = RandomQuestions().fit(outcomes, jax.random.key(0))
    scores = fitted.score(outcomes)
    assert len(np.unique(scores)) == 40
    np.testing.assert_array_equal(fitted.score(outcomes.take(np.array([7, 3]))), scores[[7, 3]])
    other = RandomQuestions().fit(outcomes, jax.random.key(1)).score(outcomes)
    assert not np.array_equal(other, scores)


def test_best_single_is_one_model_for_every_question():
    weak, strong = [[0], [1], [0]], [[1], [1], [1]]
    large = BestSingle().fit(make(weak, strong), jax.random.key(0))
    found = sweep(large, make(weak, strong), (0.0, 0.5, 1.0))
    assert found.routed.reshape(3, -1).all(1).tolist() == [False, False, True]
    small = BestSingle().fit(make(strong, weak), jax.random.key(0))
    assert small.chosen == {"model": "small"}
    assert not sweep(small, make(strong, weak), (0.0, 0.5, 1.0)).routed.any()
