"""Fits the process to recorded solutions of two models, and predicts TRIM-Thr for the pair.

No routed run of the pair exists, so this is a prediction under assumptions, each of which can be
wrong:

- A right solution is right in all steps; where a wrong one errs, `sim.solutions` says.
- The large model's steps were recorded after its own steps only. What it does after a prefix of the
  small model (p_s given a small prefix) is taken from there: its probability of a right step, its
  scores and its tokens. The problem effects, correlated between the models, are found because both
  solved every problem; whether a step that the small model fails at is harder for the large one
  (`draft_wrong`) cannot be known, and is given by the caller: 0 by default, which is optimistic.
  Nor can it be known whether one that the PRM doubts without reason is (`draft_doubted`): 0.
- Steps have three kinds, by place: first, last, between. Lengths of draft and rewrite are
  independent, and no rewrite repeats a draft.
- A solution has as many steps as the recorded one of the model that writes it. A routed run is
  mixed: it is simulated once with the small model's numbers of steps and once with the large one's,
  and the results are weighted by the shares of steps that the two write. So either anchor has the
  numbers of steps of its own model.
- A step ends where the recorded one did, no wrong solution has the right answer by luck, and a
  solution ends after 30 steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from trim_jax.policies.simple import Threshold
from trim_jax.sim import effects, tables
from trim_jax.sim.env import rollout
from trim_jax.sim.process import FIRST, LARGE, LAST, SMALL, Process, plans
from trim_jax.sim.solutions import Pair, Solutions, resampled_errors

KINDS = 3
PLANS = 4096
NODES = 9  # of the quadrature, for each problem effect
LEVEL_ROWS = 20_000  # simulated problems that set the level of a model; standard error 0.3 points
_SHIFT = 6.0  # the level is looked for within this distance
_MIN_BINS = 4
_BETWEEN = 2
_SHAPES = {"logit": (2, KINDS), "sd": (2,), "rho": (), "slope": (2,), "trend": (2,)}


@dataclasses.dataclass(frozen=True)
class Fit:
    """The process with the numbers of steps of either model, and the parameters of both.

    Attributes:
      by_small, by_large: equal but for their plans.
      parameters: name -> estimate, of the effects (`sim.process`); `level` is what the logits were
        shifted by in the end, which is near 0 where the process describes the records well.
    """

    by_small: Process
    by_large: Process
    parameters: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Means a problem of TRIM-Thr at K thresholds, float [K]; the ends 0 and 1 are the anchors."""

    accuracy: np.ndarray
    strong_tokens: np.ndarray
    steps: np.ndarray


