"""The neighbours of TRIM-Thr: other signals that say whether the large model writes a step.

  Rsd     the PRM's score of the draft, as TRIM-Thr, without its anchors.
  Glimp   how sure the small model is of the first token, before it drafts.
  LogLik  how likely the large model finds the draft that it reads.

Each is the rule of the system alone, in this engine, with our drafts, prompts and ledger.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from trim_jax.errors import ConfigError
from trim_jax.policies import base


def _check(policy: base.Policy, low: float, high: float) -> None:
    wrong = [x for x in policy.settings if not low <= x <= high]
    if wrong:
        raise ConfigError(
            f"policy {policy.name}: {policy.parameter} must be in [{low:g}, {high:g}], "
            f"it is {wrong[0]}"
        )


@dataclasses.dataclass(frozen=True)
class Rsd(base.Policy):
    """RSD (arXiv 2501.19324): accept iff the PRM scores the draft delta or more; 0.7 is published.

    TRIM-Thr between its ends. At 0 and 1 it still drafts and scores every step, as RSD does.
    """

    settings: tuple[float, ...] = (0.7,)
    name: ClassVar[str] = "rsd"
    parameter: ClassVar[str] = "delta"

    def __post_init__(self):
        super().__post_init__()
        _check(self, 0, 1)

    def decide(self, dial, obs, state):
        return jnp.where(obs.draft_score >= dial, base.ACCEPT, base.REGENERATE), state


@dataclasses.dataclass(frozen=True)
class Glimp(base.Policy):
    """GlimpRouter (2601.05110): the large model writes the step if its first token is uncertain.

    The dial is the entropy in nats (1 is published) from which on it does; nothing is drafted then,
    and a draft is never judged. The token that was looked at begins the draft.
    """

    settings: tuple[float, ...] = (1.0,)
    name: ClassVar[str] = "glimp"
    parameter: ClassVar[str] = "entropy"
    rising: ClassVar[bool] = False
    peeks: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        _check(self, 0, float("inf"))

    def plan(self, dial, obs, state):
        seen = jnp.where(obs.first_entropy >= dial, base.LARGE, base.DRAFT)
        return jnp.where(jnp.isnan(obs.first_entropy), base.PEEK, seen)

    def decide(self, dial, obs, state):
        return jnp.full_like(obs.t, base.ACCEPT), state


@dataclasses.dataclass(frozen=True)
class LogLik(base.Policy):
    """Regenerate iff the large model's mean log-likelihood of the draft is below the dial (ours).

    It stands where SpecReason (2504.07891) has the large model rate the draft with a digit: both
    cost one reading of the draft, which is kept if it is accepted. The rating needs a model that
    follows the instruction to rate; the likelihood needs none, and is another signal.
    """

    settings: tuple[float, ...] = (-1.0,)
    name: ClassVar[str] = "loglik"
    parameter: ClassVar[str] = "loglik"
    judges: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        _check(self, float("-inf"), 0)

    def plan(self, dial, obs, state):
        return jnp.full_like(obs.t, base.DRAFT_AND_JUDGE)

    def decide(self, dial, obs, state):
        return jnp.where(obs.draft_loglik < dial, base.REGENERATE, base.ACCEPT), state
