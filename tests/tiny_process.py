"""A process of three steps that can be solved by hand: what the trained policies are held against.

Each step the small model drafts 4 or 40 tokens, right with probability 0.5 whatever the length; the
large model writes a step of the draft's length, right with probability 0.9. Scores tell the truth
(0.9 right, 0.1 wrong), one wrong step spoils the answer, and all three are always written. The
state is (t, spoiled, right draft, length), and the paper's features hold it all.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.policies import base
from trim_jax.train.episodes import Environment

STEPS, P_SMALL, P_LARGE = 3, 0.5, 0.9
LENGTHS = (4, 40)
HIGH, LOW = 0.9, 0.1
# (t, spoiled, draft right, length index), in the order of `decisions`.
STATES = list(itertools.product(range(STEPS), (0, 1), (0, 1), range(len(LENGTHS))))


class State(NamedTuple):
    keys: Any  # [B, 2]
    t: jax.Array  # int32 [B]
    scores: jax.Array  # [B, M]
    large_tokens: jax.Array  # int32 [B]


class StepResult(NamedTuple):
    strong_tokens: jax.Array
    reward: jax.Array
    done: jax.Array


def _draws(state):
    """Draft right, draft length, large right, uniform: [B] each."""
    def one(key, t):
        u = jax.random.uniform(jax.random.fold_in(key, t), (4,))
        return u[0] < P_SMALL, jnp.where(u[1] < 0.5, *LENGTHS), u[2] < P_LARGE, u[3]
    return jax.vmap(one)(state.keys, state.t)


def reset(process, key, rows):
    zeros = jnp.zeros([rows], jnp.int32)
    scores = jnp.full([rows, STEPS], jnp.nan)
    return State(jax.random.split(key, rows), zeros, scores, zeros)


def observe(process, state):
    right, length, _, uniform = _draws(state)
    known = jnp.where(jnp.isnan(state.scores), 1.0, state.scores)
    none = jnp.zeros_like(right)
    return base.Observation(
        t=state.t, draft_tokens=length, draft_score=jnp.where(right, HIGH, LOW),
        scores=state.scores, writers=jnp.zeros_like(state.scores, jnp.int32),
        last=state.t == STEPS - 1, uniform=uniform, right=none, prefix_right=none,
        large_tokens=state.large_tokens, min_score=known.min(1), prod_score=known.prod(1),
    )  # fmt: skip


def step(process, state, action):
    right, length, large_right, _ = _draws(state)
    large = action == base.REGENERATE
    now = jnp.where(jnp.where(large, large_right, right), HIGH, LOW)
    scores = jnp.where(jnp.arange(STEPS) == state.t[:, None], now[:, None], state.scores)
    tokens = jnp.where(large, length, 0)
    done = state.t == STEPS - 1
    reward = (done & (scores.min(1) > 0.5)).astype(jnp.float32)
    after = State(state.keys, state.t + 1, scores, state.large_tokens + tokens)
    return after, StepResult(tokens, reward, done)


ENV = Environment((), reset, observe, step, STEPS)


def solve(worth, decide=None):
    """(value at the start, actions [states]) of the best policy, or of `decide` [states]."""
    best = np.zeros(len(STATES), int)
    ahead = np.array([1.0, 0.0])  # value of (right so far, spoiled) after the last step
    for t in reversed(range(STEPS)):
        value = np.zeros(2)
        for i, (when, spoiled, right, length) in enumerate(STATES):
            if when != t:
                continue
            accept = ahead[1] if spoiled or not right else ahead[0]
            chance = 0.0 if spoiled else P_LARGE
            rewrite = chance * ahead[0] + (1 - chance) * ahead[1] - LENGTHS[length] / worth
            best[i] = rewrite > accept if decide is None else decide[i]
            drawn = (P_SMALL if right else 1 - P_SMALL) / len(LENGTHS)
            value[spoiled] += drawn * (rewrite if best[i] else accept)
        ahead = value
    return ahead[0], best


def decisions(policy, worth):
    """Actions [states] of `policy`, asked once for each state."""
    t, spoiled, right, length = (jnp.array(x) for x in zip(*STATES))
    past = jnp.where((jnp.arange(STEPS) < t[:, None]), HIGH, jnp.nan)
    past = past.at[:, 0].set(jnp.where(spoiled & (t > 0), LOW, past[:, 0]))
    state = State(jax.random.split(jax.random.key(0), len(t)), t, past, jnp.zeros_like(t))
    drawn = observe((), state)
    obs = drawn.replace(
        draft_tokens=jnp.array(LENGTHS)[length], draft_score=jnp.where(right == 1, HIGH, LOW)
    )
    action, _ = policy.decide(jnp.full(len(t), worth, jnp.float32), obs, policy.init(len(t)))
    return np.asarray(action)


def regret(policy, worth):
    """How much the value at the start falls short of the best, exactly."""
    return solve(worth)[0] - solve(worth, decisions(policy, worth))[0]
