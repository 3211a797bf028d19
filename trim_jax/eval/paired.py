"""Differences between two policies, paired: the same resamples of problems and seeds for both.

The main one is the difference of two frontiers, accuracy at equal cost, over costs of 0 to 100 %
of strong-only. It comes with two kinds of 95 % limits:

* *pointwise*: the percentile interval at one cost, whatever happens at the others. Of 41 such
  intervals some exclude zero by chance.
* *simultaneous*: a band that holds the whole curve in 95 % of the resamples (sup-t: the largest
  deviation over all costs, in standard errors). Only this one supports a claim of the form
  "somewhere" or "everywhere". It is never narrower than the pointwise intervals.

"Better" and "worse" mean that the limits exclude zero. That a policy is nowhere worse in this sense
may only mean that the data are few; ``at_worst``, the lowest point of the simultaneous band, says
how much worse it could still be.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from trim_jax.eval import metrics
from trim_jax.eval.bootstrap import LEVEL, Resamples, estimate, interval, number, numbers
from trim_jax.eval.metrics import CurveMetrics
from trim_jax.eval.traces import Table

COSTS = np.arange(41) / 40.0  # fractions of the strong-only tokens


@dataclass(frozen=True)
class Curve:
    """One policy, at the point and in every resample (leading axis B).

    Attributes:
      point, samples: metrics, [...] and [B, ...].
      front, fronts: accuracy of the frontier at ``COSTS``, [T] and [B, T].
    """

    point: CurveMetrics
    samples: CurveMetrics
    front: np.ndarray
    fronts: np.ndarray


@dataclass(frozen=True)
class Band:
    """A curve [T] with pointwise intervals and a simultaneous band; nan where undefined."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    band_low: np.ndarray
    band_high: np.ndarray


_LIMITS = tuple(field.name for field in fields(Band))


def band(value: np.ndarray, samples: np.ndarray, resolution: float, level: float = LEVEL) -> Band:
    """Both kinds of limits of a curve.

    Args:
      value: [T].
      samples: [B, T]; resamples with an undefined value are left out.
      resolution: the least standard error for the sup-t. Where the curves are all but equal in
        every resample, a rare step by one solution would be a great many standard errors; there
        the band holds every resample instead.
    """
    found = interval(samples, level)
    defined = samples[~np.isnan(samples).any(1)]
    if not len(defined) or np.isnan(value).any():
        nothing = np.full(len(value), np.nan)
        return Band(value, found.low, found.high, nothing, nothing)
    error, deviation = defined.std(0), np.abs(defined - value)
    varies = error >= resolution
    scale = np.where(varies, error, 1.0)
    largest = np.where(varies, deviation / scale, 0.0).max(1)
    reach = np.where(varies, np.quantile(largest, level, method="higher") * scale, deviation.max(0))
    # A percentile interval of skewed resamples may pass one side of the band.
    return Band(value, found.low, found.high, np.minimum(value - reach, found.low),
                np.maximum(value + reach, found.high))


def ranges(mask: np.ndarray) -> list[list[float]]:
    """The stretches of ``COSTS`` where mask [T] holds, as [first, last]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [[float(COSTS[first]), float(COSTS[end - 1])]
            for first, end in zip(edges[::2], edges[1::2])]


def difference(one: Curve, other: Curve, cells: int) -> dict[str, Any]:
    """``one`` minus ``other``, JSON-able.

    Args:
      one, other: with the same resamples.
      cells: solutions behind a mean (problems times seeds).

    Returns:
      curve: accuracy at ``COSTS`` with both limits; pointwise, simultaneous: the stretches of
      costs where ``one`` is better and where it is worse; at_worst; apgr; mean_dibc, over the PGR
      targets that both reach; cpt, in fractions of strong-only (null: a side does not reach it).
    """
    found = band(one.front - other.front, one.fronts - other.fronts, 1.0 / cells)
    both, both_drawn = (metrics.common_targets([a, b]) for a, b in
                        ((one.point, other.point), (one.samples, other.samples)))
    dibc = [metrics.mean_over(m.dibc_targets, mask) for m, mask in
            ((one.point, both), (other.point, both), (one.samples, both_drawn),
             (other.samples, both_drawn))]  # fmt: skip
    # "Not reached" less "not reached" is undefined, and left out of the interval.
    with np.errstate(invalid="ignore"):
        cpt, cpt_drawn = one.point.cpt - other.point.cpt, one.samples.cpt - other.samples.cpt
    return {
        "curve": {name: numbers(getattr(found, name)) for name in _LIMITS},
        "pointwise": {"better": ranges(found.low > 0), "worse": ranges(found.high < 0)},
        "simultaneous": {"better": ranges(found.band_low > 0),
                         "worse": ranges(found.band_high < 0)},
        "at_worst": number(found.band_low.min()),
        "apgr": estimate(one.point.apgr - other.point.apgr, one.samples.apgr - other.samples.apgr),
        "mean_dibc": {**estimate(dibc[0] - dibc[1], dibc[2] - dibc[3]), "targets": int(both.sum())},
        "cpt": {f"{round(100 * x)}": {**estimate(cpt[i], cpt_drawn[:, i]),
                                      "share_reached": number(np.isfinite(cpt_drawn[:, i]).mean())}
                for i, x in enumerate(metrics.CPT_LEVELS)},
    }  # fmt: skip


def at_prices(one: Table, other: Table, drawn: Resamples) -> dict[str, Any]:
    """``one`` minus ``other`` in what they are trained for, R - tokens / worth, at equal prices.

    Args:
      one, other: policies whose dial is the worth of a right answer, at the same settings.
      drawn: resamples of their problems and seeds.

    Returns:
      worth: the prices [K]; value, low, high, band_low, band_high: the difference at each, with
      both limits; mean: over all prices.
    """
    worth = np.array(one.policy.settings, float)
    objective = lambda table: (  # noqa: E731
        table.correct - table.strong_tokens / worth[:, None, None]
    )
    gain = objective(one) - objective(other)
    value, samples = gain.mean((1, 2)), drawn.means(gain)
    found = band(value, samples, 1.0 / gain[0].size)
    return {"worth": worth.tolist(), **{name: numbers(getattr(found, name)) for name in _LIMITS},
            "mean": estimate(value.mean(), samples.mean(1))}  # fmt: skip


def to_upper_bound(one: Curve, bound: Curve) -> dict[str, Any]:
    """Ratios of ``one`` to the upper bound: of the mean dIBC over the targets that both reach
    (1 is as good), and of CPT(95) (1 is as cheap; null: not reached)."""
    def ratios(a: CurveMetrics, b: CurveMetrics) -> tuple[np.ndarray, np.ndarray]:
        both = metrics.common_targets([a, b])
        mine, best = (metrics.mean_over(m.dibc_targets, both) for m in (a, b))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(best > 0, mine / best, np.nan), a.cpt[..., -1] / b.cpt[..., -1]

    point, drawn = ratios(one.point, bound.point), ratios(one.samples, bound.samples)
    return {"mean_dibc": estimate(point[0], drawn[0]),
            "cpt95": {**estimate(point[1], drawn[1]),
                      "share_reached": number(np.isfinite(drawn[1]).mean())}}  # fmt: skip
