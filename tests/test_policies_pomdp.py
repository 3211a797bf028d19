"""TRIM-POMDP's two policies: decisions and beliefs by hand, settings, and in the routed loop."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_policies import actions, observe
from test_pomdp_solve import realistic
from tiny import (
    CONTEXT, NEVER, PRM_EXTRA, STEP_TOKENS, STEPS, by_setting, requests, text_of, tiny_engine,
    tiny_trio,
)  # fmt: skip

from trim_jax.engine.engine import Cells, EngineConfig
from trim_jax.engine.reference import Reference
from trim_jax.errors import ConfigError
from trim_jax.policies import base
from trim_jax.policies.pomdp import FilteredPomdp, Pomdp
from trim_jax.policies.sequence import Seq
from trim_jax.policies.takeover import takeover
from trim_jax.pomdp.solve import Parameters

WORTHS = (150.0, 400.0, 1000.0, 3000.0)
# Two bins: below and above 1/2. p(min, r | state), [state][min][r].
JOINT = np.array([
    [[0.1, 0.1], [0.2, 0.6]],
    [[0.4, 0.4], [0.1, 0.1]],
    [[0.1, 0.1], [0.6, 0.2]],
])  # fmt: skip
FIRST = np.array([[0.1, 0.9], [0.5, 0.5], [0.8, 0.2]])
SMALL = Parameters(0.8, 0.9, np.array([0.2, 0.4, 1.0]), 10.0, JOINT, FIRST)


def scores(*known):
    """The scores [1, 4] of the accepted steps."""
    return jnp.array([[*known] + [np.nan] * (4 - len(known))])


def test_one_shot_at_the_last_step_by_hand():
    """min high, score low: likelihoods 0.2, 0.1, 0.6; a rewrite gains 0.9 * 8/9 - 2/9 = 0.5778."""
    policy = Pomdp.of(SMALL, (100.0,))
    seen = dict(t=[2], draft_score=[0.3], min_score=[0.9], last=[True])
    for tokens, want in ((57, base.REGENERATE), (58, base.ACCEPT)):
        assert actions(policy, 100.0, observe(draft_tokens=[tokens], **seen)) == want
    # A prior sure of S1 sees nothing to save, one sure of S2 all of it.
    for prior, limit in (((0, 1, 0), 0), ((0, 0, 1), 90)):
        policy = Pomdp.of(SMALL, (100.0,), prior=prior)
        for tokens in (1, 89, 91):
            want = base.REGENERATE if tokens < limit else base.ACCEPT
            assert actions(policy, 100.0, observe(draft_tokens=[tokens], **seen)) == want


def test_one_shot_before_the_last_step_by_hand():
    """Step 0-based 1 of 3: what is ahead is the last step, worked out here from its definition."""
    policy = Pomdp.of(SMALL, (100.0,))
    price = 10 / 100

    def ahead(x):
        prior = np.array([0.8 * x, 1 - x, 0.2 * x])
        seen = prior[:, None] * JOINT.reshape(3, 4)  # [3, O]
        return np.maximum(seen[0], 0.9 * (seen[0] + seen[2]) - price * seen.sum(0)).sum()

    belief = np.array([2, 1, 6]) / 9
    limit = 100 * (ahead(0.9 * (belief[0] + belief[2])) - ahead(belief[0]))
    assert 30 < limit < 80
    for tokens in (int(limit), int(limit) + 1):
        obs = observe(t=[1], draft_score=[0.3], min_score=[0.9], draft_tokens=[tokens])
        want = base.REGENERATE if tokens < limit else base.ACCEPT
        assert actions(policy, 100.0, obs) == want


def test_a_policy_that_does_not_see_the_last_step_by_hand():
    """Step 0-based 1 of 3 is the last one with probability 0.4."""
    policy = Pomdp.of(SMALL, (100.0,), sees_last=False)

    def ahead(x):  # of the third step, which is certainly the last
        prior = np.array([0.8 * x, 1 - x, 0.2 * x])
        seen = prior[:, None] * JOINT.reshape(3, 4)
        return np.maximum(seen[0], 0.9 * (seen[0] + seen[2]) - 0.1 * seen.sum(0)).sum()

    accepted, rewritten = 2 / 9, 0.9 * 8 / 9
    leave = lambda x: 0.4 * x + 0.6 * ahead(x)  # noqa: E731
    limit = 100 * (leave(rewritten) - leave(accepted))
    for last in (False, True):  # whatever is there to be seen
        for tokens in (int(limit), int(limit) + 1):
            obs = observe(t=[1], draft_score=[0.3], min_score=[0.9], draft_tokens=[tokens],
                          last=[last])  # fmt: skip
            want = base.REGENERATE if tokens < limit else base.ACCEPT
            assert actions(policy, 100.0, obs) == want
    # At the limit of steps everybody knows: the closed form, 57.8 tokens as above.
    for tokens, want in ((57, base.REGENERATE), (58, base.ACCEPT)):
        obs = observe(t=[2], draft_score=[0.3], min_score=[0.9], draft_tokens=[tokens])
        assert actions(policy, 100.0, obs) == want


def test_the_filter_by_hand():
    policy = FilteredPomdp.of(SMALL, (1e-3, 100.0))
    given = JOINT / JOINT.sum(2, keepdims=True)  # p(r | min, state); all minima are common here

    def follow(dial, state, **fields):
        action, state = policy.decide(jnp.array([dial]), observe(**fields), state)
        return action[0], state

    def bayes(x, seen):
        belief = np.array([0.8 * x, 1 - x, 0.2 * x]) * seen
        return belief / belief.sum()

    # The first step: S1 cannot be. Nothing is worth a token, the draft stands.
    action, one = follow(1e-3, policy.init(1), draft_score=[0.3])
    belief = bayes(1, FIRST[:, 0])
    assert belief[1] == 0 and action == base.ACCEPT
    np.testing.assert_allclose(one, belief[:1], atol=1e-3)
    # Its score is the minimum now, and tells nothing again; the last step, which gains
    # 0.9 * (0.267 + 0.067) - 0.267 = 0.033 at b = (0.267, 0.667, 0.067).
    belief = bayes(belief[0], given[:, 0, 0])
    limit = 100 * (0.9 * (belief[0] + belief[2]) - belief[0])
    for tokens in (int(limit), int(limit) + 1):
        action, two = follow(100.0, one, t=[1], draft_score=[0.3], min_score=[0.3], last=[True],
                             scores=scores(0.3), draft_tokens=[tokens])  # fmt: skip
        redone = tokens < limit
        assert action == (base.REGENERATE if redone else base.ACCEPT)
        right = 0.9 * (belief[0] + belief[2]) if redone else belief[0]
        np.testing.assert_allclose(two, [right], atol=1e-3)


@pytest.mark.parametrize("family", [Pomdp, FilteredPomdp])
def test_every_setting_has_its_own_values_and_spends_no_less(family):
    p = realistic(steps=8, bins=5)
    policy = family.of(p, WORTHS)
    rng = np.random.default_rng(0)
    n = 300
    minimum = rng.uniform(size=n)
    obs = observe(n, t=rng.integers(1, 7, n), draft_score=rng.uniform(size=n), min_score=minimum,
                  draft_tokens=rng.integers(5, 200, n), last=rng.uniform(size=n) < 0.2,
                  scores=np.stack([minimum] + 3 * [np.full(n, np.nan)], axis=1))  # fmt: skip
    obs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) if x.dtype == float else x, obs)
    together = [actions(policy, worth, obs) == base.REGENERATE for worth in WORTHS]
    for worth, got in zip(WORTHS, together):
        np.testing.assert_array_equal(
            got, actions(family.of(p, (worth,)), worth, obs) == base.REGENERATE)
    for less, more in zip(together, together[1:]):
        assert (less <= more).all()
    assert 0 < together[0].mean() < 0.3 < 0.6 < together[-1].mean() < 1


def test_an_engine_with_longer_solutions_than_a_policy_knows_is_refused():
    known = Pomdp.of(realistic(steps=STEPS - 1, bins=5), (12.0,))
    for policy in (known, takeover(known), Seq((12.0,), max_steps=STEPS - 1)):
        with pytest.raises(ConfigError, match=f"max_steps \\({STEPS}\\).*at most {STEPS - 1} steps"):
            tiny_engine(policies=[policy])


def test_the_routed_loop_takes_them_and_other_weights():
    """Forked, with a state, and with weights exchanged: as the slow path decides step by step."""
    worths = (12.0, 60.0)
    p = realistic(steps=STEPS, bins=5)
    policies = Pomdp.of(p, worths), FilteredPomdp.of(p, worths)
    cells = tuple(Cells(i, 0, len(worths)) for i in range(len(policies)))
    asked = [dataclasses.replace(request, cells=cells) for request in requests(range(6), [NEVER])]
    engine = tiny_engine(policies=policies)
    limits = EngineConfig(max_context=CONTEXT, max_steps=STEPS, max_step_tokens=STEP_TOKENS)
    trio = tiny_trio()
    slow = partial(Reference, trio.models, trio.params, trio.tables, config=limits,
                   prm_extra=PRM_EXTRA)  # fmt: skip
    found = []
    for q in (p, dataclasses.replace(p, p_large=0.5, step_tokens=20.0)):
        policies = Pomdp.of(q, worths), FilteredPomdp.of(q, worths)
        for i, policy in enumerate(policies):
            engine.load_weights(i, policy.weights)
        got = by_setting(engine.run(asked))
        reference = slow(policies=policies)
        # Scores move by up to 1e-5, and then seldom into the next bin.
        other = sum(text_of(solution) != text_of(reference.solve(request))
                    for request, solution in got.items())  # fmt: skip
        assert len(got) == 24 and other <= 1
        found.append([text_of(solution) for solution in got.values()])
        actions = [step.action for solution in got.values() for step in solution.steps]
        assert {base.ACCEPT, base.REGENERATE} == set(actions)
    assert found[0] != found[1]


def test_bad_settings_are_named():
    with pytest.raises(ConfigError, match="worth"):
        Pomdp.of(SMALL, (0.0, 10.0))
    with pytest.raises(ConfigError, match="solved"):
        Pomdp((10.0,))
    with pytest.raises(ConfigError, match="solved"):
        dataclasses.replace(Pomdp.of(SMALL, (10.0,)), settings=(1.0, 10.0))
