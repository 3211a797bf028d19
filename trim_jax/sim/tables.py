"""Tables of the process from events: kinds of steps, lengths, scores."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from trim_jax.sim.events import Events
from trim_jax.sim.process import ENTRIES, S0, S1, S2

QUANTILES = 128  # Q of the score tables
_PSEUDO = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)  # candidates of the score cells
_LEAST = 4.0  # times as many for the least score, the last cut: held-out scores are likelier so
_FOLDS = 5


def length_scale(n):
    """Number of steps as the fit sees it: log, 0 at 8 steps."""
    n = np.arange(n + 1) if isinstance(n, int) else n
    return jnp.log(jnp.maximum(n, 1) / 8.0)


def step_scale(t):
    """Index of a step as the fit sees it: 0 at the fifth step, 1 ten steps on."""
    t = np.arange(t) if isinstance(t, int) else t
    return jnp.asarray(t, jnp.float32) / 10.0 - 0.4


def entries(values: np.ndarray, n: int = ENTRIES) -> np.ndarray:
    """`n` equally likely values [n], ascending, that stand for a sample."""
    ordered = np.sort(np.asarray(values, float))
    return ordered[((np.arange(n) + 0.5) / n * len(ordered)).astype(int)]


def cut_lengths(tokens: np.ndarray, right: np.ndarray, most: int) -> np.ndarray:
    """Edges that cut draft lengths into the groups that best explain right and wrong.

    The cut that maximises the binomial likelihood less the two parameters of
    each group (AIC), by dynamic programming; an edge is the first length of the next group.
    """
    if not len(tokens):
        return np.zeros(0, int)
    # At most 64 candidate cells, of similar numbers of drafts.
    starts = np.unique(entries(tokens, 64).astype(int))
    starts[0] = min(starts[0], tokens.min())
    cell = np.searchsorted(starts, tokens, side="right") - 1
    total = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=len(starts)))])
    good = np.concatenate([[0], np.cumsum(np.bincount(cell[right], minlength=len(starts)))])

    def gain(i, j):
        """Log-likelihood of cells i..j-1 as one group."""
        n, k = total[j] - total[i], good[j] - good[i]
        p = (k + 0.5) / (n + 1)
        return k * np.log(p) + (n - k) * np.log(1 - p)

    price, m = 2.0, len(starts)  # an edge and a probability: AIC
    best = {(0, 0): (0.0, ())}  # (groups, cells covered) -> likelihood, edges
    for groups in range(1, most + 1):
        for j in range(groups, m + 1):
            options = [
                (best[groups - 1, i][0] + gain(i, j) - price, best[groups - 1, i][1] + (i,))
                for i in range(groups - 1, j) if (groups - 1, i) in best
            ]  # fmt: skip
            if options:
                best[groups, j] = max(options)
    _, edges = max(value for (_, j), value in best.items() if j == m)
    return starts[list(edges[1:])]


def by_kind(values: np.ndarray, kind: np.ndarray, kinds: int) -> np.ndarray:
    """[kinds, ENTRIES]: the values of each kind; those of all where a kind has none."""
    rows = (values[kind == k] if (kind == k).any() else values for k in range(kinds))
    return np.stack([entries(row) for row in rows])


def strong_lengths(rewrites: Events, kind: np.ndarray, kinds: int) -> tuple[float, np.ndarray]:
    """Slope of the rewrite's length on the draft's (least squares within kinds), and the rest."""
    x, y = rewrites.draft_tokens.astype(float), rewrites.tokens.astype(float)
    count = np.maximum(np.bincount(kind, minlength=kinds), 1)
    centred = x - (np.bincount(kind, x, kinds) / count)[kind]
    spread = (centred**2).sum()
    slope = float((centred * y).sum() / spread) if spread > 0 else 0.0
    return slope, by_kind(y - slope * x, kind, kinds)


def repeats(rewrites: Events) -> np.ndarray:
    """[3]: how often a rewrite has exactly the draft's score, where both are right or neither."""
    known = ~np.isnan(rewrites.score) & ~np.isnan(rewrites.draft_score)
    alike = known & (rewrites.right == (rewrites.draft_right == 1))
    equal = rewrites.score == rewrites.draft_score
    out = np.zeros(3)
    for state in (S0, S1, S2):
        here = alike & (rewrites.state == state)
        out[state] = equal[here].mean() if here.any() else 0.0
    return out


# ---------------------------------------------------------------------------------- PRM scores


