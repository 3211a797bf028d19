"""TRIM-Q: its losses by hand, and the tiny process, whose outcomes are known exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_process
from tiny_process import ENV, LENGTHS

from trim_jax.policies import base
from trim_jax.policies.features import Features, log_worth
from trim_jax.policies.learned import Q
from trim_jax.train import q
from trim_jax.train.episodes import play

WORTHS = (20.0, 60.0, 1000.0)
TINY = Features(price=True, token_scale=40.0, step_scale=3.0)
POLICY = Q(WORTHS, features=TINY, excursions=3, token_unit=40.0)
CONFIG = q.QConfig(iterations=50, problems=256, rows=128, memory=20)


@pytest.fixture(scope="module")
def trained():
    return q.make_train(CONFIG, POLICY, ENV)(jax.random.key(0))


def test_q_finds_the_best_policy_of_the_tiny_process_at_every_price(trained):
    policy = dataclasses.replace(POLICY, weights=trained.weights)
    for worth in (*WORTHS, 150.0):  # one price that is no setting
        assert tiny_process.regret(policy, worth) < 0.01, worth
    assert int(trained.steps) == 50 * 256 * 3
    assert trained.accuracy.shape == trained.strong_tokens.shape == (50,)


def test_it_knows_what_cannot_be_saved(trained):
    """In the last step the chance of a right answer and the cost are known by hand."""
    policy = dataclasses.replace(POLICY, weights=trained.weights)
    low, high = tiny_process.LOW, tiny_process.HIGH
    seen = lambda score, least, length: TINY.vector(  # noqa: E731
        jnp.array(2), jnp.array(length), jnp.array(score), jnp.array(least), jnp.array(1.0),
        jnp.array(1000.0),
    )  # fmt: skip
    for score, least, want in ((high, high, (1.0, 0.9)), (low, high, (0.0, 0.9)),
                               (high, low, (0.0, 0.0)), (low, low, (0.0, 0.0))):  # fmt: skip
        for length in LENGTHS:
            x = seen(score, least, length)
            logits, _ = policy.network.apply({"params": trained.weights}, x)
            np.testing.assert_allclose(jax.nn.sigmoid(logits), want, atol=0.12)
            if least == low:
                at_60 = x.at[-1].set(log_worth(60.0))
                assert float(policy.gain(at_60, jnp.array(60.0))) < 0


def test_losses_by_hand():
    logits, expected = jnp.array([0.0, np.log(3.0)]), jnp.array([0.5, 2.0])
    got = q.outcome_loss(logits, expected, 1, 1.0, 1.5)
    np.testing.assert_allclose(got, [-np.log(0.75), 0.5 * 0.25], rtol=1e-5)
    # Regenerate returned 0.6, accept 0.1; 0.2 more was predicted.
    value = jnp.array([[0.3, 0.5], [0.3, 0.5]])
    for action, gained in (([1, 0], [0.6, 0.1]), ([0, 1], [0.1, 0.6])):
        loss = q.gain_loss(value, jnp.array(action), jnp.array(gained))
        np.testing.assert_allclose(loss, 0.3**2, rtol=1e-5)


def test_samples_begin_where_the_solution_explored_and_pairs_part_there():
    policy = dataclasses.replace(POLICY, weights=POLICY.init_weights(jax.random.key(0)))
    worth = jnp.full([300], 60.0)
    pair = [play(ENV, way, jax.random.key(1), worth) for way in q.both_ways(policy)]
    seen = q.samples(policy, jax.tree.map(lambda *x: jnp.stack(x), *pair))
    explored = np.minimum((np.asarray(pair[0].uniform) * 3).astype(int), 2)
    steps = np.arange(3)
    np.testing.assert_array_equal(seen.use, np.stack([steps >= explored[:, None]] * 2, axis=1))
    np.testing.assert_array_equal(seen.fork, np.stack([steps == explored[:, None]] * 2, axis=1))
    before = steps < explored[:, None]
    same = np.asarray(seen.action[:, 0] == seen.action[:, 1])
    assert same[before].all() and not same[steps == explored[:, None]].any()
    at = np.asarray(seen.fork[:, 0])
    np.testing.assert_array_equal(seen.features[:, 0][at], seen.features[:, 1][at])
    # Both actions are tried equally often, in the first way as in the second.
    first = np.asarray(seen.action[:, 0])[at]
    assert 0.4 < (first == base.REGENERATE).mean() < 0.6


def test_outcomes_after_the_excursion_are_those_of_the_policy_itself(trained):
    """The mean outcome where a solution explored is the exact value of the greedy policy there."""
    policy = dataclasses.replace(POLICY, weights=trained.weights)
    worth = jnp.full([20000], 1000.0)
    pair = [play(ENV, way, jax.random.key(2), worth) for way in q.both_ways(policy)]
    seen = q.samples(policy, jax.tree.map(lambda *x: jnp.stack(x), *pair))
    first = np.asarray(seen.fork)[..., 0]
    wrong = np.asarray(pair[0].draft_score[:, 0] < 0.5)[:, None]
    for action, p in ((base.ACCEPT, 0.0), (base.REGENERATE, 0.9)):
        here = first & wrong & (np.asarray(seen.action[..., 0]) == action)
        # After a right first step, two more: each right at once or rewritten.
        want = p * (0.5 + 0.5 * 0.9) ** 2
        assert abs(np.asarray(seen.right[..., 0])[here].mean() - want) < 0.02


def test_only_batches_that_were_played_are_learned_from():
    """What the memory holds before it is filled never reaches a gradient."""
    config = dataclasses.replace(CONFIG, memory=3, problems=4, rows=64)
    learner = q.start(config, POLICY, POLICY.init_weights(jax.random.key(0)), 3)
    assert learner.memory.use.shape == (3, 2, 2, 3)
    spoiled = learner.memory._replace(features=learner.memory.features * jnp.nan)
    learner = learner._replace(memory=spoiled)
    updates = jax.jit(lambda *x: q.update(config, POLICY, *x))
    for i in range(4):
        playing = dataclasses.replace(POLICY, weights=learner.params)
        worth = jnp.full([2], 60.0)
        ways = [play(ENV, way, jax.random.key(i), worth) for way in q.both_ways(playing)]
        before = learner.params
        learner = updates(learner, jax.tree.map(lambda *x: jnp.stack(x), *ways), jax.random.key(9))
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(learner.params))
        assert not np.array_equal(before["Dense_0"]["bias"], learner.params["Dense_0"]["bias"])


def test_prices_are_spread_evenly_over_the_range():
    prices = np.asarray(q.spread(q.QConfig(problems=20), 10.0, 1000.0, jax.random.key(0)))
    assert len(prices) == 10 and 10 <= prices[0] and prices[-1] <= 1000
    np.testing.assert_allclose(np.diff(np.log10(prices)), 0.2, rtol=1e-4)
