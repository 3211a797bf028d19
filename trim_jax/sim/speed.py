"""How many environment steps a second the simulator makes, bare and with a policy network."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from trim_jax.policies import base
from trim_jax.sim import env, noise
from trim_jax.sim.process import Process

STEPS = 512  # of every row in one timed call
WIDTH = 64


def speed(process: Process, rows: int = 4096, seconds: float = 3.0) -> dict[str, float]:
    """Steps a second of `rows` rows that start a new problem whenever one ends.

    Returns:
      `bare`: actions at random. `network`: greedy actions of a fresh MLP 5-64-64-2, tanh, on the
      features of TRIM-Agg. Each is the best of the calls made in `seconds`, compilation excluded.
    """
    sizes = (5, WIDTH, WIDTH, 2)
    keys = jax.random.split(jax.random.key(0), len(sizes))
    layers = [jax.random.normal(k, (n, m)) / n**0.5 for k, n, m in zip(keys, sizes, sizes[1:])]
    return {
        "bare": _steps_per_second(process, None, rows, seconds),
        "network": _steps_per_second(process, layers, rows, seconds),
    }


def _steps_per_second(process: Process, layers, rows: int, seconds: float) -> float:
    state = env.reset(process, jax.random.key(1), rows)
    state, _ = jax.block_until_ready(_drive(process, layers, state))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        state, _ = jax.block_until_ready(_drive(process, layers, state))
        best = min(best, time.perf_counter() - start)
    return rows * STEPS / best


@jax.jit
def _drive(process: Process, layers, state: env.State):
    """STEPS steps of every row; the sums keep anything from being optimised away."""

    def advance(_, carry):
        state, reward, tokens = carry
        if layers is None:
            random = noise.bits(state.key, state.t, noise.POLICY) >> 31
            action = random.astype(jnp.int32)
        else:
            action = _greedy(layers, env.observe(process, state))
        state, result = env.step(process, state, action, auto_reset=True)
        return state, reward + result.reward, tokens + result.strong_tokens

    zero = jnp.zeros_like(state.min_score)
    state, *sums = jax.lax.fori_loop(0, STEPS, advance, (state, zero, zero.astype(jnp.int32)))
    return state, sums


def _greedy(layers, obs: base.Observation) -> jax.Array:
    features = (obs.draft_score, obs.min_score, obs.prod_score, obs.draft_tokens / 300, obs.t / 30)
    x = jnp.stack(features, axis=1)
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer)
    return jnp.argmax(x @ layers[-1], axis=1).astype(jnp.int32)
