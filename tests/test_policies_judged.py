"""Judged: what the wrapped policy sees is worked out by hand, and holds in the routed loop."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_policies import actions, observe, plans

from trim_jax import load_problems, load_trio
from trim_jax.api import route
from trim_jax.engine.engine import EngineConfig
from trim_jax.policies import base
from trim_jax.policies.judged import judged, on_scores
from trim_jax.policies.learned import Q
from trim_jax.policies.neighbours import LogLik
from trim_jax.policies.simple import Threshold

ENGINE = EngineConfig(max_context=448, max_steps=30, max_step_tokens=64, slots=16, rows=8)
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
            got = actions(plain, own, observe(4, draft_score=np.exp(loglik)))
            np.testing.assert_array_equal(got, actions(policy, dial, observe(4, draft_loglik=loglik)))


@pytest.mark.parametrize("k", [0.5, 0.7])
def test_in_the_loop_a_threshold_is_one_on_the_likelihood(k):
    problems, trio = load_problems("arith", "test", 6), load_trio()
    traces = route(problems, judged(Threshold((k,))), trio, engine=ENGINE)
    taken = {"accept": 0, "regenerate": 0}
    for trace in traces:
        assert trace.ledger.prm.calls == 0 and trace.ledger.small.calls == len(trace.steps)
        for step in trace.steps:
            assert step.score_draft is None and 0 < step.draft_likelihood <= 1
            assert step.action == ("regenerate" if step.draft_likelihood < k else "accept")
            taken[step.action] += 1
    assert min(taken.values()) > 0, "the problems show nothing"
