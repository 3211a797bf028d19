"""Budgets: a cap on every solution, and an average over a whole run, met by moving the price."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from trim_jax.errors import ConfigError
from trim_jax.policies import base
from trim_jax.policies.wrapper import Wrapper


@dataclasses.dataclass(frozen=True)
class Capped(Wrapper):
    """Another policy, until a solution's next rewrite could pass the cap; then every draft stands.

    Made by `capped`. The length of a rewrite is not known before it is written, so the large model
    is asked only while a step of the greatest length still fits: the cap is never passed.

    Attributes:
      cap: most tokens of the large model a solution may spend.
      step_tokens: most tokens of one step, the engine's `max_step_tokens`.
    """

    cap: int = 0
    step_tokens: int = 1

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.step_tokens <= self.cap:
            raise ConfigError(
                f"policy {self.name}: a cap of {self.cap} tokens has no room for a step of up to "
                f"{self.step_tokens}; raise the cap or lower engine.max_step_tokens"
            )

    @property
    def name(self):
        return f"{self.policy.full_name}-cap{self.cap}"

    def _full(self, obs):
        return obs.large_tokens + self.step_tokens > self.cap

    def plan(self, dial, obs, state):
        # Once full it stays full: nothing will be decided on a score any more.
        return jnp.where(self._full(obs), base.DRAFT, self._inner.plan(dial, obs, state))

    def decide(self, dial, obs, state):
        action, state = self._inner.decide(dial, obs, state)
        return jnp.where(self._full(obs), base.ACCEPT, action), state


def capped(policy: base.Policy, cap: int, step_tokens: int) -> Capped:
    """`policy` with a hard cap on each solution; its settings and weights become the wrapper's."""
    return Capped(policy.settings, policy.weights, policy, cap, step_tokens)


@dataclasses.dataclass(frozen=True)
class Steered(Wrapper):
    """Another policy at a dial that lies in the weights, where it can be moved without a recompile.

    Made by `steered`. `weights` is {"dial": float32 [], "policy": the other one's weights}; it has no
    settings of its own.
    """

    @property
    def name(self):
        return f"{self.policy.full_name}-steered"

    @property
    def parameter(self):
        return ""

    @property
    def state_knows_dial(self):
        return False

    @property
    def _inner(self):
        return self.policy.at((self.policy.settings, self.weights["policy"]))

    def skeleton(self):
        # The other one's settings are not this one's, and so not traced.
        return super().skeleton()._with(policy=self.policy)

    def plan(self, dial, obs, state):
        return self._inner.plan(jnp.full_like(dial, self.weights["dial"]), obs, state)

    def decide(self, dial, obs, state):
        return self._inner.decide(jnp.full_like(dial, self.weights["dial"]), obs, state)


def steered(policy: base.Policy, dial: float) -> Steered:
    """`policy` with its dial among the weights, at first at `dial`."""
    return Steered(weights={"dial": np.float32(dial), "policy": policy.weights}, policy=policy)


class DualPrice(NamedTuple):
    """A price on its way to a target average spend; plain numbers, so it is saved as JSON.

    Attributes:
      dial: where the policy's dial stands for the next chunk.
      low, high: it stays between these.
      target: large-model tokens per problem, averaged over the whole run.
      problems: in the whole run. done: of them, solved. spent: their tokens.
      gain: how fast the logarithm of the dial follows a relative error.
    """

    dial: float
    low: float
    high: float
    target: float
    problems: int
    done: int = 0
    spent: int = 0
    gain: float = 0.7


def follow(price: DualPrice, problems: int, spent: int) -> DualPrice:
    """The price after a chunk of `problems` that spent `spent` tokens of the large model in all.

    Dual ascent on the constraint "average spend = target", in the logarithm of the dial: the price
    of a token rises while more is spent than planned. What is planned for the rest of the run is
    what the target leaves for it, so past errors are made good. Prices change between chunks of
    problems in id order only, so a run can be repeated and resumed. The last chunk's error stays:
    chunks of a fiftieth of the run met the target within 2 %.
    """
    done, total = price.done + problems, price.spent + spent
    left = price.problems - done
    planned = (price.target * price.problems - total) / left if left > 0 else price.target
    error = (planned - spent / problems) / price.target
    dial = price.dial * float(np.exp(price.gain * np.clip(error, -1.0, 1.0)))
    return price._replace(dial=min(max(dial, price.low), price.high), done=done, spent=total)
