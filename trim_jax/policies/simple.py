"""Policies without a learned part: the anchors, random, TRIM-Thr and the oracle."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from trim_jax.errors import ConfigError
from trim_jax.policies import base


@dataclasses.dataclass(frozen=True)
class Never(base.Policy):
    """Weak-only: the small model writes everything; neither PRM nor large model is called."""

    name: ClassVar[str] = "never"

    def plan(self, dial, obs, state):
        return jnp.full_like(obs.t, base.DRAFT)

    def decide(self, dial, obs, state):
        return jnp.full_like(obs.t, base.ACCEPT), state


@dataclasses.dataclass(frozen=True)
class Always(base.Policy):
    """Strong-only: the large model writes everything; no drafts, no PRM."""

    name: ClassVar[str] = "always"

    def plan(self, dial, obs, state):
        return jnp.full_like(obs.t, base.LARGE)

    def decide(self, dial, obs, state):
        return jnp.full_like(obs.t, base.ACCEPT), state


def _check_fractions(policy: base.Policy) -> None:
    wrong = [x for x in policy.settings if not 0 <= x <= 1]
    if wrong:
        raise ConfigError(
            f"policy {policy.name}: {policy.parameter} must be in [0, 1], it is {wrong[0]}"
        )


@dataclasses.dataclass(frozen=True)
class Threshold(base.Policy):
    """TRIM-Thr: regenerate iff the PRM score of the draft is below k (method, section 2).

    k = 0 and k = 1 are the anchors: 0 never calls the PRM, 1 drafts nothing.
    """

    name: ClassVar[str] = "thr"
    parameter: ClassVar[str] = "k"

    def __post_init__(self):
        super().__post_init__()
        _check_fractions(self)

    def plan(self, dial, obs, state):
        scored = jnp.where(dial >= 1, base.LARGE, base.DRAFT_AND_SCORE)
        return jnp.where(dial <= 0, base.DRAFT, scored)

    def decide(self, dial, obs, state):
        # At k = 0 there is no score to compare (NaN): everything is accepted.
        return jnp.where(obs.draft_score < dial, base.REGENERATE, base.ACCEPT), state


@dataclasses.dataclass(frozen=True)
class Random(base.Policy):
    """The large model writes each step with probability p, drawn before anyone drafts."""

    name: ClassVar[str] = "random"
    parameter: ClassVar[str] = "p"

    def __post_init__(self):
        super().__post_init__()
        _check_fractions(self)

    def plan(self, dial, obs, state):
        return jnp.where(obs.uniform < dial, base.LARGE, base.DRAFT)

    def decide(self, dial, obs, state):
        return jnp.full_like(obs.t, base.ACCEPT), state


@dataclasses.dataclass(frozen=True)
class Detour(base.Policy):
    """The large model rewrites step s and no other: for collecting, not for routing.

    With one setting for each step, its traces hold both models' next step after every text that the
    small model writes, and what comes of each.
    """

    name: ClassVar[str] = "detour"
    parameter: ClassVar[str] = "step"

    def decide(self, dial, obs, state):
        return jnp.where(obs.t == dial, base.REGENERATE, base.ACCEPT), state


@dataclasses.dataclass(frozen=True)
class Oracle(base.Policy):
    """Upper bound: sees the true label and regenerates a draft iff it is the first wrong step.

    Once a wrong step is in the text nothing can save it, and nothing more is spent.
    """

    name: ClassVar[str] = "oracle"
    needs_reference: ClassVar[bool] = True

    def plan(self, dial, obs, state):
        return jnp.full_like(obs.t, base.DRAFT)

    def decide(self, dial, obs, state):
        wrong = obs.prefix_right & ~obs.right
        return jnp.where(wrong, base.REGENERATE, base.ACCEPT), state
