"""Paired differences against hand-worked curves, and whether the bands hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from trim_jax.eval import bootstrap, metrics, paired
from trim_jax.eval.metrics import Anchors
from trim_jax.eval.paired import COSTS, Curve
from trim_jax.eval.traces import PolicySpec, Table

WEAK, STRONG, COST = 0.4, 0.8, 100.0


def curve(tokens, accuracy, weak=WEAK, strong=STRONG):
    """A curve of given points, with resamples [B, S] of them or the points themselves."""
    tokens, accuracy = np.atleast_2d(tokens).astype(float), np.atleast_2d(accuracy).astype(float)
    found = []
    for t, a in ((tokens[0], accuracy[0]), (tokens, accuracy)):
        ends = Anchors(np.full(a.shape[:-1], weak), np.full(a.shape[:-1], strong),
                       np.full(a.shape[:-1], COST))  # fmt: skip
        m = metrics.curve_metrics(t, a, ends)
        front = metrics.value_at(metrics.frontier(m.c, m.accuracy, ends.weak), COSTS)
        found.append((m, front))
    return Curve(found[0][0], found[1][0], found[0][1], found[1][1])


def test_difference_of_two_curves_by_hand():
    # One reaches 0.6 at c = 0.25 and strong-only; the other is the diagonal.
    one, other = curve([25, 100], [0.6, 0.8]), curve([100], [0.8])
    found = paired.difference(one, other, cells=100)
    at = dict(zip(COSTS, found["curve"]["value"]))
    assert at[0.0] == 0.0 and at[1.0] == pytest.approx(0.0)
    assert at[0.25] == pytest.approx(0.6 - 0.5) and at[0.125] == pytest.approx(0.5 - 0.45)
    # Areas under PGR: 0.25 * 0.25 + 0.75 * 0.75 against 0.5.
    assert found["apgr"]["value"] == pytest.approx(0.625 - 0.5)
    # PGR 50 % at 0.25 against 0.5; 80 % at 0.25 + 0.3 * 1.5 against 0.8.
    assert found["cpt"]["50"]["value"] == pytest.approx(-0.25)
    assert found["cpt"]["80"]["value"] == pytest.approx(0.7 - 0.8)
    assert found["mean_dibc"]["targets"] == 100
    # Without any variation every limit is the value itself.
    assert found["curve"]["band_low"] == pytest.approx(found["curve"]["value"])
    assert found["simultaneous"]["better"] == [[0.025, 0.975]]
    assert found["simultaneous"]["worse"] == [] and found["at_worst"] == pytest.approx(0.0)
    back = paired.difference(other, one, cells=100)
    assert back["pointwise"] == {"better": [], "worse": [[0.025, 0.975]]}


def test_a_target_that_a_side_does_not_reach_is_no_number():
    low, full = curve([[10], [10]], [[0.5], [0.5]]), curve([[100], [100]], [[0.8], [0.8]])
    found = paired.difference(low, full, cells=10)
    assert found["cpt"]["95"] == {"value": None, "low": None, "high": None, "share_reached": 0.0}
    assert found["mean_dibc"]["targets"] == 25  # PGR of 1 to 25 % is all that `low` recovers
    # dIBC of `low` is 0.25 / 0.1 - 1 at each of those, of the diagonal 0.
    assert found["mean_dibc"]["value"] == pytest.approx(1.5)
    assert found["curve"]["value"][-1] == pytest.approx(0.5 - 0.8)


def test_ratio_to_the_oracle():
    # The oracle recovers everything at c = 0.2: dIBC 4 at every target, CPT(95) = 0.19.
    oracle, policy = curve([20], [0.8]), curve([40], [0.8])
    found = paired.to_upper_bound(policy, oracle)
    assert found["mean_dibc"]["value"] == pytest.approx(1.5 / 4)
    assert found["cpt95"]["value"] == pytest.approx(2.0)


def test_stretches_of_costs():
    mask = np.zeros(41, bool)
    assert paired.ranges(mask) == []
    mask[[0, 1, 5, 40]] = True
    assert paired.ranges(mask) == [[0.0, 0.025], [0.125, 0.125], [1.0, 1.0]]


def noise(rng, rows, smooth=6.0):
    """Correlated noise [rows, 41] whose spread falls from 2 to 1."""
    x = np.arange(41)
    cov = np.exp(-(((x[:, None] - x) / smooth) ** 2)) + 1e-9 * np.eye(41)
    return rng.normal(size=(rows, 41)) @ np.linalg.cholesky(cov).T * np.linspace(2, 1, 41)


def test_the_band_holds_whole_curves_and_the_pointwise_intervals_do_not():
    rng = np.random.default_rng(0)
    truth = np.sin(np.arange(41) / 9.0)
    hits = np.zeros(2)
    for _ in range(300):
        value = truth + noise(rng, 1)[0]
        found = paired.band(value, value + noise(rng, 400), 1e-6)
        hits += [((found.band_low <= truth) & (truth <= found.band_high)).all(),
                 ((found.low <= truth) & (truth <= found.high)).all()]
        assert (found.band_low <= found.low).all() and (found.high <= found.band_high).all()
    assert hits[0] / 300 == pytest.approx(0.95, abs=0.04)
    assert hits[1] / 300 < 0.85


def test_the_band_where_curves_hardly_differ_holds_every_resample():
    rng = np.random.default_rng(1)
    samples = noise(rng, 1000) / 100
    plain = paired.band(np.zeros(41), samples, 0.004)
    samples[:, 0] = 0.0
    samples[:, 1] = np.where(np.arange(1000) % 200 == 0, 0.01, 0.0)  # one solution, now and then
    found = paired.band(np.zeros(41), samples, 0.004)
    assert found.band_low[0] == found.band_high[0] == 0.0
    assert found.band_high[1] == 0.01
    # Its rare steps, 14 standard errors, widen the band nowhere else.
    assert found.band_high[20] == pytest.approx(plain.band_high[20], rel=0.05)


def test_undefined_curves_have_no_limits():
    value, samples = np.full(41, np.nan), np.full((5, 41), np.nan)
    found = paired.band(value, samples, 0.1)
    assert np.isnan(found.band_low).all() and np.isnan(found.low).all()


def test_resamples_are_paired():
    """Two policies that differ on a tenth of the problems: the difference varies far less than
    either, so that a small gain is seen."""
    rng = np.random.default_rng(2)
    base = rng.uniform(size=(400, 3)) < 0.6
    better = base | (rng.uniform(size=base.shape) < 0.05)
    means = bootstrap.resample(400, 3, 300).means(np.stack([base, better]))
    one, other = (curve(np.concatenate([[[50.0]], np.full((300, 1), 50.0)]),
                        np.concatenate([[[values.mean()]], drawn[:, None]]))
                  for values, drawn in ((better, means[:, 1]), (base, means[:, 0])))  # fmt: skip
    found = paired.difference(one, other, cells=1200)
    gain = better.mean() - base.mean()
    half = COSTS.tolist().index(0.5)
    assert found["curve"]["value"][half] == pytest.approx(gain)
    assert 0 < found["curve"]["band_low"][half] < gain
    assert other.fronts[:, half].std() > 0.8 * gain
    assert found["simultaneous"]["better"] and not found["simultaneous"]["worse"]


def test_prices_weigh_the_tokens():
    spec = PolicySpec("q", "worth", (10.0, 100.0))
    right = np.array([[[1], [0]], [[1], [1]]], bool)
    tokens = np.array([[[4], [0]], [[10], [20]]])
    rest = np.zeros([2, 2, 1, 3, 5], int), np.zeros([2, 2, 1], int)
    table = lambda *found: Table(spec, ("a", "b"), (0,), *found, *rest)  # noqa: E731
    one, other = table(right, tokens), table(np.zeros_like(right), np.full_like(tokens, 2))
    found = paired.at_prices(one, other, bootstrap.resample(2, 1, 500))
    # Worth 10: 1 - .4 and 0 against -.2. Worth 100: 1 - .1 and 1 - .2 against -.02.
    assert found["value"] == pytest.approx([(0.6 + 0.0) / 2 + 0.2, (0.9 + 0.8) / 2 + 0.02])
    assert found["low"] == pytest.approx([0.2, 0.82])
    assert found["high"] == pytest.approx([0.8, 0.92])
    assert found["mean"]["value"] == pytest.approx((0.5 + 0.87) / 2)
    assert all(b <= low for b, low in zip(found["band_low"], found["low"]))
    assert found["worth"] == [10.0, 100.0]
