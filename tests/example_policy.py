"""A policy from outside the package: a threshold that may be used only so many times.

    trim-jax solve "..." --config.policy=example_policy:make_policy
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from trim_jax.policies.base import ACCEPT, REGENERATE, Policy


@dataclasses.dataclass(frozen=True)
class Budgeted(Policy):
    """Regenerate a draft that scores below the dial, at most `budget` times a solution."""

    name: ClassVar[str] = "budgeted"
    parameter: ClassVar[str] = "k"
    budget: int = 2

    def init(self, rows):
        return {"left": jnp.full([rows], self.budget, jnp.int32)}

    def decide(self, dial, obs, state):
        critical = (obs.draft_score < dial) & (state["left"] > 0)
        left = state["left"] - critical
        return jnp.where(critical, REGENERATE, ACCEPT), {"left": left}


def make_policy():
    return Budgeted(settings=(0.3, 0.9))
