"""k-NN routing: the mean gain of the most similar training questions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from trim_jax.query.embed import Embedder, TfIdf
from trim_jax.query.router import Router
from trim_jax.query.similar import Predict, fit_similar


def vote(similarity: np.ndarray, values: np.ndarray, k: int) -> np.ndarray:
    """Mean of the values [m] of the k most similar rows, [n]; similarity [n, m].

    Of equally similar rows the earlier ones count.
    """
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return values[nearest].mean(1)


def votes(neighbours: Sequence[int]) -> dict[int, Predict]:
    """`vote` with each number of neighbours."""
    return {k: functools.partial(vote, k=k) for k in neighbours}


@dataclasses.dataclass(frozen=True)
class NearestNeighbours(Router):
    """Cosine similarity of embeddings; k is chosen by the squared error of held-out gains.

    Attributes:
      embedder: see `trim_jax.query.embed`.
      neighbours: candidates for k.
    """

    name = "query-knn"
    embedder: Embedder = TfIdf()
    neighbours: tuple[int, ...] = (10, 20, 40, 80, 160)

    def fit(self, outcomes, key):
        return fit_similar(self, self.embedder, outcomes, key, outcomes.gain, "k",
                           votes(self.neighbours), is_gain=True)
