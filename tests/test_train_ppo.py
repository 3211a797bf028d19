"""PPO: its losses by hand, its first ratio, and the tiny process whose best policy is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_process
from tiny_process import ENV

from trim_jax.policies.features import Features
from trim_jax.policies.learned import Agg
from trim_jax.train import ppo
from trim_jax.train.episodes import play
from trim_jax.train.ppo import PpoConfig

WORTHS = (20.0, 60.0, 1000.0)
TINY = Features(token_scale=40.0, step_scale=3.0)
CONFIG = PpoConfig(updates=150, validations=5, learning_rate=3e-3)


def test_gae_by_hand():
    reward = jnp.array([-0.5, 0.0, 1.0, 7.0])
    value = jnp.array([0.2, 0.4, 0.6, 9.0])
    mask = jnp.array([True, True, True, False])
    # Deltas: -0.5 + 0.4 - 0.2, 0.6 - 0.4, 1 - 0.6; nothing comes from after the end.
    third = 0.4
    second = 0.2 + 0.5 * third
    first = -0.3 + 0.5 * second
    got = ppo.gae(reward, value, mask, 0.5)
    np.testing.assert_allclose(got, [first, second, third, 0.0], atol=1e-6)
    # With lambda = 1 it is the return less the value, whatever lies between.
    np.testing.assert_allclose(
        ppo.gae(reward, value, mask, 1.0)[:3], np.array([0.5, 1.0, 1.0]) - value[:3], atol=1e-6
    )


@pytest.mark.parametrize("ratio, advantage, loss, slope", [
    (1.1, 2.0, -2.2, -2.2),  # inside the clip: the ratio itself
    (1.5, 2.0, -2.4, 0.0),  # gained enough: no more to gain
    (0.5, -1.0, 0.8, 0.0),  # lowered enough
    (0.5, 2.0, -1.0, -1.0),  # fell although it is good: pulled back
    (1.5, -1.0, 1.5, 1.5),  # rose although it is bad: pulled back
])  # fmt: skip
def test_the_clip_by_hand(ratio, advantage, loss, slope):
    old = jnp.log(0.4)
    f = lambda x: ppo.actor_loss(x, old, advantage, 0.2)  # noqa: E731
    new = old + jnp.log(ratio)
    np.testing.assert_allclose(f(new), loss, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(f)(new), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value, old, target, loss", [
    (0.6, 0.5, 1.0, 0.16),  # near the old value: plain
    (0.9, 0.5, 1.0, 0.09),  # moved too far: as if it were at 0.7
    (0.1, 0.5, 1.0, 0.81),  # moved away: its own error is the larger one
])  # fmt: skip
def test_the_clipped_value_by_hand(value, old, target, loss):
    np.testing.assert_allclose(ppo.value_loss(value, old, target, 0.2), loss, rtol=1e-5)


def test_entropy_and_log_probability_by_hand():
    logits = jnp.log(jnp.array([0.75, 0.25])) + 3.0
    np.testing.assert_allclose(ppo.log_prob(logits, 1), np.log(0.25), rtol=1e-5)
    want = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    np.testing.assert_allclose(ppo.entropy(logits), want, rtol=1e-5)


@pytest.fixture(scope="module")
def played():
    """A fresh network and a batch that it played."""
    policy = Agg((60.0,), features=TINY)
    params = policy.init_weights(jax.random.key(3))
    playing = dataclasses.replace(
        policy, weights=jax.tree.map(lambda x: x[None], params), explore=True
    )
    return policy, params, play(ENV, playing, jax.random.key(4), jnp.full([4000], 60.0))


def test_actions_are_drawn_with_the_probabilities_that_the_update_takes_for_the_old_ones(played):
    """So the first ratio is 1: what was sampled from is what `evaluate` recomputes."""
    policy, params, episodes = played
    logits, _ = policy.evaluate(params, policy.seen(episodes))
    p = jax.nn.softmax(logits)[..., 1]
    drawn = (episodes.action == 1).mean()
    assert abs(float(p.mean()) - 0.5) < 0.1
    np.testing.assert_allclose(drawn, p.mean(), atol=0.02)


def test_an_update_without_a_learning_rate_changes_nothing(played):
    policy, params, episodes = played
    config = PpoConfig(learning_rate=0.0)
    learner = ppo.start(config, params)
    after = ppo.update(config, policy, learner, episodes)
    assert int(after.updates) == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, params)


def test_steps_after_the_end_teach_nothing(played):
    policy, params, episodes = played
    short = episodes.replace(mask=episodes.mask.at[:, -1].set(False))
    garbled = short.replace(
        draft_score=short.draft_score.at[:, -1].set(0.123),
        reward=short.reward.at[:, -1].set(99.0), action=short.action.at[:, -1].set(1),
        strong_tokens=short.strong_tokens.at[:, -1].set(12345),
    )  # fmt: skip
    learner = ppo.start(CONFIG, params)
    one, other = (ppo.update(CONFIG, policy, learner, e) for e in (short, garbled))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, other.params
    )


class Whole(Agg):
    """Its gradient is taken of all steps at once, those after the end included."""

    steps_alone = False


@pytest.mark.parametrize("solutions", [4000, 13])
def test_an_update_that_leaves_out_what_is_after_the_end_is_the_same(played, solutions):
    policy, params, episodes = played
    episodes = jax.tree.map(lambda x: x[:solutions], episodes)
    lengths = np.random.default_rng(5).integers(1, 4, solutions)
    episodes = episodes.replace(mask=jnp.arange(3) < lengths[:, None])
    learner = ppo.start(CONFIG, params)
    whole = Whole(policy.settings, features=policy.features)
    one, other = (ppo.update(CONFIG, p, learner, episodes) for p in (policy, whole))
    moved = lambda a: np.abs(a.params["Dense_0"]["kernel"] - params["Dense_0"]["kernel"]).max()  # noqa: E731
    assert moved(one) > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, other.params)


def test_networks_side_by_side_learn_as_each_alone(played):
    policy, params, episodes = played
    lengths = jnp.stack([jnp.full([100], 1), jnp.full([100], 3), jnp.arange(100) % 3 + 1])
    lanes = jax.tree.map(lambda x: x[:300].reshape(3, 100, *x.shape[1:]), episodes)
    lanes = lanes.replace(mask=jnp.arange(3) < lengths[..., None])
    learners = jax.tree.map(lambda x: jnp.stack([x] * 3), ppo.start(CONFIG, params))
    together = jax.vmap(lambda *x: ppo.update(CONFIG, policy, *x))(learners, lanes)
    for i in range(3):
        own = jax.tree.map(lambda x: x[i], (learners, lanes))
        alone = ppo.update(CONFIG, policy, *own)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[i], b, atol=1e-5), together.params, alone.params
        )


@pytest.mark.parametrize("price", [False, True])
def test_agg_finds_the_best_policy_of_the_tiny_process_at_every_price(price):
    policy = Agg(WORTHS, features=dataclasses.replace(TINY, price=price))
    trained = ppo.make_train(CONFIG, policy, ENV)(jax.random.key(0))
    policy = dataclasses.replace(policy, weights=trained.weights)
    short = [tiny_process.regret(policy, worth) for worth in WORTHS]
    assert max(short) < 0.01, short
    spent = [tiny_process.solve(w, tiny_process.decisions(policy, w))[0] for w in WORTHS]
    assert trained.validation.objective.shape == (policy.networks, CONFIG.validations)
    if not price:
        best = trained.validation.objective.max(axis=1)
        np.testing.assert_allclose(best, spent, atol=0.05)
    assert list(trained.steps) == [3 * 64 * 3 * 150, 3 * 512 * 3 * 5]
