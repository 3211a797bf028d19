"""AutoMix (arXiv 2310.12963) and AutoMix-PRM: the small model answers, then its answer is judged.

A verifier gives the small solution a value v in [0, 1]; the large model answers anew where that is
worth it, by a threshold on v or by a one-step POMDP with v as the observation.

The verifier of AutoMix is the small model itself, asked a few-shot question. A model that cannot
follow such a prompt (the trio of `arith` cannot) has none. Our stand-in is a logistic regression
on the question and the finished solution, trained on the training outcomes; it spends no token,
where the original spends several samples of the small model. AutoMix-PRM takes the process
rewards of the small solution instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trim_jax.errors import DataError
from trim_jax.query.embed import Embedder, TfIdf
from trim_jax.query.outcomes import Outcomes
from trim_jax.query.router import SCORES, SOLUTION, Fitted, Router, cross_fit

Verifier = Callable[[Outcomes], np.ndarray]  # v, float32 [N, S], higher is better

# States of a question: the small model is right; only the large one is; neither is.
GOOD, NEEDY, HOPELESS = range(3)

AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "min": lambda s: np.nanmin(s, -1),
    "product": lambda s: np.nanprod(s, -1),
    "mean": lambda s: np.nanmean(s, -1),
    "last": lambda s: np.take_along_axis(
        s, (~np.isnan(s)).sum(-1, keepdims=True) - 1, -1)[..., 0],
}


# ----------------------------------------------------------------------------- the one-step POMDP


@dataclasses.dataclass(frozen=True)
class OneStep:
    """The model of the decision, estimated on training solutions.

    Attributes:
      edges: float [bins - 1], ascending; observation o is the bin of v.
      seen: float [bins, 3], P(o | state).
      prior: float [3], P(state).
      rescue: float [3], P(large model right | state) - P(small model right | state).
    """

    edges: np.ndarray
    seen: np.ndarray
    prior: np.ndarray
    rescue: np.ndarray

    def belief(self, v: np.ndarray) -> np.ndarray:
        """P(state | o) by Bayes' rule, [..., 3]."""
        joint = self.seen[np.searchsorted(self.edges, v, side="right")] * self.prior
        return joint / joint.sum(-1, keepdims=True)

    def advantage(self, v: np.ndarray) -> np.ndarray:
        """Expected correctness gained by the large model, [...].

        At a price per routed question the best action is to route where this exceeds the price,
        so the sweep over prices is a sweep over cuts of this value.
        """
        return self.belief(v) @ self.rescue


def states(small: np.ndarray, large: np.ndarray) -> np.ndarray:
    """GOOD, NEEDY or HOPELESS from the correctness of both models, int [...]."""
    return np.where(small, GOOD, np.where(large, NEEDY, HOPELESS))


def estimate(v: np.ndarray, small: np.ndarray, large: np.ndarray, bins: int) -> OneStep:
    """Estimates the model from v, and the correctness of both, [n]; bins of equal counts."""
    edges = np.unique(np.quantile(v, np.arange(1, bins) / bins))
    observed, state = np.searchsorted(edges, v, side="right"), states(small, large)
    counts = np.zeros((len(edges) + 1, 3))
    np.add.at(counts, (observed, state), 1)
    # One count spread over the bins of a state: an empty bin is rare, not impossible.
    seen = (counts + 1 / len(counts)) / (counts.sum(0) + 1)
    prior = (counts.sum(0) + 1) / (counts.sum() + 3)
    saved = (large[state == GOOD].sum() + 1) / ((state == GOOD).sum() + 1)
    return OneStep(edges, seen, prior, np.array([saved - 1.0, 1.0, 0.0]))


# ----------------------------------------------------------------------------------- verifiers


def read_rewards(outcomes: Outcomes, aggregate: str) -> np.ndarray:
    """The process rewards of each small solution as one value, float32 [N, S].

    Raises:
      DataError: no process rewards were recorded.
    """
    if outcomes.scores is None:
        raise DataError("these outcomes carry no process rewards: run thr with a threshold "
                        "between 0 and 1")
    return AGGREGATES[aggregate](outcomes.scores).astype(np.float32)


def fit_features(outcomes: Outcomes, embedder: Embedder) -> Verifier:
    """What the stand-in reads of each small solution, as a function to float32 [N * S, D].

    Embeddings of the question and of the solution, the logarithm of the solution's length, and
    whether it ends in a boxed answer; scaled to mean 0 and deviation 1 over `outcomes`.
    """
    ask, read = embedder(outcomes.questions), embedder(_solutions(outcomes))

    def raw(o: Outcomes) -> np.ndarray:
        texts = _solutions(o)
        question = np.repeat(ask(o.questions), len(o.seeds), 0)
        length = np.log1p([len(t.split()) for t in texts])
        return np.column_stack([question, read(texts), length, o.small_answered.ravel()])

    x = raw(outcomes)
    mean, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 1e-6, spread, 1.0)
    return lambda o: ((raw(o) - mean) / spread).astype(np.float32)


def _solutions(outcomes: Outcomes) -> list[str]:
    return [t for row in outcomes.small_texts for t in row]


def train_verifier(x: np.ndarray, right: np.ndarray, penalty: float
                   ) -> Callable[[np.ndarray], np.ndarray]:
    """Logistic regression of "the small solution is right" [n] on features [n, D]."""
    weights = np.asarray(_logistic(jnp.asarray(x), jnp.asarray(right, jnp.float32), penalty))
    return lambda x: 1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1])))


