"""What policies that wrap another one have in common."""

from __future__ import annotations

import dataclasses
from typing import Self

from trim_jax.policies import base


@dataclasses.dataclass(frozen=True)
class Wrapper(base.Policy):
    """A policy that asks another one, with that one's name, dial and needs.

    Attributes:
      policy: the other one; its settings and weights are the wrapper's.
    """

    policy: base.Policy = base.Policy()

    @classmethod
    def variant_of(cls, policy: base.Policy, suffix: str) -> Self:
        """`policy` in this wrapper, told from it by a variant that ends in `suffix`."""
        variant = f"{policy.variant}-{suffix}".lstrip("-")
        return cls(policy.settings, policy.weights, policy, variant=variant)

    @property
    def name(self):
        return self.policy.name

    @property
    def parameter(self):
        return self.policy.parameter

    @property
    def needs_reference(self):
        return self.policy.needs_reference

    @property
    def state_knows_dial(self):
        return self.policy.state_knows_dial

    @property
    def longest(self):
        return self.policy.longest

    @property
    def rising(self):
        return self.policy.rising

    @property
    def peeks(self):
        return self.policy.peeks

    @property
    def judges(self):
        return self.policy.judges

    @property
    def _inner(self):
        """The other one with the settings and weights that are traced."""
        return self.policy.at((self.settings, self.weights))

    def skeleton(self):
        return super().skeleton()._with(policy=self.policy.skeleton())

    def init(self, rows):
        return self.policy.init(rows)
