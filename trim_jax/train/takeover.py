"""The step process as a takeover policy meets it: the first intervention is the last decision."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from trim_jax.policies import base
from trim_jax.train.episodes import Environment


class Outcome(NamedTuple):
    """What an action led to; as the result of `Environment.step`, with all that was handed over."""

    strong_tokens: jax.Array
    reward: jax.Array
    done: jax.Array


def handing_over(env: Environment) -> Environment:
    """`env`, where the large model writes everything from the first step that it rewrites.

    All of that is one step of the new environment, the last one of its solution: what is left to
    learn is when to stop the small model, and nothing is learned from what nobody decided.
    """

    def step(process, state, action):
        taken = action == base.REGENERATE
        state, first = env.step(process, state, action)
        start = (0, state, Outcome(first.strong_tokens, first.reward, first.done))

        def going_on(carry):
            n, _, so_far = carry
            return (taken & ~so_far.done).any() & (n < env.max_steps)

        def write_on(carry):
            n, state, so_far = carry
            open_ = taken & ~so_far.done
            after, now = env.step(process, state, jnp.full_like(action, base.REGENERATE))
            pick = lambda new, old: jnp.where(  # noqa: E731
                open_.reshape(-1, *[1] * (old.ndim - 1)), new, old
            )
            so_far = Outcome(
                so_far.strong_tokens + jnp.where(open_, now.strong_tokens, 0),
                so_far.reward + jnp.where(open_, now.reward, 0),
                so_far.done | (open_ & now.done),
            )
            return n + 1, jax.tree.map(pick, after, state), so_far

        _, state, outcome = jax.lax.while_loop(going_on, write_on, start)
        return state, outcome

    return env._replace(step=step)
