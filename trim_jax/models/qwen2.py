"""Qwen2 as one Flax module: transformer body, language-model head, process-reward head.

The module holds parameters only. Keys and values of past tokens come in and those of new tokens go
out as explicit arrays (`KV`), so one method, `__call__`, serves training (no past), `extend` (a
chunk of tokens behind a ragged past) and decoding (one token behind a past and a side buffer).

Axis letters (design notation): B batch, T query length, S cache length, C side-buffer length,
D model width, F feed-forward width, N query heads, K key-value heads, G = N / K, H head width,
V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of one model; the fields of a Hugging Face `config.json` that change the computation.

    Attributes:
      vocab: rows of the embedding matrix V, padding rows included.
      width: D. layers: L. heads: N. kv_heads: K (divides N). head_dim: H. ffn: F.
      rope_theta: base of the rotary embedding. norm_eps: epsilon of RMSNorm.
      tied: the language-model head is the transposed embedding.
      head: "lm" (logits over V) or "prm" (two classes: step wrong, step right).
      dtype: type of weights in memory and of matrix products; norms, rotary embedding and softmax
        run in float32 whatever it is.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    tied: bool = True
    head: Literal["lm", "prm"] = "lm"
    dtype: str = "float32"

    @property
    def group(self) -> int:
        """G: query heads that share one key-value head."""
        return self.heads // self.kv_heads

    def matmul_params(self) -> int:
        """Weights that a token multiplies: FLOPs per token are twice this, attention apart."""
        attention = self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
        head = self.width * self.vocab if self.head == "lm" else self.width * (self.width + 2)
        return self.layers * (attention + 3 * self.width * self.ffn) + head


class KV(NamedTuple):
    """Keys and values, one array a layer.

    Attributes:
      k: L arrays [B, K, H, S], rotary embedding applied. Slots are the last axis, along which the
        product with a single query runs (on a CPU it takes half the time of the other layout).
      v: L arrays [B, K, S, H].
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


def empty_kv(config: ModelConfig, rows: int, length: int) -> KV:
    """A zeroed `KV` for `rows` rows of `length` tokens."""
    lead, size = (rows, config.kv_heads), (length, config.head_dim)
    blank = lambda *shape: tuple(jnp.zeros(lead + shape, config.dtype) for _ in range(config.layers))  # noqa: E731
    return KV(blank(*size[::-1]), blank(*size))


# Logical axes of every parameter; sharding.py maps them onto the mesh.
LOGICAL_AXES = {
    "embed": ("vocab", "embed"),
    "lm_head": ("embed", "vocab"),
    "wq": ("embed", "heads", "head_dim"),
    "bq": ("heads", "head_dim"),
    "wk": ("embed", "kv_heads", "head_dim"),
    "bk": ("kv_heads", "head_dim"),
    "wv": ("embed", "kv_heads", "head_dim"),
    "bv": ("kv_heads", "head_dim"),
    "wo": ("heads", "head_dim", "embed"),
    "w_gate": ("embed", "ffn"),
    "w_up": ("embed", "ffn"),
    "w_down": ("ffn", "embed"),
    "norm_attn": ("embed",),
    "norm_ffn": ("embed",),
    "norm_out": ("embed",),
    "score_w1": ("embed", "score"),
    "score_b1": ("score",),
    "score_w2": ("score", "classes"),
    "score_b2": ("classes",),
}


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last axis, computed in float32, returned in the type of `x`."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return weight * x32.astype(x.dtype)


