"""Matrix factorisation: its formula by hand, recovery, determinism."""

import jax
import jax.numpy as jnp
import numpy as np
from fake_outcomes import separable

from trim_jax.query.automix import separation
from trim_jax.query.matrix import MatrixFactorisation, log_odds


def test_log_odds_by_hand():
    params = {"v": jnp.array([[3.0, 4.0], [0.0, 2.0]]),  # small, large; lengths 5 and 2
              "W": jnp.array([[1.0, 0.0], [2.0, 1.0]]), "b": jnp.array([0.5, 0.0]),
              "w": jnp.array([2.0, 10.0])}
    e = np.array([[1.0, 1.0]])
    projected = np.array([1 + 2 + 0.5, 1.0])
    delta = lambda v: (np.array([2.0, 10.0]) * v * projected).sum()  # noqa: E731
    want = delta(np.array([0, 1])) - delta(np.array([0.6, 0.8]))
    np.testing.assert_allclose(log_odds(params, e), [want], rtol=1e-6)


def test_learns_which_questions_are_hard_and_repeats_itself():
    train, test = separable(160), separable(60, seed=1)
    router = MatrixFactorisation(weight_decays=(0.1,))
    fitted = router.fit(train, jax.random.key(0))
    scores = fitted.score(test)
    assert separation(scores, ~test.small_correct) > 0.98
    np.testing.assert_array_equal(router.fit(train, jax.random.key(0)).score(test), scores)
    assert not np.array_equal(router.fit(train, jax.random.key(1)).score(test), scores)
