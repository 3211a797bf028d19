"""Similarity-weighted ranking of RouteLLM (arXiv 2406.18665, section 4.2).

For each question a Bradley-Terry model is fitted to all training comparisons, each weighted by how
similar its question is: weight = base ** (1 + similarity / greatest similarity).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.query.embed import Embedder, TfIdf
from trim_jax.query.router import Router
from trim_jax.query.similar import fit_similar

# Keeps the ratings finite when every comparison has one winner, and fixes their mean at 0.
_RIDGE = 1e-3
_NEWTON_STEPS = 12


def weights(similarity: np.ndarray, base: float) -> np.ndarray:
    """Weights [n, m] of m training comparisons for n questions, scaled to a mean of 1 a row.

    RouteLLM's base is 10, with the embeddings of a language model.
    """
    relative = similarity / np.maximum(similarity.max(1, keepdims=True), 1e-6)
    raw = np.power(float(base), relative)
    return raw / raw.mean(1, keepdims=True)


def bradley_terry(first: jax.Array, second: jax.Array, wins: jax.Array, weight: jax.Array,
                  models: int) -> jax.Array:
    """Ratings (log-odds) of a weighted Bradley-Terry model by Newton's method.

    Args:
      first, second: int32 [m], the models of each comparison.
      wins: float32 [m], share of the comparison that `first` won; a tie is 0.5.
      weight: float32 [m], mean 1.
      models: number of models.

    Returns:
      float32 [models]; P(i beats j) = sigmoid(rating_i - rating_j).
    """
    sides = jax.nn.one_hot(first, models) - jax.nn.one_hot(second, models)  # [m, models]
    weight = weight / len(wins)

    def newton(_, rating):
        chance = jax.nn.sigmoid(sides @ rating)
        slope = sides.T @ (weight * (wins - chance)) - _RIDGE * rating
        bend = (sides * (weight * chance * (1 - chance))[:, None]).T @ sides
        step = jnp.linalg.solve(bend + _RIDGE * jnp.eye(models), slope)
        # Far from the optimum the logistic curve is flat and a full step would overshoot.
        return rating + step / jnp.maximum(1.0, jnp.abs(step).max() / 2.0)

    return jax.lax.fori_loop(0, _NEWTON_STEPS, newton, jnp.zeros(models))


@jax.jit
def _win_rates(weight: jax.Array, win: jax.Array) -> jax.Array:
    """P(large wins) [n] from weights [n, m] and the large model's wins [m]."""
    large, small = jnp.ones(len(win), jnp.int32), jnp.zeros(len(win), jnp.int32)
    rating = jax.vmap(lambda w: bradley_terry(large, small, win, w, 2))(weight)
    return jax.nn.sigmoid(rating[:, 1] - rating[:, 0])


def win_rates(similarity: np.ndarray, win: np.ndarray, base: float) -> np.ndarray:
    """P(large wins) [n] from similarities [n, m] and the shares of wins [m] in training."""
    return np.asarray(_win_rates(jnp.asarray(weights(similarity, base)), jnp.asarray(win)))


def _gain(similarity: np.ndarray, gain: np.ndarray, base: float) -> np.ndarray:
    """P(large wins) - P(small wins), from the gains [m] in training."""
    return 2 * win_rates(similarity, (1.0 + gain) / 2.0, base) - 1


@dataclasses.dataclass(frozen=True)
class SimilarityRanking(Router):
    """Scores a question by P(large wins) - P(small wins); the base is chosen on held-out wins.

    Attributes:
      embedder: see `trim_jax.query.embed`.
      bases: candidates for the base of the weights. RouteLLM's 10 belongs to the embeddings
        of its language model; those of n-grams are spread otherwise.
    """

    name = "query-sw-ranking"
    embedder: Embedder = TfIdf()
    bases: tuple[float, ...] = (3.0, 10.0, 1e2, 1e3, 1e4, 1e5)

    def fit(self, outcomes, key):
        candidates = {base: functools.partial(_gain, base=base) for base in self.bases}
        return fit_similar(self, self.embedder, outcomes, key, outcomes.gain, "base", candidates,
                           is_gain=True)
