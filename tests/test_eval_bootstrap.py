"""The bootstrap resamples problems with nested seeds, the same for everything it is used on."""

import time

import numpy as np

from trim_jax.eval import bootstrap, metrics


def test_seeds_stay_inside_their_problem():
    drawn = bootstrap.resample(problems=11, seeds=3, resamples=50, seed=1)
    counts = drawn.counts
    assert counts.shape == (50, 11, 3)
    # A problem drawn n times contributes n times 3 seed draws, all within that problem.
    assert (counts.sum(-1) % 3 == 0).all()
    assert (counts.sum((1, 2)) == 33).all()
    np.testing.assert_array_equal(drawn.per_problem, counts.sum(-1) // 3)
    assert (counts.max(-1) > drawn.per_problem).any(), "seeds are resampled too"


def test_same_seed_same_resamples():
    one, same, other = (bootstrap.resample(9, 2, 20, seed=s).counts for s in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_means_equal_an_explicit_average():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 7, 3))
    drawn = bootstrap.resample(7, 3, 600, seed=2)  # more than one chunk
    expected = np.einsum("bps,kps->bk", drawn.counts.astype(float), values) / 21
    np.testing.assert_allclose(drawn.means(values), expected)


def test_pairing_makes_a_constant_difference_certain():
    rng = np.random.default_rng(0)
    base = rng.uniform(size=(1, 40, 3))
    means = bootstrap.resample(40, 3, 200).means(np.concatenate([base, base + 0.125]))
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.125)
    assert means[:, 0].std() > 0.01


def test_interval_covers_the_mean_of_clustered_data():
    """About 95 % of intervals hold the truth when the seeds of a problem agree (clustered)."""
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(120):
        problem = rng.normal(size=(1, 60, 1))
        values = 0.5 + problem + 0.1 * rng.normal(size=(1, 60, 3))
        found = bootstrap.interval(bootstrap.resample(60, 3, 300, seed=trial).means(values))
        hits += bool(found.low[0] <= 0.5 <= found.high[0])
    assert 105 <= hits <= 120


def test_interval_keeps_not_reached_and_drops_undefined():
    samples = np.array([[0.1, np.nan, np.inf, 1.0]] * 5 + [[0.3, 0.2, np.inf, np.inf]] * 95)
    found = bootstrap.interval(samples, level=0.90)
    np.testing.assert_array_equal(found.low, [0.1, 0.2, np.inf, 1.0])
    np.testing.assert_array_equal(found.high, [0.3, 0.2, np.inf, np.inf])
    np.testing.assert_allclose(found.reached, [1.0, 1.0, 0.0, 0.05])
    nothing = bootstrap.interval(np.full((4, 1), np.nan))
    assert np.isnan(nothing.low).all() and np.isnan(nothing.high).all()
    assert np.isnan(nothing.reached).all()


def test_interval_percentiles():
    found = bootstrap.interval(np.arange(1001.0)[:, None])
    assert found.low[0] == 25 and found.high[0] == 975


def test_pareto_selection_is_repeated_in_every_resample():
    """With two settings of equal merit, each is on the frontier of about half the resamples."""
    rng = np.random.default_rng(0)
    correct = rng.uniform(size=(2, 200, 3)) < 0.6
    means = bootstrap.resample(200, 3, 400).means(correct)
    on = metrics.on_frontier(np.broadcast_to([10.0, 20.0], means.shape), means, 0.2)
    share = on[:, 1].mean()
    assert 0.05 < share < 0.95


def test_full_size_takes_a_few_seconds():
    rng = np.random.default_rng(0)
    tokens = rng.uniform(0, 50, (2 * 21 + 2, 500, 3))
    correct = rng.uniform(size=tokens.shape) < 0.7
    start = time.process_time()
    means = bootstrap.resample(500, 3, 2000).means(np.concatenate([correct, tokens]))
    anchors = metrics.Anchors(np.full(2000, 0.4), np.full(2000, 0.9), np.full(2000, 60.0))
    m = metrics.curve_metrics(means[:, 44:65], means[:, :21], anchors)
    bootstrap.interval(m.cpt)
    assert time.process_time() - start < 20
    assert m.cpt.shape == (2000, 3)
