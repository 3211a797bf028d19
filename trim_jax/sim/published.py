"""Fits the process to what the paper's authors published (method, sections 4 and 5).

No traces are needed, only `pomdp_parameters.json`: histograms of step counts and of first errors of
7,500 training problems for each model, hazards, and blurred densities of PRM scores. Three stages:

1. Each model by itself, by maximum likelihood: mean logit, spread of the problem effect, effects of
   the number of steps and of the step, from how many problems end right after n steps and how many
   err first at step t. The numbers of steps of the mixed process are tilted to the recorded mean.
2. Scores: the densities are kernel estimates, whose kernels blur the heaps of scores at 0 and 1
   over the bins beside them. The kernel's width shows in the table itself (a wider one cannot make
   it), and the scores behind it are recovered by maximum likelihood (Richardson-Lucy).
3. What the histograms do not hold: the levels on the test problems, the correlation of the two
   problem effects, `draft_wrong`, and `doubt`, how much likelier a low score for a right step is in
   a routed run than in the densities, whose steps come from the small model's own solutions; from
   the two anchors, two recorded thresholds and the three published CPTs, with priors. Without the
   CPTs (`Recorded(costs=())`), `doubt` stays near 0, TRIM-Thr reaches PGR 50, 80 and 95 % at 16, 23
   and 29 % of the large model's tokens, with them at 18, 28 and 38; published are 19.7, 27.8 and
   43.4. The spreads are fitted again: PRM-made labels blur them, above all the large model's, of
   which stage 1 finds next to none.

Assumed, since nothing is published:

- Lengths of steps are log-normal, and long steps are harder, for the writers and for the judge:
  the logits of an error, and of a low score for an innocent step, rise with the logarithm of the
  length. Else a rewrite would be as long as any step, while in recorded solutions of MATH-500
  (Llama-3.2-1B and 3.1-8B, first 30 steps) those that a PRM scores below 0.5 are 1.6 and 1.7 times
  as long as the average. There the standard deviation of the lengths is 1.13 and 0.93 times the
  mean, and the logit of a first error, by the method's rule, rises by 0.83 and 0.98 with the
  logarithm over all problems; within one problem, whose effect has a spread of about 1.5, that is
  about 1.2. Draft and rewrite are of one group of lengths, and independent within it.
- A rewrite's score is distributed as a draft's, and no step is harder for the large model because
  the PRM doubts the draft (`draft_doubted` is 0).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats

from trim_jax.errors import DataError
from trim_jax.policies.simple import Threshold
from trim_jax.sim import deblur, effects, tables
from trim_jax.sim.env import rollout
from trim_jax.sim.process import ENTRIES, LARGE, S0, S1, S2, SMALL, Process

MAX_STEPS = 30
PLANS = 4096
ROWS = 50_000  # simulated problems an evaluation of stage 3
NODES = 21
LENGTHS = 8  # groups of steps of similar length, equally likely
LENGTH_SPREAD = 0.83  # of the logarithm of a length: a standard deviation of the mean itself
ERROR_SLOPE, SCORE_SLOPE = 1.2, 0.9  # on it, of the logits of an error and of a low score
_MIN_EDGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Priors of stage 3, (mean, standard deviation): atanh of the correlation; the two terms of
# `draft_wrong`; log of the spread for the small model (around stage 1) and for the large; log odds.
_RHO, _CONSTANT, _SCORE = (1.2, 0.4), (0.5, 1.0), (3.0, 3.0)
_SD_ERROR, _SD_LARGE, _DOUBT = 0.3, (0.0, 0.5), (0.0, 0.5)
_CURVE = tuple(round(0.05 * i, 2) for i in range(1, 20))  # thresholds that the CPTs are read from


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Results of the authors' run that stage 3 is fitted to.

    Attributes:
      weak, strong: accuracies of the small and the large model alone.
      steps, tokens: means a problem of the large model alone.
      points: (threshold, accuracy) of TRIM-Thr.
      error: standard error of an accuracy, for the weight of the points against the priors.
      costs: (PGR, least share of strong-only tokens that reaches it, its standard error) of
        TRIM-Thr: published CPTs, and what an error of 2 points of accuracy makes of them.
    """

    weak: float = 0.364
    strong: float = 0.730
    steps: float = 8.0
    tokens: float = 494.8
    points: tuple[tuple[float, float], ...] = ((0.5, 0.674), (0.9, 0.714))
    error: float = 0.01
    costs: tuple[tuple[float, float, float], ...] = (
        (0.5, 0.197, 0.015), (0.8, 0.278, 0.015), (0.95, 0.434, 0.04),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Report:
    """What the fit found.

    Attributes:
      by_model: of stage 1, {"small": {"mean", "sd", "slope", "first"}, "large": ...}.
      kernels: of stage 2, for each state the widths (least score, score) of its kernel.
      parameters: of stage 3.
      predicted: accuracy at 0, 1 and the thresholds of the points, then the costs, in that order.
      wanted: their recorded values.
    """

    by_model: dict[str, dict[str, float]]
    kernels: dict[str, tuple[float, float]]
    parameters: dict[str, float]
    predicted: tuple[float, ...]
    wanted: tuple[float, ...]


def fit_published(
    path: str | Path, recorded: Recorded = Recorded(), small: str = "qwen2.5-1.5b-instruct",
    large: str = "qwen2.5-7b-instruct", scores: str = "math_train",
) -> tuple[Process, Report]:
    """The process of the authors' run, from their `pomdp_parameters.json`.

    Args:
      small, large: the models' names in the file. scores: which of its score densities.

    Raises:
      DataError: the file cannot be read or lacks a part that is needed.
    """
    data = _read(Path(path))
    try:
        hazards = data["terminal_hazard_by_step"]
        lengths = [_lengths(hazards[name]) for name in ("slm", "llm")]
        shared = _lengths(hazards["slm_llm"])
        histograms = [data["transition"][name] for name in (small, large)]
        densities = data["observation"][scores]["p_obs_given_state[min_prev][current]"]
        fits = [_fit_model(h, n) for h, n in zip(histograms, lengths)]
        cells, kernels = deblur.score_cells(densities, np.array(_MIN_EDGES))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: not the authors' parameters ({type(error).__name__}: {error}); it needs "
            f"terminal_hazard_by_step, transition of {small} and {large}, observation of {scores}"
        ) from None

    start = _process(fits, _tilt(shared, recorded.steps), cells, recorded)
    process, parameters, predicted = _fit_recorded(start, fits, recorded)
    wanted = _wanted(recorded)
    by_model = dict(zip(("small", "large"), fits))
    return process, Report(by_model, kernels, parameters, predicted, wanted)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


