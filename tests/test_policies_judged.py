"""Judged: what the wrapped policy sees is worked out by hand, and holds in the routed loop."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from test_policies import actions, observe, plans

from trim_jax import load_problems, load_trio
from trim_jax.api import route
from trim_jax.engine.engine import EngineConfig
from trim_jax.policies import base
from trim_jax.policies.judged import judged, on_scores
from trim_jax.policies.learned import Q
from trim_jax.policies.neighbours import LogLik
from trim_jax.policies.simple import Threshold

# Of a context below 384 there is but one size of the past to compile for.
ENGINE = EngineConfig(max_context=383, max_steps=30, max_step_tokens=64, slots=16, rows=8)
KEEP, AGAIN = base.ACCEPT, base.REGENERATE


@dataclasses.dataclass(frozen=True)
class Sums(base.Policy):
    """Regenerates where score + minimum + product of what it sees is below its dial."""

    name = "sums"

    def decide(self, dial, obs, state):
        total = obs.draft_score + obs.min_score + obs.prod_score
        return jnp.where(total < dial, AGAIN, KEEP), state


def test_likelihoods_are_seen_as_scores_and_remembered():
    policy, dial = judged(Sums((2.0,))), jnp.full([1], 2.0)
    state, taken = policy.init(1), []
    # Likelihood, then sum with minimum and product: .8+1+1, .7+.8+.8, .5+.7+.56 < 2 (written
    # again, so counted as right), .9+.7+.56, .72+.7+.504 < 2.
    for t, likelihood in enumerate((0.8, 0.7, 0.5, 0.9, 0.72)):
        obs = observe(t=[t], draft_score=[np.nan], draft_loglik=[math.log(likelihood)])
        assert plans(policy, 2.0, obs) == base.DRAFT_AND_JUDGE
        action, state = policy.decide(dial, obs, state)
        taken.append(int(action[0]))
    assert taken == [KEEP, KEEP, AGAIN, KEEP, AGAIN]
    np.testing.assert_allclose(state.least, [0.7], rtol=1e-6)
    np.testing.assert_allclose(state.product, [0.8 * 0.7 * 0.9], rtol=1e-6)


def test_it_is_told_from_the_one_inside_and_takes_its_weights():
    q = Q((50.0, 500.0))
    q = dataclasses.replace(q, weights=q.init_weights(jax.random.key(0)))
    policy = judged(q)
    assert (policy.full_name, policy.settings, policy.parameter) == (
        "q-judged", q.settings, "worth"
    )  # fmt: skip
    assert policy.judges and not policy.state_knows_dial and policy.weights is q.weights


def test_on_scores_it_decides_as_on_likelihoods():
    loglik = np.float32([-2.0, -0.6, -0.4, -0.01])
    for policy in (LogLik((-0.5, -0.1)), judged(Threshold((0.3, 0.9)))):
        plain = on_scores(policy)
        assert len(plain.settings) == 2
        for dial, own in zip(policy.settings, plain.settings):
            want = actions(policy, dial, observe(4, draft_loglik=loglik))
            got = actions(plain, own, observe(4, draft_score=np.exp(loglik)))
            np.testing.assert_array_equal(got, want)


def test_in_the_loop_settings_share_rows_and_decide_each_as_if_alone():
    problems, trio = load_problems("arith", "test", 6), load_trio()
    policy = judged(Sums((1.9, 2.4)))  # its state tells accepted drafts from rewritten ones
    together = route(problems, policy, trio, engine=ENGINE)
    shared, taken = 0, {"accept": 0, "regenerate": 0}
    for at, dial in enumerate(policy.settings):
        mine = [t for t in together if t.settings[0] <= at < t.settings[1]]
        alone = route(problems, judged(Sums((dial,))), trio, engine=ENGINE)
        shared += sum(t.settings == (0, 2) for t in mine)
        for one, other in zip(mine, alone, strict=True):
            assert dataclasses.replace(one, settings=other.settings) == other
            assert one.ledger.prm.calls == 0 and one.ledger.small.calls == len(one.steps)
            least = product = 1.0
            for step in one.steps:
                total = step.draft_likelihood + least + product
                assert step.score_draft is None
                assert step.action == ("regenerate" if total < dial else "accept")
                if step.action == "accept":
                    least = min(least, step.draft_likelihood)
                    product *= step.draft_likelihood
                taken[step.action] += 1
    assert min(taken.values()) > 0 and shared, "the problems show nothing"
