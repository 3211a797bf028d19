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

from trim_jax.errors import ResultError
from trim_jax.eval.traces import Result
from trim_jax.sim import effects, tables
from trim_jax.sim.events import Solutions, Events, read_events
from trim_jax.sim.process import FIRST, LARGE, LAST, MAX_PLANS, SMALL, Process

MAX_KINDS = 10  # between the first step and the last
NODES = 11  # of the quadrature, for each effect


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


def _counted(events: Events) -> np.ndarray:
    """Which events count: those with a right prefix, one a (problem, seed, step)."""
    keep = np.flatnonzero(events.prefix_right)
    keys = np.stack([events.problem[keep], events.seed[keep], events.t[keep]], axis=1)
    return keep[np.unique(keys, axis=0, return_index=True)[1]]


def _usual_score(drafts: Events, right: bool) -> float:
    """Mean score of right drafts, or of first wrong ones; 0.5 where there is none."""
    score = drafts.score[drafts.prefix_right & (drafts.right == right)]
    return float(np.nanmean(score)) if np.isfinite(score).any() else 0.5


def _fit_effects(drafts, draft_kind, rewrites, strong_kind, kinds):
    problems = np.unique(np.concatenate([drafts.problem, rewrites.problem]))
    # A draft that nobody scored counts as one of the average score, of right or of wrong ones.
    usual = [_usual_score(drafts, right) for right in (False, True)]
    z, log_mass = effects.quadrature(NODES)
    shapes = {"logit": (2, kinds), "sd": (2,), "rho": (), "slope": (2,), "trend": (2,),
              "draft_wrong": (2,), "draft_doubted": ()}  # fmt: skip

    def steps_of(events, kind, which):
        """The events at `which` as steps, and their problems."""
        at = np.searchsorted(problems, events.problem[which])
        return effects.Steps.of(events[which], kind[which]), at

    def alike(*args):
        return effects.alike(*steps_of(*args), len(problems))

    drafted = _counted(drafts)
    small, small_count = alike(drafts, draft_kind, drafted)
    rewritten = _counted(rewrites)
    known = rewritten[rewrites.draft_right[rewritten] >= 0]
    bare, bare_count = alike(rewrites, strong_kind, np.setdiff1d(rewritten, known))
    after, after_problem = steps_of(rewrites, strong_kind, known)
    score, after_right = rewrites.draft_score[known], rewrites.draft_right[known] == 1
    score = np.where(np.isnan(score), np.where(after_right, usual[1], usual[0]), score)

    def wrong(p, score):
        return p["draft_wrong"][0] + p["draft_wrong"][1] * score

    def doubted(p, score):
        return p["draft_doubted"] * (1 - score)

    def log_likelihood(p):
        """Marginal over the problem effects; the sum over problems."""
        found = effects.outcome(small.right, effects.logits(p, SMALL, small, z))
        total = log_mass + effects.a_problem(small_count, found)
        found = effects.without_draft(p, bare, z, doubted(p, usual[1]), wrong(p, usual[0]))
        total += effects.a_problem(bare_count, found)
        off = jnp.where(after_right, doubted(p, score), wrong(p, score))
        found = effects.outcome(after.right, effects.logits(p, LARGE, after, z) - off[:, None])
        total = total.at[after_problem].add(found, indices_are_sorted=True)
        return jax.nn.logsumexp(total, axis=1).sum()

    def log_prior(p):
        others = (p["draft_wrong"] ** 2).sum() + p["draft_doubted"] ** 2
        return effects.log_prior(p) - 0.5 * others

    split = lambda x: effects.unpack(x, shapes)  # noqa: E731
    loss = jax.jit(lambda x: -(log_likelihood(split(x)) + log_prior(split(x))))
    start = np.concatenate([np.full(kinds, 1.0), np.full(kinds, 3.0), np.log([0.5, 0.5]), [0.5],
                            np.zeros(7)])  # fmt: skip
    best = effects.minimise(jax.jit(jax.value_and_grad(loss)), start)
    x = jnp.asarray(best, jnp.float32)
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
        problems=len(problems), drafts=len(drafted), rewrites=len(rewritten),
        length_edges=(), pseudo_counts=0.0,
    )  # fmt: skip
    return found, report
