"""Cheap random numbers by counter: every one is a function of (problem, step, stream).

Never of the actions taken, so two policies on one problem meet the same luck, and their difference
is paired. Threefry costs more than the rest of the simulator together; this is one 32-bit mix.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Streams of one step; each is 32 random bits.
DRAFT, STRONG, DRAFT_TEXT, STRONG_TEXT, POLICY, EFFECT_SMALL, EFFECT_LARGE, PROBLEM, NEXT = range(9)

_STEP = 0x9E3779B9  # 2^32 over the golden ratio
_STREAM = 0xC2B2AE35


def mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 whose every output bit depends on every input bit ("lowbias32")."""
    x = x ^ (x >> 16)
    x = x * jnp.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def problem_keys(key: jax.Array, rows: int) -> jax.Array:
    """uint32 [rows], all different, of a jax.random key."""
    a, b = jax.random.bits(key, (2,), jnp.uint32)
    return mix(mix(jnp.arange(rows, dtype=jnp.uint32) + a) + b)


def bits(keys: jax.Array, t: jax.Array, stream: int) -> jax.Array:
    """32 random bits, uint32 [B], of problems `keys` [B] at steps `t` [B]."""
    offset = jnp.uint32(stream * _STREAM & 0xFFFFFFFF)
    return mix(keys + t.astype(jnp.uint32) * jnp.uint32(_STEP) + offset)


def uniform(x: jax.Array) -> jax.Array:
    """The upper 23 bits as float32 in (0, 1), both ends left out."""
    # uint32 to float has no fast instruction; int32 has.
    return ((x >> 9).astype(jnp.int32).astype(jnp.float32) + 0.5) * 2.0**-23


def high16(x: jax.Array) -> jax.Array:
    """The upper 16 bits as float32 in (0, 1)."""
    return ((x >> 16).astype(jnp.int32).astype(jnp.float32) + 0.5) * 2.0**-16


def low8(x: jax.Array) -> jax.Array:
    """The lowest 8 bits, int32 in 0..255."""
    return (x & 0xFF).astype(jnp.int32)


def normal(u: jax.Array) -> jax.Array:
    """The standard normal at quantile `u`."""
    return jnp.sqrt(2.0) * jax.lax.erf_inv(2 * u - 1)
