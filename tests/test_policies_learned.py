"""Agg and Q decide as their weights say: by hand, at each price, greedily and exploring."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_policies import actions, observe

from trim_jax.errors import ConfigError
from trim_jax.policies import base
from trim_jax.policies.features import Features
from trim_jax.policies.learned import Agg, Q, choose, excursion

WORTHS = (50.0, 500.0)


def head(params, name, kernel, bias):
    """`params` with the last layer `name` replaced."""
    old = params[name]
    return params | {name: {"kernel": old["kernel"] * 0 + kernel, "bias": old["bias"] * 0 + bias}}


def with_bias(policy, biases):
    """An Agg whose networks always prefer to regenerate by so much."""
    params = policy.init_weights(jax.random.key(0))
    nets = [head(params, "Dense_0", 0.0, jnp.array([0.0, b])) for b in biases]
    return dataclasses.replace(policy, weights=jax.tree.map(lambda *x: jnp.stack(x), *nets))


def test_agg_takes_the_network_of_the_rows_price():
    policy = with_bias(Agg(WORTHS), [-1.0, 1.0])
    obs = observe(4)
    dial = jnp.array([50.0, 500.0, 60.0, 9000.0])  # between the settings: the nearest
    got = policy.decide(dial, obs, policy.init(4))[0]
    assert list(got) == [base.ACCEPT, base.REGENERATE, base.ACCEPT, base.REGENERATE]


def test_agg_explores_with_the_probability_of_its_actor():
    policy = dataclasses.replace(with_bias(Agg((50.0,)), [np.log(0.3 / 0.7)]), explore=True)
    uniform = jnp.linspace(0.001, 0.999, 999)
    got = actions(policy, 50.0, observe(999, uniform=uniform))
    np.testing.assert_array_equal(got, np.where(uniform < 0.3, base.REGENERATE, base.ACCEPT))


def test_choose_is_greedy_without_exploring():
    logits = jnp.array([[0.0, 0.1], [0.1, 0.0], [0.0, 0.0]])
    want = [base.REGENERATE, base.ACCEPT, base.ACCEPT]
    np.testing.assert_array_equal(choose(logits, jnp.full(3, 0.001), explore=False), want)


def outcome_weights(policy, right, tokens):
    """Q whose network says that accept, regenerate are right so often and cost so much."""
    params = policy.init_weights(jax.random.key(0))
    right, tokens = jnp.array(right), jnp.array(tokens) / policy.token_unit
    bias = jnp.concatenate([jnp.log(right / (1 - right)), jnp.log(jnp.expm1(tokens))])
    return dataclasses.replace(policy, weights=head(params, "Dense_0", 0.0, bias))


def test_q_regenerates_iff_the_gain_in_rightness_is_worth_the_tokens():
    # 0.2 more right for 30 more tokens: worth it above 150 tokens a right answer.
    policy = outcome_weights(Q(WORTHS), [0.6, 0.8], [20.0, 50.0])
    for worth in (50.0, 149.0, 151.0, 500.0):
        want = base.REGENERATE if worth > 150 else base.ACCEPT
        assert actions(policy, worth, observe()) == want
    gain = policy.gain(jnp.zeros([1, 5]), jnp.array([100.0]))
    np.testing.assert_allclose(gain, 0.2 - 0.3, atol=1e-5)


def test_an_excursion_is_one_step_drawn_before_the_solution():
    u = jnp.array([0.01, 0.09, 0.13, 0.99, 0.9999999])
    at = excursion(u, 8)
    np.testing.assert_array_equal(at.step, [0, 0, 1, 7, 7])
    regenerate, accept = base.REGENERATE, base.ACCEPT
    np.testing.assert_array_equal(at.action, [regenerate, accept, regenerate, accept, accept])


@pytest.mark.parametrize("opposite", [False, True])
def test_q_explores_at_that_step_only(opposite):
    policy = outcome_weights(Q(WORTHS), [0.9, 0.1], [1.0, 50.0])  # greedily always accepts
    policy = dataclasses.replace(policy, explore=True, excursions=4, opposite=opposite)
    start = jnp.array([0.30, 0.45])  # step 1, regenerate and accept
    state, got = policy.init(2), []
    for t in range(4):
        uniform = start if t == 0 else jnp.array([0.01, 0.99])
        obs = observe(2, t=[t, t], uniform=uniform)
        action, state = policy.decide(jnp.full(2, 500.0), obs, state)
        got.append(list(np.asarray(action)))
    there = [base.ACCEPT, base.REGENERATE] if opposite else [base.REGENERATE, base.ACCEPT]
    assert got == [[base.ACCEPT] * 2, there, [base.ACCEPT] * 2, [base.ACCEPT] * 2]


def test_decisions_do_not_depend_on_the_batch():
    policy = Agg(WORTHS)
    keys = jax.random.split(jax.random.key(1), 2)
    policy = dataclasses.replace(policy, weights=jax.vmap(policy.init_weights)(keys))
    scores = jnp.linspace(0.01, 0.99, 8)
    together = actions(policy, 50.0, observe(8, draft_score=scores))
    alone = [actions(policy, 50.0, observe(1, draft_score=scores[i : i + 1])) for i in range(8)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("make, message", [
    (lambda: Agg((0.0, 10.0)), "agg: worth must be above 0"),
    (lambda: Q((-1.0,)), "q: worth must be above 0"),
    (lambda: Q((50.0,), features=Features()), "must hold the price"),
    (lambda: Agg((10.0, 5.0)), "must ascend"),
])  # fmt: skip
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