def rope_tables(positions: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary embedding, float32 [B, T, 1, H/2], for `positions` [B, T]."""
    half = config.head_dim // 2
    rate = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * rate
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding of `x` [B, T, heads, H] in the two-halves convention of Qwen2."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


OFF = np.float32(-1e30)  # added to the scores of slots that must not be seen


def _scores(q, k, mask):
    """[B, K, Q, C] scores in float32 of queries [B, K, Q, H] and keys [B, K, H, C]."""
    return jnp.einsum("bkqh,bkhc->bkqc", q, k, preferred_element_type=jnp.float32) + mask


def _mix(weight, v):
    """[B, K, Q, H] values [B, K, C, H] weighted by [B, K, Q, C]."""
    return jnp.einsum("bkqc,bkch->bkqh", weight.astype(v.dtype), v)


def attend(q, parts):
    """Grouped-query attention over several read-only buffers that share one softmax.

    A decode step so never copies its past to append one token to it.

    Args:
      q: [B, K, Q, H], scaled queries; Q = G*T, the G heads of a key-value head side by side.
      parts: (k [B, K, H, C], v [B, K, C, H], additive float32 mask, broadcastable to [B, K, Q, C])
        for each buffer.

    Returns:
      [B, K, Q, H].
    """
    scores = [_scores(q, k, mask) for k, _, mask in parts]
    top = functools.reduce(jnp.maximum, [x.max(axis=-1, keepdims=True) for x in scores])
    weights = [jnp.exp(x - jax.lax.stop_gradient(top)) for x in scores]
    total = sum(x.sum(axis=-1, keepdims=True) for x in weights)
    return (sum(_mix(x, v) for x, (_, v, _) in zip(weights, parts)) / total).astype(q.dtype)


def take_rows(past, index, start, size: int, axis: int):
    """Slots `start`, ... of some rows of a cache.

    Args:
      past: [slots, K, H, S] or [slots, K, S, H]. index: int [R], rows; clamped.
      start: int scalar. size: number of slots. axis: that of the slots, 3 or 2.

    Returns:
      [R, K, H, size] or [R, K, size, H].
    """
    single = past.shape[1] == 1
    if single:  # a gather with an axis of one is followed by a copy into another layout
        past, axis = past.reshape(past.shape[0], *past.shape[2:]), axis - 1
    shape = [1, *past.shape[1:]]
    shape[axis] = size

    def row(i):
        at = [jnp.int32(0)] * past.ndim
        at[0], at[axis] = i, start
        return jax.lax.dynamic_slice(past, at, shape)[0]

    rows = jax.vmap(row)(index)
    return rows[:, None] if single else rows


def attend_in_blocks(q, new, past_k, past_v, index, past_length, block: int):
    """`attend` to a chunk of tokens and its past, of which only the filled blocks are read.

    Args:
      q: as for `attend`. new: the part of the chunk itself.
      past_k, past_v: [slots, K, H, S], [slots, K, S, H]. index: int [B], the slot of each row; None:
        row b is slot b. past_length: int [B], real tokens.
      block: tokens a block.
    """
    size = past_k.shape[3]
    block = min(block, size)
    k, v, mask = new
    scores = _scores(q, k, mask)
    top = scores.max(axis=-1, keepdims=True)
    weight = jnp.exp(scores - top)
    state = top, weight.sum(axis=-1, keepdims=True), _mix(weight, v).astype(jnp.float32)

    def read(past, start, axis):
        if index is None:
            return jax.lax.dynamic_slice_in_dim(past, start, block, axis)
        return take_rows(past, index, start, block, axis)

    def add_block(i, state):
        top, total, out = state
        start = jnp.minimum(i * block, size - block)
        at = start + jnp.arange(block)
        seen = (at < past_length[:, None]) & (at >= i * block)  # the last block may overlap
        k, v = read(past_k, start, 3), read(past_v, start, 2)
        scores = _scores(q, k, jnp.where(seen, 0.0, OFF)[:, None, None, :])
        higher = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
        weight, shrink = jnp.exp(scores - higher), jnp.exp(top - higher)
        total = total * shrink + weight.sum(axis=-1, keepdims=True)
        return higher, total, out * shrink + _mix(weight, v)

    blocks = (past_length.max() + block - 1) // block
    _, total, out = jax.lax.fori_loop(0, blocks, add_block, state)
    return (out / total).astype(q.dtype)


def matmul(x: jax.Array, w: jax.Array, **kwargs) -> jax.Array:
    """`x` [B, T, D] times `w` [D, E], as one flat product.

    XLA's CPU backend runs the weight gradient of the flat form twice as fast as that of the
    batched one.
    """
    out = jnp.matmul(x.reshape(-1, x.shape[-1]), w, **kwargs)
    return out.reshape(*x.shape[:-1], w.shape[-1])


class Block(nn.Module):
    """One pre-norm transformer layer."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, cos, sin, attention):
        """`x` [B, T, D]; `attention(q, k, v)` looks at new and past tokens."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        init = nn.initializers.normal(0.02)
        # Residual branches start small, so depth does not inflate the residual stream.
        init_out = nn.initializers.normal(0.02 / (2 * c.layers) ** 0.5)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        p = lambda name, fn, *shape: self.param(name, fn, shape, dtype)  # noqa: E731
        D = c.width

        def project(y, name, heads):
            w = p(f"w{name}", init, D, heads, c.head_dim).reshape(D, heads * c.head_dim)
            b = p(f"b{name}", zeros, heads, c.head_dim).reshape(-1)
            return (matmul(y, w) + b).reshape(*y.shape[:2], heads, c.head_dim)

        y = rms_norm(x, p("norm_attn", ones, D), c.norm_eps)
        q = rotate(project(y, "q", c.heads), cos, sin) * c.head_dim**-0.5
        k = rotate(project(y, "k", c.kv_heads), cos, sin).transpose(0, 2, 3, 1)  # [B, K, H, T]
        v = project(y, "v", c.kv_heads).swapaxes(1, 2)  # [B, K, T, H]
        B, T = q.shape[:2]
        q = q.reshape(B, T, c.kv_heads, c.group, c.head_dim).transpose(0, 2, 3, 1, 4)
        out = attention(q.reshape(B, c.kv_heads, c.group * T, c.head_dim), k, v)
        out = out.reshape(B, c.kv_heads, c.group, T, c.head_dim).transpose(0, 3, 1, 2, 4)
        out = out.reshape(B, T, c.heads * c.head_dim)
        wo = p("wo", init_out, c.heads, c.head_dim, D).reshape(c.heads * c.head_dim, D)
        x = x + matmul(out, wo)

        y = rms_norm(x, p("norm_ffn", ones, D), c.norm_eps)
        gate = nn.silu(matmul(y, p("w_gate", init, D, c.ffn)))
        up = matmul(y, p("w_up", init, D, c.ffn))
        return x + matmul(gate * up, p("w_down", init_out, c.ffn, D))


class Qwen2(nn.Module):
    """Qwen2 with a language-model or a process-reward head.

    Call it through `model.apply({"params": params}, ...)`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        past: KV | None = None,
        past_length: jax.Array | None = None,
        side: KV | None = None,
        side_length: jax.Array | int = 0,
        block: int | None = None,
        past_rows: jax.Array | None = None,
        read_at: jax.Array | None = None,
    ) -> tuple[jax.Array, KV]:
        """Logits of `tokens`, and their keys and values.

        Row b's tokens stand at positions past_length[b] + side_length + (0..T-1): behind the first
        `past_length[b]` slots of `past` and the first `side_length` slots of `side`.

        Args:
          tokens: int [B, T].
          past: keys and values of the accepted prefix, read-only, slots 0..past_length-1 real.
          past_length: int [B]; needed with `past`.
          side: keys and values of tokens between `past` and `tokens`, read-only.
          side_length: int scalar, real slots of `side`, the same in every row.
          block: read the past in blocks of so many slots, as many as the longest row fills; with
            `past` only and no `side`. None: read all of it at once.
          past_rows: int [B], with `block` only: the rows of `past` that are those of `tokens`. None:
            all of them in order.
          read_at: int [B, R], the chunk positions whose logits are wanted; None means all of them.

        Returns:
          float32 logits [B, T or R, V] ("prm": [B, T or R, 2]) and the `KV` of `tokens`, T slots.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        B, T = tokens.shape
        embed = self.param("embed", nn.initializers.normal(0.02), (c.vocab, c.width), dtype)
        start = jnp.zeros([B], jnp.int32) if past_length is None else past_length
        positions = (start + side_length)[:, None] + jnp.arange(T)
        causal = jnp.arange(T) <= jnp.arange(T)[:, None]
        new_mask = jnp.tile(jnp.where(causal, 0.0, OFF), (c.group, 1))  # [G*T, T]
        if past is not None:
            real = jnp.arange(past.v[0].shape[2]) < past_length[:, None]
            past_mask = jnp.where(real, 0.0, OFF)[:, None, None, :]
        if side is not None:
            side_mask = jnp.where(jnp.arange(side.v[0].shape[2]) < side_length, 0.0, OFF)

        x = embed[tokens]
        cos, sin = rope_tables(positions, c)
        new = []
        for i in range(c.layers):

            def attention(q, k, v, i=i):
                new.append((k, v))
                if past is not None and block is not None:
                    here = (k, v, new_mask)
                    return attend_in_blocks(
                        q, here, past.k[i], past.v[i], past_rows, past_length, block
                    )
                parts = [(k, v, new_mask)]
                if side is not None:
                    parts.append((side.k[i], side.v[i], side_mask))
                if past is not None:
                    parts.append((past.k[i], past.v[i], past_mask))
                return attend(q, parts)

            x = Block(c, name=f"layer_{i}")(x, cos, sin, attention)
        if read_at is not None:
            x = jnp.take_along_axis(x, read_at[..., None], axis=1)
        x = rms_norm(
            x, self.param("norm_out", nn.initializers.ones, (c.width,), dtype), c.norm_eps
        )
        logits = self._head(x, embed)
        return logits, KV(*(tuple(part) for part in zip(*new)))

    def _head(self, x: jax.Array, embed: jax.Array) -> jax.Array:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        init = nn.initializers.normal(0.02)
        if c.head == "prm":
            # Qwen2.5-Math-PRM: Linear, ReLU, Linear to (wrong, right).
            x = nn.relu(
                x @ self.param("score_w1", init, (c.width, c.width), dtype)
                + self.param("score_b1", nn.initializers.zeros, (c.width,), dtype)
            )
            x = x @ self.param("score_w2", init, (c.width, 2), dtype)
            return (x + self.param("score_b2", nn.initializers.zeros, (2,), dtype)).astype(
                jnp.float32
            )
        w = embed.T if c.tied else self.param("lm_head", init, (c.width, c.vocab), dtype)
        return matmul(x, w, preferred_element_type=jnp.float32)


def untied(model: Qwen2, params: Any) -> tuple[Qwen2, Any]:
    """The same model for a loop that reads its head at every token.

    XLA's CPU backend packs the transposed embedding anew for every product, at several times the
    cost of the product with few rows. So that a loop does not, it is laid out once before it.
    """
    if not model.config.tied or model.config.head != "lm" or jax.default_backend() != "cpu":
        return model, params
    head = jax.lax.optimization_barrier(params["embed"].T)
    config = dataclasses.replace(model.config, tied=False)
    return Qwen2(config), {**params, "lm_head": head}


def init_params(config: ModelConfig, seed: int) -> dict:
    """Random parameters of a model, as a plain dict of arrays."""
    model = Qwen2(config)
    return model.init(jax.random.key(seed), jnp.zeros([1, 2], jnp.int32))["params"]
