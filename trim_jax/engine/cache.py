"""KV caches of many slots: view some rows, extend them, commit what they keep.

Per row the cache is left-aligned: slots 0..length-1 are real, the rest is never read. Undoing a
step is setting the length back. `extend` is the one primitive: prefill, catch-up after another
model wrote, and PRM scoring are extends of T tokens at ragged offsets; decoding is a chain of
extends of one token whose keys and values wait in a side buffer until `commit`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from trim_jax.models.qwen2 import KV, Qwen2


def view(kv: KV, index: jax.Array | None, length: int) -> KV:
    """The first `length` slots of rows `index` (None: of all rows, without a copy of the rows)."""
    if index is None:
        return jax.tree.map(lambda x: x[:, :, :length], kv)
    return jax.tree.map(lambda x: x.at[index, :, :length].get(mode="clip"), kv)


def commit(kv: KV, index: jax.Array | None, length: jax.Array, side: KV, n_new: jax.Array) -> KV:
    """Write the first `n_new` [R] slots of the side buffer behind `length` [R] of rows `index`.

    Args:
      kv: caches of all slots, updated in place where donated.
      index: int32 [R], slots; one outside the cache is dropped. None: all slots in order.
      length: int32 [R], slots already real. side: [R, K, C, H] a layer. n_new: int32 [R].
    """
    slots, size = kv.k[0].shape[0], kv.k[0].shape[2]
    if index is None:
        index = jnp.arange(slots)
    at = jnp.arange(side.k[0].shape[2])
    # Padding goes to slot `size`, which "drop" ignores; negative indices would wrap.
    where = jnp.where(at < n_new[:, None], length[:, None] + at, size)  # [R, C]

    def write(full, new):
        return full.at[index[:, None], :, where].set(new.swapaxes(1, 2), mode="drop")

    return jax.tree.map(write, kv, side)


def extend(
    model: Qwen2,
    params: Any,
    kv: KV,
    index: jax.Array | None,
    length: jax.Array,
    tokens: jax.Array,
    n_new: jax.Array,
    past_length: int,
    read_at: jax.Array | None = None,
) -> tuple[jax.Array, KV]:
    """Append `n_new` tokens to rows `index` at their ragged offsets.

    Args:
      model, params: the model. kv: its caches. index: int32 [R] slots, None for all.
      length: int32 [R], real slots of those rows, at most `past_length`.
      tokens: int32 [R, T]; the first n_new [R] of each row are real.
      past_length: static number of cache slots that are read.
      read_at: see `Qwen2.__call__`.

    Returns:
      logits of the chunk and the caches with the new keys and values in place.
    """
    past = view(kv, index, past_length)
    logits, side = model.apply({"params": params}, tokens, past, length, read_at=read_at)
    return logits, commit(kv, index, length, side, n_new)
