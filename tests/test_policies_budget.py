"""Budgets: a cap is never passed, a target average is met within 2 %."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_policies import SETTINGS, actions, observe, plans
from tiny_process import ENV

from trim_jax.errors import ConfigError
from trim_jax.policies import base
from trim_jax.policies.budget import DualPrice, capped, follow, steered
from trim_jax.policies.learned import Q
from trim_jax.policies.sequence import Seq
from trim_jax.policies.simple import Always, Random, Threshold
from trim_jax.train.episodes import play


@dataclasses.dataclass(frozen=True)
class Short(base.Policy):
    """Rewrites wrong drafts of up to `dial` tokens: what the best policy does at some price."""

    parameter = "worth"

    def decide(self, dial, obs, state):
        wanted = (obs.draft_score < 0.5) & (obs.draft_tokens <= dial)
        # Some of those of the dial's own length, so that the average moves without jumps.
        part = jnp.where(obs.draft_tokens == 40, (dial - 40) / 40, 1.0)
        return jnp.where(wanted & (obs.uniform < part), base.REGENERATE, base.ACCEPT), state


@pytest.mark.parametrize("cap", [40, 79, 80, 100])
def test_the_cap_is_never_passed_and_is_used(cap):
    policy = capped(Threshold((0.95,)), cap, 40)
    episodes = play(ENV, policy, jax.random.key(0), jnp.full([2000], 0.95))
    spent = np.asarray(episodes.strong_tokens.sum(axis=1))
    assert spent.max() <= cap
    assert spent.max() > cap - 40
    free = play(ENV, Threshold((0.95,)), jax.random.key(0), jnp.full([2000], 0.95))
    assert free.strong_tokens.sum(axis=1).max() == 120


def test_a_full_row_is_neither_scored_nor_sent_to_the_large_model():
    full, room = (observe(large_tokens=[n], uniform=[0.1]) for n in (61, 60))
    for policy, plan in ((Threshold(SETTINGS), base.DRAFT_AND_SCORE), (Always(), base.LARGE)):
        policy = capped(policy, 100, 40)
        assert plans(policy, 0.5, room) == plan
        assert plans(policy, 0.5, full) == base.DRAFT
    chance = capped(Random(SETTINGS), 100, 40)
    assert plans(chance, 0.5, room) == base.LARGE
    assert plans(chance, 0.05, room) == base.DRAFT
    assert plans(chance, 0.5, full) == base.DRAFT
    low = dict(draft_score=[0.1])
    assert actions(capped(Threshold(SETTINGS), 100, 40), 0.5, observe(**low)) == base.REGENERATE
    done = observe(large_tokens=[61], **low)
    assert actions(capped(Threshold(SETTINGS), 100, 40), 0.5, done) == base.ACCEPT


def test_wrappers_keep_names_dials_weights_and_state():
    q = Q((50.0, 500.0))
    q = dataclasses.replace(q, weights=q.init_weights(jax.random.key(0)))
    wrapped = capped(q, 100, 40)
    assert (wrapped.name, wrapped.parameter, wrapped.settings) == ("q-cap100", "worth", q.settings)
    assert wrapped.weights is q.weights
    assert hash(wrapped) == hash(dataclasses.replace(wrapped, weights=None))
    obs = observe(9, draft_score=jnp.linspace(0.1, 0.9, 9))
    np.testing.assert_array_equal(actions(wrapped, 500.0, obs), actions(q, 500.0, obs))
    assert jax.tree.structure(capped(Seq((50.0,)), 100, 40).init(2)) == jax.tree.structure(
        Seq((50.0,)).init(2)
    )


def test_a_steered_policy_reads_its_dial_from_the_weights():
    policy = steered(Threshold(SETTINGS), 0.25)
    obs = observe(draft_score=[0.4])
    assert actions(policy, 1.0, obs) == base.ACCEPT
    moved = dataclasses.replace(policy, weights=policy.weights | {"dial": np.float32(0.5)})
    assert actions(moved, 1.0, obs) == base.REGENERATE
    assert hash(moved) == hash(policy)  # static parts are the same: nothing recompiles


def test_budgets_take_a_policy_that_is_nothing_without_its_weights():
    @dataclasses.dataclass(frozen=True)
    class Solved(Threshold):
        def __post_init__(self):
            super().__post_init__()
            assert self.weights is not None

        def decide(self, dial, obs, state):
            return super().decide(dial + self.weights["more"], obs, state)

    solved = Solved((0.1, 0.2), {"more": np.float32(0.3)}, variant="b")
    policy = steered(capped(solved, 100, 40), 0.2)
    assert policy.full_name == "thr-b-cap100-steered" and policy.settings == (0.0,)
    assert actions(policy, 0.0, observe(draft_score=[0.45])) == base.REGENERATE
    assert actions(policy, 0.0, observe(draft_score=[0.55])) == base.ACCEPT


def test_a_cap_without_room_is_refused():
    with pytest.raises(ConfigError, match="cap of 30 tokens has no room for a step of up to 40"):
        capped(Threshold((0.5,)), 30, 40)


def test_following_by_hand():
    price = DualPrice(100.0, 10.0, 1000.0, target=20.0, problems=100, gain=0.5)
    after = follow(price, 25, 1000)  # twice the target: 1000 left for 75 problems
    error = (1000 / 75 - 40) / 20
    np.testing.assert_allclose(after.dial, 100 * np.exp(0.5 * max(error, -1.0)))
    assert (after.done, after.spent) == (25, 1000)
    assert follow(price, 25, 500).dial == 100.0  # on target
    assert follow(price, 100, 100).dial > 100.0  # nothing is left: the target itself
    assert follow(price._replace(dial=999.0), 25, 0).dial == 1000.0
    assert DualPrice(**json.loads(json.dumps(after._asdict()))) == after


@pytest.mark.parametrize("target, dial", [(12.0, 40.0), (20.0, 40.0), (20.0, 80.0), (26.0, 55.0)])
def test_the_target_average_is_met_within_2_percent_from_either_side(target, dial):
    policy = steered(Short(), dial)
    chunk = jax.jit(lambda weights, key: play(
        ENV, dataclasses.replace(policy, weights=weights), key, jnp.ones([20])
    ).strong_tokens.sum())  # fmt: skip
    price = DualPrice(dial, 40.0, 80.0, target, problems=1000)
    while price.done < price.problems:
        weights = policy.weights | {"dial": np.float32(price.dial)}
        price = follow(price, 20, int(chunk(weights, jax.random.key(price.done))))
    assert abs(price.spent / price.done / target - 1) < 0.02, price
