"""Takeover: a router's first intervention hands the rest of the solution to the large model.

TRIM rewrites one step and returns to the small model (method, section 1, point 4). What that is
worth shows in the comparison with the same router deciding once: its first rewrite is the last
decision, and everything after it is written by the large model, without drafts and without scores.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from trim_jax.policies import base
from trim_jax.policies.wrapper import Wrapper


@dataclasses.dataclass(frozen=True)
class Takeover(Wrapper):
    """Another policy until the large model writes its first step. Made by `takeover`."""

    def plan(self, dial, obs, state):
        return jnp.where(obs.large_tokens > 0, base.LARGE, self._inner.plan(dial, obs, state))

    def decide(self, dial, obs, state):
        # Only where a plan is not asked for, as in training, is there a draft after the takeover.
        action, state = self._inner.decide(dial, obs, state)
        return jnp.where(obs.large_tokens > 0, base.REGENERATE, action), state


def takeover(policy: base.Policy) -> Takeover:
    """`policy`, handing over with its first intervention; its variant is told by "-takeover"."""
    return Takeover.variant_of(policy, "takeover")
