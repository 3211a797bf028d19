"""Cost-accuracy metrics of routing policies, as pure functions on arrays.

Notation of the paper (TRIM, arXiv 2601.10245; RouteLLM, arXiv 2406.18665, for APGR):

* ``A_w``, ``A_s``: accuracy of weak-only and strong-only; ``C_s``: mean strong tokens a problem
  of strong-only. Weak-only costs nothing.
* a policy has one point (``C``, ``A``) per setting: mean strong tokens a problem, and accuracy.
* ``c = C / C_s`` (a fraction) and ``PGR = (A - A_w) / (A_s - A_w)``.

A policy's *frontier* is the linear interpolation between its Pareto points, (0, A_w) included. On
it are defined CPT(x), the least cost that reaches PGR x; the mean of dIBC over PGR targets; the
budgeted accuracy; and APGR.

Two special values, kept apart everywhere: ``inf`` is "not reached" (a target above the policy's
best), and ``nan`` is "undefined": no gap to recover (A_s <= A_w), or strong-only wrote no token.

All functions broadcast over leading axes, written ``...`` in the shapes (bootstrap resamples).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CPT_LEVELS = (0.50, 0.80, 0.95)
DIBC_TARGETS = np.arange(1, 101) / 100.0
BUDGETS = (0.10, 0.15, 0.20, 0.25, 0.30)

# PGR of two settings that differ by one solved problem differ by far more than this.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Anchors:
    """Weak-only and strong-only of the same problems and seeds.

    Attributes:
      weak, strong: accuracies, [...].
      strong_cost: mean strong tokens a problem of strong-only, [...].
    """

    weak: np.ndarray
    strong: np.ndarray
    strong_cost: np.ndarray


@dataclass(frozen=True)
class Frontier:
    """A non-decreasing polyline through the Pareto points.

    Attributes:
      x, y: [..., n + 1], cost and value of the best point so far, in order of cost. A dominated
        point repeats the one before it, so that shapes do not depend on the data.
    """

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class CurveMetrics:
    """Everything that is reported of one policy; shapes with S settings.

    Attributes:
      accuracy, strong_tokens, c, pgr, ibc, dibc: [..., S], of each setting.
      cpt: [..., levels], fraction of the strong-only tokens at ``CPT_LEVELS``.
      dibc_targets: [..., 100], dIBC on the frontier at ``DIBC_TARGETS``; nan where a target is
        not reached (the number that is, ``targets_reached``, belongs beside every mean of it).
      mean_dibc, targets_reached: [...], over the reached targets, and their number.
      apgr: [...].
      budget_accuracy: [..., budgets], accuracy on the frontier at ``BUDGETS``.
    """

    accuracy: np.ndarray
    strong_tokens: np.ndarray
    c: np.ndarray
    pgr: np.ndarray
    ibc: np.ndarray
    dibc: np.ndarray
    cpt: np.ndarray
    dibc_targets: np.ndarray
    mean_dibc: np.ndarray
    targets_reached: np.ndarray
    apgr: np.ndarray
    budget_accuracy: np.ndarray


# ----------------------------------------------------------------------------------- one setting


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, nan where the denominator is not positive."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    positive = denominator > 0
    return np.where(positive, numerator / np.where(positive, denominator, 1.0), np.nan)


def pgr(accuracy: np.ndarray, anchors: Anchors) -> np.ndarray:
    """Performance gap recovered, [..., S]; nan where strong-only is no better than weak-only."""
    weak = np.asarray(anchors.weak, float)[..., None]
    gap = np.asarray(anchors.strong, float)[..., None] - weak
    return _ratio(np.asarray(accuracy, float) - weak, gap)


def relative_cost(strong_tokens: np.ndarray, anchors: Anchors) -> np.ndarray:
    """c = C / C_s, a fraction, [..., S]; nan where strong-only wrote no token."""
    return _ratio(strong_tokens, np.asarray(anchors.strong_cost, float)[..., None])


def ibc(accuracy: np.ndarray, strong_tokens: np.ndarray, anchors: Anchors) -> np.ndarray:
    """Incremental benefit per strong token, (A - A_w) / C, [..., S]; nan where C is 0."""
    weak = np.asarray(anchors.weak, float)[..., None]
    return _ratio(np.asarray(accuracy, float) - weak, strong_tokens)


def delta_ibc(accuracy: np.ndarray, strong_tokens: np.ndarray, anchors: Anchors) -> np.ndarray:
    """IBC over that of strong-only, minus 1, [..., S]. Identity: PGR / c - 1."""
    base = _ratio(np.asarray(anchors.strong, float) - np.asarray(anchors.weak, float),
                  anchors.strong_cost)
    return _ratio(ibc(accuracy, strong_tokens, anchors), base[..., None]) - 1.0


# -------------------------------------------------------------------------------------- frontier


def frontier(cost: np.ndarray, value: np.ndarray, start: np.ndarray | float) -> Frontier:
    """The Pareto frontier of the points (cost, value) [..., S] and (0, start), start [...]."""
    cost, value = np.asarray(cost, float), np.asarray(value, float)
    lead = cost.shape[:-1]
    x = np.concatenate([np.zeros((*lead, 1)), cost], -1)
    y = np.concatenate([np.broadcast_to(start, lead)[..., None], value], -1)
    # By cost; of several at one cost the best first, so that the others are dominated.
    order = np.lexsort((-y, x), axis=-1)
    x, y = np.take_along_axis(x, order, -1), np.take_along_axis(y, order, -1)
    best = np.maximum.accumulate(y, -1)
    leads = np.concatenate([np.ones((*lead, 1), bool), y[..., 1:] > best[..., :-1]], -1)
    leader_cost = np.maximum.accumulate(np.where(leads, x, -np.inf), -1)
    undefined = (np.isnan(x) | np.isnan(y)).any(-1, keepdims=True)
    return Frontier(np.where(undefined, np.nan, leader_cost), np.where(undefined, np.nan, best))


def on_frontier(cost: np.ndarray, value: np.ndarray, start: np.ndarray | float) -> np.ndarray:
    """Which points [..., S] are on the frontier: none cheaper or equal is better, (0, start)
    included, and none of the same value is cheaper."""
    cost, value = np.asarray(cost, float), np.asarray(value, float)
    start = np.broadcast_to(start, cost.shape[:-1])[..., None]
    c, v = cost[..., None, :], value[..., None, :]  # the rivals, on the last axis
    beaten = ((c <= cost[..., None]) & (v > value[..., None])
              | (c < cost[..., None]) & (v == value[..., None])).any(-1)
    return ~beaten & ((value > start) | ((cost == 0) & (value == start)))


def cost_to_reach(front: Frontier, targets: np.ndarray) -> np.ndarray:
    """Least cost on the frontier with value >= target, [..., T]; inf where it is not reached.

    ``targets`` [T] are values, the same for all leading axes.
    """
    targets = np.asarray(targets, float)
    n = front.y.shape[-1]
    upper = (front.y[..., None, :] < targets[:, None] - _TOLERANCE).sum(-1)  # [..., T]
    after, before = np.minimum(upper, n - 1), np.clip(upper - 1, 0, n - 1)
    x0, x1 = (np.take_along_axis(front.x, i, -1) for i in (before, after))
    y0, y1 = (np.take_along_axis(front.y, i, -1) for i in (before, after))
    rise = y1 - y0
    part = np.clip((targets - y0) / np.where(rise > 0, rise, 1.0), 0.0, 1.0)
    cost = np.where(upper < n, x0 + part * (x1 - x0), np.inf)
    return np.where(np.isnan(front.y[..., -1:]), np.nan, cost)


def value_at(front: Frontier, costs: np.ndarray) -> np.ndarray:
    """Value of the frontier at ``costs`` [T], [..., T]; flat beyond its most expensive point."""
    costs = np.asarray(costs, float)
    n = front.x.shape[-1]
    before = (front.x[..., None, :] <= costs[:, None]).sum(-1) - 1  # [..., T]
    before = np.maximum(before, 0)
    after = np.minimum(before + 1, n - 1)
    x0, x1 = (np.take_along_axis(front.x, i, -1) for i in (before, after))
    y0, y1 = (np.take_along_axis(front.y, i, -1) for i in (before, after))
    run = x1 - x0
    return y0 + np.where(run > 0, (costs - x0) / np.where(run > 0, run, 1.0), 0.0) * (y1 - y0)


def mean_height(front: Frontier) -> np.ndarray:
    """Mean value of the frontier over costs 0..1, [...]; flat beyond its last point."""
    at_end = value_at(front, np.ones(1))
    inside = front.x <= 1.0
    x = np.concatenate([np.where(inside, front.x, 1.0), np.ones_like(at_end)], -1)
    y = np.concatenate([np.where(inside, front.y, at_end), at_end], -1)
    y = np.where(np.isnan(front.y[..., -1:]), np.nan, y)
    return (np.diff(x, axis=-1) * (y[..., 1:] + y[..., :-1]) / 2).sum(-1)


# ------------------------------------------------------------------------------- a policy's curve


def mean_over(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean of values [..., T] where mask [..., T], [...]; nan where the mask is empty."""
    return _ratio(np.where(mask, values, 0.0).sum(-1), mask.sum(-1))


