"""From the scores of query-level routers to cost-accuracy frontiers and their metrics.

`compare(train, test, key)` trains every baseline and returns their frontiers on `test`;
`cross_validate(outcomes, key)` does it on recorded data that have no training split. A frontier's
arrays are those of `trim_jax.eval`: `to_table` puts it beside the step-level policies of a result,
`measure` gives its figures with intervals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from trim_jax.errors import DataError
from trim_jax.eval import bootstrap, metrics
from trim_jax.eval.bootstrap import estimate, number
from trim_jax.eval.traces import COUNTERS, MODELS, PolicySpec, Table
from trim_jax.query.automix import AutoMix, AutoMixPRM
from trim_jax.query.embed import Embedder, TfIdf
from trim_jax.query.encoder import Encoder
from trim_jax.query.knn import NearestNeighbours
from trim_jax.query.matrix import MatrixFactorisation
from trim_jax.query.outcomes import Outcomes, folds
from trim_jax.query.price import per_token
from trim_jax.query.ranking import SimilarityRanking
from trim_jax.query.router import QUESTION, SCORES, Fitted, Router
from trim_jax.query.simple import BestSingle, RandomQuestions
from trim_jax.query.smoothie import Smoothie

SHARES = tuple(round(0.05 * i, 2) for i in range(21))
_SMALL = MODELS.index("small")
_KEPT, _DISCARDED = COUNTERS.index("kept"), COUNTERS.index("discarded")


@dataclasses.dataclass(frozen=True)
class QueryFrontier:
    """One router at every share, with K shares.

    Attributes:
      name, reads: of the router (`trim_jax.query.router`).
      shares: aimed shares of questions sent to the large model, ascending.
      routed, correct: bool [K, N, S].
      strong_tokens: int64 [K, N, S], the whole large solution where routed, else 0.
      chosen: hyperparameters chosen in training (in cross-validation a list, one a fold).
    """

    name: str
    reads: str
    shares: tuple[float, ...]
    routed: np.ndarray
    correct: np.ndarray
    strong_tokens: np.ndarray
    chosen: Any


def baselines(embedder: Embedder = TfIdf(), scores: bool = True) -> tuple[Router, ...]:
    """Every query-level baseline; those that need process rewards only with `scores`."""
    judged = (AutoMixPRM("threshold"), AutoMixPRM("pomdp")) if scores else ()
    return (RandomQuestions(), BestSingle(), NearestNeighbours(embedder),
            MatrixFactorisation(embedder), SimilarityRanking(embedder), Encoder(),
            AutoMix("threshold", embedder=embedder), AutoMix("pomdp", embedder=embedder),
            *judged, Smoothie(embedder))


# --------------------------------------------------------------------------------- the frontier


def cuts(calibration: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Least scores that are routed so that at most each share of `calibration` is, [K].

    0 routes nothing; 1 routes everything but a score of -inf.
    """
    levels = np.sort(calibration, axis=None)[::-1]
    out = np.full(len(shares), np.inf, np.float32)
    for i, share in enumerate(shares):
        if share >= 1:
            out[i] = np.finfo(np.float32).min
            continue
        most = int(np.floor(share * len(levels) + 1e-9))
        # Equal scores go together: the cut lies above a level that would take too many.
        allowed = levels[:most][levels[:most] > levels[most]]
        if len(allowed):
            out[i] = allowed[-1]
    return out


def frontier_of(name: str, reads: str, routed: np.ndarray, outcomes: Outcomes,
                shares: tuple[float, ...], chosen: Any) -> QueryFrontier:
    """The frontier of a router that sends the cells `routed`, bool [K, N, S], to the large model."""
    return QueryFrontier(
        name=name, reads=reads, shares=shares, routed=routed,
        correct=np.where(routed, outcomes.large_correct, outcomes.small_correct),
        strong_tokens=np.where(routed, outcomes.strong_tokens, 0), chosen=chosen)


def _route(fitted: Fitted, outcomes: Outcomes, shares: Sequence[float]) -> np.ndarray:
    """Which cells are routed at each share, bool [K, N, S]."""
    return fitted.score(outcomes)[None] >= cuts(fitted.calibration, shares)[:, None, None]


def sweep(fitted: Fitted, outcomes: Outcomes, shares: tuple[float, ...] = SHARES) -> QueryFrontier:
    """The frontier of a trained router; its cuts come from training, not from `outcomes`."""
    return frontier_of(fitted.name, fitted.reads, _route(fitted, outcomes, shares), outcomes,
                       shares, fitted.chosen)


def fit_all(train: Outcomes, key: jax.Array,
            routers: Sequence[Router] | None = None) -> list[Fitted]:
    """Trains the routers (all baselines by default), each with a key of its own position.

    Those that score expected gains follow a second time, per token (`trim_jax.query.price`).
    """
    routers = baselines(scores=train.scores is not None) if routers is None else routers
    fitted = [r.fit(train, jax.random.fold_in(key, i)) for i, r in enumerate(routers)]
    return fitted + [per_token(f, train) for f in fitted if f.is_gain]


def compare(train: Outcomes, test: Outcomes, key: jax.Array,
            routers: Sequence[Router] | None = None,
            shares: tuple[float, ...] = SHARES) -> list[QueryFrontier]:
    """Trains every router on `train` and gives its frontier on `test`.

    Raises:
      DataError: both hold the same question, or one lacks what a router reads.
    """
    both = sorted(set(train.ids) & set(test.ids))
    if both:
        raise DataError(f"question {both[0]} is in the training and the test outcomes")
    return [sweep(f, test, shares) for f in fit_all(train, key, routers)]


