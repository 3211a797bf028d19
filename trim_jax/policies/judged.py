"""Judged: any router on the large model's opinion of the draft, where TRIM asks a PRM.

The large model reads each draft and how likely it finds it takes the place of the PRM's score. The
reading is kept if the draft is accepted, so that on a trio with a large PRM this is the cheaper
signal; and the two models' mistakes are not the same. What the large model wrote counts as right.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from trim_jax.policies import base
from trim_jax.policies.neighbours import LogLik, Rsd
from trim_jax.policies.wrapper import Wrapper


@flax.struct.dataclass
class Opinions:
    """State of a row: of the accepted steps, the least likelihood and the product; and what the
    other policy carries."""

    least: jax.Array  # float32 [B]
    product: jax.Array  # float32 [B]
    inner: Any


@dataclasses.dataclass(frozen=True)
class Judged(Wrapper):
    """Another policy that sees likelihoods as scores. Made by `judged`.

    Every step is drafted and judged; the other policy's `plan` is not asked. Its `draft_score` is
    the geometric mean over the draft's tokens, exp(`Observation.draft_loglik`), in [0, 1], and its
    `min_score` and `prod_score` are of those; `scores`, which TRIM-Seq reads, stay empty.
    """

    judges = True

    def init(self, rows):
        one = jnp.ones([rows])
        return Opinions(one, one, self.policy.init(rows))

    def plan(self, dial, obs, state):
        return jnp.full_like(obs.t, base.DRAFT_AND_JUDGE)

    def decide(self, dial, obs, state):
        likelihood = jnp.exp(obs.draft_loglik)
        seen = dataclasses.replace(
            obs, draft_score=likelihood, min_score=state.least, prod_score=state.product
        )
        action, inner = self._inner.decide(dial, seen, state.inner)
        kept = jnp.where(action == base.ACCEPT, likelihood, 1.0)
        return action, Opinions(jnp.minimum(state.least, kept), state.product * kept, inner)


def judged(policy: base.Policy) -> Judged:
    """`policy` on likelihoods; its variant is told by "-judged"."""
    return Judged.variant_of(policy, "judged")


def on_scores(policy: Judged | LogLik) -> base.Policy:
    """The policy that does with scores what this one does with likelihoods."""
    if isinstance(policy, Judged):
        return policy.policy
    return Rsd(tuple(map(math.exp, policy.settings)))
