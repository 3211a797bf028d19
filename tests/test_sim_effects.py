"""The likelihood of right and wrong steps: counted together as each for itself, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trim_jax.sim import effects as E
from trim_jax.sim.process import LARGE, SMALL

SHAPES = {"logit": (2, 3), "sd": (2,), "rho": (), "slope": (2,), "trend": (2,)}


@pytest.fixture(scope="module")
def parameters():
    x = jax.random.normal(jax.random.key(0), (sum(int(np.prod(s)) for s in SHAPES.values()),))
    return E.unpack(x, SHAPES)


def steps_of(count, seed=0):
    """`count` steps of few kinds and numbers, and the problems of a seventh as many."""
    random = np.random.default_rng(seed)
    draw = lambda most: random.integers(0, most, count)  # noqa: E731
    steps = E.Steps(draw(3), draw(4), 4 + draw(2), draw(2).astype(bool))
    return steps, draw(count // 7)


def test_steps_that_are_alike_count_as_often_as_they_are_there(parameters):
    steps, problem = steps_of(350)
    z, _ = E.quadrature(5)
    want = np.zeros([50, 25])
    each = E.outcome(steps.right, E.logits(parameters, LARGE, steps, z))
    np.add.at(want, problem, np.asarray(each))
    together, count = E.alike(steps, problem, 50)
    assert len(together.kind) <= 3 * 4 * 2 * 2 and count.sum() == 350
    found = E.outcome(together.right, E.logits(parameters, LARGE, together, z))
    np.testing.assert_allclose(E.a_problem(count, found), want, rtol=1e-5, atol=1e-5)


def test_nodes_are_standard_normal_and_effects_have_their_moments():
    z, log_mass = E.quadrature(9)
    mass = np.exp(log_mass)
    assert mass.sum() == pytest.approx(1, abs=1e-5)
    p = {"logit": jnp.zeros([2, 1]), "sd": jnp.array([1.5, 0.5]), "rho": jnp.asarray(0.6),
         "slope": jnp.zeros(2), "trend": jnp.zeros(2)}  # fmt: skip
    one = E.Steps(*(np.zeros(1, int) for _ in range(3)), np.ones(1, bool))
    small, large = (np.asarray(E.logits(p, model, one, z))[0] for model in (SMALL, LARGE))
    moments = [mass @ small**2, mass @ large**2, mass @ (small * large)]
    np.testing.assert_allclose(moments, [1.5**2, 0.5**2, 0.6 * 1.5 * 0.5], rtol=1e-4)


def test_a_rewrite_without_a_draft_is_a_mixture_over_the_draft(parameters):
    steps, _ = steps_of(14)
    z, _ = E.quadrature(3)
    sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x, float)))  # noqa: E731
    own, draft = (E.logits(parameters, model, steps, z) for model in (LARGE, SMALL))
    right = sigmoid(draft) * sigmoid(own - 0.3) + (1 - sigmoid(draft)) * sigmoid(own - 1.1)
    want = np.where(steps.right[:, None], right, 1 - right)
    found = E.without_draft(parameters, steps, z, 0.3, 1.1)
    np.testing.assert_allclose(np.exp(found), want, rtol=1e-4)


def test_the_prior_is_that_of_its_docstring(parameters):
    p = {name: np.asarray(value, float) for name, value in parameters.items()}
    spread = p["logit"] - p["logit"].mean(axis=1, keepdims=True)
    normal = lambda x, sd: -0.5 * (x**2).sum() / sd**2  # noqa: E731
    want = normal(spread, 2.0) + np.log(1 - p["rho"] ** 2)
    want += sum(normal(p[name], 1.0) for name in ("sd", "slope", "trend"))
    assert float(E.log_prior(parameters)) == pytest.approx(want, rel=1e-5)