# ------------------------------------------------------------------- numbers of steps, histograms


def _lengths(hazard: dict[str, float]) -> np.ndarray:
    """P(N = n) for n = 0..MAX_STEPS of a hazard by number of steps; the rest ends at MAX_STEPS."""
    h = np.array([hazard[str(n)] for n in range(MAX_STEPS)] + [1.0])
    return h * np.concatenate([[1.0], np.cumprod(1 - h)[:-1]])


def _tilt(p: np.ndarray, mean: float) -> np.ndarray:
    """p(n) exp(a n), normalised, with the given mean: the nearest such distribution to p."""
    n = np.arange(len(p))

    def tilted(a):
        w = p * np.exp(a * (n - mean))
        return w / w.sum()

    return tilted(scipy.optimize.brentq(lambda a: tilted(a) @ n - mean, -1.0, 1.0))


def _fit_model(histogram: dict[str, Any], lengths: np.ndarray) -> dict[str, float]:
    """Stage 1 for one model: maximum likelihood with a weak prior on all but the mean."""
    top = MAX_STEPS + 1
    correct, wrong = np.zeros(top), np.zeros(top)
    for out, name in ((correct, "correct_steps_hist"), (wrong, "first_error_step_hist")):
        counts = np.asarray(histogram[name], float)
        np.add.at(out, np.minimum(np.arange(len(counts)), MAX_STEPS), counts)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    t, n = np.arange(MAX_STEPS), np.arange(top)

    def loss(x):
        logit = (x[0] + x[2] * tables.length_scale(n)[:, None, None]
                 + x[3] * (t == 0)[:, None] + jnp.exp(x[1]) * nodes)  # [N, T, nodes]
        right = jnp.cumsum(jax.nn.log_sigmoid(logit), axis=1)
        before = jnp.concatenate([jnp.zeros_like(right[:, :1]), right[:, :-1]], axis=1)
        all_right = jnp.exp(right[n[1:], n[1:] - 1]) @ weights * lengths[1:]
        misses = jnp.exp(before + jax.nn.log_sigmoid(-logit)) @ weights  # [N, T]
        errs = ((t < n[:, None]) * lengths[:, None] * misses).sum(axis=0)
        fit = correct[1:] @ jnp.log(all_right + 1e-12) + wrong[1:] @ jnp.log(errs + 1e-12)
        return -fit + 0.5 * (jnp.exp(2 * x[1]) + x[2] ** 2 + x[3] ** 2)

    best = effects.minimise(jax.jit(jax.value_and_grad(loss)), [2.5, -0.5, 0.0, 0.0])
    mean, log_sd, slope, first = (float(v) for v in best)
    return {"mean": mean, "sd": float(np.exp(log_sd)), "slope": slope, "first": first}


