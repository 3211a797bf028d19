"""The policies by themselves: what they plan and decide, where settings part, bad settings."""

import jax.numpy as jnp
import numpy as np
import pytest

from trim_jax.errors import ConfigError
from trim_jax.policies import base
from trim_jax.policies.registry import POLICIES, make_policy
from trim_jax.policies.simple import Always, Detour, Never, Oracle, Random, Threshold

SETTINGS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
SCORES = [0.0, 0.05, 0.1, 0.25, 0.2500001, 0.6, 0.75, 0.999, 1.0]


def observe(rows=1, **fields):
    """An observation of first steps; `fields` replace its defaults."""
    full = lambda value, kind: jnp.full([rows], value, kind)  # noqa: E731
    defaults = dict(
        t=full(0, jnp.int32), draft_tokens=full(5, jnp.int32), draft_score=full(0.5, jnp.float32),
        scores=jnp.full([rows, 4], jnp.nan), writers=jnp.zeros([rows, 4], jnp.int32),
        last=full(False, bool), uniform=full(0.5, jnp.float32), right=full(False, bool),
        prefix_right=full(False, bool), large_tokens=full(0, jnp.int32),
        min_score=full(1, jnp.float32), prod_score=full(1, jnp.float32),
    )  # fmt: skip
    return base.Observation(**(defaults | {k: jnp.asarray(v) for k, v in fields.items()}))


def actions(policy, dial, obs):
    dials = jnp.full_like(obs.uniform, dial)
    return np.asarray(policy.decide(dials, obs, policy.init(len(dials)))[0])


def plans(policy, dial, obs):
    dials = jnp.full_like(obs.uniform, dial)
    return np.asarray(policy.plan(dials, obs, policy.init(len(dials))))


def test_the_anchors_ask_nobody():
    assert plans(Never(), 0, observe()) == base.DRAFT
    assert actions(Never(), 0, observe()) == base.ACCEPT
    assert plans(Always(), 0, observe()) == base.LARGE


def test_threshold_regenerates_below_k():
    scores = np.array(SCORES, np.float32)
    obs = observe(len(scores), draft_score=scores)
    for k in SETTINGS[1:-1]:
        want = np.where(scores < np.float32(k), base.REGENERATE, base.ACCEPT)
        np.testing.assert_array_equal(actions(Threshold(SETTINGS), k, obs), want)


def test_threshold_0_and_1_are_the_anchors():
    policy = Threshold(SETTINGS)
    assert plans(policy, 0.0, observe()) == base.DRAFT
    assert plans(policy, 0.5, observe()) == base.DRAFT_AND_SCORE
    assert plans(policy, 1.0, observe()) == base.LARGE
    assert actions(policy, 0.0, observe(draft_score=[np.nan])) == base.ACCEPT


def test_random_never_drafts_in_vain_and_knows_its_ends():
    policy = Random((0.0, 0.3, 1.0))
    ends = np.array([1e-7, 0.29, 0.31, 1 - 1e-7], np.float32)
    obs = observe(len(ends), uniform=ends)
    large, draft = base.LARGE, base.DRAFT
    for p, want in [(0.0, [draft] * 4), (0.3, [large, large, draft, draft]), (1.0, [large] * 4)]:
        np.testing.assert_array_equal(plans(policy, p, obs), want)
    assert (actions(policy, 0.3, obs) == base.ACCEPT).all()


def test_detour_rewrites_its_step_and_no_other():
    obs = observe(3, t=[0, 1, 2], draft_score=[0.1, 0.9, 0.1])
    want = [base.ACCEPT, base.REGENERATE, base.ACCEPT]
    np.testing.assert_array_equal(actions(Detour((0.0, 1.0)), 1, obs), want)


def test_oracle_spends_on_the_first_wrong_step_only():
    obs = observe(3, prefix_right=[True, True, False], right=[True, False, False])
    want = [base.ACCEPT, base.REGENERATE, base.ACCEPT]
    np.testing.assert_array_equal(actions(Oracle(), 0, obs), want)
    assert Oracle.needs_reference and not Threshold.needs_reference


@pytest.mark.parametrize("policy, settings, message", [
    (Threshold, (), "thr: give at least one"), (Threshold, (0.5, 0.5), "thr: settings must ascend"),
    (Random, (0.5, 0.1), "random: settings must ascend"), (Threshold, (-0.1, 0.5), "k must be in"),
    (Random, (0.5, 1.5), r"p must be in \[0, 1\], it is 1.5"),
    (Threshold, (0.1, float("nan")), "thr"),
])  # fmt: skip
def test_bad_settings_are_refused(policy, settings, message):
    with pytest.raises(ConfigError, match=message):
        policy(settings)


def test_the_base_class_scores_every_draft():
    policy = base.Policy((0.1, 0.2))
    assert plans(policy, 0.1, observe()) == base.DRAFT_AND_SCORE
    with pytest.raises(NotImplementedError):
        policy.decide(None, observe(), ())


@pytest.mark.parametrize("name", POLICIES)
def test_policies_by_name(name):
    policy = make_policy(name, threshold=0.25, p=0.75)
    assert policy.name == name
    assert policy.settings == {
        "thr": (0.25,), "random": (0.75,), "rsd": (0.25,), "glimp": (1.0,), "loglik": (-1.0,),
    }.get(name, (0.0,))  # fmt: skip


def test_an_unknown_policy_names_the_nearest():
    with pytest.raises(ConfigError, match="no policy 'tresh'; did you mean 'thr'"):
        make_policy("tresh")


def test_a_policy_of_ones_own(tmp_path, monkeypatch):
    text = "from trim_jax.policies.simple import Random\nmake = lambda: Random((0.1,))\nbad = dict\n"
    (tmp_path / "policy_of_a_test.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert make_policy("policy_of_a_test:make") == Random((0.1,))
    with pytest.raises(ConfigError, match="returned dict, not a trim_jax Policy"):
        make_policy("policy_of_a_test:bad")
    with pytest.raises(ConfigError, match="has no function 'other'"):
        make_policy("policy_of_a_test:other")
    with pytest.raises(ConfigError, match="cannot import 'no_such_module_here'"):
        make_policy("no_such_module_here:make")