def curve_metrics(strong_tokens: np.ndarray, accuracy: np.ndarray,
                  anchors: Anchors) -> CurveMetrics:
    """All metrics of a policy from its points (C, A), each [..., S] (trim_method, section 3)."""
    strong_tokens, accuracy = np.asarray(strong_tokens, float), np.asarray(accuracy, float)
    c, gain = relative_cost(strong_tokens, anchors), pgr(accuracy, anchors)
    recovery = frontier(c, gain, 0.0)
    cost = cost_to_reach(recovery, DIBC_TARGETS)
    reached = np.isfinite(cost)
    # A target met at no cost has an infinite ratio: only rows that break "no strong token means
    # weak-only" do that, and the mean then says so by being infinite.
    with np.errstate(divide="ignore"):
        dibc_targets = np.where(reached, DIBC_TARGETS / cost - 1.0, np.nan)
    return CurveMetrics(
        accuracy=accuracy,
        strong_tokens=strong_tokens,
        c=c,
        pgr=gain,
        ibc=ibc(accuracy, strong_tokens, anchors),
        dibc=delta_ibc(accuracy, strong_tokens, anchors),
        cpt=cost_to_reach(recovery, np.array(CPT_LEVELS)),
        dibc_targets=dibc_targets,
        mean_dibc=mean_over(dibc_targets, reached),
        targets_reached=np.where(np.isnan(cost[..., -1]), np.nan, reached.sum(-1)),
        apgr=mean_height(recovery),
        budget_accuracy=value_at(frontier(c, accuracy, anchors.weak), np.array(BUDGETS)),
    )


def common_targets(curves: list[CurveMetrics]) -> np.ndarray:
    """PGR targets that all the given policies reach, bool [..., 100]."""
    return np.logical_and.reduce([~np.isnan(m.dibc_targets) for m in curves])


def cheapest_reaching(strong_tokens: np.ndarray, gain: np.ndarray,
                      target: float) -> tuple[int, bool]:
    """The setting [S] with the least strong tokens whose PGR is at least ``target``.

    Returns:
      Its index and True; or, when none reaches it, the index of the best PGR (of several, the
      cheapest) and False.

    Raises:
      ValueError: PGR is undefined.
    """
    strong_tokens, gain = np.asarray(strong_tokens, float), np.asarray(gain, float)
    if np.isnan(gain).any():
        raise ValueError("PGR is undefined: strong-only is no better than weak-only")
    reached = gain >= target - _TOLERANCE
    wanted = reached if reached.any() else gain == gain.max()
    return int(np.argmin(np.where(wanted, strong_tokens, np.inf))), bool(reached.any())
