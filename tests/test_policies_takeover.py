"""Takeover: plans and decisions by hand; in the routed loop no draft and no score afterwards."""

import dataclasses

import jax
import numpy as np
import pytest
from test_policies import SETTINGS, actions, observe, plans
from test_policies_pomdp import SMALL

from trim_jax import load_problems, load_trio
from trim_jax.api import route
from trim_jax.engine.engine import EngineConfig
from trim_jax.policies import base
from trim_jax.policies.learned import Q
from trim_jax.policies.neighbours import Glimp, LogLik
from trim_jax.policies.pomdp import Pomdp
from trim_jax.policies.sequence import Seq
from trim_jax.policies.simple import Never, Oracle, Threshold
from trim_jax.policies.takeover import takeover

ENGINE = EngineConfig(max_context=448, max_steps=30, max_step_tokens=64, slots=16, rows=8)


def test_nothing_is_drafted_or_decided_after_the_first_intervention():
    policy = takeover(Threshold(SETTINGS))
    free, taken = observe(), observe(large_tokens=[7])
    assert plans(policy, 0.5, free) == base.DRAFT_AND_SCORE
    assert plans(policy, 0.0, free) == base.DRAFT and plans(policy, 1.0, free) == base.LARGE
    assert plans(policy, 0.5, taken) == base.LARGE
    for score, k, want in ((0.4, 0.5, base.REGENERATE), (0.6, 0.5, base.ACCEPT)):
        assert actions(policy, k, observe(draft_score=[score])) == want
        # Played without plans, as in training, every later draft is rewritten.
        assert actions(policy, k, observe(draft_score=[score], large_tokens=[7])) == base.REGENERATE
    assert actions(takeover(Never()), 0.0, free) == base.ACCEPT


def test_it_keeps_the_name_dial_needs_and_state_of_the_one_that_decides():
    q = Q((50.0, 500.0), variant="small")
    q = dataclasses.replace(q, weights=q.init_weights(jax.random.key(0)))
    policy = takeover(q)
    assert (policy.full_name, policy.parameter, policy.settings) == (
        "q-small-takeover", "worth", q.settings
    )  # fmt: skip
    assert takeover(Threshold((0.5,))).full_name == "thr-takeover"
    assert policy.weights is q.weights and hash(policy) == hash(takeover(q))
    obs = observe(9, draft_score=np.linspace(0.1, 0.9, 9, dtype=np.float32))
    np.testing.assert_array_equal(actions(policy, 500.0, obs), actions(q, 500.0, obs))
    # Weights that are exchanged later are the ones that count.
    other = dataclasses.replace(policy, weights=q.init_weights(jax.random.key(1)))
    bare = dataclasses.replace(q, weights=other.weights)
    np.testing.assert_array_equal(actions(other, 500.0, obs), actions(bare, 500.0, obs))
    assert takeover(Oracle()).needs_reference and not policy.needs_reference
    assert takeover(Glimp()).peeks and takeover(LogLik()).judges
    seq = Seq((50.0,), price=False)
    assert takeover(seq).state_knows_dial and not policy.state_knows_dial
    assert jax.tree.structure(takeover(seq).init(2)) == jax.tree.structure(seq.init(2))
    assert takeover(Pomdp.of(SMALL, (10.0,))).full_name == "pomdp-takeover"


@pytest.fixture(scope="module")
def traces():
    problems = load_problems("arith", "test", 6)
    return route(problems, takeover(Threshold((0.3, 0.9))), load_trio(), engine=ENGINE)


def test_in_the_loop_the_large_model_writes_the_rest_alone(traces):
    handed = 0
    for trace in traces:
        names = [step.action for step in trace.steps]
        first = names.index("regenerate") if "regenerate" in names else len(names)
        written = len(names) - first
        handed += written > 1
        assert names[:first] == ["accept"] * first
        assert names[first:] == ["regenerate", *["direct"] * (written - 1)][:written]
        # One call of the PRM and of the small model for each draft, the rejected one included.
        assert trace.ledger.prm.calls == trace.ledger.small.calls == first + (written > 0)
        assert trace.ledger.large.calls == written
    assert handed >= 3, "the problems show nothing"
