"""Controls that learn nothing from a question: random routing and the best single model."""

from __future__ import annotations

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.query.outcomes import Outcomes
from trim_jax.query.router import Fitted, Router


@dataclasses.dataclass(frozen=True)
class RandomQuestions(Router):
    """Sends a random share of the (question, seed) pairs to the large model."""

    name = "query-random"

    def fit(self, outcomes, key):
        uniform = (np.arange(1000) + 0.5) / 1000
        return _FittedRandom(name=self.name, reads=self.reads, chosen={}, key=key,
                             calibration=uniform.astype(np.float32)[:, None])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FittedRandom(Fitted):
    key: jax.Array

    def score(self, outcomes: Outcomes) -> np.ndarray:
        # Of the problem's id and the seed, so that no number depends on the other questions.
        draw = lambda id, seed: jax.random.uniform(  # noqa: E731
            jax.random.fold_in(jax.random.fold_in(self.key, id), seed))
        ids = jnp.asarray([zlib.crc32(i.encode()) for i in outcomes.ids], jnp.uint32)
        seeds = jnp.asarray(outcomes.seeds, jnp.uint32)
        return np.asarray(jax.vmap(lambda i: jax.vmap(lambda s: draw(i, s))(seeds))(ids))


@dataclasses.dataclass(frozen=True)
class BestSingle(Router):
    """Whichever model is more often right in training answers everything."""

    name = "query-best-single"

    def fit(self, outcomes, key):
        large = bool(outcomes.large_correct.mean() > outcomes.small_correct.mean())
        return _FittedSingle(name=self.name, reads=self.reads,
                             chosen={"model": "large" if large else "small"},
                             calibration=np.zeros((1, 1), np.float32), large=large)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FittedSingle(Fitted):
    large: bool

    def score(self, outcomes: Outcomes) -> np.ndarray:
        value = 0.0 if self.large else -np.inf
        return np.full(outcomes.small_correct.shape, value, np.float32)