def cross_validate(outcomes: Outcomes, key: jax.Array, routers: Sequence[Router] | None = None,
                   parts: int = 5, shares: tuple[float, ...] = SHARES) -> list[QueryFrontier]:
    """Every question routed by routers (and cuts) trained on the other folds."""
    routers = baselines(scores=outcomes.scores is not None) if routers is None else routers
    found: dict[str, list[Fitted]] = {}
    routed: dict[str, np.ndarray] = {}
    for fold, (train, test) in enumerate(folds(len(outcomes), parts, key)):
        fold_key = jax.random.fold_in(key, fold)
        for fitted in fit_all(outcomes.take(train), fold_key, routers):
            mask = routed.setdefault(
                fitted.name, np.zeros((len(shares), *outcomes.small_correct.shape), bool))
            mask[:, test] = _route(fitted, outcomes.take(test), shares)
            found.setdefault(fitted.name, []).append(fitted)
    return [frontier_of(name, fitted[0].reads, routed[name], outcomes, shares,
                        [f.chosen for f in fitted]) for name, fitted in found.items()]


# ------------------------------------------------------------------------ beside other policies


def to_table(frontier: QueryFrontier, outcomes: Outcomes) -> Table:
    """The frontier as a policy's table of the result that `outcomes` come from.

    The ledger of a cell adds up what ran: a router that reads the small solution (and its process
    rewards) pays for them always, and throws the solution away where it routes.

    Raises:
      DataError: the outcomes come from no result folder, or lack the rewards that were read.
    """
    if outcomes.trace_index is None or outcomes.ledgers is None:
        raise DataError("only outcomes of a result folder can be put beside its policies")
    small, large, prm = (outcomes.ledgers.small, outcomes.ledgers.large, outcomes.ledgers.prm)
    if frontier.reads == QUESTION:
        routed, kept = large, small
    else:
        thrown = small.copy()
        thrown[..., _SMALL, _DISCARDED] += thrown[..., _SMALL, _KEPT]
        thrown[..., _SMALL, _KEPT] = 0
        if frontier.reads == SCORES and prm is None:
            raise DataError("the outcomes carry no process rewards")
        read = prm if frontier.reads == SCORES else 0
        routed, kept = large + thrown + read, small + read
    mask = frontier.routed
    return Table(
        policy=PolicySpec(frontier.name, "share", frontier.shares),
        problem_ids=outcomes.ids, seeds=outcomes.seeds,
        correct=frontier.correct, strong_tokens=frontier.strong_tokens,
        ledger=np.where(mask[..., None, None], routed, kept),
        trace_index=np.where(mask, outcomes.trace_index[1], outcomes.trace_index[0]))


def measure(frontiers: Sequence[QueryFrontier], outcomes: Outcomes,
            drawn: bootstrap.Resamples) -> dict[str, Any]:
    """The figures of frontiers on the same outcomes, with paired bootstrap intervals.

    The resamples are of the judged questions, with the routers as they were trained.

    Returns:
      By name: accuracy and cost of every share; `cpt` (fractions of the strong-only tokens, null
      where not reached, with the share of resamples that reach it), `mean_dibc`, `apgr`,
      `budget_accuracy`, and `apgr_over_random` where `query-random` is among the frontiers.
    """
    cells = np.stack([outcomes.small_correct, outcomes.large_correct, outcomes.strong_tokens])
    ends = metrics.Anchors(*cells.astype(float).mean((1, 2)))
    drawn_ends = metrics.Anchors(*drawn.means(cells).T)
    found = {}
    for f in frontiers:
        values = np.concatenate([f.strong_tokens, f.correct]).astype(float)
        k, means = len(f.shares), drawn.means(values)
        found[f.name] = (
            metrics.curve_metrics(*np.split(values.mean((1, 2)), [k]), ends),
            metrics.curve_metrics(means[:, :k], means[:, k:], drawn_ends))
    out = {}
    for f in frontiers:
        point, samples = found[f.name]
        reached = bootstrap.interval(samples.cpt).reached
        row = {
            "reads": f.reads, "chosen": f.chosen, "shares": list(f.shares),
            "accuracy": point.accuracy.tolist(), "c": [number(c) for c in point.c],
            "cpt": {f"{round(100 * x)}": {**estimate(point.cpt[i], samples.cpt[:, i]),
                                          "share_reached": number(reached[i])}
                    for i, x in enumerate(metrics.CPT_LEVELS)},
            "mean_dibc": {**estimate(point.mean_dibc, samples.mean_dibc),
                          "targets_reached": number(point.targets_reached)},
            "apgr": estimate(point.apgr, samples.apgr),
            "budget_accuracy": {
                f"{round(100 * x)}": estimate(point.budget_accuracy[i],
                                              samples.budget_accuracy[:, i])
                for i, x in enumerate(metrics.BUDGETS)}}
        if RandomQuestions.name in found:
            base = found[RandomQuestions.name]
            row["apgr_over_random"] = estimate(point.apgr - base[0].apgr,
                                               samples.apgr - base[1].apgr)
        out[f.name] = row
    return out
