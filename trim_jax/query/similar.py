"""Routers that answer for a question from the most similar training questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from trim_jax.query.embed import Embedder, Embedding
from trim_jax.query.outcomes import Outcomes
from trim_jax.query.router import Fitted, Router, cross_fit, per_seed

# (similarity [n, m], values [m] of the training questions) -> predictions [n]
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FittedSimilar(Fitted):
    """Scores questions by what `predict` makes of `values` [m] at `vectors` [m, width]."""

    embed: Embedding
    vectors: np.ndarray
    values: np.ndarray
    predict: Predict

    def score(self, outcomes: Outcomes) -> np.ndarray:
        similarity = self.embed(outcomes.questions) @ self.vectors.T
        return per_seed(self.predict(similarity, self.values), outcomes)


def fit_similar(
    router: Router, embedder: Embedder, outcomes: Outcomes, key: jax.Array, values: np.ndarray,
    parameter: str, candidates: Mapping[Any, Predict], is_gain: bool, **chosen: Any,
) -> FittedSimilar:  # fmt: skip
    """The candidate with the least squared error on held-out `values` [N].

    Args:
      parameter: what tells the candidates apart, for the record; `chosen`: more for it.
    """
    embed = embedder(outcomes.questions)
    vectors = embed(outcomes.questions)
    held = {
        value: cross_fit(
            len(outcomes), key,
            lambda train, test, p=predict: p(vectors[test] @ vectors[train].T, values[train]),
        )
        for value, predict in candidates.items()
    }  # fmt: skip
    best = min(held, key=lambda value: float(np.square(held[value] - values).mean()))
    return FittedSimilar(
        name=router.name, reads=router.reads, chosen={parameter: best, **chosen},
        calibration=held[best].astype(np.float32)[:, None], rows=np.arange(len(outcomes)),
        is_gain=is_gain, embed=embed, vectors=vectors, values=values, predict=candidates[best],
    )  # fmt: skip
