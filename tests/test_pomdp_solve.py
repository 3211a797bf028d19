"""The solver against expectimax over every history of observations, and hand-worked last steps."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_jax.errors import DataError
from trim_jax.pomdp.solve import Parameters, advantage, next_draft, solve

WORTHS = (15.0, 60.0, 400.0)
BINS = 2


def parameters(seed, steps, bins=BINS):
    """Of a random process, and scores that tell its states apart."""
    rng = np.random.default_rng(seed)
    joint = rng.dirichlet(np.full(bins * bins, 0.6), size=3).reshape(3, bins, bins)
    hazard = np.append(rng.uniform(0, 0.6, steps - 1), 1.0)
    return Parameters(*rng.uniform(0.3, 1, 2), hazard, rng.uniform(2, 30), joint,
                      rng.dirichlet(np.ones(bins), size=3))


def realistic(steps=30, bins=20):
    """Scores near 1 where right and near 0 where wrong; minima that keep an error in mind."""
    x = (np.arange(bins) + 0.5) / bins
    right, wrong = x**6 + 0.02, (1 - x) ** 3 + 0.02
    joint = np.stack([np.outer(a, b) for a, b in
                      [(right, right), (wrong, 0.5 * right + wrong), (right, wrong)]])
    joint /= joint.sum((1, 2), keepdims=True)
    hazard = np.append(np.full(steps - 1, 0.12), 1.0)
    return Parameters(0.86, 0.97, hazard, 60.0, joint, joint.sum(1))


# The model as the method states it, in the three states and without the scalar that `solve` uses.


def transitions(p):
    w, s = p.p_small, p.p_large
    accept = np.array([[w, 0, 1 - w], [0, 1, 0], [0, 1, 0]])
    rewrite = np.array([[w * s, 1 - s, (1 - w) * s], [0, 1, 0], [w * s, 1 - s, (1 - w) * s]])
    return accept, rewrite


def best(p, likelihood, belief, t, last, price):
    """(values of accepting and of rewriting, with the draft as long as any) by expectimax."""
    if last:
        return belief[0], p.p_large * (belief[0] + belief[2]) - price
    accept, rewrite = transitions(p)
    return (ahead(p, likelihood, belief @ accept, t + 1, price),
            ahead(p, likelihood, belief @ rewrite, t + 1, price) - price)


def ahead(p, likelihood, prior, t, price):
    total = 0.0
    for seen in likelihood.T:
        mass = (prior * seen).sum()
        for last, chance in ((True, p.hazard[t]), (False, 1 - p.hazard[t])):
            if mass * chance > 0:
                total += mass * chance * max(
                    best(p, likelihood, prior * seen / mass, t, last, price))
    return total


def best_blind(p, likelihood, belief, t, price):
    """As `best`, where nobody sees whether step t is the last."""
    h, rewrite_right = p.hazard[t], p.p_large * (belief[0] + belief[2])
    accept, rewrite = transitions(p)
    later = [ahead_blind(p, likelihood, belief @ moves, t + 1, price) if h < 1 else 0.0
             for moves in (accept, rewrite)]
    return (h * belief[0] + (1 - h) * later[0], h * rewrite_right + (1 - h) * later[1] - price)


def ahead_blind(p, likelihood, prior, t, price):
    masses = prior @ likelihood
    return sum(mass * max(best_blind(p, likelihood, prior * seen / mass, t, price))
               for seen, mass in zip(likelihood.T, masses) if mass > 0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), with_minimum=st.booleans(), data=st.data())
def test_solver_is_expectimax_where_the_last_step_is_not_seen(seed, with_minimum, data):
    p = parameters(seed, steps=3)
    likelihood = p.joint.reshape(3, -1) if with_minimum else p.score
    got = solve(p, likelihood, WORTHS, nodes=401, last_seen=False)
    seen = solve(p, likelihood, WORTHS, nodes=401)
    assert (np.asarray(got.gap) < 1e-3).all()
    for i, worth in enumerate(WORTHS):
        price, gap = p.step_tokens / worth, float(got.gap[i]) + 1e-5
        start = ahead_blind(p, likelihood, np.array([p.p_small, 0, 1 - p.p_small]), 0, price)
        assert got.lower[i, 0, -1] - 1e-5 <= start <= got.upper[i, 0, -1] + 1e-5
        assert start <= seen.upper[i, 0, -1] + 1e-5, "knowing more cannot be worse"
        weights = data.draw(st.tuples(*[st.floats(0.01, 1)] * 3))
        belief = np.array(weights) / sum(weights)
        for t in range(3):
            accepted, rewritten = best_blind(p, likelihood, belief, t, price)
            have = advantage(got.lower[i], jnp.array([t]), jnp.asarray(belief, jnp.float32)[None],
                             jnp.array([False]), jnp.float32(p.p_large))[0]
            assert have == pytest.approx(rewritten + price - accepted, abs=gap)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), with_minimum=st.booleans(), data=st.data())
def test_solver_is_expectimax(seed, with_minimum, data):
    p = parameters(seed, steps=3)
    likelihood = p.joint.reshape(3, -1) if with_minimum else p.score
    got = solve(p, likelihood, WORTHS, nodes=401)
    assert (np.asarray(got.gap) < 1e-3).all()
    for i, worth in enumerate(WORTHS):
        price, gap = p.step_tokens / worth, float(got.gap[i]) + 1e-5
        start = ahead(p, likelihood, np.array([p.p_small, 0, 1 - p.p_small]), 0, price)
        assert got.lower[i, 0, -1] - 1e-5 <= start <= got.upper[i, 0, -1] + 1e-5
        # What rewriting gains at some belief, at the first two steps and at a last one.
        weights = data.draw(st.tuples(*[st.floats(0.01, 1)] * 3))
        belief = np.array(weights) / sum(weights)
        for t, last in ((0, False), (1, False), (1, True)):
            accepted, rewritten = best(p, likelihood, belief, t, last, price)
            have = advantage(got.lower[i], jnp.array([t]), jnp.asarray(belief, jnp.float32)[None],
                             jnp.array([last]), jnp.float32(p.p_large))[0]
            assert have == pytest.approx(rewritten + price - accepted, abs=1e-5 if last else gap)


def test_one_step_by_hand():
    """The only step, and a score that tells all: rewrite a wrong draft iff 0.9 outweighs it."""
    joint = np.zeros((3, 2, 2))
    joint[0, 1, 1] = joint[1, 0, 0] = joint[2, 1, 0] = 1.0
    p = Parameters(0.6, 0.9, np.array([1.0]), 20.0, joint, np.full((3, 2), 0.5))
    got = solve(p, joint.reshape(3, -1), (10.0, 100.0), nodes=11)
    x = np.linspace(0, 1, 11)
    np.testing.assert_allclose(got.upper[0, 0], 0.6 * x, atol=1e-6)
    np.testing.assert_allclose(got.upper[1, 0], 0.6 * x + 0.4 * x * (0.9 - 0.2), atol=1e-6)
    np.testing.assert_allclose(got.lower, got.upper, atol=1e-6)
    assert not np.asarray(got.upper)[:, 1].any(), "nothing is ahead of a step that is not there"


def test_last_step_by_hand():
    belief = jnp.array([[0.5, 0.1, 0.4], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    got = advantage(jnp.zeros([3, 5]), jnp.arange(4), belief, jnp.full(4, True), jnp.float32(0.9))
    np.testing.assert_allclose(got, [0.9 * 0.9 - 0.5, 0, -0.1, 0.9], atol=1e-6)


def test_next_draft_by_hand():
    np.testing.assert_allclose(next_draft(jnp.float32(0.5), 0.8), [0.4, 0.5, 0.1], atol=1e-6)


def test_bounds_of_the_full_size_problem():
    """30 steps and 400 observations: 0.1 % of the reward, and more nodes stay inside."""
    p = realistic()
    worths = (100 / 0.85, 1000.0)
    got = solve(p, p.joint.reshape(3, -1), worths)
    assert (np.asarray(got.gap) <= 1e-3).all()
    fine = solve(p, p.joint.reshape(3, -1), worths, nodes=2 * (got.upper.shape[2] - 1) + 1)
    assert (fine.upper[..., ::2] <= got.upper + 1e-5).all()
    assert (fine.lower[..., ::2] >= got.lower - 1e-5).all()
    assert (got.upper >= got.lower - 1e-6).all()


def test_a_right_answer_that_is_worth_more_is_paid_more():
    p = realistic(bins=10)
    worths = np.geomspace(50, 3000, 8)
    got = solve(p, p.joint.reshape(3, -1), worths).lower
    rng = np.random.default_rng(0)
    belief = jnp.asarray(rng.dirichlet(np.full(3, 0.4), 200), jnp.float32)
    for t in (0, 4, 14, 28):
        gained = advantage(got, jnp.full(200, t), belief, jnp.full(200, False),
                           jnp.float32(p.p_large))  # [worths, 200]
        # A draft has at least one token, and the values are known to 3e-4.
        limits = np.maximum(worths[:, None] * gained, 1)
        assert (np.diff(limits, axis=0) >= -3e-4 * worths[1:, None]).all(), t
        assert (limits[-1] > limits[0] + 100).mean() > 0.5
    start = np.asarray(got[:, 0, -1])
    assert (np.diff(start) > 0).all() and start[0] < 0.5 < 0.8 < start[-1]


def test_bad_parameters_are_named():
    p = realistic()
    with pytest.raises(DataError, match="hazard"):
        dataclasses.replace(p, hazard=p.hazard[:-1])
    with pytest.raises(DataError, match="joint"):
        dataclasses.replace(p, joint=2 * p.joint)
    with pytest.raises(DataError, match="p_large"):
        Parameters.from_json({k: v for k, v in p.to_json().items() if k != "p_large"})


def test_parameters_survive_json():
    p = parameters(3, 5)
    q = Parameters.from_json(p.to_json())
    assert p.to_json() == q.to_json()


def test_conditional_of_what_never_is_falls_back_to_the_score():
    joint = np.full((3, 2, 2), 0.25)
    joint[0] = [[0.0, 0.0], [0.2, 0.8]]
    p = Parameters(0.6, 0.9, np.array([1.0]), 20.0, joint, np.full((3, 2), 0.5))
    np.testing.assert_allclose(p.conditional[0], [[0.2, 0.8], [0.2, 0.8]], atol=1e-6)
    np.testing.assert_allclose(p.conditional.sum(2), 1)
