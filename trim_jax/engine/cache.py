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

from trim_jax.models.qwen2 import KV, Qwen2, take_rows


BLOCK = 64  # slots that an extend reads of the past at a time


def view(kv: KV, index: jax.Array | None, length: int) -> KV:
    """The first `length` slots of rows `index` (None: of all rows, without a copy of the rows)."""
    if index is None:
        return KV(
            tuple(k[..., :length] for k in kv.k), tuple(v[:, :, :length] for v in kv.v)
        )
    return KV(
        tuple(take_rows(k, index, 0, length, axis=3) for k in kv.k),
        tuple(take_rows(v, index, 0, length, axis=2) for v in kv.v),
    )


def append(side: KV, new: KV, at: jax.Array | int) -> KV:
    """The side buffer with the keys and values of some tokens in slots `at`, ... of every row."""
    return KV(
        tuple(jax.lax.dynamic_update_slice_in_dim(x, n, at, 3) for x, n in zip(side.k, new.k)),
        tuple(jax.lax.dynamic_update_slice_in_dim(x, n, at, 2) for x, n in zip(side.v, new.v)),
    )


def commit(kv: KV, index: jax.Array | None, length: jax.Array, side: KV, n_new: jax.Array) -> KV:
    """Write the first `n_new` [R] slots of the side buffer behind `length` [R] of rows `index`.

    Args:
      kv: caches of all slots, updated in place where donated.
      index: int32 [R], slots; one outside the cache is dropped. None: all slots in order.
      length: int32 [R], slots already real. side: C slots a layer. n_new: int32 [R].
    """
    slots, _, size, _ = kv.v[0].shape
    if index is None:
        index = jnp.arange(slots)
    at = jnp.arange(side.v[0].shape[2])
    # Padding goes to slot `size`, which "drop" ignores; negative indices would wrap.
    where = jnp.where(at < n_new[:, None], length[:, None] + at, size)  # [R, C]
    row = index[:, None]
    return KV(
        tuple(
            k.at[row, :, :, where].set(new.transpose(0, 3, 1, 2), mode="drop")
            for k, new in zip(kv.k, side.k)
        ),
        tuple(
            v.at[row, :, where].set(new.swapaxes(1, 2), mode="drop")
            for v, new in zip(kv.v, side.v)
        ),
    )


def extend(
    model: Qwen2,
    params: Any,
    kv: KV,
    index: jax.Array | None,
    length: jax.Array,
    tokens: jax.Array,
    n_new: jax.Array,
    read_at: jax.Array | None = None,
) -> tuple[jax.Array, KV]:
    """Append `n_new` tokens to rows `index` at their ragged offsets.

    Args:
      model, params: the model. kv: its caches. index: int32 [R] slots, None for all.
      length: int32 [R], real slots of those rows.
      tokens: int32 [R, T]; the first n_new [R] of each row are real.
      read_at: see `Qwen2.__call__`.

    Returns:
      logits of the chunk and the caches with the new keys and values in place.
    """
    logits, new = model.apply(
        {"params": params}, tokens, kv, length, block=BLOCK, past_rows=index, read_at=read_at
    )
    # What is written depends on all that was read. Without this the compiler is free to write a
    # layer's new keys before it reads the past of that layer, and copies all caches to be safe.
    read = new.k[-1][0, 0, 0, 0] + logits.sum()
    n_new = jnp.where(jnp.isnan(read), 0, n_new)
    return logits, commit(kv, index, length, new, n_new)
