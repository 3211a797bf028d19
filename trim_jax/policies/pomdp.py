"""TRIM-POMDP: regenerate iff the draft is shorter than what the belief makes it worth.

Both policies look up the value that lies ahead (`trim_jax.pomdp.solve`); they differ in the belief
in (S0 all right, S1 wrong before, S2 the draft wrong):

  Pomdp           one shot, as released: the likelihood of (min r_{1:t-1}, r_t) under a fixed prior,
                  at every step anew.
  FilteredPomdp   carried from step to step by the actions taken; each draft's score counts once,
                  as p(r_t | min r_{1:t-1}, state).

The dial is `worth`, how many tokens of the large model a right answer is worth: reward / cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.errors import ConfigError
from trim_jax.policies import base
from trim_jax.pomdp.solve import Parameters, advantage, next_draft, solve, text_right

UNIFORM = (1 / 3, 1 / 3, 1 / 3)


@dataclasses.dataclass(frozen=True)
class _Solved(base.Policy):
    """A policy whose weights are the solved values, a dict of float32 arrays:

    ahead [settings, T + 1, N]: value ahead of each step, see `Solution`;
    p_small, p_large []: see `Parameters`;
    likelihood [3, M, M]: of a score, given the state and the minimum before it;
    and what the policy adds.

    Attributes:
      sees_last: it knows when a draft ends the solution, and its values are those of such a policy.
    """

    parameter: ClassVar[str] = "worth"
    sees_last: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.settings[0] <= 0:
            raise ConfigError(
                f"policy {self.name}: worth must be above 0, it is {self.settings[0]}")
        if self.weights is None or len(self.weights["ahead"]) != len(self.settings):
            raise ConfigError(f"policy {self.name}: needs its values solved for every setting; "
                              f"make it with {type(self).__name__}.of(parameters, worths)")

    @property
    def longest(self) -> int:
        return self.weights["ahead"].shape[1] - 1

    @classmethod
    def _of(
        cls, parameters: Parameters, worths: Sequence[float], observed: np.ndarray,
        sees_last: bool, **weights,
    ):  # fmt: skip
        weights |= dict(
            ahead=solve(parameters, observed, worths, last_seen=sees_last).lower,
            p_small=parameters.p_small, p_large=parameters.p_large,
        )  # fmt: skip
        weights = {k: jnp.asarray(v, jnp.float32) for k, v in weights.items()}
        return cls(tuple(float(w) for w in worths), weights, sees_last=sees_last)

    def _pays(self, belief: jax.Array, obs: base.Observation, dial: jax.Array) -> jax.Array:
        """Does rewriting pay at the setting `dial` [B]? bool [B]; `belief` float32 [B, 3]."""
        last = obs.last & self.sees_last
        gained = advantage(self.weights["ahead"], obs.t, belief, last, self.weights["p_large"])
        pays = obs.draft_tokens[:, None] < jnp.asarray(self.settings, jnp.float32) * gained.T
        distance = jnp.abs(dial[:, None] - jnp.asarray(self.settings, jnp.float32))
        setting = distance.argmin(axis=1, keepdims=True)
        return jnp.take_along_axis(pays, setting, axis=1)[:, 0]

    def _seen(self, minimum: jax.Array, score: jax.Array) -> jax.Array:
        """Likelihood of these scores, float32 [B] each, in each state: [B, 3]."""
        bins = self.weights["likelihood"].shape[1]
        return self.weights["likelihood"][:, _bin(minimum, bins), _bin(score, bins)].T


@dataclasses.dataclass(frozen=True)
class Pomdp(_Solved):
    """TRIM-POMDP with the one-shot belief; made by `Pomdp.of`."""

    name: ClassVar[str] = "pomdp"

    @classmethod
    def of(
        cls, parameters: Parameters, worths: Sequence[float], prior: Sequence[float] = UNIFORM,
        sees_last: bool = True,
    ) -> Pomdp:  # fmt: skip
        """The policy for these parameters, solved for every worth (about 0.2 s each).

        Args:
          worths: tokens of the large model that a right answer is worth, ascending.
          prior: of (S0, S1, S2) at every step; the released one is uniform.
          sees_last: see the class.
        """
        flat = parameters.joint.reshape(3, -1)
        return cls._of(
            parameters, worths, flat, sees_last, likelihood=parameters.joint, prior=prior)

    def decide(self, dial, obs, state):
        belief = _update(self.weights["prior"], self._seen(obs.min_score, obs.draft_score))
        return jnp.where(self._pays(belief, obs, dial), base.REGENERATE, base.ACCEPT), state


@dataclasses.dataclass(frozen=True)
class FilteredPomdp(_Solved):
    """TRIM-POMDP with a belief filtered over time; made by `FilteredPomdp.of`.

    The row's state is p(the text is right) [B]. Among the weights, `first` [3, M] is
    p(r_1 | state): before the first step nothing can be wrong. The score of a rewrite counts in the minimum only:
    taken as evidence like a draft's, it made accuracy at equal cost 1 to 2 points worse on 450
    validation problems of arith.
    """

    name: ClassVar[str] = "pomdp_filtered"

    @classmethod
    def of(
        cls, parameters: Parameters, worths: Sequence[float], sees_last: bool = True
    ) -> FilteredPomdp:
        """The policy for these parameters, solved for every worth (about 0.02 s each).

        Args:
          worths: tokens of the large model that a right answer is worth, ascending.
          sees_last: see the class.
        """
        return cls._of(parameters, worths, parameters.score, sees_last,
                       likelihood=parameters.conditional, first=parameters.first)

    def init(self, rows):
        return jnp.ones([rows])

    def decide(self, dial, obs, state):
        first = self.weights["first"]
        seen = jnp.where((obs.t == 0)[:, None], first[:, _bin(obs.draft_score, first.shape[1])].T,
                         self._seen(obs.min_score, obs.draft_score))
        belief = _update(next_draft(state, self.weights["p_small"]), seen)
        pays = self._pays(belief, obs, dial)
        accepted, rewritten = text_right(belief, self.weights["p_large"])
        action = jnp.where(pays, base.REGENERATE, base.ACCEPT)
        return action, jnp.where(pays, rewritten, accepted)


def _bin(score: jax.Array, bins: int) -> jax.Array:
    return jnp.clip((jnp.nan_to_num(score) * bins).astype(jnp.int32), 0, bins - 1)


def _update(prior: jax.Array, seen: jax.Array) -> jax.Array:
    """Bayes, [B, 3]; the prior where the observation is impossible in every state."""
    weight = prior * seen
    total = weight.sum(axis=1, keepdims=True)
    return jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), prior)
