"""The fit to recorded solutions: closed forms of made-up models, weights, pooling; real data."""

import jax
import numpy as np
import pytest

from recorded_pairs import llama_files, make_files
from trim_jax.query.outcomes import folds
from trim_jax.sim import recorded as R, solutions as S

KS = (0.0, 0.45, 1.0)


class Bar:
    done = 0

    def update(self):
        self.done += 1


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Steps right with 0.75 and 0.92, whatever the problem; the judge never errs."""
    files = make_files(tmp_path_factory.mktemp("files"), problems=1500, unboxed=10**6)
    return S.read(*files.values(), count=len)


@pytest.fixture(scope="module")
def weights(pair):
    return np.ones(len(pair.ids))


@pytest.fixture(scope="module")
def predicted(pair, weights):
    return R.predict(R.fit(pair, weights), KS, jax.random.key(1), 20_000)


def test_anchors_are_the_recorded_ones(pair, predicted):
    found = predicted.accuracy[[0, -1]]
    want = [pair.small.correct.mean(), pair.large.correct.mean()]
    np.testing.assert_allclose(found, want, atol=0.015)
    np.testing.assert_allclose(predicted.steps[[0, -1]], [pair.small.n.mean(), pair.large.n.mean()],
                               rtol=0.02)  # fmt: skip
    assert predicted.strong_tokens[0] == 0
    assert predicted.strong_tokens[-1] == pytest.approx(pair.large.tokens.sum(1).mean(), rel=0.03)


def test_a_threshold_between_the_heaps_is_in_closed_form(pair, predicted):
    """k = 0.45 rewrites exactly the wrong drafts: a step is right with 0.75 + 0.25 * 0.92."""
    n = pair.large.n
    assert predicted.accuracy[1] == pytest.approx((0.98**n).mean(), abs=0.025)
    # A quarter of the steps, and all those after a failed rewrite.
    assert 0.25 < predicted.strong_tokens[1] / predicted.strong_tokens[-1] < 0.32


def test_steps_hard_for_both_lower_the_middle_and_not_the_anchors(pair, weights, predicted):
    harder = R.predict(R.fit(pair, weights, draft_wrong=1.5), KS, jax.random.key(1), 20_000)
    np.testing.assert_allclose(harder.accuracy[[0, -1]], predicted.accuracy[[0, -1]], atol=0.015)
    assert harder.accuracy[1] < predicted.accuracy[1] - 0.03


def test_whole_weights_repeat_problems_and_zeros_leave_them_out(pair):
    count = np.zeros(len(pair.ids))
    wrong = np.flatnonzero(~pair.small.correct)[:300]
    right = np.flatnonzero(pair.small.correct)[:100]
    count[wrong], count[right] = 1, 3
    found = R.predict(R.fit(pair, count), KS, jax.random.key(1), 20_000)
    assert found.accuracy[0] == pytest.approx(0.5, abs=0.02)


def test_problem_weights_carry_the_mix_of_levels(pair):
    level = pair.level
    test = np.concatenate([np.flatnonzero(level == 0)[:30], np.flatnonzero(level == 1)[:10]])
    train = np.setdiff1d(np.arange(len(level)), test)
    weights = R.problem_weights(pair, train, test)
    assert (weights[test] == 0).all() and weights.sum() == pytest.approx(len(train))
    shares = [weights[level == i].sum() / weights.sum() for i in range(3)]
    np.testing.assert_allclose(shares, [0.75, 0.25, 0])


def test_the_study_pools_folds_and_refits(pair):
    splits = folds(len(pair.ids), 2, jax.random.key(0))
    # One of the twelve bins of `resampled_errors` holds scores of right and of wrong steps.
    for variant, error in ((R.VARIANTS[0], 0.04), (R.VARIANTS[-1], 0.08)):
        bar = Bar()
        found = R.study(pair, splits, variant, KS, jax.random.key(0), 4000, 3, bar)
        assert bar.done == 5 and len(found["parameters"]) == 2
        samples = np.array(found["samples"]["accuracy"])
        assert samples.shape == (3, 3) and samples[:, 0].std() > 0
        assert found["accuracy"][0] == pytest.approx(pair.small.correct.mean(), abs=0.03)
        # A judge that never errs leaves nothing to the assumption about first errors.
        assert found["accuracy"][1] == pytest.approx((0.98**pair.large.n).mean(), abs=error)


def test_llama_on_math500():
    pair = S.read(*llama_files())
    found = R.predict(R.fit(pair, np.ones(500)), (0.0, 1.0), jax.random.key(3), 20_000)
    np.testing.assert_allclose(found.accuracy, [0.21, 0.438], atol=0.015)
    np.testing.assert_allclose(found.steps, [pair.small.n.mean(), pair.large.n.mean()], rtol=0.02)
