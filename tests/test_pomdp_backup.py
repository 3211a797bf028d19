"""Backups with bounds, on the Tiger problem, whose optimal values are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trim_jax.pomdp.backup import Bounds, backup, beliefs, gap, lay_out

LISTEN, LEFT, RIGHT = range(3)
# Tiger (Cassandra, Kaelbling, Littman 1994), horizons 1 to 20: optimal value of not knowing where
# the tiger is, by exact value iteration.
DISCOUNTED = [
    -1.0, -1.95, 2.3098, 1.79554422, 2.76309619, 4.42853132, 4.58426597, 5.32402078, 6.42364848,
    6.69336843, 7.41894822, 8.18340191, 8.52266713, 9.1620566, 9.72842474, 10.09227599,
    10.63102497, 11.07652525, 11.43291953, 11.87956873,
]  # fmt: skip
UNDISCOUNTED = [
    -1.0, -2.0, 2.72, 2.42125, 3.60915, 5.61881875, 6.24634987, 7.09661553, 8.75383919, 9.43816762,
]  # fmt: skip


def tiger(discount):
    """(gain, flow): contexts and actions are what was done last; the bit is where the tiger is."""
    seen = np.full((3, 2, 2), 0.5)  # [K, O, 2]: doors tell nothing
    seen[LISTEN] = [[0.85, 0.15], [0.15, 0.85]]
    moves = np.full((3, 2, 2), 0.5)  # a door puts the tiger anew
    moves[LISTEN] = np.eye(2)
    rewards = np.array([[-1, -1], [-100, 10], [10, -100]], np.float32)  # [A, 2]
    gain = np.einsum("koz,az->kaoz", seen, rewards)
    flow = discount * np.einsum("koz,azy->kaozy", seen, moves)
    return jnp.asarray(gain, jnp.float32), jnp.asarray(flow, jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run_tiger(discount, horizon, nodes):
    """Bounds after every backup, stacked."""
    gain, flow = tiger(discount)
    process = lay_out(flow, jnp.arange(3), nodes)
    bounds, seen = Bounds(jnp.zeros([3, nodes]), jnp.zeros([3, nodes, 2])), []
    for _ in range(horizon):
        bounds = backup(process, gain, bounds)
        seen.append((bounds.upper, bounds.lower, gap(bounds)))
    return bounds, jax.tree.map(lambda *x: jnp.stack(x), *seen)


@pytest.mark.parametrize("discount, values", [(0.95, DISCOUNTED), (1.0, UNDISCOUNTED)])
def test_tiger_has_its_known_values(discount, values):
    _, (upper, lower, gaps) = run_tiger(discount, len(values), 401)
    # Behind a door nothing is seen: its context is the value of the belief itself.
    high, low = (np.asarray(x)[:, LEFT, 200] for x in (upper, lower))
    assert (high >= np.array(values) - 1e-4).all() and (low <= np.array(values) + 1e-4).all()
    assert (high - low <= 0.02).all(), "of rewards that range over 110"
    assert (gaps[:, LEFT] >= high - low - 1e-4).all()


def test_gap_is_the_largest_difference_between_nodes_too():
    bounds, _ = run_tiger(0.95, 6, 11)
    x = np.linspace(0, 1, 100_001)
    at = np.minimum((x * 10).astype(int), 9)
    for k in range(3):
        upper = np.interp(x, np.linspace(0, 1, 11), bounds.upper[k])
        plans = np.asarray(bounds.plans[k])
        ends = np.stack([1 - x, x], axis=1)
        lower = np.maximum((plans[at] * ends).sum(1), (plans[at + 1] * ends).sum(1))
        assert gap(bounds)[k] == pytest.approx((upper - lower).max(), abs=1e-3)
        assert gap(bounds)[k] > (bounds.upper - bounds.lower)[k].max() + 0.1, "only nodes count"


def test_more_nodes_bring_the_bounds_together():
    gaps = [float(run_tiger(0.95, 10, nodes)[1][2][-1].max()) for nodes in (21, 401)]
    assert gaps[0] > 5 * gaps[1]


def test_beliefs_are_the_nodes():
    np.testing.assert_allclose(beliefs(3), [[1, 0], [0.5, 0.5], [0, 1]])
