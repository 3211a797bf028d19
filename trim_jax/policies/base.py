"""The interface between the routed loop and a policy.

A policy is a frozen dataclass of settings, of weights where it learns, and of static fields. Its
methods are pure, run inside the jitted loop and are vectorised over rows: every array has a leading
axis B. It is asked twice a step:

  plan     before a step is written: does the small model draft it, is the draft to be scored,
           or does the large model write it at once?
  decide   once the draft (and its score or judgement, if planned) is there: accept or regenerate?

A policy with `peeks` may plan PEEK: the small model draws the first token of its draft, and `plan`
is asked again with its entropy known. The draft goes on from that token; if the large model is to
write instead, the token is thrown away. A second PEEK at the same step is a DRAFT. A policy with
`judges` may plan DRAFT_AND_JUDGE: the large model reads the draft, and `decide` sees how likely it
finds it. What it has read stays in its cache if the draft is accepted.

`settings` lists the values of its one dial (threshold, probability, price), in ascending order; a
run evaluates all of them, of all its policies. Each row stands for a set of (policy, setting) pairs,
the cells, and parts where two of them plan or decide differently: one run gives every cell, exactly
as if it had run alone, at the cost of the distinct histories only.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from typing import Any, ClassVar, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.errors import ConfigError

# Plans, and then actions.
DRAFT, DRAFT_AND_SCORE, LARGE, PEEK, DRAFT_AND_JUDGE = range(5)
ACCEPT, REGENERATE, DIRECT = range(3)
SMALL_WRITER, LARGE_WRITER = range(2)


@flax.struct.dataclass
class Observation:
    """What a policy may look at; every field has a leading axis B of rows.

    Attributes:
      t: int32 [B], index of the step in question, 0-based.
      draft_tokens: int32 [B], length c_t of the draft, delimiter not counted; of its first token
        after a peek.
      draft_score: float32 [B], PRM score r_t of the draft; NaN where it was not scored.
      scores: float32 [B, M], PRM scores of the accepted steps, r_{1:t-1}; NaN where unscored.
      writers: int32 [B, M], SMALL_WRITER or LARGE_WRITER of the accepted steps.
      last: bool [B], the draft ends the solution (boxed, end of sequence, step limit).
      uniform: float32 [B], a random number in (0, 1) of (seed, problem, step).
      right: bool [B], the text so far, draft included, equals the reference solution: the true
        label, for upper bounds only; False where the run carries no references.
      prefix_right: bool [B], likewise without the draft.
      large_tokens: int32 [B], tokens of the large model in the accepted steps, delimiters not
        counted: the paper's cost so far.
      min_score, prod_score: float32 [B], minimum and product of `scores`; 1 at the first step, and
        over steps that were not scored.
      first_entropy: float32 [B], entropy in nats of the small model's first token of the step, over
        its 20 likeliest, renormalised, at temperature 1; NaN where nobody peeked.
      draft_loglik: float32 [B], mean log-likelihood of the draft's tokens (its end of sequence
        included) under the large model at temperature 1; NaN where it was not judged.
        Both are None in a simulation, which has no such signals.
    """

    t: jax.Array
    draft_tokens: jax.Array
    draft_score: jax.Array
    scores: jax.Array
    writers: jax.Array
    last: jax.Array
    uniform: jax.Array
    right: jax.Array
    prefix_right: jax.Array
    large_tokens: jax.Array
    min_score: jax.Array
    prod_score: jax.Array
    first_entropy: jax.Array | None = None
    draft_loglik: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Policy:
    """Base class. A user's policy overrides `decide`, and `plan`, `init` where it needs them.

    Attributes:
      settings: values of the policy's dial, ascending; (0.0,) where it has none. In the loop they are
        a traced array [n]: as many others never recompile it, and Python cannot branch on them.
      weights: learned parameters, a pytree of arrays, or None. They are traced as well: others of
        the same shapes never recompile the loop (`Engine.load_weights`).
      variant: tells it from others of its class in one run; results are stored under `full_name`.
      name: of its class.
      parameter: letter of the dial, for figures; "" where it has none.
      needs_reference: `decide` reads `Observation.right`.
      state_knows_dial: the state after a decision depends on the dial, and not only on what was
        seen and done. Settings of such a policy cannot share a row with each other.
      rising: a higher dial spends more; what an average budget steers must.
      peeks, judges: `plan` may return PEEK, DRAFT_AND_JUDGE. Only runs with such a policy are
        compiled for that work.
    """

    settings: tuple[float, ...] = (0.0,)
    weights: Any = dataclasses.field(default=None, compare=False, repr=False)
    variant: str = dataclasses.field(default="", kw_only=True)
    name: ClassVar[str] = "policy"
    parameter: ClassVar[str] = ""
    needs_reference: ClassVar[bool] = False
    state_knows_dial: ClassVar[bool] = False
    rising: ClassVar[bool] = True
    peeks: ClassVar[bool] = False
    judges: ClassVar[bool] = False

    def __post_init__(self):
        if not self.settings:
            raise ConfigError(f"policy {self.name}: give at least one setting")
        if list(self.settings) != sorted(set(self.settings)):
            raise ConfigError(f"policy {self.name}: settings must ascend without repeats")

    @property
    def full_name(self) -> str:
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def longest(self) -> int | None:
        """How many steps a solution may have that it decides on; None: any number."""
        return None

    def init(self, rows: int) -> Any:
        """State carried by every row between steps, a pytree of arrays with leading axis `rows`.

        Its values must not depend on `settings` and `weights`, which may be exchanged.
        """
        del rows
        return ()

    def plan(self, dial: jax.Array, obs: Observation, state: Any) -> jax.Array:
        """One of the plans for each row, int32 [B]; `dial` float32 [B] is its setting."""
        del dial, state
        return jnp.full_like(obs.t, DRAFT_AND_SCORE)

    def decide(self, dial: jax.Array, obs: Observation, state: Any) -> tuple[jax.Array, Any]:
        """ACCEPT or REGENERATE for each row, and the state after this decision."""
        raise NotImplementedError

    @property
    def traced(self) -> tuple[Any, Any]:
        """Settings, float32 [n], and weights: what of a policy a program is given when it runs."""
        return np.asarray(self.settings, np.float32), self.weights

    def at(self, traced: tuple[Any, Any]) -> Self:
        """This policy with other `traced` values."""
        settings, weights = traced
        return self._with(settings=settings, weights=weights)

    def skeleton(self) -> Self:
        """What of a policy a program is compiled for: all but the values of `traced`."""
        return self._with(settings=(SETTING,) * len(self.settings))

    def _with(self, **fields: Any) -> Self:
        """A copy with other fields, unchecked: they may be traced."""
        other = copy.copy(self)
        for name, value in fields.items():
            object.__setattr__(other, name, value)
        return other


class _Setting:
    """A setting that is only counted; whoever reads it gets an error, not a wrong number."""

    def __jax_array__(self, *_: Any) -> jax.Array:
        raise ConfigError("a policy may read its settings in `plan` and `decide`, not in `init`")

    __float__ = __array__ = __jax_array__


SETTING = _Setting()


def held_weights(policies: Any) -> list[Any]:
    """The weights of the policies that `policies` (in tuples, lists, dicts) have in their fields."""
    found = []
    for policy in jax.tree.leaves(policies):
        if isinstance(policy, Policy):
            fields = [getattr(policy, field.name) for field in dataclasses.fields(policy)
                      if field.name != "weights"]  # fmt: skip
            inside = [x for x in jax.tree.leaves(fields) if isinstance(x, Policy)]
            found += [x.weights for x in inside] + held_weights(inside)
    return found


def fingerprint(policy: Policy) -> str:
    """SHA-256 of a policy's fields and weights, those of policies inside it included."""
    digest = hashlib.sha256(repr(policy).encode())
    weights = [policy.weights, *held_weights([policy])]
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        leaf = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()
