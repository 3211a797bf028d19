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
from collections.abc import Iterator, Mapping

import flax.struct
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
    return fit_events(*_events(result), max_steps)


def _events(result: Result) -> tuple[Events, Events, Solutions]:
    drafts, rewrites, solutions = read_events(result)
    if not len(rewrites) or np.isnan(drafts.score).all():
        raise ResultError(
            f"{result.folder}: the simulator needs scored drafts and steps of the large model; a "
            "sweep of thresholds has both"
        )
    return drafts, rewrites, solutions


def fit_events(
    drafts: Events, rewrites: Events, solutions: Solutions, max_steps: int = 30
) -> tuple[Process, Report]:
    """As `fit_result`, from events."""
    observed = _Observed.of(drafts, rewrites, solutions)
    found = _most_likely(observed.evidence, np.ones(observed.problems), observed.start)
    process, pseudo = observed.process(found, max_steps)
    parameters, log_likelihood = _parameters(observed.evidence, found)
    report = Report(
        parameters=parameters, log_likelihood=log_likelihood, problems=observed.problems,
        drafts=len(_counted(drafts)), rewrites=len(_counted(rewrites)),
        length_edges=tuple(int(edge) for edge in observed.length_edges), pseudo_counts=pseudo,
    )  # fmt: skip
    return process, report


def resampled_fits(
    result: Result, fits: int, max_steps: int = 30, seed: int = 0
) -> Iterator[Process]:
    """The process fitted to problems drawn with replacement, `fits` times: its sampling error.

    What is chosen before anything is estimated (where to cut lengths and scores, and the
    pseudo-observations) stays as for all problems.

    Raises:
      ResultError: see `fit_result`.
    """
    observed = _Observed.of(*_events(result))
    best = _most_likely(observed.evidence, np.ones(observed.problems), observed.start)
    pseudo = observed.process(best, max_steps)[1]
    chances = np.full(observed.problems, 1 / observed.problems)
    for times in np.random.default_rng(seed).multinomial(observed.problems, chances, fits):
        found = _most_likely(observed.evidence, times, best)
        yield observed.drawn(times).process(found, max_steps, pseudo)[0]


