"""Trained policies as folders: what is written is what is read, damage is one clear error."""

import dataclasses

import jax
import numpy as np
import pytest
from test_policies import actions, observe
from test_policies_pomdp import SMALL

from trim_jax.errors import CheckpointError
from trim_jax.policies.features import Features
from trim_jax.policies.judged import judged
from trim_jax.policies.learned import Agg, Q
from trim_jax.policies.pomdp import FilteredPomdp
from trim_jax.policies.registry import make_policy
from trim_jax.policies.saved import WEIGHTS, is_saved, load_policy, save_policy
from trim_jax.policies.sequence import Seq
from trim_jax.policies.simple import Threshold
from trim_jax.policies.takeover import takeover
from trim_jax.policies.wrapper import Wrapper

WORTHS = (20.0, 300.0)
SCORES = (0.3, 0.7)


def trained(policy):
    """The policy with random weights, of as many networks as it has."""
    if isinstance(policy, Wrapper):
        inner = trained(policy.policy)
        return dataclasses.replace(policy, policy=inner, weights=inner.weights)
    if isinstance(policy, Threshold):
        return policy
    keys = jax.random.split(jax.random.key(3), getattr(policy, "networks", 1))
    weights = jax.vmap(policy.init_weights)(keys)
    if isinstance(policy, Q):
        weights = jax.tree.map(lambda x: x[0], weights)
    return dataclasses.replace(policy, weights=jax.tree.map(np.asarray, weights))


@pytest.mark.parametrize("policy", [
    Agg(WORTHS, features=Features(logit=True, token_scale=24.0)),
    Q(WORTHS, features=Features(price=True), excursions=5),
    Seq(WORTHS, max_steps=4),
    Agg(WORTHS, variant="release", features=Features(product=True)),
    takeover(Q(WORTHS, features=Features(price=True))),
    takeover(Threshold(SCORES)),
    judged(Agg(WORTHS)),
], ids=lambda policy: policy.full_name)  # fmt: skip
def test_a_saved_policy_is_the_same_policy(tmp_path, policy):
    policy = trained(policy)
    save_policy(tmp_path, policy)
    again = make_policy(str(tmp_path))
    assert again == policy and type(again) is type(policy)
    assert again.full_name == policy.full_name
    jax.tree.map(np.testing.assert_array_equal, again.weights, policy.weights)
    rng = np.random.default_rng(0)
    score, loglik = rng.uniform(size=40).astype(np.float32), -rng.exponential(size=40)
    obs = observe(40, draft_score=score, draft_loglik=loglik.astype(np.float32))
    for dial in policy.settings:
        np.testing.assert_array_equal(actions(again, dial, obs), actions(policy, dial, obs))


@pytest.mark.parametrize("sees_last", [True, False])
def test_a_saved_solution_keeps_the_rule_that_it_was_solved_for(tmp_path, sees_last):
    policy = FilteredPomdp.of(SMALL, WORTHS, sees_last=sees_last)
    policy = dataclasses.replace(policy, variant="" if sees_last else "no_last")
    save_policy(tmp_path, policy)
    again = load_policy(tmp_path)
    assert again == policy and again.sees_last == sees_last
    np.testing.assert_array_equal(again.weights["ahead"], policy.weights["ahead"])


def test_a_folder_without_description_is_no_policy_and_damage_is_named(tmp_path):
    assert not is_saved(tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: not the folder of a trained policy"):
        load_policy(tmp_path)
    save_policy(tmp_path, trained(Q(WORTHS)))
    weights = tmp_path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not the folder of a trained policy"):
        load_policy(tmp_path)