@jax.jit
def _logistic(x: jax.Array, y: jax.Array, penalty: jax.Array) -> jax.Array:
    """Weights [D + 1], the intercept last and free of the penalty, by L-BFGS."""
    x = jnp.column_stack([x, jnp.ones(len(x))])

    def loss(w):
        fit = optax.sigmoid_binary_cross_entropy(x @ w, y).mean()
        return fit + 0.5 * penalty * jnp.square(w[:-1]).sum()

    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(_, carry):
        w, state = carry
        value, grad = value_and_grad(w, state=state)
        updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(w, updates), state

    start = jnp.zeros(x.shape[1])
    return jax.lax.fori_loop(0, 60, step, (start, tx.init(start)))[0]


# ----------------------------------------------------------------------------------- the routers


def _log_loss(chance: np.ndarray, right: np.ndarray) -> float:
    chance = np.clip(chance, 1e-4, 1 - 1e-4)
    return float(-np.where(right, np.log(chance), np.log(1 - chance)).mean())


def separation(value: np.ndarray, right: np.ndarray) -> float:
    """AUC of a value for telling right solutions from wrong ones, both [...]; ties count half."""
    value, right = value.ravel(), right.ravel()
    levels, at = np.unique(value, return_inverse=True)
    good, bad = (np.bincount(at, weights=w, minlength=len(levels)) for w in (right, ~right))
    below = np.cumsum(bad) - bad
    return float((good * (below + bad / 2)).sum() / max(good.sum() * bad.sum(), 1))


@dataclasses.dataclass(frozen=True)
class _Judged(Router):
    """What both share: a verifier, and a decision on its value.

    Attributes:
      decision: "threshold" (route the lowest values) or "pomdp".
      bins: candidates for the number of observations of the POMDP, chosen on held-out gains.
    """

    decision: Literal["threshold", "pomdp"] = "threshold"
    bins: tuple[int, ...] = (4, 8, 16, 32)

    def _verifier(self, outcomes: Outcomes, key: jax.Array
                  ) -> tuple[Verifier, np.ndarray, dict[str, object]]:
        """A verifier, its held-out values [N, S] of the training outcomes, and what was chosen."""
        raise NotImplementedError

    def fit(self, outcomes, key):
        verify, v, chosen = self._verifier(outcomes, key)
        if self.decision == "threshold":
            return _FittedJudge(name=self.name, reads=self.reads, chosen=chosen,
                                calibration=-v, rows=np.arange(len(outcomes)), verify=verify,
                                model=None)
        small, large = outcomes.small_correct, outcomes.large_correct
        gain = large.astype(float) - small

        def held(bins):
            return cross_fit(len(outcomes), key, lambda train, test: estimate(
                v[train].ravel(), small[train].ravel(), large[train].ravel(), bins
            ).advantage(v[test]))

        errors = {bins: float(np.square(held(bins) - gain).mean()) for bins in self.bins}
        bins = min(errors, key=errors.get)
        model = estimate(v.ravel(), small.ravel(), large.ravel(), bins)
        return _FittedJudge(name=self.name, reads=self.reads, chosen={**chosen, "bins": bins},
                            calibration=model.advantage(v).astype(np.float32),
                            rows=np.arange(len(outcomes)), is_gain=True, verify=verify, model=model)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FittedJudge(Fitted):
    verify: Verifier
    model: OneStep | None

    def score(self, outcomes: Outcomes) -> np.ndarray:
        v = self.verify(outcomes)
        return (-v if self.model is None else self.model.advantage(v)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class AutoMix(_Judged):
    """AutoMix with the stand-in verifier.

    Attributes:
      embedder: of questions and of solutions.
      penalties: candidates for the ridge penalty, chosen by the held-out log loss.
    """

    reads = SOLUTION
    embedder: Embedder = TfIdf()
    penalties: tuple[float, ...] = (1e-2, 1e-1, 1.0)

    @property
    def name(self):
        return f"query-automix-{self.decision}"

    def _verifier(self, outcomes, key):
        right = outcomes.small_correct

        def predict(train, test):  # [n, S, penalties]
            read = fit_features(outcomes.take(train), self.embedder)
            x, y, new = read(outcomes.take(train)), right[train].ravel(), read(outcomes.take(test))
            return np.stack([train_verifier(x, y, p)(new).reshape(len(test), -1)
                             for p in self.penalties], -1)

        held = cross_fit(len(outcomes), key, predict)
        best = int(np.argmin([_log_loss(v, right) for v in np.moveaxis(held, -1, 0)]))
        read = fit_features(outcomes, self.embedder)
        verify = train_verifier(read(outcomes), right.ravel(), self.penalties[best])
        return (lambda o: verify(read(o)).reshape(o.small_correct.shape),
                held[..., best].astype(np.float32), {"penalty": self.penalties[best]})


@dataclasses.dataclass(frozen=True)
class AutoMixPRM(_Judged):
    """AutoMix with the process rewards of the small solution as its verifier.

    Attributes:
      aggregates: candidates for how the rewards of the steps become one value, chosen by the AUC
        of "the small solution is right" in training.
    """

    reads = SCORES
    aggregates: tuple[str, ...] = tuple(AGGREGATES)

    @property
    def name(self):
        return f"query-automix-prm-{self.decision}"

    def _verifier(self, outcomes, key):
        del key  # nothing is trained
        values = {a: read_rewards(outcomes, a) for a in self.aggregates}
        best = max(values, key=lambda a: separation(values[a], outcomes.small_correct))
        return lambda o: read_rewards(o, best), values[best], {"aggregate": best}
