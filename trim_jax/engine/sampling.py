"""Sampling with one random stream a row, independent of batch, slot and policy."""

from __future__ import annotations

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.errors import ConfigError

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of threefry-2x32 (Salmon et al., 2011)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn (the paper: 0.7, 0.8, 20).

    Attributes:
      temperature: 0 is greedy.
      top_p: keep the smallest set of tokens with at least this probability; 1 keeps all.
      top_k: keep this many tokens first; 0 keeps all.
    """

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20

    def __post_init__(self):
        if self.temperature < 0:
            raise ConfigError(f"sampling.temperature must be >= 0, it is {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling.top_p must be in (0, 1], it is {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"sampling.top_k must be >= 0, it is {self.top_k}")


def row_key(seed: int, problem_id: str) -> jax.Array:
    """Key data [2] of one (seed, problem): every random number of its solutions comes from it."""
    return _row_key(np.uint32(seed), np.uint32(zlib.crc32(problem_id.encode())))


@jax.jit  # one dispatch instead of many: it is called once a solution
def _row_key(seed: jax.Array, problem: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.fold_in(jax.random.key(seed), problem))


def fold(keys: jax.Array, data: jax.Array) -> jax.Array:
    """`jax.random.fold_in` of threefry on raw key data: keys [..., 2] and data [...] give [..., 2].

    Written out, since JAX makes a loop of many small operations of it on a CPU, at every token.
    """
    first, second = keys[..., 0], keys[..., 1]
    schedule = first, second, first ^ second ^ np.uint32(0x1BD11BDA)
    x, y = first, second + jnp.asarray(data).astype(jnp.uint32)
    for turn in range(5):
        for bits in _ROTATIONS[turn % 2]:
            x = x + y
            y = x ^ (y << bits | y >> (32 - bits))
        x = x + schedule[(turn + 1) % 3]
        y = y + schedule[(turn + 2) % 3] + np.uint32(turn + 1)
    return jnp.stack(jnp.broadcast_arrays(x, y), axis=-1)


def uniform(keys: jax.Array) -> jax.Array:
    """One number in (0, 1) for every key: [..., 2] to float32 [...]."""
    return ((keys[..., 0] >> 9).astype(jnp.float32) + 0.5) * 2.0**-23


def sample(
    logits: jax.Array, keys: jax.Array, allowed: jax.Array, sampling: Sampling
) -> jax.Array:
    """Draw one token a row: temperature, then top-k, then top-p, then Gumbel-max.

    The noise of a candidate depends on its row key and its token id, not on its rank, so a tie in
    rank between two candidates cannot exchange their luck.

    Args:
      logits: float32 [R, V].
      keys: key data [R, 2] of (seed, problem, attempt, token position).
      allowed: bool [V].
      sampling: static settings.

    Returns:
      int32 [R].
    """
    logits = jnp.where(allowed, logits, -jnp.inf)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    vocab = logits.shape[-1]
    width = min(sampling.top_k or vocab, vocab)
    if width == vocab and sampling.top_p == 1:
        values = logits / sampling.temperature
        ids = jnp.broadcast_to(jnp.arange(vocab, dtype=jnp.int32), logits.shape)
    else:
        values, ids = jax.lax.top_k(logits, width)
        values = values / sampling.temperature
        probability = jax.nn.softmax(values, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        values = jnp.where(before < sampling.top_p, values, -jnp.inf)
    noise = -jnp.log(-jnp.log(uniform(fold(keys[:, None], ids))))
    best = jnp.argmax(values + noise, axis=-1)
    return jnp.take_along_axis(ids, best[:, None], axis=1)[:, 0].astype(jnp.int32)
