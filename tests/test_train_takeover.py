"""Handing over: the new environment by hand, and policies trained in it against the best rule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_process
from tiny_process import ENV, LENGTHS, P_LARGE, STATES, STEPS

from trim_jax.policies import base
from trim_jax.policies.features import Features
from trim_jax.policies.learned import Agg, Q
from trim_jax.policies.simple import Threshold
from trim_jax.train import ppo, q
from trim_jax.train.episodes import play, summarize
from trim_jax.train.takeover import handing_over

WORTHS = (60.0, 150.0, 1000.0)
MEAN = sum(LENGTHS) / len(LENGTHS)


def solve(worth, decide=None):
    """(value at the start, actions [states]) of the best rule for handing over, or of `decide`."""
    best, ahead = np.zeros(len(STATES), int), np.array([1.0, 0.0])
    for t in reversed(range(STEPS)):
        value = np.zeros(2)
        for i, (when, spoiled, right, length) in enumerate(STATES):
            if when != t:
                continue
            later = STEPS - 1 - t
            accept = ahead[1] if spoiled or not right else ahead[0]
            chance = 0.0 if spoiled else P_LARGE ** (1 + later)
            hand = chance - (LENGTHS[length] + MEAN * later) / worth
            best[i] = hand > accept if decide is None else decide[i]
            value[spoiled] += 0.5 / len(LENGTHS) * (hand if best[i] else accept)
        ahead = value
    return ahead[0], best


def test_one_intervention_plays_to_the_end():
    env = handing_over(ENV)
    state = ENV.reset((), jax.random.key(0), 200)
    state, _ = ENV.step((), state, jnp.zeros(200, jnp.int32))
    action = jnp.arange(200) % 2  # every other row hands over at its second step of three
    after, result = env.step((), state, action)
    tokens, right = np.zeros(200), np.asarray(state.scores[:, 0] > 0.5)
    slow = state
    for _ in range(2):
        slow, one = ENV.step((), slow, jnp.ones(200, jnp.int32))
        tokens += one.strong_tokens
        right = right & (np.asarray(slow.scores) > 0.5)[np.arange(200), np.asarray(slow.t) - 1]
    handed = np.asarray(action == base.REGENERATE)
    np.testing.assert_array_equal(result.strong_tokens, np.where(handed, tokens, 0))
    np.testing.assert_array_equal(result.done, handed)
    np.testing.assert_array_equal(result.reward, handed & right)
    assert 0.2 < np.asarray(result.reward)[handed].mean() < 0.6
    kept, _ = ENV.step((), state, jnp.zeros(200, jnp.int32))
    np.testing.assert_array_equal(after.scores[~handed], kept.scores[~handed])
    np.testing.assert_array_equal(after.t, np.where(handed, 3, 2))


def test_a_rule_has_its_exact_value():
    episodes = play(handing_over(ENV), Threshold((0.5,)), jax.random.key(1), jnp.full([20000], 0.5))
    seen = summarize(episodes.replace(worth=jnp.full([20000], 1000.0)))
    wrong = [int(not right) for _, _, right, _ in STATES]
    np.testing.assert_allclose(seen.objective, solve(1000.0, wrong)[0], atol=0.01)
    assert int(episodes.mask.sum(axis=1).min()) == 1  # what was handed over was not decided


@pytest.mark.parametrize("family", ["agg", "q"])
def test_the_best_rule_is_learned(family):
    features = Features(price=True, token_scale=40.0, step_scale=3.0)
    if family == "agg":
        policy = Agg(WORTHS, features=features)
        config = ppo.PpoConfig(updates=150, validations=5, learning_rate=5e-3)
        make = ppo.make_train
    else:
        policy = Q(WORTHS, features=features, token_unit=30.0, excursions=STEPS)
        config = q.QConfig(iterations=60, problems=256, memory=60)
        make = q.make_train
    trained = make(config, policy, handing_over(ENV))(jax.random.key(0))
    policy = dataclasses.replace(policy, weights=trained.weights)
    for worth in WORTHS:
        got = solve(worth, tiny_process.decisions(policy, worth))[0]
        assert solve(worth)[0] - got < 0.01, worth