def _process(fits, lengths: np.ndarray, cells: np.ndarray, recorded: Recorded) -> Process:
    """The process before stage 3: its levels and correlations are still to be found."""
    n_steps = np.searchsorted(np.cumsum(lengths), (np.arange(PLANS) + 0.5) / PLANS)
    n_steps = jnp.asarray(np.clip(n_steps, 1, MAX_STEPS), jnp.int32)
    group = np.random.default_rng(0).integers(LENGTHS, size=(PLANS, MAX_STEPS))
    # The kinds are the groups of lengths, once for first steps and once for all others.
    group[:, 0] += LENGTHS
    first = np.repeat([0.0, 1.0], LENGTHS) * np.array([f["first"] for f in fits])[:, None]
    draws, excess = _step_lengths(recorded.tokens / recorded.steps)
    draws, excess = jnp.asarray(np.tile(draws, (2, 1)), jnp.float32), np.tile(excess, 2)
    logit = first - ERROR_SLOPE * excess  # [model, kind]
    slope = jnp.array([f["slope"] for f in fits])[:, None] * tables.length_scale(MAX_STEPS)
    cells = np.broadcast_to(_by_length(cells, excess), (2, 3, len(excess), *cells.shape[1:]))
    return Process(
        n_steps=n_steps,
        kinds=jnp.asarray(group, jnp.int32),
        effect_sd=jnp.array([f["sd"] for f in fits], jnp.float32),
        effect_correlation=jnp.zeros(()),
        by_length=slope.astype(jnp.float32),
        logit=jnp.asarray(np.repeat(logit[:, :, None], MAX_STEPS, axis=2), jnp.float32),
        draft_wrong=jnp.zeros(2),
        draft_doubted=jnp.zeros(()),
        draft_tokens=draws,
        strong_slope=jnp.zeros(()),
        strong_rest=draws,
        step_edges=jnp.zeros([0], jnp.int32),
        min_edges=jnp.array(_MIN_EDGES, jnp.float32),
        scores=jnp.asarray(cells, jnp.float32),
        same=jnp.zeros(3),
        lucky=jnp.zeros(()),
    )


