"""What the learned policies see: feature vectors of a step, as pure functions.

The paper's four features of step t (method, section 2, TRIM-Agg) are the score r_t of the draft,
the minimum of r_{1:t-1}, the draft's length c_t and t itself; the release adds the product of
r_{1:t-1}. A policy that is conditioned on its price sees one more: the logarithm of `worth`, the
number of large-model tokens that a right answer is worth (1 / lambda).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from trim_jax.policies.base import Observation

# Scaled log(worth) is 0 at this many tokens, and +-1 a factor of ten away.
WORTH_UNIT = 300.0


@dataclasses.dataclass(frozen=True)
class Features:
    """Which features a policy sees, and their scales.

    Attributes:
      product: also the product of past scores (five features, as in the release).
      price: also the scaled logarithm of `worth`.
      logit: scores enter as their logit / 4 within [-1.5, 1.5], which spreads those near 0 and 1.
      token_scale, step_scale: lengths and step numbers are divided by these (300 and 30 in the
        release, for solutions of competition mathematics).
    """

    product: bool = False
    price: bool = False
    logit: bool = False
    token_scale: float = 300.0
    step_scale: float = 30.0

    @property
    def width(self) -> int:
        """Number of features, F."""
        return 4 + self.product + self.price

    def vector(
        self,
        t: jax.Array,
        draft_tokens: jax.Array,
        draft_score: jax.Array,
        min_score: jax.Array,
        prod_score: jax.Array,
        worth: jax.Array,
    ) -> jax.Array:
        """float32 [..., F] of arrays [...]; an unscored draft (NaN) counts as a score of 1."""
        columns = [
            self._score(jnp.where(jnp.isnan(draft_score), 1.0, draft_score)),
            self._score(min_score),
            draft_tokens / self.token_scale,
            (t + 1) / self.step_scale,
        ]
        columns += [self._score(prod_score)] if self.product else []
        columns += [log_worth(worth)] if self.price else []
        return jnp.stack([c.astype(jnp.float32) for c in jnp.broadcast_arrays(*columns)], axis=-1)

    def _score(self, r: jax.Array) -> jax.Array:
        return jnp.clip(jnp.log(r) - jnp.log1p(-r), -6.0, 6.0) / 4 if self.logit else r

    def of(self, obs: Observation, worth: jax.Array) -> jax.Array:
        """float32 [B, F] of an observation of B rows; `worth` float32 [B]."""
        return self.vector(
            obs.t, obs.draft_tokens, obs.draft_score, obs.min_score, obs.prod_score, worth
        )


def log_worth(worth: jax.Array) -> jax.Array:
    """Scaled logarithm of a price in tokens per right answer, as an input of a network."""
    return jnp.log10(worth / WORTH_UNIT)