@dataclasses.dataclass(frozen=True)
class _Observed:
    """Events with the kinds of their steps, and all that the fit chooses before it estimates.

    Attributes:
      length_edges, step_edges, least_edges: where draft lengths, numbers of steps and least scores
        are cut.
      evidence: what they say of right and wrong.
      problems: their number; indices are below it.
    """

    drafts: Events
    rewrites: Events
    solutions: Solutions
    length_edges: np.ndarray
    step_edges: np.ndarray
    least_edges: np.ndarray
    evidence: _Evidence
    problems: int

    @classmethod
    def of(cls, drafts: Events, rewrites: Events, solutions: Solutions) -> _Observed:
        known, scored = np.unique(solutions.problem), ~np.isnan(drafts.score)
        drafts, rewrites, solutions = (
            dataclasses.replace(x, problem=np.searchsorted(known, x.problem))
            for x in (drafts, rewrites, solutions)
        )
        middle = (drafts.t > 0) & (drafts.t < drafts.n - 1)
        use = middle & drafts.prefix_right
        edges = tables.cut_lengths(drafts.tokens[use], drafts.right[use], MAX_KINDS)
        return cls(
            drafts, rewrites, solutions, edges,
            step_edges=tables.quantile_edges(drafts.n[scored], 4),
            least_edges=tables.quantile_edges(drafts.min_score[middle & scored], 4),
            evidence=_Evidence.of(
                drafts, _draft_kinds(drafts, edges), rewrites, _strong_kinds(rewrites, edges),
                len(known),
            ),
            problems=len(known),
        )  # fmt: skip

    @property
    def kinds(self) -> int:
        return 3 + len(self.length_edges)

    @property
    def start(self) -> dict[str, np.ndarray]:
        """Where the search for the most likely parameters begins."""
        logit = np.stack([np.full(self.kinds, 1.0), np.full(self.kinds, 3.0)])
        nothing = {name: np.zeros(2) for name in ("slope", "trend", "draft_wrong")}
        return {"logit": logit, "sd": np.full(2, 0.5), "rho": np.tanh(0.5), "draft_doubted": 0.0,
                **nothing}  # fmt: skip

    def drawn(self, times: np.ndarray) -> _Observed:
        """The events of each problem so many times [problems]; the evidence stays as it is."""

        def repeated(events):
            return events[np.repeat(np.arange(len(events)), times[events.problem])]

        return dataclasses.replace(
            self, drafts=repeated(self.drafts), rewrites=repeated(self.rewrites),
            solutions=repeated(self.solutions),
        )  # fmt: skip

    def process(
        self, found: Mapping[str, np.ndarray], max_steps: int, pseudo: float | None = None
    ) -> tuple[Process, float]:
        """The process with these parameters, and the pseudo-observations of its score cells."""
        drafts, rewrites, solutions = self.drafts, self.rewrites, self.solutions
        edges, kinds = self.length_edges, self.kinds
        draft_kind, strong_kind = _draft_kinds(drafts, edges), _strong_kinds(rewrites, edges)
        scored = ~np.isnan(drafts.score)
        scores, pseudo = tables.score_tables(
            drafts[scored], draft_kind[scored], rewrites, strong_kind, kinds, self.step_edges,
            self.least_edges, pseudo,
        )  # fmt: skip
        both = rewrites.draft_right >= 0
        slope, rest = tables.strong_lengths(rewrites[both], strong_kind[both], kinds)
        n_steps = np.minimum(solutions.n, max_steps)[:MAX_PLANS]
        plan_tokens = np.zeros([len(n_steps), max_steps], int)
        seen = min(max_steps, solutions.tokens.shape[1])
        plan_tokens[:, :seen] = solutions.tokens[: len(n_steps), :seen]
        by_length = found["slope"][:, None] * tables.length_scale(max_steps)
        process = Process(
            n_steps=n_steps,
            kinds=_kinds(np.arange(max_steps), n_steps[:, None], plan_tokens, edges),
            effect_sd=found["sd"],
            effect_correlation=found["rho"],
            by_length=by_length,
            logit=np.repeat(found["logit"][:, :, None], max_steps, axis=2)
            + found["trend"][:, None, None] * tables.step_scale(max_steps),
            draft_wrong=found["draft_wrong"],
            draft_doubted=found["draft_doubted"],
            draft_tokens=tables.by_kind(drafts.tokens, draft_kind, kinds),
            strong_slope=slope,
            strong_rest=rest,
            step_edges=np.ceil(self.step_edges).astype(int),
            min_edges=self.least_edges,
            scores=scores,
            same=tables.repeats(rewrites[both]),
            lucky=solutions.lucky.sum() / max(solutions.wrong.sum(), 1e-9),
        )  # fmt: skip
        typed = lambda x: jnp.int32 if np.asarray(x).dtype.kind == "i" else jnp.float32  # noqa: E731
        return jax.tree.map(lambda x: jnp.asarray(x, typed(x)), process), pseudo


def _draft_kinds(drafts: Events, edges: np.ndarray) -> np.ndarray:
    return _kinds(drafts.t, drafts.n, drafts.tokens, edges)


def _strong_kinds(rewrites: Events, edges: np.ndarray) -> np.ndarray:
    lengths = np.where(rewrites.draft_tokens >= 0, rewrites.draft_tokens, rewrites.tokens)
    return _kinds(rewrites.t, rewrites.n, lengths, edges)


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


@flax.struct.dataclass
class _Evidence:
    """What counts in the likelihood of right and wrong, of P problems.

    Attributes:
      small, small_count: drafts, alike ones once (`effects.alike`). bare, bare_count: likewise
        steps of the large model whose draft nobody knows.
      after: its other steps [A], of problems `after_problem` int [A], ascending, whose draft was
        right, `after_right` bool [A], and had this `score` float32 [A].
      usual: float32 [2], mean score of drafts that are first wrong ones, and of right ones: that of
        a draft nobody scored.
    """

    small: effects.Steps
    small_count: np.ndarray
    bare: effects.Steps
    bare_count: np.ndarray
    after: effects.Steps
    after_problem: np.ndarray
    after_right: np.ndarray
    score: np.ndarray
    usual: np.ndarray

    @classmethod
    def of(cls, drafts, draft_kind, rewrites, strong_kind, problems: int) -> _Evidence:
        def alike(events, kind, which):
            steps = effects.Steps.of(events[which], kind[which])
            return effects.alike(steps, events.problem[which], problems)

        usual = np.float32([_usual_score(drafts, right) for right in (False, True)])
        rewritten = _counted(rewrites)
        known = rewritten[rewrites.draft_right[rewritten] >= 0]
        score, right = rewrites.draft_score[known], rewrites.draft_right[known] == 1
        return cls(
            *alike(drafts, draft_kind, _counted(drafts)),
            *alike(rewrites, strong_kind, np.setdiff1d(rewritten, known)),
            effects.Steps.of(rewrites[known], strong_kind[known]),
            after_problem=rewrites.problem[known],
            after_right=right,
            score=np.where(np.isnan(score), usual[right.astype(int)], score).astype(np.float32),
            usual=usual,
        )


