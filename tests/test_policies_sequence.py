"""TRIM-Seq: step by step with its cache it says what one pass over the whole solution says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny_process
from tiny_process import ENV

from trim_jax.policies import base
from trim_jax.policies.sequence import Seq
from trim_jax.train import ppo
from trim_jax.train.episodes import play

WORTHS = (60.0, 1000.0)
TINY = dict(max_steps=3, width=16, heads=2, token_scale=40.0, step_scale=3.0)


def lively(policy, key):
    """Parameters of one network whose decisions differ from step to step."""
    params = jax.tree.map(lambda x: 2.0 * x, policy.init_weights(key))
    return params | {"actor": jax.tree.map(lambda x: 50.0 * x, params["actor"])}


def test_incremental_equals_whole():
    """Exploring draws are compared with the probabilities of the pass over the whole solution."""
    policy = Seq(WORTHS, price=False, **TINY)
    keys = jax.random.split(jax.random.key(0))
    weights = jax.tree.map(lambda *x: jnp.stack(x), *(lively(policy, key) for key in keys))
    policy = dataclasses.replace(policy, weights=weights, explore=True)
    worth = jnp.repeat(jnp.array(WORTHS), 64)
    episodes = play(ENV, policy, jax.random.key(1), worth)
    state = ENV.reset((), jax.random.key(1), len(worth))  # the same problems again, for the draws
    uniform = []
    for t in range(3):
        uniform.append(ENV.observe((), state).uniform)
        state, _ = ENV.step((), state, episodes.action[:, t])
    for i, w in enumerate(WORTHS):
        rows = slice(64 * i, 64 * i + 64)
        own = jax.tree.map(lambda x: x[i], policy.weights)
        logits, _ = policy.evaluate(own, jax.tree.map(lambda x: x[rows], episodes))
        p = jax.nn.softmax(logits)[..., base.REGENERATE]
        u = jnp.stack(uniform, axis=1)[rows]
        clear = np.abs(u - p) > 1e-4
        np.testing.assert_array_equal((u < p)[clear], (episodes.action[rows] == 1)[clear])
        assert 0.05 < float(p.std()), "heads are not lively enough to test anything"
    assert set(np.unique(episodes.action)) == {base.ACCEPT, base.REGENERATE}


def test_logits_of_the_cache_are_those_of_the_whole_to_float_precision():
    policy = Seq(WORTHS, **TINY)
    params = lively(policy, jax.random.key(2))
    key = jax.random.key(3)
    stood, drafts = jax.random.normal(key, [2, 5, 3, 4])
    want, want_value = policy.network.apply({"params": params}, stood, drafts, method="whole")
    kv = jnp.full([2, 2, 5, 3, 16], 1e6)  # what was never written is never read
    advance = jax.jit(functools.partial(policy.network.apply, method="advance"))
    for t in range(3):
        last = stood[:, max(t - 1, 0)]
        logits, value, kv = advance({"params": params}, kv, jnp.full(5, t), last, drafts[:, t])
        np.testing.assert_allclose(logits, want[:, t], atol=2e-4)
        np.testing.assert_allclose(value, want_value[:, t], atol=2e-4)


def test_a_draft_does_not_see_what_comes_after_it():
    policy = Seq(WORTHS, **TINY)
    params = policy.init_weights(jax.random.key(2))
    stood, drafts = jax.random.normal(jax.random.key(3), [2, 1, 3, 4])
    whole = jax.jit(functools.partial(policy.network.apply, {"params": params}, method="whole"))
    run = lambda s, d: whole(s, d)[1]  # noqa: E731
    moved = jnp.abs(run(stood.at[:, 1].add(1.0), drafts) - run(stood, drafts))[0] > 1e-5
    assert list(moved) == [False, False, True]
    moved = jnp.abs(run(stood, drafts.at[:, 1].add(1.0)) - run(stood, drafts))[0] > 1e-5
    assert list(moved) == [False, True, False]


def test_seq_learns_the_tiny_process():
    policy = Seq(WORTHS, layers=1, **(TINY | dict(width=32)))
    config = ppo.PpoConfig(updates=150, validations=5, learning_rate=3e-3)
    trained = ppo.make_train(config, policy, ENV)(jax.random.key(0))
    policy = dataclasses.replace(policy, weights=trained.weights)
    # Its decisions depend on more than the state, so the value is measured and not computed.
    for worth in WORTHS:
        episodes = play(ENV, policy, jax.random.key(9), jnp.full([4000], worth))
        got = float(episodes.rewards().sum(axis=1).mean())
        assert got > tiny_process.solve(worth)[0] - 0.04, (worth, got)
