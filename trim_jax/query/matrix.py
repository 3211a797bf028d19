"""Matrix factorisation of RouteLLM (arXiv 2406.18665, section 4.2), trained with optax.

delta(model, q) = w . (v_model * (W e_q + b)), with v of length 1; the large model wins with
probability sigmoid(delta(large, q) - delta(small, q)). A tie is half a win for either.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trim_jax.query.descent import HELD_OUT_PARTS, Descent, minimise
from trim_jax.query.embed import Embedder, Embedding, TfIdf
from trim_jax.query.outcomes import Outcomes, folds
from trim_jax.query.router import Fitted, Router, per_seed


def init(key: jax.Array, dim: int, width: int) -> dict[str, jax.Array]:
    """Parameters for embeddings of width `dim` and factors of width `width`."""
    models, project, weigh = jax.random.split(key, 3)
    return {"v": jax.random.normal(models, (2, width)),
            "W": jax.random.normal(project, (dim, width)) / np.sqrt(dim),
            "b": jnp.zeros(width),
            "w": jax.random.normal(weigh, (width,)) / np.sqrt(width)}


def log_odds(params: dict[str, jax.Array], vectors: jax.Array) -> jax.Array:
    """Log-odds [n] that the large model wins, from embeddings [n, D]."""
    models = params["v"] / jnp.linalg.norm(params["v"], axis=1, keepdims=True)
    return (vectors @ params["W"] + params["b"]) @ (params["w"] * (models[1] - models[0]))


@dataclasses.dataclass(frozen=True)
class MatrixFactorisation(Router):
    """Scores a question by P(large wins) - P(small wins).

    Attributes:
      embedder: see `trim_jax.query.embed`.
      width: of the factors.
      noise: standard deviation, relative to the length of an embedding, of the noise added to it
        in training (RouteLLM's release adds noise too).
      weight_decays: candidates; chosen, like the epoch, by the held-out log loss.
    """

    name = "query-mf"
    embedder: Embedder = TfIdf()
    width: int = 32
    noise: float = 0.3
    weight_decays: tuple[float, ...] = (0.1, 1.0, 10.0)

    def fit(self, outcomes, key):
        embed = self.embedder(outcomes.questions)
        vectors = embed(outcomes.questions)
        spread = self.noise / np.sqrt(vectors.shape[1])
        train, held = folds(len(outcomes), HELD_OUT_PARTS, key)[0]
        part = lambda rows: {"x": vectors[rows], "win": outcomes.win[rows]}  # noqa: E731

        def loss(params, batch, key):
            x = batch["x"]
            x = x if key is None else x + spread * jax.random.normal(key, x.shape)
            return optax.sigmoid_binary_cross_entropy(log_odds(params, x), batch["win"]).mean()

        found = {}
        start = init(jax.random.fold_in(key, 1), vectors.shape[1], self.width)
        for decay in self.weight_decays:
            found[decay] = minimise(loss, start, part(train), part(held),
                                    jax.random.fold_in(key, 2),
                                    Descent(3e-3, decay, epochs=200, patience=20, rows=64),
                                    f"{self.name}, weight decay {decay:g}")
        decay = min(found, key=lambda d: found[d][1])
        params, value, epoch = found[decay]
        return _FittedMatrix(
            name=self.name, reads=self.reads,
            chosen={"weight_decay": decay, "epoch": epoch, "held_out_loss": value},
            calibration=_gain(params, vectors[held])[:, None], rows=held, is_gain=True,
            embed=embed, params=params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FittedMatrix(Fitted):
    embed: Embedding
    params: dict[str, Any]

    def score(self, outcomes: Outcomes) -> np.ndarray:
        return per_seed(_gain(self.params, self.embed(outcomes.questions)), outcomes)


def _gain(params: dict[str, Any], vectors: np.ndarray) -> np.ndarray:
    return np.asarray(2 * jax.nn.sigmoid(log_odds(params, vectors)) - 1)
