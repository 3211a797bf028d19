"""Gradient descent with early stopping: it finds a minimum, and keeps the best held-out epoch."""

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.query.descent import Descent, minimise


def squared(params, batch, key):
    del key
    return jnp.square(params - batch["y"]).mean()


def run(data, held, epochs=200, patience=200, seed=0):
    return minimise(squared, jnp.zeros(()), {"y": np.array(data)}, {"y": np.array(held)},
                    jax.random.key(seed), Descent(0.05, 0.0, epochs, patience, rows=2), "test")


def test_finds_the_minimum():
    params, loss, _ = run([1.0, 1.0, 1.0, 1.0], [1.0])
    np.testing.assert_allclose(params, 1.0, atol=0.05)
    assert loss < 0.01


def test_keeps_the_epoch_that_is_best_on_held_out_data():
    # The data pull to 2, the held-out data want 1: stop on the way.
    params, loss, epoch = run([2.0] * 4, [1.0], patience=5)
    np.testing.assert_allclose(params, 1.0, atol=0.1)
    assert loss == float(np.square(params - np.float32(1.0))) and 0 < epoch < 30


def test_initial_parameters_stay_where_training_only_harms():
    params, _, epoch = run([2.0] * 4, [-1.0], patience=3)
    assert params == 0 and epoch == 0


def test_fewer_questions_than_a_batch():
    params, _, _ = run([1.0], [1.0])
    np.testing.assert_allclose(params, 1.0, atol=0.05)
