"""TRIM-Seq: step by step with its cache it says what one pass over the whole solution says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    heads = params["actor_critic"]
    heads = heads | {"Dense_0": jax.tree.map(lambda x: 50.0 * x, heads["Dense_0"])}
    return params | {"actor_critic": heads}


@pytest.mark.parametrize("price", [False, True])
def test_incremental_equals_whole(price):
    """Exploring draws are compared with the probabilities of the pass over the whole solution."""
    policy = Seq(WORTHS, price=price, **TINY)
    keys = jax.random.split(jax.random.key(0), policy.networks)
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
        own = jax.tree.map(lambda x, i=i: x[0 if price else i], policy.weights)
        logits, _ = policy.evaluate(own, policy.seen(jax.tree.map(lambda x: x[rows], episodes)))
        p = jax.nn.softmax(logits)[..., base.REGENERATE]
        u = jnp.stack(uniform, axis=1)[rows]
        clear = np.abs(u - p) > 1e-4
        np.testing.assert_array_equal((u < p)[clear], (episodes.action[rows] == 1)[clear])
        assert 0.05 < float(p.std()), "heads are not lively enough to test anything"
    assert set(np.unique(episodes.action)) == {base.ACCEPT, base.REGENERATE}


def test_vectors_of_the_cache_are_those_of_the_whole_to_float_precision():
    policy = Seq(WORTHS, **TINY)
    params = lively(policy, jax.random.key(2))
    key = jax.random.key(3)
    stood, drafts = jax.random.normal(key, [2, 5, 3, 3])
    want = policy.network.apply({"params": params}, stood, drafts, method="whole")
    kv = jnp.full([2, 2, 5, 3, 16], 1e6)  # what was never written is never read
    advance = jax.jit(functools.partial(policy.network.apply, method="advance"))
    for t in range(3):
        last = stood[:, max(t - 1, 0)]
        got, kv = advance({"params": params}, kv, jnp.full(5, t), last, drafts[:, t])
        np.testing.assert_allclose(got, want[:, t], atol=1e-4)


def test_a_draft_does_not_see_what_comes_after_it():
    policy = Seq(WORTHS, **TINY)
    params = policy.init_weights(jax.random.key(2))
    stood, drafts = jax.random.normal(jax.random.key(3), [2, 1, 3, 3])
    run = jax.jit(functools.partial(policy.network.apply, {"params": params}, method="whole"))

    def moved(s, d):
        return list(jnp.abs(run(s, d) - run(stood, drafts))[0].max(axis=-1) > 1e-5)

    assert moved(stood.at[:, 1].add(1.0), drafts) == [False, False, True]
    assert moved(stood, drafts.at[:, 1].add(1.0)) == [False, True, False]


def first_steps(policy, dials):
    """Actions at the first two steps where every draft stands, and what is kept after them."""
    state, seen = ENV.reset((), jax.random.key(1), len(dials)), []
    memory, decide = policy.init(len(dials)), jax.jit(policy.decide)
    for _ in range(2):
        action, memory = decide(dials, ENV.observe((), state), memory)
        state, _ = ENV.step((), state, jnp.full(len(dials), base.ACCEPT))
        seen.append(action)
    return jnp.stack(seen), memory


def test_what_is_kept_is_the_same_at_every_price_but_what_is_done_is_not():
    policy = Seq(WORTHS, **TINY)
    assert not policy.state_knows_dial and Seq(WORTHS, price=False, **TINY).state_knows_dial
    weights = jax.tree.map(lambda x: x[None], lively(policy, jax.random.key(4)))
    policy = dataclasses.replace(policy, weights=weights)
    cheap, dear = (first_steps(policy, jnp.full([64], w)) for w in (1.0, 1e5))
    jax.tree.map(np.testing.assert_array_equal, cheap[1], dear[1])
    assert (cheap[0] != dear[0]).any()


def multiplications(jaxpr):
    """Numbers multiplied by all matrix products of a jaxpr."""
    found = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            inner = eqn.params["dimension_numbers"][0][0]
            summed = np.prod([eqn.invars[0].aval.shape[i] for i in inner])
            found += int(summed * np.prod(eqn.outvars[0].aval.shape))
        found += sum(multiplications(sub.jaxpr) for sub in eqn.params.values()
                     if hasattr(sub, "jaxpr"))  # fmt: skip
    return found


def test_the_transformer_runs_once_for_all_prices():
    """As the engine asks: the same rows at every setting, vectorised over settings."""
    policy = Seq(WORTHS, **TINY)
    weights = jax.tree.map(lambda x: x[None], policy.init_weights(jax.random.key(0)))
    policy = dataclasses.replace(policy, weights=weights)
    obs, memory = ENV.observe((), ENV.reset((), jax.random.key(1), 8)), policy.init(8)
    ask = jax.vmap(lambda dial: policy.decide(dial, obs, memory)[0])
    cost = lambda n: multiplications(jax.make_jaxpr(ask)(jnp.ones([n, 8])).jaxpr)  # noqa: E731
    # Heads: a body of two layers and a hidden layer for each head, of width 16, then 3 outputs.
    heads = 8 * (17 * 16 + 16 * 16 + 2 * 16 * 16 + 3 * 16)
    assert cost(9) - cost(1) == 8 * heads
    assert cost(1) > 4 * heads


def test_seq_learns_the_tiny_process():
    policy = Seq(WORTHS, layers=1, **(TINY | dict(width=32)))
    config = ppo.PpoConfig(
        updates=100, validations=5, epochs=6, learning_rate=5e-3, entropy=0.03
    )
    trained = ppo.make_train(config, policy, ENV)(jax.random.key(0))
    policy = dataclasses.replace(policy, weights=trained.weights)
    # Its decisions depend on more than the state, so the value is measured and not computed.
    for worth in WORTHS:
        episodes = play(ENV, policy, jax.random.key(9), jnp.full([4000], worth))
        got = float(episodes.rewards().sum(axis=1).mean())
        assert got > tiny_process.solve(worth)[0] - 0.04, (worth, got)