def _shapes(numbers: int) -> dict[str, tuple[int, ...]]:
    """Of the parameters that so many numbers stand for."""
    rest = {"sd": (2,), "rho": (), "slope": (2,), "trend": (2,), "draft_wrong": (2,),
            "draft_doubted": ()}  # fmt: skip
    kinds = (numbers - sum(int(np.prod(shape)) for shape in rest.values())) // 2
    return {"logit": (2, kinds)} | rest


def _unpacked(x: jax.Array) -> dict[str, jax.Array]:
    return effects.unpack(x, _shapes(len(x)))


def _packed(p: Mapping[str, np.ndarray]) -> np.ndarray:
    """The vector that stands for these parameters."""
    free = dict(p) | {"sd": np.log(p["sd"]), "rho": np.arctanh(p["rho"])}
    return np.concatenate([np.ravel(free[name]) for name in _shapes(0)])


def _log_likelihood(p: Mapping[str, jax.Array], evidence: _Evidence) -> jax.Array:
    """Of each problem [P], marginal over its effects."""
    e = evidence
    z, log_mass = effects.quadrature(NODES)

    def wrong(score):
        return p["draft_wrong"][0] + p["draft_wrong"][1] * score

    def doubted(score):
        return p["draft_doubted"] * (1 - score)

    found = effects.outcome(e.small.right, effects.logits(p, SMALL, e.small, z))
    total = log_mass + effects.a_problem(e.small_count, found)
    found = effects.without_draft(p, e.bare, z, doubted(e.usual[1]), wrong(e.usual[0]))
    total += effects.a_problem(e.bare_count, found)
    off = jnp.where(e.after_right, doubted(e.score), wrong(e.score))
    found = effects.outcome(e.after.right, effects.logits(p, LARGE, e.after, z) - off[:, None])
    total = total.at[e.after_problem].add(found, indices_are_sorted=True)
    return jax.nn.logsumexp(total, axis=1)


def _loss(x: jax.Array, evidence: _Evidence, weights: jax.Array) -> jax.Array:
    """Negative log-likelihood of problems that count `weights` [P] times, and priors."""
    p = _unpacked(x)
    others = (p["draft_wrong"] ** 2).sum() + p["draft_doubted"] ** 2
    likelihood = (weights * _log_likelihood(p, evidence)).sum()
    return -(likelihood + effects.log_prior(p) - 0.5 * others)


_loss_and_slope = jax.jit(jax.value_and_grad(_loss))
_curvature = jax.jit(jax.hessian(_loss))


def _most_likely(
    evidence: _Evidence, weights: np.ndarray, start: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The parameters under which `evidence` is likeliest, with a weight [P] for each problem."""
    weights = jnp.asarray(weights, jnp.float32)
    x = effects.minimise(_loss_and_slope, _packed(start), evidence, weights)
    return {name: np.asarray(value) for name, value in _unpacked(np.float32(x)).items()}


def _parameters(
    evidence: _Evidence, found: dict[str, np.ndarray]
) -> tuple[dict[str, tuple[float, float]], float]:
    """Estimates and standard errors by name, but for the logits; and the log-likelihood."""
    each = _log_likelihood(found, evidence)
    hessian = _curvature(jnp.asarray(_packed(found), jnp.float32), evidence, jnp.ones(len(each)))
    raw = np.sqrt(np.abs(np.diag(np.linalg.inv(np.asarray(hessian, float)))))
    errors = effects.split(raw, _shapes(len(raw)))
    # sd and rho are estimated through log and atanh: the delta method.
    errors["sd"] = found["sd"] * errors["sd"]
    errors["rho"] = (1 - found["rho"] ** 2) * errors["rho"]
    labels = {"draft_wrong": ("constant", "score")}
    out = {}
    for name in found.keys() - {"logit"}:
        if found[name].ndim:
            for i, label in enumerate(labels.get(name, ("small", "large"))):
                out[f"{name}.{label}"] = float(found[name][i]), float(errors[name][i])
        else:
            out[name] = float(found[name]), float(errors[name])
    return out, float(each.sum())
