"""The TRIM-POMDP, solved for every step, draft length and belief (method, section 2).

Latent state of a text with its newest draft: S0 all right; S1 wrong before the draft already;
S2 only the draft wrong. After any action nothing of it matters but one bit: is the text right?

    accepted   right iff the state was S0                        x = b0
    rewritten  right with p_s iff it was S0 or S2                x = p_s (b0 + b2)

and from there the next draft gives (S0, S1, S2) = (x p_w, 1 - x, x (1 - p_w)). So the value that
lies ahead of step t is a convex function W_t of the scalar x instead of the belief simplex,

    W_t(x) = E_o[ h_t last(b) + (1 - h_t) max( W_t+1(b0), W_t+1(p_s (b0 + b2)) - L / worth ) ],
    last(b) = max( b0, p_s (b0 + b2) - L / worth ),

with b the belief after the observation o, h_t the probability that step t is the last, and L the
assumed length of a step. A draft's own length n is only an immediate cost. Hence at step t

    regenerate iff n < n* = worth [ W_t+1(p_s (b0 + b2)) - W_t+1(b0) ],

for all n and all beliefs at once; at the last step n* = worth [p_s (b0 + b2) - b0].

A policy that does not see which step is the last (`last_seen=False`; the release never applies its
rule for that step) has one value for both cases: of a text of t steps that may be complete,

    W_t(x) = h_t-1 x + (1 - h_t-1) E_o[ max( W_t+1(b0), W_t+1(p_s (b0 + b2)) - L / worth ) ],

with W_T(x) = x, and the first n* at every step.
Values are in units of the task reward; worth = reward / cost of a token of the large model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.errors import DataError
from trim_jax.pomdp.backup import Bounds, backup, beliefs, between, gap, lay_out

# Nodes in x. With released parameters the bounds part by 2e-4 of the reward, where 1e-3 is allowed.
NODES = 241


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Of one pair of models, one process reward model and one kind of problem.

    M bins of equal width divide [0, 1]; states are in the order S0, S1, S2.

    Attributes:
      p_small, p_large: p_w and p_s, probability that the model's next step is right, given that
        everything before it is.
      hazard: float [T], probability that step t (0-based) is the last, if it is reached; T is the
        step limit, so the last entry is 1.
      step_tokens: assumed length of a future step, in tokens.
      joint: float [3, M, M], p(min r_{1:t-1}, r_t | state) as a table [state][min][newest].
      first: float [3, M], p(r_1 | state) of the first step. S1 cannot be there.
    """

    p_small: float
    p_large: float
    hazard: np.ndarray
    step_tokens: float
    joint: np.ndarray
    first: np.ndarray

    def __post_init__(self):
        hazard, joint, first = (np.asarray(x, float) for x in (self.hazard, self.joint, self.first))
        checks = {
            "p_small and p_large must be in [0, 1]":
                0 <= self.p_small <= 1 and 0 <= self.p_large <= 1,
            "hazard must be probabilities, the last one 1":
                hazard.ndim == 1 and hazard.size and (hazard >= 0).all() and (hazard <= 1).all()
                and hazard[-1] == 1,
            "step_tokens must be above 0": self.step_tokens > 0,
            "joint must be a square table of probabilities for each of S0, S1, S2":
                joint.ndim == 3 and joint.shape == (3, joint.shape[1], joint.shape[1])
                and (joint >= 0).all() and np.allclose(joint.sum((1, 2)), 1, atol=1e-4),
            "first must be probabilities, as many as joint has bins, for each of S0, S1, S2":
                first.shape == joint.shape[:2] and (first >= 0).all()
                and np.allclose(first.sum(1), 1, atol=1e-4),
        }  # fmt: skip
        wrong = [what for what, holds in checks.items() if not holds]
        if wrong:
            raise DataError(f"POMDP parameters: {wrong[0]}")
        for name, value in (("hazard", hazard), ("joint", joint), ("first", first)):
            object.__setattr__(self, name, value)

    @property
    def score(self) -> np.ndarray:
        """float [3, M], p(r_t | state)."""
        return self.joint.sum(axis=1)

    @property
    def conditional(self) -> np.ndarray:
        """float [3, M, M], p(r_t | min r_{1:t-1}, state) as a table [state][min][newest].

        A minimum that a state has (almost) never tells nothing about r_t: such rows turn into
        p(r_t | state), which counts as much as a thousandth of the samples.
        """
        faith = 1e-3
        mass = self.joint.sum(axis=2, keepdims=True)
        return (self.joint + faith * self.score[:, None]) / (mass + faith)

    def to_json(self) -> dict[str, Any]:
        """As plain numbers and lists, for `from_json`."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else float(v)
                for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, value: Any) -> Parameters:
        """Raises DataError, naming what is missing or of the wrong kind."""
        try:
            return cls(**{field.name: value[field.name] for field in dataclasses.fields(cls)})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"POMDP parameters: {type(error).__name__}: {error}") from None


@flax.struct.dataclass
class Solution:
    """Bounds of W for C values of `worth`, T steps and N nodes in x, in units of the reward.

    Attributes:
      upper, lower: float32 [C, T + 1, N], at the nodes; [:, t] lies ahead of step t (0-based),
        [:, T] is of no step and 0 (of a complete text and x, where the last step is not seen).
      gap: float32 [C], largest difference of the bounds over all steps and all x.
    """

    upper: jax.Array
    lower: jax.Array
    gap: jax.Array


def solve(
    parameters: Parameters, likelihood: np.ndarray, worths: Sequence[float], nodes: int = NODES,
    last_seen: bool = True,
) -> Solution:  # fmt: skip
    """Backward induction from the step limit, for every worth.

    Args:
      likelihood: float [3, O], p(o | state) of the observations that the solver counts on:
        `parameters.joint`, flattened, as released, where each step shows a fresh minimum; or
        `parameters.score`, for a policy that filters its belief over time.
      worths: tokens of the large model that a right answer is worth; each above 0.
      nodes: of the grid in x.
      last_seen: whether the policy knows which step is the last, see above.
    """
    prices = parameters.step_tokens / jnp.asarray(worths, jnp.float32)
    return _solve(
        jnp.asarray(parameters.p_small, jnp.float32), jnp.asarray(parameters.p_large, jnp.float32),
        jnp.asarray(parameters.hazard, jnp.float32), jnp.asarray(likelihood, jnp.float32),
        prices, nodes, last_seen,
    )  # fmt: skip


def next_draft(x: jax.Array, p_small: jax.Array) -> jax.Array:
    """Belief [..., 3] in (S0, S1, S2) before the next draft is seen, of x = p(text is right)."""
    return jnp.stack([x * p_small, 1 - x, x * (1 - p_small)], axis=-1)


def text_right(belief: jax.Array, p_large: jax.Array) -> tuple[jax.Array, jax.Array]:
    """p(the text is right) [...] once the draft is accepted, and once it is rewritten."""
    return belief[..., 0], p_large * (belief[..., 0] + belief[..., 2])


def advantage(
    ahead: jax.Array, t: jax.Array, belief: jax.Array, last: jax.Array, p_large: jax.Array
) -> jax.Array:
    """What rewriting is worth before it is paid for, in units of the reward: n* / worth, [..., B].

    Args:
      ahead: float32 [..., T + 1, N], of a `Solution`, for any number of worths.
      t: int32 [B], 0-based step whose draft is in question; beyond the limit as if at it.
      belief: float32 [B, 3], in (S0, S1, S2) after the draft was seen.
      last: bool [B], this step ends the solution.
      p_large: float32 [].
    """
    accepted, rewritten = text_right(belief, p_large)
    step = jnp.minimum(t + 1, ahead.shape[-2] - 1)

    def value(x):
        left, share = between(x, ahead.shape[-1])
        low, high = ahead[..., step, left], ahead[..., step, left + 1]
        return low + share * (high - low)

    return jnp.where(last, rewritten - accepted, value(rewritten) - value(accepted))


@partial(jax.jit, static_argnames=("nodes", "last_seen"))
def _solve(
    p_small, p_large, hazard, likelihood, prices, nodes: int, last_seen: bool
) -> Solution:
    zero, one = jnp.zeros(()), jnp.ones(())
    # The bit of `backup`: 0 the text is wrong, 1 it is right. States in columns.
    state = next_draft(jnp.array([0.0, 1.0]), p_small)  # [2, 3], p(state | bit)
    accept = jnp.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])  # [3, 2], p(next bit | state)
    saved = jnp.stack([1 - p_large, p_large])
    rewrite = jnp.stack([saved, jnp.stack([one, zero]), saved])
    seen = jnp.einsum("zs,so->ozs", state, likelihood)  # [O, 2, 3], p(state, o | bit)
    moves = jnp.stack([accept, rewrite])  # [A, 3, 2]
    flow = jnp.einsum("ozs,asy->aozy", seen, moves)[None]
    process = lay_out(flow, jnp.zeros(2, jnp.int32), nodes)
    nothing = Bounds(jnp.zeros([1, nodes]), jnp.zeros([1, nodes, 2]))
    pays = jnp.broadcast_to(jnp.array([0.0, 1.0]), (1, nodes, 2))
    complete = Bounds(beliefs(nodes)[None, :, 1], pays)

    def of_one(price: jax.Array) -> Solution:
        paid = jnp.stack([zero, -price])  # [A]
        gain = paid[:, None, None] * seen.sum(-1)  # [A, O, 2]
        if last_seen:
            # The last step pays 1 if it leaves the text right.
            over = backup(process, (gain + flow[0, ..., 1])[None], nothing)
            chance, end = hazard, nothing
        else:
            over = end = complete
            chance = jnp.concatenate([zero[None], hazard[:-1]])

        def earlier(after: Bounds, h: jax.Array):
            inner = backup(process, gain[None], after)
            here = jax.tree.map(lambda a, b: h * a + (1 - h) * b, over, inner)
            return here, (here.upper[0], here.lower[0], gap(here)[0])

        _, (upper, lower, gaps) = jax.lax.scan(earlier, end, chance, reverse=True)
        with_end = lambda steps, last: jnp.concatenate([steps, last])  # noqa: E731
        return Solution(with_end(upper, end.upper), with_end(lower, end.lower), gaps.max())

    return jax.lax.map(of_one, prices)