def quantile_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Edges [bins - 1] between equally full bins of the least score."""
    return np.unique(np.quantile(values, np.arange(1, bins) / bins)) if len(values) else np.zeros(0)


def score_tables(
    drafts: Events, draft_kind: np.ndarray, rewrites: Events, strong_kind: np.ndarray, kinds: int,
    step_edges: np.ndarray, min_edges: np.ndarray, pseudo: float | None = None,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """[2, 3, kinds, C, Q + 1] quantiles of each cell, and the pseudo-observations used.

    They are `pseudo`, or those that predict held-out scores best.

    A cell's distribution is the mixture of its own scores and those of the coarser cell: writer,
    state, kind, bin of the number of steps and of the least score -> without the least score ->
    without the number of steps -> the small model's -> without the kind -> without the state. The
    coarser one weighs as much as `pseudo` scores, that without the least score four times as much.
    First errors, which are few, do without the kind before they do without the number of steps
    (where that is cut at all): it tells more of how well they are found.
    """
    new = ~np.isnan(rewrites.score) & (rewrites.score != rewrites.draft_score)
    parts = []
    both = (drafts, draft_kind), (rewrites[new], strong_kind[new])
    for writer, (events, kind) in enumerate(both):
        steps = (events.n[:, None] >= step_edges).sum(axis=1)
        least = (events.min_score[:, None] >= min_edges).sum(axis=1)
        parts.append(np.stack([np.full(len(kind), writer), events.state, kind, steps, least]))
    where = np.concatenate(parts, axis=1)
    score = np.concatenate([drafts.score, rewrites.score[new]])
    shape = (2, 3, kinds, len(step_edges) + 1, len(min_edges) + 1)
    pseudo = _choose_pseudo(where, score, shape) if pseudo is None else pseudo
    order = np.argsort(score, kind="stable")
    score, where = score[order], where[:, order]
    out = np.zeros((*shape, QUANTILES + 1))
    for at in np.ndindex(*shape):
        weight = _cell_weights(where, at, pseudo)
        reached = np.cumsum(weight)
        # Mid-points of the steps of the distribution function.
        middle = (reached - weight / 2) / reached[-1]
        out[at] = _quantiles(middle, score)
    return out.reshape(2, 3, kinds, -1, QUANTILES + 1), pseudo


def _quantiles(share: np.ndarray, score: np.ndarray) -> np.ndarray:
    """[Q + 1] quantiles 0, 1/Q, ..., 1 of the quantile function through `share` and `score` [N].

    The first and the last are not the extremes: a straight line from a single odd score would make
    half of the tail odd. They are where it has the mean of the tail.
    """
    out = np.interp(np.arange(QUANTILES + 1) / QUANTILES, share, score)
    parts = (np.arange(64) + 0.5) / 64 / QUANTILES
    for end, inner, tail in ((0, 1, parts), (-1, -2, 1 - parts)):
        low, high = sorted((out[end], out[inner]))
        mean = np.interp(tail, share, score).mean()
        out[end] = np.clip(2 * mean - out[inner], low, high)
    return out


def _cell_weights(where: np.ndarray, at: tuple[int, ...], pseudo: float) -> np.ndarray:
    """Weight of every score in the distribution of one cell; they add to 1."""
    writer, state, kind, steps, least = where
    small, same = writer == 0, state == at[1]
    first, second = kind == at[2], steps == at[3]
    if at[1] == S2 and steps.any():
        first, second = second, first
    levels = [small & same, small & same & first]
    if at[0] == 1:
        levels.append(~small & same & first)
    levels.append(levels[-1] & second)
    levels.append(levels[-1] & (least == at[4]))
    weight, before = np.full(len(small), 1 / len(small)), np.ones_like(small)
    for level in levels:
        if (level == before).all():  # nothing was cut: the same scores do not count twice
            continue
        prior = pseudo * _LEAST if level is levels[-1] else pseudo
        weight, before = (prior * weight + level) / (prior + level.sum()), level
    return weight


def _choose_pseudo(where: np.ndarray, score: np.ndarray, shape: tuple[int, ...]) -> float:
    """The candidate under which held-out scores, in twelve equally full bins, are likeliest."""
    bins = np.searchsorted(np.quantile(score, np.arange(1, 12) / 12), score, side="right")
    fold = np.random.default_rng(0).permutation(len(score)) % _FOLDS
    flat = np.ravel_multi_index(where, shape)
    total = np.zeros(len(_PSEUDO))
    for f in range(_FOLDS):
        train, test = fold != f, fold == f
        for cell in np.unique(flat[test]):
            at, held = np.unravel_index(cell, shape), bins[test & (flat == cell)]
            for i, pseudo in enumerate(_PSEUDO):
                weight = _cell_weights(where[:, train], at, pseudo)
                mass = np.bincount(bins[train], weight, minlength=12)
                total[i] += np.log(np.maximum(mass[held], 1e-9)).sum()
    return _PSEUDO[int(total.argmax())]
