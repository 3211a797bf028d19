"""Recovers PRM scores from kernel density estimates on bins (second stage of `sim.published`).

A Gaussian kernel reflected at 0 and 1 turns a heap of scores at 0.999 into a slope over [0.9, 1].
Sampled as it stands, such a table has a threshold of 0.95 reject a third of the right steps.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize

from trim_jax.sim.tables import QUANTILES

CELLS = 80  # of a score, for the distribution behind the estimate
# Few: enough to undo most of the blur; at convergence smooth parts break into lumps, and
# fewer right steps are below 0.9 than the cost of the authors' run suggests.
ITERATIONS = 5
_MISFIT = 1e-3  # relative misfit at which a kernel is too wide to have made the table
_STATES = ("S0", "S1", "S2")


def score_cells(
    densities: dict[str, list[list[float]]], min_edges: np.ndarray
) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """Quantiles [3, C, Q + 1] of the score by state and bin of the least score before.

    Args:
      densities: "S0", "S1", "S2" -> [least score before][score] on equal bins of [0, 1].
      min_edges: ascending edges [C - 1] of the bins of the least score.

    Returns:
      The quantiles, and for each state the widths of its kernel (least score, score).
    """
    quantiles, kernels = [], {}
    for state in _STATES:
        table = np.asarray(densities[state], float)
        table = table / table.sum()
        kernels[state] = (kernel_width(table.sum(axis=1)), kernel_width(table.sum(axis=0)))
        sharp = recover(table, *kernels[state])
        quantiles.append(_conditional(sharp, min_edges))
    return np.stack(quantiles), kernels


def blur(bins: int, width: float) -> np.ndarray:
    """[bins, CELLS]: share of a bin in a kernel of `width` around the middle of a cell."""
    at, from_ = (np.arange(bins) + 0.5) / bins, (np.arange(CELLS) + 0.5) / CELLS
    image = sum(np.exp(-0.5 * ((at[:, None] - x) / width) ** 2) for x in (from_, -from_, 2 - from_))
    return image / image.sum(axis=0)


def kernel_width(marginal: np.ndarray) -> float:
    """The widest kernel that can have made a marginal density [bins], to 0.001."""

    def misfit(width):
        return scipy.optimize.nnls(blur(len(marginal), width), marginal, maxiter=20 * CELLS)[1]

    low, high, limit = 0.01, 0.5, _MISFIT * np.linalg.norm(marginal)
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (middle, high) if misfit(middle) < limit else (low, middle)
    return low


def recover(table: np.ndarray, min_width: float, width: float) -> np.ndarray:
    """The distribution [CELLS, CELLS] behind a table [bins, bins]: maximum likelihood by EM."""
    rows, columns = blur(len(table), min_width), blur(table.shape[1], width)
    sharp = np.full((CELLS, CELLS), CELLS**-2.0)
    for _ in range(ITERATIONS):
        ratio = table / np.maximum(rows @ sharp @ columns.T, 1e-300)
        sharp = sharp * (rows.T @ ratio @ columns)
    return sharp / sharp.sum()


def _conditional(sharp: np.ndarray, min_edges: np.ndarray) -> np.ndarray:
    """Quantiles [C, Q + 1] of the second coordinate given the bin of the first."""
    least = (np.arange(CELLS) + 0.5) / CELLS
    cell = (least[:, None] >= min_edges).sum(axis=1)
    edges = np.arange(CELLS + 1) / CELLS
    out = []
    for c in range(len(min_edges) + 1):
        # A trace of the overall distribution, for bins that hold next to nothing.
        mass = sharp[cell == c].sum(axis=0) + 1e-6 * sharp.sum(axis=0)
        reached = np.concatenate([[0.0], np.cumsum(mass / mass.sum())])
        out.append(np.interp(np.arange(QUANTILES + 1) / QUANTILES, reached, edges))
    return np.stack(out)
