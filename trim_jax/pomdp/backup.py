"""Bellman backups with bounds, for decision processes whose future depends on one hidden bit.

A process moves through contexts k (what the last action was; one context if observations do not
depend on it). In each the bit z is hidden, an observation o is made, then an action a is chosen:

    V_k(m) = sum_o max_a [ m . gain[k, a, o] + V'_follow[a](m flow[k, a, o]) ],

where m = (p(z = 0), p(z = 1)) may be scaled by any mass: V is homogeneous, so neither side needs
normalised beliefs, and a discount is a factor of `flow`. V is convex and piecewise linear in
x = p(z = 1). On N evenly spaced nodes two bounds of it are kept:

- from above, values at the nodes. A convex function lies below its chords.
- from below, one alpha vector a node: the value of one fixed plan, which is linear in m. The best
  plan is at least as good as the better of the two next to x.

A backup keeps either property, whatever horizon it is applied to.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Bounds:
    """Bounds of V in K contexts, at N nodes x = 0, 1 / (N - 1), ..., 1.

    Attributes:
      upper: float32 [K, N], no less than V at the node.
      plans: float32 [K, N, 2], value of the node's plan where z is 0 and where z is 1.
    """

    upper: jax.Array
    plans: jax.Array

    @property
    def lower(self) -> jax.Array:
        """float32 [K, N], value of the node's plan at the node."""
        return jnp.einsum("nz,knz->kn", beliefs(self.upper.shape[1]), self.plans)


@flax.struct.dataclass
class Process:
    """A process laid out for backups; made by `lay_out`.

    Attributes:
      flow: float32 [K, A, O, 2, 2], p(o, z' | z, a), times the discount.
      reached: float32 [K, A, O, N, 2], m flow for the belief m of each node.
      left: int32 [K, A, O, N], the node left of the belief that is reached, as an index into the
        flattened nodes of all contexts.
      share: float32 [K, A, O, N], how far from there towards the next node, in [0, 1].
    """

    flow: jax.Array
    reached: jax.Array
    left: jax.Array
    share: jax.Array


def beliefs(nodes: int) -> jax.Array:
    """(p(z = 0), p(z = 1)) of each node, float32 [N, 2]."""
    x = jnp.linspace(0.0, 1.0, nodes)
    return jnp.stack([1 - x, x], axis=1)


def between(x: jax.Array, nodes: int) -> tuple[jax.Array, jax.Array]:
    """The node left of x in [0, 1] (int32) and the share of the way to the next (float32)."""
    place = x * (nodes - 1)
    left = jnp.clip(place.astype(jnp.int32), 0, nodes - 2)
    return left, jnp.clip(place - left, 0, 1)


def lay_out(flow: jax.Array, follow: jax.Array, nodes: int) -> Process:
    """Where each observation and action lead from each node: the same for all steps and rewards.

    Args:
      flow: float32 [K, A, O, 2, 2], p(o, z' | z, a) in context k, times the discount.
      follow: int32 [A], the context that an action leads to.
      nodes: N.
    """
    reached = jnp.einsum("nz,kaozy->kaony", beliefs(nodes), flow)
    mass = reached.sum(-1)
    left, share = between(reached[..., 1] / jnp.where(mass > 0, mass, 1), nodes)
    return Process(flow, reached, left + nodes * follow[:, None, None], share)


def backup(process: Process, gain: jax.Array, after: Bounds) -> Bounds:
    """Bounds one decision earlier.

    Args:
      gain: float32 [K, A, O, 2], p(o | z) times the expected reward of a, given z and o.
      after: bounds of the value that follows the action.
    """
    nodes = after.upper.shape[1]
    here = jnp.einsum("nz,kaoz->kaon", beliefs(nodes), gain)  # [K, A, O, N]
    pick = lambda table: (table[process.left], table[process.left + 1])  # noqa: E731

    low, high = pick(after.upper.reshape(-1))
    chord = process.reached.sum(-1) * (low + process.share * (high - low))
    upper = (here + chord).max(axis=1).sum(axis=1)

    low, high = pick(after.plans.reshape(-1, 2))  # [K, A, O, N, 2] each
    of_low, of_high = ((process.reached * plan).sum(-1) for plan in (low, high))
    plan = jnp.where((of_high > of_low)[..., None], high, low)
    action = (here + jnp.maximum(of_low, of_high)).argmax(axis=1, keepdims=True)
    # The plan of this node: act so, then follow that plan.
    plans = gain[:, :, :, None] + jnp.einsum("kaozy,kaony->kaonz", process.flow, plan)
    chosen = jnp.take_along_axis(plans, action[..., None], axis=1)[:, 0]  # [K, O, N, 2]
    return Bounds(upper, chosen.sum(axis=1))


def gap(bounds: Bounds) -> jax.Array:
    """Largest difference of the bounds over all beliefs, nodes or not, float32 [K].

    Between two nodes the chord is compared with the better of their two plans; the difference is
    largest where the plans cross, or at a node.
    """
    m = beliefs(bounds.upper.shape[1])
    at = lambda plans, m: (plans * m).sum(-1)  # noqa: E731
    one, two = bounds.plans[:, :-1], bounds.plans[:, 1:]
    left = at(one, m[:-1]) - at(two, m[:-1])
    right = at(two, m[1:]) - at(one, m[1:])
    share = left / jnp.where(left + right > 0, left + right, 1)
    share = jnp.clip(share, 0, 1)[..., None]  # [K, N - 1, 1]
    cross = m[:-1] + share * (m[1:] - m[:-1])
    chord = bounds.upper[:, :-1] + share[..., 0] * jnp.diff(bounds.upper, axis=1)
    inside = chord - jnp.maximum(at(one, cross), at(two, cross))
    return jnp.maximum(inside.max(axis=1), (bounds.upper - bounds.lower).max(axis=1))
