"""Metrics against numbers worked out by hand, their identities, and their edge cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_jax.eval import metrics
from trim_jax.eval.metrics import Anchors

# Strong-only: 80 % at 100 tokens; weak-only: 40 %. In (c, PGR), weak-only first, the points are
# (0, 0), (0.1, 0.25), (0.2, 0.5), (0.3, 0.4) dominated, (0.5, 0.9), (1, 1).
ANCHORS = Anchors(np.float64(0.4), np.float64(0.8), np.float64(100.0))
TOKENS = np.array([0.0, 10.0, 20.0, 30.0, 50.0, 100.0])
ACCURACY = np.array([0.40, 0.50, 0.60, 0.56, 0.76, 0.80])


def curve(tokens=TOKENS, accuracy=ACCURACY, anchors=ANCHORS):
    return metrics.curve_metrics(tokens, accuracy, anchors)


def test_single_settings_by_hand():
    m = curve()
    np.testing.assert_allclose(m.c, [0, 0.1, 0.2, 0.3, 0.5, 1.0])
    np.testing.assert_allclose(m.pgr, [0, 0.25, 0.5, 0.4, 0.9, 1.0])
    # IBC: 0.1 accuracy for 10 tokens = 0.01 a token; strong-only 0.4 / 100 = 0.004.
    np.testing.assert_allclose(m.ibc, [np.nan, 0.01, 0.01, 0.16 / 30, 0.0072, 0.004])
    np.testing.assert_allclose(m.dibc, [np.nan, 1.5, 1.5, 1 / 3, 0.8, 0.0], atol=1e-12)


def test_cpt_interpolates_between_pareto_points():
    # 50 % is the point at c = 0.2; 80 % lies 3/4 of the way from (0.2, 0.5) to (0.5, 0.9), past
    # the dominated point; 95 % half-way from (0.5, 0.9) to (1, 1).
    np.testing.assert_allclose(curve().cpt, [0.2, 0.425, 0.75])


def test_cpt_starts_at_weak_only():
    # A single point (0.4, 0.8): PGR 50 % is 5/8 of the way from (0, 0).
    m = curve(np.array([40.0]), np.array([0.72]))
    np.testing.assert_allclose(m.cpt, [0.25, 0.4, np.inf])


def test_not_reached_is_a_value():
    m = curve(np.array([20.0, 50.0]), np.array([0.6, 0.7]))
    assert m.cpt[0] == pytest.approx(0.2)
    assert np.isinf(m.cpt[1]) and np.isinf(m.cpt[2])
    assert m.targets_reached == 75
    assert np.isnan(m.dibc_targets[75:]).all() and not np.isnan(m.dibc_targets[:75]).any()


def test_mean_dibc_by_hand():
    # One point (0.25, 0.5): targets 1..50 % on a line of slope 2, so dIBC = 1 for each of them.
    m = curve(np.array([25.0]), np.array([0.6]))
    assert m.targets_reached == 50
    assert m.mean_dibc == pytest.approx(1.0)
    # Adding strong-only: target x > 0.5 costs 0.25 + (x - 0.5) * 1.5.
    m = curve(np.array([25.0, 100.0]), np.array([0.6, 0.8]))
    x = np.arange(51, 101) / 100
    expected = (50 * 1.0 + (x / (0.25 + (x - 0.5) * 1.5) - 1).sum()) / 100
    assert m.targets_reached == 100
    assert m.mean_dibc == pytest.approx(expected)


def test_common_targets():
    low = curve(np.array([10.0]), np.array([0.5]))  # PGR 25 %
    high = curve()
    common = metrics.common_targets([low, high])
    assert common.sum() == 25
    # On (0, 0) - (0.1, 0.25) and (0.1, 0.25) - (0.2, 0.5) the slope is 2.5.
    assert metrics.mean_over(high.dibc_targets, common) == pytest.approx(1.5)


def test_apgr_by_hand():
    # Areas under PGR: 0.1 * 0.125 + 0.1 * 0.375 + 0.3 * 0.7 + 0.5 * 0.95 = 0.735.
    assert curve().apgr == pytest.approx(0.735)
    # Flat beyond the last point: 0.25 * 0.25 + 0.75 * 0.5.
    assert curve(np.array([25.0]), np.array([0.6])).apgr == pytest.approx(0.4375)
    # A point beyond strong-only's cost counts up to c = 1 only: slope 0.5, mean 0.25.
    assert curve(np.array([200.0]), np.array([0.8])).apgr == pytest.approx(0.25)


def test_budget_accuracy_by_hand():
    # c = 25 % is 1/6 of the way from (0.2, 0.60) to (0.5, 0.76).
    np.testing.assert_allclose(curve().budget_accuracy,
                               [0.5, 0.55, 0.6, 0.6 + 0.16 / 6, 0.6 + 0.16 / 3])
    m = curve(np.array([10.0]), np.array([0.5]))
    np.testing.assert_allclose(m.budget_accuracy, [0.5] * 5)


def test_on_frontier():
    np.testing.assert_array_equal(
        metrics.on_frontier(TOKENS, ACCURACY, 0.4), [True, True, True, False, True, True])
    assert not metrics.on_frontier(np.array([5.0]), np.array([0.4]), 0.4).any()


def test_no_gap_leaves_recovery_undefined_but_not_accuracy():
    m = curve(anchors=Anchors(np.float64(0.8), np.float64(0.8), np.float64(100.0)))
    for value in (m.pgr, m.dibc, m.cpt, m.mean_dibc, m.targets_reached, m.apgr):
        assert np.isnan(value).all()
    np.testing.assert_allclose(m.budget_accuracy, [0.8] * 5)


def test_strong_only_that_writes_nothing_has_no_relative_cost():
    m = curve(np.zeros(2), np.array([0.4, 0.5]),
              Anchors(np.float64(0.4), np.float64(0.5), np.float64(0.0)))
    for value in (m.c, m.cpt, m.ibc, m.dibc, m.mean_dibc, m.apgr, m.budget_accuracy):
        assert np.isnan(value).all()
    np.testing.assert_allclose(m.pgr, [0.0, 1.0])


def test_gain_without_cost_is_infinite_not_hidden():
    m = curve(np.array([0.0, 100.0]), np.array([0.5, 0.8]))
    np.testing.assert_allclose(m.cpt[:1], [(0.5 - 0.25) / 0.75])
    assert np.isinf(m.mean_dibc) and m.targets_reached == 100


def test_policy_worse_than_weak_only_recovers_nothing():
    m = curve(np.array([30.0]), np.array([0.3]))
    assert m.pgr[0] == pytest.approx(-0.25) and m.dibc[0] == pytest.approx(-0.25 / 0.3 - 1)
    assert np.isinf(m.cpt).all() and m.targets_reached == 0 and np.isnan(m.mean_dibc)
    assert m.apgr == 0.0


def test_cheapest_reaching():
    gain = curve().pgr
    assert metrics.cheapest_reaching(TOKENS, gain, 0.5) == (2, True)
    assert metrics.cheapest_reaching(TOKENS, gain, 0.95) == (5, True)
    assert metrics.cheapest_reaching(TOKENS[:5], gain[:5], 0.95) == (4, False)
    with pytest.raises(ValueError, match="undefined"):
        metrics.cheapest_reaching(TOKENS, np.full(6, np.nan), 0.5)


# ------------------------------------------------------------------------------------ properties

unit = st.floats(0.0, 1.0, allow_nan=False, width=32)
points = st.lists(st.tuples(st.floats(0.5, 200.0, width=32), unit), min_size=1, max_size=12)


@given(points, st.floats(0.05, 0.5), st.floats(0.55, 0.95), st.floats(1.0, 150.0))
@settings(max_examples=200, deadline=None)
def test_identity_dibc_is_pgr_over_c_minus_1(pairs, weak, strong, strong_cost):
    tokens, accuracy = np.array(pairs).T
    m = curve(tokens, accuracy, Anchors(np.float64(weak), np.float64(strong),
                                        np.float64(strong_cost)))
    np.testing.assert_allclose(m.dibc, m.pgr / m.c - 1, rtol=1e-9, atol=1e-9)


@given(points)
@settings(max_examples=200, deadline=None)
def test_frontier_agrees_with_a_direct_search(pairs):
    """CPT against its definition, on Pareto points found by comparing all pairs."""
    tokens, accuracy = np.array(pairs).T
    m = curve(tokens, accuracy)
    rows = [(0.0, 0.0)] + list(zip(m.c, m.pgr))
    pareto = sorted({p for p in rows if not any(
        (q[0] <= p[0] and q[1] > p[1]) or (q[0] < p[0] and q[1] >= p[1]) for q in rows)})
    xs, ys = np.array(pareto).T
    for level, found in zip(metrics.CPT_LEVELS, m.cpt):
        if ys[-1] < level - 1e-9:
            assert np.isinf(found)
        elif abs(ys - level).min() > 1e-6:  # away from a tie at rounding
            assert found == pytest.approx(np.interp(level, ys, xs), abs=1e-9)
    np.testing.assert_array_equal(
        metrics.on_frontier(m.c, m.pgr, 0.0), [(x, y) in set(pareto) for x, y in zip(m.c, m.pgr)])
    grid = np.linspace(0, 1, 2001)
    fine = np.interp(grid, xs, ys)
    assert m.apgr == pytest.approx(np.trapezoid(fine, grid), abs=2e-3)


@given(points, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_order_of_settings_does_not_matter(pairs, seed):
    tokens, accuracy = np.array(pairs).T
    order = np.random.default_rng(seed).permutation(len(tokens))
    one, other = curve(tokens, accuracy), curve(tokens[order], accuracy[order])
    for name in ("cpt", "mean_dibc", "apgr", "budget_accuracy"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12)


def test_leading_axes_are_independent_rows():
    rng = np.random.default_rng(0)
    tokens, accuracy = rng.uniform(0, 120, (7, 9)), rng.uniform(0.2, 0.9, (7, 9))
    weak, strong, cost = rng.uniform(0.1, 0.5, 7), rng.uniform(0.4, 0.9, 7), rng.uniform(50, 150, 7)
    together = curve(tokens, accuracy, Anchors(weak, strong, cost))
    for i in range(7):
        alone = curve(tokens[i], accuracy[i], Anchors(weak[i], strong[i], cost[i]))
        for name in ("c", "pgr", "dibc", "cpt", "mean_dibc", "apgr", "budget_accuracy"):
            np.testing.assert_allclose(getattr(together, name)[i], getattr(alone, name))
