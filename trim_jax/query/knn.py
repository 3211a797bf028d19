"""k-NN routing: the mean gain of the most similar training questions."""

from __future__ import annotations

import dataclasses

import numpy as np

from trim_jax.query.embed import Embedder, Embedding, TfIdf
from trim_jax.query.outcomes import Outcomes
from trim_jax.query.router import Fitted, Router, cross_fit, per_seed


def vote(similarity: np.ndarray, values: np.ndarray, k: int) -> np.ndarray:
    """Mean of the values [m] of the k most similar rows, [n]; similarity [n, m].

    Of equally similar rows the earlier ones count.
    """
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return values[nearest].mean(1)


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
        embed = self.embedder(outcomes.questions)
        vectors, gain = embed(outcomes.questions), outcomes.gain
        held = {k: cross_fit(len(outcomes), key, lambda train, test, k=k: vote(
            vectors[test] @ vectors[train].T, gain[train], k)) for k in self.neighbours}
        k = min(held, key=lambda k: float(np.square(held[k] - gain).mean()))
        return _FittedNeighbours(name=self.name, reads=self.reads, chosen={"k": k},
                                 calibration=held[k].astype(np.float32)[:, None],
                                 rows=np.arange(len(outcomes)), is_gain=True,
                                 embed=embed, vectors=vectors, gain=gain, k=k)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FittedNeighbours(Fitted):
    embed: Embedding
    vectors: np.ndarray
    gain: np.ndarray
    k: int

    def score(self, outcomes: Outcomes) -> np.ndarray:
        similarity = self.embed(outcomes.questions) @ self.vectors.T
        return per_seed(vote(similarity, self.gain, self.k), outcomes)