def _step_lengths(mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Lengths [LENGTHS, ENTRIES] of each group; how much longer it is, [LENGTHS], in logarithms."""
    normal = scipy.stats.norm.ppf((np.arange(LENGTHS * ENTRIES) + 0.5) / (LENGTHS * ENTRIES))
    excess = LENGTH_SPREAD * normal.reshape(LENGTHS, ENTRIES)
    draws = mean * np.exp(excess - LENGTH_SPREAD**2 / 2)
    return np.maximum(np.round(draws), 1), excess.mean(axis=1)


def _by_length(cells: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Score quantiles [3, kinds, C, Q + 1] of each kind from those of all, [3, C, Q + 1].

    In S0 and S1 the odds of a score below any level go with the length, to the power SCORE_SLOPE;
    low scores are as frequent over all kinds as before. Of the first wrong step, S2, the score does
    not depend on the length (in the recorded solutions hardly).
    """
    odds = np.exp(SCORE_SLOPE * excess)
    odds /= odds.mean()
    kinds = [_doubted(jnp.asarray(cells[[S0, S1]]), o) for o in odds]
    return np.stack([*np.stack(kinds, axis=1), np.tile(cells[S2], (len(excess), 1, 1))])


def _doubted(quantiles: jax.Array, odds: jax.Array) -> jax.Array:
    """Quantiles [..., Q + 1] of scores whose odds to be below any level are `odds` times those."""
    last = quantiles.shape[-1] - 1
    u = jnp.arange(last + 1) / last
    # Where the quantile u of the new ones lies among the old.
    place = last * u / (u + odds * (1 - u))
    low = jnp.minimum(place.astype(jnp.int32), last - 1)
    below, above = quantiles[..., low], quantiles[..., low + 1]
    return below + (place - low) * (above - below)


# ---------------------------------------------------------------------------- the recorded run


def _wanted(recorded: Recorded) -> tuple[float, ...]:
    """The figures of the recorded run that stage 3 is fitted to, in the order of `predicted`."""
    points, costs = (tuple(row[1] for row in rows) for rows in (recorded.points, recorded.costs))
    return (recorded.weak, recorded.strong, *points, *costs)


def _fit_recorded(start: Process, fits, recorded: Recorded):
    """Stage 3: least squares with priors, under the same luck throughout."""
    settings = (0.0, 1.0, *(k for k, _ in recorded.points), *_CURVE)
    ends = len(settings) - len(_CURVE)
    targets = np.array([target for target, _, _ in recorded.costs])
    policy, key = Threshold((0.5,)), jax.random.key(0)

    @jax.jit
    def process_of(x):
        x = x.astype(jnp.float32)
        return start.replace(
            logit=start.logit + jnp.stack([x[SMALL], x[LARGE]])[:, None, None],
            effect_correlation=jnp.tanh(x[2]),
            draft_wrong=x[3:5],
            effect_sd=jnp.exp(x[5:7]),
            scores=start.scores.at[:, S0].set(_doubted(start.scores[:, S0], jnp.exp(x[7]))),
        )

    def predict(x):
        found = rollout(process_of(jnp.asarray(x)), policy, key, ROWS, settings)
        accuracy = np.asarray(found.accuracy, float)
        tokens = np.asarray(found.strong_tokens, float)
        # The frontier: from the small model alone over the thresholds to the large one.
        order = [0, *range(ends, len(settings)), 1]
        best = np.maximum.accumulate(accuracy[order])
        wanted = accuracy[0] + targets * (best[-1] - best[0])
        reached = np.interp(wanted, best, tokens[order] / tokens[1])
        return np.concatenate([accuracy[:ends], reached])

    # The levels have no prior: the anchors, held four times as tightly as the points, set them.
    anchors, points = [recorded.error / 4] * 2, [recorded.error] * len(recorded.points)
    errors = np.array([*anchors, *points, *(error for *_, error in recorded.costs)])
    priors = (_RHO, _CONSTANT, _SCORE, (np.log(fits[0]["sd"]), _SD_ERROR), _SD_LARGE, _DOUBT)
    centre, spread = np.array(priors).T

    def residuals(x):
        miss = (predict(x) - _wanted(recorded)) / errors
        return np.concatenate([miss, (x[2:] - centre) / spread])

    first = np.concatenate([[fits[0]["mean"], fits[1]["mean"] + 0.7], centre])
    # Accuracies of a sample are steps, not slopes: differences are taken over 0.05 of a scale. They
    # are relative to the variable, which therefore starts at 1.
    scale = np.concatenate([[1.0, 1.0], spread])
    unscaled = lambda y: first + scale * (y - 1)  # noqa: E731
    best = scipy.optimize.least_squares(
        lambda y: residuals(unscaled(y)), np.ones(len(first)), diff_step=0.05
    )
    x = unscaled(best.x)
    found = process_of(jnp.asarray(x))
    parameters = {
        "mean.small": x[0], "mean.large": x[1], "rho": np.tanh(x[2]),
        "draft_wrong.constant": x[3], "draft_wrong.score": x[4],
        "sd.small": np.exp(x[5]), "sd.large": np.exp(x[6]), "doubt": x[7],
    }  # fmt: skip
    parameters = {name: float(value) for name, value in parameters.items()}
    return found, parameters, tuple(float(a) for a in predict(x))
