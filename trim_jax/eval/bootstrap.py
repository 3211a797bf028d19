"""Paired bootstrap over problems, with the seeds of each problem nested.

A resample draws P problems with replacement and, inside every drawn problem, S of its S seeds with
replacement. It is kept as a count per (problem, seed), so that every mean over it is one matrix
product, and the same counts serve every policy and both anchors: differences between policies are
paired. Whatever is computed from the means, the Pareto selection included, is recomputed in every
resample by the functions of :mod:`trim_jax.eval.metrics`, which broadcast over resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
SEED = 20260110
LEVEL = 0.95

_CHUNK = 250  # resamples held as floats at a time


@dataclass(frozen=True)
class Resamples:
    """Counts of each cell in each resample, int16 [resamples, problems, seeds]."""

    counts: np.ndarray
    seed: int

    @property
    def per_problem(self) -> np.ndarray:
        """How often each problem was drawn, [resamples, problems]."""
        return self.counts.sum(-1, dtype=np.int64) // self.counts.shape[-1]

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean of ``values`` [K, problems, seeds] in every resample, [resamples, K]."""
        flat = np.asarray(values, float).reshape(len(values), -1).T  # [cells, K]
        n, cells = len(self.counts), flat.shape[0]
        counts = self.counts.reshape(n, cells)
        out = np.empty((n, flat.shape[1]))
        for first in range(0, n, _CHUNK):
            part = slice(first, first + _CHUNK)
            out[part] = counts[part].astype(float) @ flat
        return out / cells


def resample(problems: int, seeds: int, resamples: int = RESAMPLES, seed: int = SEED) -> Resamples:
    """Draws the resamples; the same arguments give the same counts."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, problems, seeds), np.int16)
    for b in range(resamples):
        problem = rng.integers(problems, size=(problems, 1))
        drawn = problem * seeds + rng.integers(seeds, size=(problems, seeds))
        counts[b] = np.bincount(drawn.ravel(), minlength=problems * seeds).reshape(problems, seeds)
    return Resamples(counts, seed)


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a statistic over resamples.

    Attributes:
      low, high: [...]; ``inf`` where the percentile is "not reached"; nan where every resample
        was undefined.
      reached: [...], share of the defined resamples with a finite value.
    """

    low: np.ndarray
    high: np.ndarray
    reached: np.ndarray


def interval(samples: np.ndarray, level: float = LEVEL) -> Interval:
    """Percentile interval over axis 0 of samples [resamples, ...].

    Undefined resamples (nan) are left out; "not reached" (inf) counts as larger than any number.
    Percentiles are values that occurred, rounded outwards: nothing is interpolated with inf.
    """
    samples = np.sort(np.asarray(samples, float), axis=0)  # nan last
    defined = (~np.isnan(samples)).sum(0)
    tail = (1.0 - level) / 2.0
    last = np.maximum(defined - 1, 0)
    low = np.floor(tail * last).astype(int)
    high = np.ceil((1.0 - tail) * last).astype(int)
    finite = np.isfinite(samples).sum(0)
    return Interval(
        low=np.take_along_axis(samples, low[None], 0)[0],
        high=np.take_along_axis(samples, high[None], 0)[0],
        reached=np.where(defined > 0, finite / np.maximum(defined, 1), np.nan))


# --------------------------------------------------------------------------- estimates, for JSON


def number(value: Any) -> float | None:
    """A float for JSON: None for nan and infinities."""
    return float(value) if np.isfinite(value) else None


def numbers(values: np.ndarray) -> list[float | None]:
    """Floats of values [T] for JSON."""
    return [number(v) for v in values]


def estimates(point: np.ndarray, samples: np.ndarray) -> list[dict[str, float | None]]:
    """An estimate of each value of point [T], from its resamples [B, T]."""
    found = interval(samples)
    return [{"value": number(p), "low": number(lo), "high": number(hi)}
            for p, lo, hi in zip(point, found.low, found.high)]


def estimate(point: Any, samples: np.ndarray) -> dict[str, float | None]:
    """An estimate of a scalar from its value and its resamples [B]."""
    return estimates(np.array([point]), np.asarray(samples)[:, None])[0]


def cost_estimates(point: np.ndarray, samples: np.ndarray) -> list[dict[str, float | None]]:
    """Estimates of costs that may be out of reach: with the share of resamples that reach them."""
    shares = interval(samples).reached
    return [{**e, "share_reached": number(s)} for e, s in zip(estimates(point, samples), shares)]