def problem_weights(pair: Pair, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Weights [P] of the problems, 0 outside `train`, under which their levels occur as in `test`.

    A level of the test problems that the training problems lack is left out.
    """
    groups = pair.level.max() + 1
    here, there = (np.bincount(pair.level[rows], minlength=groups) for rows in (train, test))
    ratio = np.where(here > 0, there / np.maximum(here, 1), 0.0)
    weights = np.zeros(len(pair.ids))
    weights[train] = ratio[pair.level[train]]
    if not weights.any():  # no level in common: nothing to match
        weights[train] = 1.0
    return weights * len(train) / weights.sum()


def fit(pair: Pair, weights: np.ndarray, draft_wrong: float = 0.0) -> Fit:
    """The process of a pair of models on problems with weights [P] (counts, or near 1).

    Args:
      draft_wrong: taken off the large model's logit where the draft is wrong; not estimable here.
    """
    found = _fit_effects(pair, weights, draft_wrong)
    # The tables take whole problems: the weights of levels are near 1, those of a resample counts.
    times = np.where(weights > 0, np.maximum(np.rint(weights), 1), 0).astype(int)
    rows = np.repeat(np.arange(len(weights)), times)
    drafts, strong = pair.small.events(rows), pair.large.events(rows)
    kinds = [_kind(events.t, events.n) for events in (drafts, strong)]
    edges = tables.quantile_edges(drafts.min_score[kinds[0] == _BETWEEN], _MIN_BINS)
    no_edges = np.zeros(0, int)  # 500 solutions are not cut by their number of steps as well
    scores, _ = tables.score_tables(drafts, kinds[0], strong, kinds[1], KINDS, no_edges, edges)
    max_steps = pair.small.scores.shape[1]
    logit = found["logit"][:, :, None] + (
        found["trend"][:, None, None] * np.asarray(tables.step_scale(max_steps))
    )
    common = {
        "effect_sd": found["sd"], "effect_correlation": found["rho"],
        "by_length": found["slope"][:, None] * np.asarray(tables.length_scale(max_steps)),
        "logit": logit, "draft_wrong": [draft_wrong, 0.0], "draft_doubted": 0.0,
        "draft_tokens": tables.by_kind(drafts.tokens, kinds[0], KINDS), "strong_slope": 0.0,
        "strong_rest": tables.by_kind(strong.tokens, kinds[1], KINDS), "min_edges": edges,
        "scores": scores, "same": np.zeros(3), "lucky": 0.0,
    }  # fmt: skip
    common = {name: jnp.asarray(value, jnp.float32) for name, value in common.items()}
    processes = []
    for solutions in (pair.small, pair.large):
        n_steps = jnp.asarray(_plan_lengths(solutions, weights), jnp.int32)
        processes.append(Process(n_steps=n_steps, kinds=plans(n_steps, max_steps),
                                 step_edges=jnp.asarray(no_edges, jnp.int32), **common))
    processes, level = _level(processes, pair, weights)
    found["level"] = level
    parameters = {
        f"{name}.{label}": float(found[name][model])
        for name in ("sd", "slope", "trend", "level")
        for model, label in enumerate(("small", "large"))
    }
    return Fit(*processes, parameters | {"rho": float(found["rho"]), "draft_wrong": draft_wrong})


def _level(
    processes: list[Process], pair: Pair, weights: np.ndarray
) -> tuple[list[Process], np.ndarray]:
    """Shifts the logits of each model so that alone it is as accurate as recorded.

    The likelihood looks at single steps, whose small misfits add up over a solution.

    Returns:
      The processes, and the shifts [2].
    """
    shift, key = np.zeros(2), jax.random.key(0)

    def miss(x: float, model: int) -> float:
        solutions, end = ((pair.small, 0.0), (pair.large, 1.0))[model]
        trial = np.where(np.arange(2) == model, x, shift)
        process = _shifted(processes[model], trial)
        found = rollout(process, Threshold((0.5,)), key, LEVEL_ROWS, (end,)).accuracy[0]
        return float(found) - float(weights @ solutions.correct / weights.sum())

    # The small model first: a wrong draft can make the large model's step harder.
    for model in (SMALL, LARGE):
        shift[model] = scipy.optimize.brentq(miss, -_SHIFT, _SHIFT, args=(model,), xtol=0.01)
    return [_shifted(process, shift) for process in processes], shift


def _shifted(process: Process, shift: np.ndarray) -> Process:
    return process.replace(logit=process.logit + jnp.asarray(shift, jnp.float32)[:, None, None])


def predict(fit: Fit, thresholds: tuple[float, ...], key: jax.Array, rows: int) -> Prediction:
    """TRIM-Thr on `rows` simulated problems; the same key gives every fit the same luck."""
    small, large = (
        rollout(process, Threshold((0.5,)), key, rows, thresholds)
        for process in (fit.by_small, fit.by_large)
    )
    both = small.steps + large.steps
    by_large = np.asarray((small.strong_steps + large.strong_steps) / both, float)

    def mixed(name):
        values = (np.asarray(getattr(r, name), float) for r in (small, large))
        return (1 - by_large) * next(values) + by_large * next(values)

    return Prediction(mixed("accuracy"), mixed("strong_tokens"), mixed("steps"))


# ----------------------------------------------------------------------------- the whole study


@dataclasses.dataclass(frozen=True)
class Variant:
    """One set of the assumptions that the records cannot decide.

    Attributes:
      name: under which results are stored. label: one line on what it assumes.
      by_rule: first wrong steps by the rule of the method; else drawn (`sim.solutions`).
      draft_wrong: see `fit`.
    """

    name: str
    label: str
    by_rule: bool = True
    draft_wrong: float = 0.0


VARIANTS = (
    Variant("rule", "first error by the method's rule (first score below 0.35, else the lowest)"),
    Variant("rule-hard-steps", "as rule, and a step that the small model fails at is harder for "
            "the large one by 1 logit", draft_wrong=1.0),
    Variant("likelihood", "first error drawn from its likelihood under all scores", by_rule=False),
)  # fmt: skip


def study(
    pair: Pair, splits: list[tuple[np.ndarray, np.ndarray]], variant: Variant,
    thresholds: tuple[float, ...], key: jax.Array, rows: int, resamples: int, bar: Any,
) -> dict[str, Any]:
    """Predictions of one variant, pooled over folds, and those of refits to resampled problems.

    Args:
      splits: (training rows, test rows) of each fold: the process is fitted on the training rows,
        weighted to the mix of levels of the test rows.
      resamples: each draws all problems with replacement, fits one process, and predicts.
      bar: `update()` is called after each fit.

    Returns:
      JSON-able: `accuracy`, `strong_tokens`, `steps` [K], their samples [resamples][K] under
      "samples", and the parameters of each fold's fit.
    """  # fmt: skip
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())

    def labelled(weights: np.ndarray) -> Pair:
        if variant.by_rule:
            return pair
        models = (resampled_errors(m, weights, rng) for m in (pair.small, pair.large))
        return Pair(pair.ids, pair.level, *models)

    def one(pair: Pair, weights: np.ndarray) -> tuple[Fit, np.ndarray]:
        found = fit(pair, weights, variant.draft_wrong)
        p = predict(found, thresholds, key, rows)
        bar.update()
        return found, np.stack([p.accuracy, p.strong_tokens, p.steps])

    pooled, parameters = 0.0, []
    for train, test in splits:
        weights = problem_weights(pair, train, test)
        found, predicted = one(labelled(weights), weights)
        pooled = pooled + len(test) / len(pair.ids) * predicted
        parameters.append(found.parameters)
    # The labels stay as they are in the resamples, which are of problems.
    whole = labelled(np.ones(len(pair.ids)))
    counts = rng.multinomial(len(pair.ids), np.full(len(pair.ids), 1 / len(pair.ids)), resamples)
    samples = np.stack([one(whole, count.astype(float))[1] for count in counts], axis=1)
    names = ("accuracy", "strong_tokens", "steps")
    return {**dict(zip(names, pooled.tolist())), "samples": dict(zip(names, samples.tolist())),
            "parameters": parameters}  # fmt: skip


def _kind(t: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.where(t == n - 1, LAST, np.where(t == 0, FIRST, _BETWEEN))


def _plan_lengths(solutions: Solutions, weights: np.ndarray) -> np.ndarray:
    """Numbers of steps [PLANS] that occur as the weights say."""
    reached = np.cumsum(weights) / weights.sum()
    at = np.searchsorted(reached, (np.arange(PLANS) + 0.5) / PLANS)
    return solutions.n[np.minimum(at, len(weights) - 1)]


# ------------------------------------------------------------------------- right or wrong


@jax.jit
@jax.value_and_grad
def _loss_and_slope(x, small, large, weights, draft_wrong):
    """Negative log-likelihood of right and wrong, and priors, as in `sim.fit`.

    But no rewrite has a recorded draft. `small` and `large` are what `effects.alike` returns.
    """
    p = effects.unpack(x, _SHAPES)
    z, log_mass = effects.quadrature(NODES)
    steps, count = small
    total = effects.a_problem(count, effects.outcome(steps.right, effects.logits(p, SMALL, steps, z)))
    steps, count = large
    total += effects.a_problem(count, effects.without_draft(p, steps, z, 0.0, draft_wrong))
    marginal = jax.nn.logsumexp(total + log_mass, axis=1)
    return -(weights * marginal).sum() - effects.log_prior(p)


def _fit_effects(pair: Pair, weights: np.ndarray, draft_wrong: float) -> dict[str, np.ndarray]:
    data = []
    for solutions in (pair.small, pair.large):
        events = solutions.events(np.arange(len(pair.ids)))
        events = events[events.prefix_right]
        steps = effects.Steps.of(events, _kind(events.t, events.n))
        data.append(effects.alike(steps, events.problem, len(pair.ids)))
    weights = jnp.asarray(weights, jnp.float32)

    start = np.concatenate([np.full(KINDS, 1.0), np.full(KINDS, 2.0), [0.0, 0.0, 0.5], np.zeros(4)])
    best = effects.minimise(_loss_and_slope, start, *data, weights, draft_wrong)
    found = effects.unpack(jnp.asarray(best, jnp.float32), _SHAPES)
    return {name: np.asarray(value) for name, value in found.items()}
