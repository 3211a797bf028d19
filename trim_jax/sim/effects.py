"""Whether steps are right, marginal over the effects of their problems: what the fits share.

A problem shifts the logits of both models. Its two effects are bivariate normal, and integrated out
by Gauss-Hermite quadrature at K nodes. Parameters are a dict: `logit` [2, Z] by kind of step, `sd`
[2], `rho` [], `slope` [2] on the number of steps and `trend` [2] on the index of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from trim_jax.sim import tables
from trim_jax.sim.events import Events
from trim_jax.sim.process import LARGE, SMALL

_LOGIT_SD = 2.0  # prior of a kind's logit around the mean of all kinds; all others have 1


@flax.struct.dataclass
class Steps:
    """Steps that count in the likelihood, U of them.

    Attributes:
      kind, t, n: int [U], kind and index of the step, and the number of steps.
      right: bool [U].
    """

    kind: jax.Array
    t: jax.Array
    n: jax.Array
    right: jax.Array

    @classmethod
    def of(cls, events: Events, kind: np.ndarray) -> Steps:
        """The events as steps of these kinds, int [E]."""
        return cls(kind, events.t, events.n, events.right)


def alike(steps: Steps, problem: np.ndarray, problems: int) -> tuple[Steps, np.ndarray]:
    """Steps that the likelihood cannot tell apart as one, and how many a problem has of each.

    Args:
      problem: int [E], index below `problems`.

    Returns:
      U different steps, and their numbers float32 [problems, U].
    """
    columns = np.stack([steps.kind, steps.t, steps.n, steps.right], axis=1)
    found, which = np.unique(columns, axis=0, return_inverse=True)
    count = np.zeros([problems, len(found)], np.float32)
    np.add.at(count, (problem, which.reshape(-1)), 1.0)
    *numbers, right = found.T
    return Steps(*numbers, right.astype(bool)), count


def a_problem(count: np.ndarray, found: jax.Array) -> jax.Array:
    """Sums [problems, K] over the steps of each problem of `found` [U, K]."""
    return jnp.matmul(count, found, precision=jax.lax.Precision.HIGHEST)


def quadrature(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes [2, K] for two independent standard normal numbers, and the log of their weights [K]."""
    at, weight = np.polynomial.hermite_e.hermegauss(nodes)
    both = np.stack(np.meshgrid(at, at, indexing="ij")).reshape(2, -1)
    mass = np.outer(weight, weight).reshape(-1) / weight.sum() ** 2
    return np.float32(both), np.float32(np.log(mass))


def split(x: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A vector as arrays of these shapes, in their order."""
    out, at = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        out[name], at = x[at : at + size].reshape(shape), at + size
    return out


def unpack(x: jax.Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """A vector as parameters of these shapes; it holds the log of `sd` and the atanh of `rho`."""
    out = split(x, shapes)
    return out | {"sd": jnp.exp(out["sd"]), "rho": jnp.tanh(out["rho"])}


def logits(p: Mapping[str, jax.Array], model: int, steps: Steps, z: np.ndarray) -> jax.Array:
    """Logits [U, K] of a right step of `model` after right ones, at the nodes `z` [2, K]."""
    base = p["logit"][model][steps.kind]
    base += p["slope"][model] * tables.length_scale(steps.n)
    base += p["trend"][model] * tables.step_scale(steps.t)
    own = z[0] if model == SMALL else p["rho"] * z[0] + jnp.sqrt(1 - p["rho"] ** 2) * z[1]
    return base[:, None] + p["sd"][model] * own


def outcome(right: jax.Array, logit: jax.Array) -> jax.Array:
    """Log-probability [U, K] of what came of the steps, `right` [U], at `logit` [U, K]."""
    return jax.nn.log_sigmoid(jnp.where(right, 1.0, -1.0)[:, None] * logit)


def without_draft(
    p: Mapping[str, jax.Array], steps: Steps, z: np.ndarray, doubted: Any, wrong: Any
) -> jax.Array:
    """Log-probability [U, K] of what came of the large model's steps, whose draft nobody knows.

    The chance that the draft would have been right is the small model's.

    Args:
      doubted, wrong: what is taken off the logit after a right draft and after a wrong one.
    """
    own, draft = logits(p, LARGE, steps, z), logits(p, SMALL, steps, z)
    return jnp.logaddexp(
        jax.nn.log_sigmoid(draft) + outcome(steps.right, own - doubted),
        jax.nn.log_sigmoid(-draft) + outcome(steps.right, own - wrong),
    )


def log_prior(p: Mapping[str, jax.Array]) -> jax.Array:
    """Normal priors of the parameters (half-normal of `sd`), and 1 - rho^2 of the correlation."""
    spread = p["logit"] - p["logit"].mean(axis=1, keepdims=True)
    squares = (spread**2).sum() / _LOGIT_SD**2 + sum(
        (p[name] ** 2).sum() for name in ("sd", "slope", "trend")
    )
    return -0.5 * squares + jnp.log1p(-p["rho"] ** 2)


def minimise(loss_and_slope: Callable, start: Any, *data: Any) -> np.ndarray:
    """Where a loss is least, float64 [N], by L-BFGS from `start` [N].

    Args:
      loss_and_slope: jitted; of x, float32 [N], and `data`: the loss and its gradient.
    """

    def both(x):
        value, slope = loss_and_slope(jnp.asarray(x, jnp.float32), *data)
        return float(value), np.asarray(slope, float)

    return scipy.optimize.minimize(both, start, jac=True, method="L-BFGS-B").x
