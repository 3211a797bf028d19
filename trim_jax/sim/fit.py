"""Fits the process to the traces of a routed run, by maximum likelihood.

Three parts that do not share parameters:

- right or wrong: logits of both models by kind of step, the problem effects (bivariate normal,
  integrated out by Gauss-Hermite quadrature over all drafts and rewrites of a problem with a right
  prefix), and the terms for steps at which the draft failed or was doubted. Which drafts and
  rewrites a run has depends on scores and outcomes seen before, so the likelihood needs no
  correction for it.
- PRM scores: a quantile function for each cell (writer, state, kind, number of steps, least score
  before), drawn towards that of the coarser cell by as many pseudo-observations as predict held-out
  scores best.
- lengths, kinds and numbers of steps: their empirical distributions.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from trim_jax.errors import ResultError
from trim_jax.eval.traces import Result
from trim_jax.sim import tables
from trim_jax.sim.events import Solutions, Events, read_events
from trim_jax.sim.process import FIRST, LAST, MAX_PLANS, Process

MAX_KINDS = 10  # between the first step and the last
NODES = 11  # of the quadrature, for each effect
_LOGIT_SD = 2.0  # prior of a kind's logit around the mean of all kinds
# Priors of the problem effects (half-normal), of `draft_wrong` and `draft_doubted` (normal).
_EFFECT_SD = 1.0


@dataclasses.dataclass(frozen=True)
class Report:
    """What the fit found.

    Attributes:
      parameters: name -> (estimate, standard error), of the effects.
      log_likelihood: of right and wrong, marginal over problems.
      problems, drafts, rewrites: numbers of each that were used.
      length_edges: the kinds between first and last are cut at these draft lengths.
      pseudo_counts: of the score cells.
    """

    parameters: dict[str, tuple[float, float]]
    log_likelihood: float
    problems: int
    drafts: int
    rewrites: int
    length_edges: tuple[int, ...]
    pseudo_counts: float


def fit_result(result: Result, max_steps: int = 30) -> tuple[Process, Report]:
    """The process that made the traces of a run (`trim-jax sweep`, `trim-jax collect`).

    Raises:
      ResultError: it has no labels, or lacks drafts that were scored or steps of the large model.
    """
    drafts, rewrites, solutions = read_events(result)
    if not len(rewrites) or np.isnan(drafts.score).all():
        raise ResultError(
            f"{result.folder}: the simulator needs scored drafts and steps of the large model; a "
            "sweep of thresholds has both"
        )
    return fit_events(drafts, rewrites, solutions, max_steps)


def fit_events(
    drafts: Events, rewrites: Events, solutions: Solutions, max_steps: int = 30
) -> tuple[Process, Report]:
    """As `fit_result`, from events."""
    scored = ~np.isnan(drafts.score)
    middle = (drafts.t > 0) & (drafts.t < drafts.n - 1)
    use = middle & drafts.prefix_right
    edges = tables.cut_lengths(drafts.tokens[use], drafts.right[use], MAX_KINDS)
    kinds = 3 + len(edges)
    draft_kind = _kinds(drafts.t, drafts.n, drafts.tokens, edges)
    lengths = np.where(rewrites.draft_tokens >= 0, rewrites.draft_tokens, rewrites.tokens)
    strong_kind = _kinds(rewrites.t, rewrites.n, lengths, edges)

    effects, report = _fit_effects(drafts, draft_kind, rewrites, strong_kind, kinds)
    min_edges = tables.quantile_edges(drafts.min_score[middle & scored], 4)
    step_edges = tables.quantile_edges(drafts.n[scored], 4)
    scores, pseudo = tables.score_tables(
        drafts[scored], draft_kind[scored], rewrites, strong_kind, kinds, step_edges, min_edges
    )
    both = rewrites.draft_right >= 0
    slope, rest = tables.strong_lengths(rewrites[both], strong_kind[both], kinds)
    n_steps = np.minimum(solutions.n, max_steps)[:MAX_PLANS]
    plan_tokens = np.zeros([len(n_steps), max_steps], int)
    seen = min(max_steps, solutions.tokens.shape[1])
    plan_tokens[:, :seen] = solutions.tokens[: len(n_steps), :seen]
    by_length = effects["slope"][:, None] * tables.length_scale(max_steps)
    process = Process(
        n_steps=n_steps,
        kinds=_kinds(np.arange(max_steps), n_steps[:, None], plan_tokens, edges),
        effect_sd=effects["sd"],
        effect_correlation=effects["rho"],
        by_length=by_length,
        logit=np.repeat(effects["logit"][:, :, None], max_steps, axis=2)
        + effects["trend"][:, None, None] * tables.step_scale(max_steps),
        draft_wrong=effects["draft_wrong"],
        draft_doubted=effects["draft_doubted"],
        draft_tokens=tables.by_kind(drafts.tokens, draft_kind, kinds),
        strong_slope=slope,
        strong_rest=rest,
        step_edges=np.ceil(step_edges).astype(int),
        min_edges=min_edges,
        scores=scores,
        same=tables.repeats(rewrites[both]),
        lucky=solutions.lucky.sum() / max(solutions.wrong.sum(), 1e-9),
    )  # fmt: skip
    process = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.int32 if np.asarray(x).dtype.kind == "i" else jnp.float32),
        process,
    )
    report = dataclasses.replace(
        report, length_edges=tuple(int(e) for e in edges), pseudo_counts=pseudo
    )
    return process, report


def _kinds(t: np.ndarray, n: np.ndarray, tokens: np.ndarray, edges: np.ndarray) -> np.ndarray:
    kind = 2 + np.searchsorted(edges, tokens, side="right")
    return np.where(t == n - 1, LAST, np.where(t == 0, FIRST, kind))


# ------------------------------------------------------------------------- right or wrong


def _per_problem(events: Events, kind: np.ndarray, problems: np.ndarray) -> dict[str, np.ndarray]:
    """Events with a right prefix, one a (problem, seed, step), as [problems, most] arrays."""
    keep = np.flatnonzero(events.prefix_right)
    keys = np.stack([events.problem[keep], events.seed[keep], events.t[keep]], axis=1)
    keep = keep[np.unique(keys, axis=0, return_index=True)[1]]
    row = np.searchsorted(problems, events.problem[keep])
    place = np.arange(len(keep)) - np.searchsorted(row, row)  # rows ascend
    shape = (len(problems), int(place.max()) + 1)
    columns = {
        "kind": kind, "t": events.t, "n": events.n, "right": events.right,
        "draft_score": events.draft_score,
        "draft_right": events.draft_right, "used": np.ones(len(events), bool),
    }  # fmt: skip
    out = {}
    for name, column in columns.items():
        out[name] = np.zeros(shape, column.dtype)
        out[name][row, place] = column[keep]
    return out


def _usual_score(drafts: Events, right: bool) -> float:
    """Mean score of right drafts, or of first wrong ones; 0.5 where there is none."""
    score = drafts.score[drafts.prefix_right & (drafts.right == right)]
    return float(np.nanmean(score)) if np.isfinite(score).any() else 0.5


def _fit_effects(drafts, draft_kind, rewrites, strong_kind, kinds):
    problems = np.unique(np.concatenate([drafts.problem, rewrites.problem]))
    # A draft that nobody scored counts as one of the average score, of right or of wrong ones.
    usual = [_usual_score(drafts, right) for right in (False, True)]
    small = _per_problem(drafts, draft_kind, problems)
    large = _per_problem(rewrites, strong_kind, problems)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    z = jnp.asarray(np.stack(np.meshgrid(nodes, nodes, indexing="ij")).reshape(2, -1), jnp.float32)
    log_weight = jnp.asarray(np.log(np.outer(weights, weights)).reshape(-1), jnp.float32)

    def split(x):
        shapes = {"logit": (2, kinds), "sd": (2,), "rho": (), "slope": (2,), "trend": (2,),
                  "draft_wrong": (2,), "draft_doubted": ()}  # fmt: skip
        out, at = {}, 0
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            out[name], at = x[at : at + size].reshape(shape), at + size
        return out | {"sd": jnp.exp(out["sd"]), "rho": jnp.tanh(out["rho"])}

    def base_of(p, model, events):
        """Logit of a right step of `model`, for an average problem."""
        base = p["logit"][model][events["kind"]]
        base += p["slope"][model] * tables.length_scale(events["n"])
        return base + p["trend"][model] * tables.step_scale(events["t"])

    def log_likelihood(p):
        """Marginal over the problem effects; the sum over problems."""
        z_large = p["rho"] * z[0] + jnp.sqrt(1 - p["rho"] ** 2) * z[1]
        total = log_weight
        for model, (events, effect) in enumerate(((small, z[0]), (large, z_large))):
            logit = base_of(p, model, events)[..., None] + p["sd"][model] * effect
            sign = jnp.where(events["right"], 1.0, -1.0)[..., None]
            found = jax.nn.log_sigmoid(sign * logit)
            if model == 1:
                score = events["draft_score"]
                if_wrong, if_right = (jnp.where(jnp.isnan(score), mean, score) for mean in usual)
                off = p["draft_wrong"][0] + p["draft_wrong"][1] * if_wrong
                harder = jax.nn.log_sigmoid(sign * (logit - off[..., None]))
                off = p["draft_doubted"] * (1 - if_right)
                doubted = jax.nn.log_sigmoid(sign * (logit - off[..., None]))
                # Without a draft, the chance that it would have been wrong is the small model's.
                weak = base_of(p, 0, events)[..., None] + p["sd"][0] * z[0]
                either = jnp.logaddexp(
                    jax.nn.log_sigmoid(weak) + doubted, jax.nn.log_sigmoid(-weak) + harder
                )
                known = events["draft_right"][..., None]
                found = jnp.where(known == 1, doubted, jnp.where(known == 0, harder, either))
            total = total + (found * events["used"][..., None]).sum(axis=1)
        return jax.nn.logsumexp(total, axis=1).sum()

    def log_prior(p):
        spread = p["logit"] - p["logit"].mean(axis=1, keepdims=True)
        return -0.5 * (
            (spread**2).sum() / _LOGIT_SD**2
            + ((p["sd"] ** 2).sum() + (p["draft_wrong"] ** 2).sum() + p["draft_doubted"] ** 2)
            / _EFFECT_SD**2
            + (p["slope"] ** 2).sum() + (p["trend"] ** 2).sum()
        ) + jnp.log1p(-p["rho"] ** 2)  # fmt: skip

    loss = jax.jit(lambda x: -(log_likelihood(split(x)) + log_prior(split(x))))
    gradient = jax.jit(jax.value_and_grad(loss))

    def both(x):
        value, slope = gradient(jnp.asarray(x, jnp.float32))
        return float(value), np.asarray(slope, float)

    start = np.concatenate([np.full(kinds, 1.0), np.full(kinds, 3.0), np.log([0.5, 0.5]), [0.5],
                            np.zeros(7)])  # fmt: skip
    best = scipy.optimize.minimize(both, start, jac=True, method="L-BFGS-B")
    x = jnp.asarray(best.x, jnp.float32)
    found = {name: np.asarray(value) for name, value in split(x).items()}
    raw = np.sqrt(np.abs(np.diag(np.linalg.inv(np.asarray(jax.hessian(loss)(x), float)))))
    errors = {name: np.asarray(value) for name, value in split(jnp.asarray(raw)).items()}
    # sd and rho are estimated through log and atanh: the delta method.
    at = 2 * kinds
    errors |= {"sd": found["sd"] * raw[at : at + 2], "rho": (1 - found["rho"] ** 2) * raw[at + 2]}
    parameters = {}
    for name in ("sd", "slope", "trend"):
        for model, label in enumerate(("small", "large")):
            parameters[f"{name}.{label}"] = (float(found[name][model]), float(errors[name][model]))
    parameters["rho"] = float(found["rho"]), float(errors["rho"])
    for i, label in enumerate(("constant", "score")):
        name = "draft_wrong"
        parameters[f"{name}.{label}"] = (float(found[name][i]), float(errors[name][i]))
    name = "draft_doubted"
    parameters[name] = float(found[name]), float(errors[name])
    report = Report(
        parameters=parameters, log_likelihood=float(log_likelihood(split(x))),
        problems=len(problems), drafts=int(small["used"].sum()), rewrites=int(large["used"].sum()),
        length_edges=(), pseudo_counts=0.0,
    )  # fmt: skip
    return found, report
