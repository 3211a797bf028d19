"""Smoothie: the triplet on three points, its errors without labels, recovery."""

import dataclasses

import jax
import numpy as np
from fake_outcomes import make, separable

from trim_jax.query.automix import separation
from trim_jax.query.smoothie import Smoothie, excess_error, triplet


def test_triplet_on_three_points():
    # Points 0, 3 and -4 on orthogonal error axes from the truth 0: squared errors 1, 4 and 9 give
    # squared distances 5, 10 and 13.
    assert triplet(5.0, 10.0, 13.0) == 1.0
    assert triplet(5.0, 13.0, 10.0) == 4.0
    assert triplet(10.0, 13.0, 5.0) == 9.0


def by_axis(texts):
    """Orthogonal errors of three writers: small (1, 0, 0), large (0, 2, 0), mixed (0, 0, 3)."""
    axes = {"s": (1, 0, 0), "l": (0, 2, 0), "m": (0, 0, 3)}
    return np.array([axes[t] for t in texts], np.float32)


def test_excess_error_is_the_difference_of_two_triplets():
    outcomes = make([[1]], [[1]], small_texts=(("s",),), large_texts=(("l",),),
                    mixed_texts=(("m",),))
    np.testing.assert_allclose(excess_error(outcomes, by_axis), [1 - 4])
    # Without a third writer only the distance of the two is left: 1 + 4.
    two = dataclasses.replace(outcomes, mixed_texts=None)
    np.testing.assert_allclose(excess_error(two, by_axis), [5])


def test_no_label_is_read():
    train, test = separable(100), separable(40, seed=1)
    blind = dataclasses.replace(train, small_correct=~train.small_correct,
                                large_correct=~train.large_correct)
    a, b = (Smoothie().fit(o, jax.random.key(0)) for o in (train, blind))
    np.testing.assert_array_equal(a.score(test), b.score(test))
    np.testing.assert_array_equal(a.calibration, b.calibration)


def test_finds_the_questions_on_which_the_small_model_strays():
    fitted = Smoothie().fit(separable(120), jax.random.key(0))
    test = separable(60, seed=1)
    assert separation(fitted.score(test), ~test.small_correct) > 0.95
    assert fitted.chosen["writers"] == 3
