"""Trained policies as folders: what is written is what is read, damage is one clear error."""

import dataclasses

import jax
import numpy as np
import pytest
from test_policies import actions, observe

from trim_jax.errors import CheckpointError
from trim_jax.policies.features import Features
from trim_jax.policies.learned import Agg, Q
from trim_jax.policies.registry import make_policy
from trim_jax.policies.saved import WEIGHTS, is_saved, load_policy, save_policy
from trim_jax.policies.sequence import Seq

WORTHS = (20.0, 300.0)


def trained(policy):
    """The policy with random weights, of as many networks as it has."""
    keys = jax.random.split(jax.random.key(3), getattr(policy, "networks", 1))
    weights = jax.vmap(policy.init_weights)(keys)
    if isinstance(policy, Q):
        weights = jax.tree.map(lambda x: x[0], weights)
    return dataclasses.replace(policy, weights=jax.tree.map(np.asarray, weights))


@pytest.mark.parametrize("policy", [
    Agg(WORTHS, features=Features(logit=True, token_scale=24.0)),
    Q(WORTHS, features=Features(price=True), excursions=5),
    Seq(WORTHS, max_steps=4),
], ids=lambda policy: policy.name)  # fmt: skip
def test_a_saved_policy_is_the_same_policy(tmp_path, policy):
    policy = trained(policy)
    save_policy(tmp_path, policy)
    again = make_policy(str(tmp_path))
    assert again == policy and type(again) is type(policy)
    jax.tree.map(np.testing.assert_array_equal, again.weights, policy.weights)
    rng = np.random.default_rng(0)
    obs = observe(40, draft_score=rng.uniform(size=40).astype(np.float32))
    for worth in WORTHS:
        np.testing.assert_array_equal(actions(again, worth, obs), actions(policy, worth, obs))


def test_a_folder_without_description_is_no_policy_and_damage_is_named(tmp_path):
    assert not is_saved(tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: not the folder of a trained policy"):
        load_policy(tmp_path)
    save_policy(tmp_path, trained(Q(WORTHS)))
    weights = tmp_path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not the folder of a trained policy"):
        load_policy(tmp_path)
