"""How many environment steps a second the simulator makes, bare and with a policy network."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.policies import base
from trim_jax.sim import env, noise
from trim_jax.sim.process import ENTRIES, FIRST, LAST, Process, simple_process

STEPS = 512  # of every row in one call
WIDTH = 64
# Of a process fitted to 2,000 problems of arith. Time goes into reading its tables, so their sizes
# count and not what they say.
KINDS, PLANS, QUANTILES, MAX_STEPS = 13, 2000, 128, 30
STEP_EDGES, MIN_EDGES = (7, 9, 11), (0.3, 0.7, 0.95)


def arith_sized() -> Process:
    """A process with tables as large as those of one fitted to arith, and made-up contents."""
    rng = np.random.default_rng(0)
    n = rng.integers(4, 13, PLANS)
    t = np.arange(MAX_STEPS)
    kinds = rng.integers(2, KINDS, (PLANS, MAX_STEPS))
    kinds = np.where(t == n[:, None] - 1, LAST, np.where(t == 0, FIRST, kinds))
    cells = (2, 3, KINDS, (len(STEP_EDGES) + 1) * (len(MIN_EDGES) + 1), QUANTILES + 1)
    spread = np.array([6.0, 1.0, 0.3])[:, None, None, None]  # of S0, S1, S2
    scores = np.linspace(0, 1, QUANTILES + 1) ** (1 / spread)
    tokens = np.sort(rng.integers(5, 40, (KINDS, ENTRIES)), axis=1)
    logit = np.array([1.9, 4.5])[:, None, None] + 0.3 * rng.normal(size=(2, KINDS, MAX_STEPS))
    tables = {
        "logit": logit, "draft_wrong": [1.5, 0.5], "effect_sd": [0.3, 0.3],
        "draft_tokens": tokens, "strong_rest": tokens, "strong_slope": 0.0,
        "min_edges": MIN_EDGES, "scores": np.broadcast_to(scores, cells), "same": [0.5, 0.0, 0.0],
    }  # fmt: skip
    tables = {name: jnp.asarray(table, jnp.float32) for name, table in tables.items()}
    return simple_process(max_steps=MAX_STEPS).replace(
        n_steps=jnp.asarray(n, jnp.int32), kinds=jnp.asarray(kinds, jnp.int32),
        step_edges=jnp.asarray(STEP_EDGES, jnp.int32), **tables,
    )


def measure(repeats: int, rows: int = 4096, seconds: float = 0.5) -> dict[str, Any]:
    """Steps a second of `rows` rows that start a new problem whenever one ends.

    Returns:
      {"rows", "repeats", "bare", "network"}, the last two with the "best" and the "median" of
      `repeats` turns of `seconds` each, compilation excluded. `bare` acts at random, `network`
      greedily by a fresh MLP 5-64-64-2, tanh, on the features of TRIM-Agg. They take turns.
    """
    sizes = (5, WIDTH, WIDTH, 2)
    keys = jax.random.split(jax.random.key(0), len(sizes))
    layers = [jax.random.normal(k, (n, m)) / n**0.5 for k, n, m in zip(keys, sizes, sizes[1:])]
    process, networks = arith_sized(), {"bare": None, "network": layers}
    start = env.reset(process, jax.random.key(1), rows)
    states = {name: _drive(process, net, start)[0] for name, net in networks.items()}
    rates: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(repeats):
        for name, net in networks.items():
            calls, begun = 0, time.perf_counter()
            while time.perf_counter() < begun + seconds:
                states[name], _ = jax.block_until_ready(_drive(process, net, states[name]))
                calls += 1
            rates[name].append(calls * rows * STEPS / (time.perf_counter() - begun))
    found = {name: {"best": max(r), "median": statistics.median(r)} for name, r in rates.items()}
    return {"rows": rows, "repeats": repeats, **found}


def table(measured: dict[str, Any]) -> str:
    """The figures in text."""
    lines = [f"simulator, {measured['rows']} rows, million steps a second (best, median)"]
    for name, label in (("bare", "bare"), ("network", "with a policy network")):
        rates = (f"{measured[name][which] / 1e6:8.1f}" for which in ("best", "median"))
        lines.append(f"{label:<24}{''.join(rates)}")
    return "\n".join(lines)


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
