"""Features by hand, and that solutions recorded give the features that were seen."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_policies import observe

from trim_jax.policies.features import Features, log_worth


def one(features, **fields):
    given = dict(t=[2], draft_tokens=[60], draft_score=[0.8], min_score=[0.5], prod_score=[0.4])
    return np.asarray(features.of(observe(1, **(given | fields)), jnp.array([3000.0])))[0]


def test_the_papers_four_and_the_releases_five():
    np.testing.assert_allclose(one(Features()), [0.8, 0.5, 60 / 300, 3 / 30], rtol=1e-6)
    five = one(Features(product=True))
    np.testing.assert_allclose(five, [0.8, 0.5, 60 / 300, 3 / 30, 0.4], rtol=1e-6)
    assert Features().width == 4 and Features(product=True).width == 5


def test_scales_and_price():
    features = Features(price=True, token_scale=20.0, step_scale=10.0)
    np.testing.assert_allclose(one(features), [0.8, 0.5, 3.0, 0.3, 1.0], rtol=1e-6)
    assert features.width == 5
    np.testing.assert_allclose(log_worth(jnp.array([30.0, 300.0])), [-1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("r, logit", [(0.5, 0.0), (0.8, np.log(4)), (1.0, 6.0), (0.0, -6.0)])
def test_logit_scores_stay_finite(r, logit):
    seen = one(Features(logit=True), draft_score=[r], min_score=[r])
    np.testing.assert_allclose(seen[:2], [logit / 4] * 2, atol=1e-6)


def test_a_draft_that_was_not_scored_counts_as_one():
    assert one(Features(), draft_score=[np.nan])[0] == 1.0
