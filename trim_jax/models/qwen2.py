"""Qwen2 as one Flax module: transformer body, language-model head, process-reward head.

The module holds parameters only. Keys and values of past tokens come in and go out as explicit
arrays (`KV`), so one method, `__call__`, serves training (no past), `extend` (a chunk of tokens
behind a ragged past) and decoding (one token behind a past and a side buffer).

Axis letters (design notation): B batch, T query length, S cache length, C side-buffer length,
D model width, F feed-forward width, N query heads, K key-value heads, G = N / K, H head width,
V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


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
      k: L arrays [B, K, S, H], rotary embedding applied.
      v: L arrays [B, K, S, H].
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


def empty_kv(config: ModelConfig, rows: int, length: int) -> KV:
    """A zeroed `KV` for `rows` rows of `length` tokens."""
    shape = (rows, config.kv_heads, length, config.head_dim)
    blank = lambda: tuple(jnp.zeros(shape, config.dtype) for _ in range(config.layers))  # noqa: E731
    return KV(blank(), blank())


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


def attend(q, past_k, past_v, past_mask, new_k, new_v, new_mask):
    """Grouped-query attention over a read-only past and the tokens of this call.

    The two parts stay apart (their scores share one softmax), so a decode step never copies the
    past to append one token to it.

    Args:
      q: [B, K, G*T, H], scaled queries; the G query heads of a key-value head side by side.
      past_k, past_v: [B, K, S, H], or None when there is no past.
      past_mask: [B, 1, 1, S] additive float32.
      new_k, new_v: [B, K, C, H].
      new_mask: additive float32, broadcastable to [B, K, G*T, C].

    Returns:
      [B, K, G*T, H].
    """
    contract = lambda x, y: jnp.einsum(  # noqa: E731
        "bkqh,bkch->bkqc", x, y, preferred_element_type=jnp.float32
    )
    mix = lambda p, y: jnp.einsum("bkqc,bkch->bkqh", p.astype(y.dtype), y)  # noqa: E731
    scores = contract(q, new_k) + new_mask
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    if past_k is None:
        weight = jnp.exp(scores - top)
        return (mix(weight, new_v) / weight.sum(axis=-1, keepdims=True)).astype(q.dtype)
    past_scores = contract(q, past_k) + past_mask
    top = jnp.maximum(top, past_scores.max(axis=-1, keepdims=True))
    weight, past_weight = jnp.exp(scores - top), jnp.exp(past_scores - top)
    total = weight.sum(axis=-1, keepdims=True) + past_weight.sum(axis=-1, keepdims=True)
    return ((mix(weight, new_v) + mix(past_weight, past_v)) / total).astype(q.dtype)


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
    def __call__(self, x, cos, sin, past, past_mask, side, side_at, new_mask):
        c = self.config
        dtype = jnp.dtype(c.dtype)
        init = nn.initializers.normal(0.02)
        # Residual branches start small, so depth does not inflate the residual stream.
        init_out = nn.initializers.normal(0.02 / (2 * c.layers) ** 0.5)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        p = lambda name, fn, *shape: self.param(name, fn, shape, dtype)  # noqa: E731
        B, T, D = x.shape

        def project(y, name, heads):
            w = p(f"w{name}", init, D, heads, c.head_dim).reshape(D, heads * c.head_dim)
            b = p(f"b{name}", zeros, heads, c.head_dim).reshape(-1)
            return (matmul(y, w) + b).reshape(B, T, heads, c.head_dim)

        y = rms_norm(x, p("norm_attn", ones, D), c.norm_eps)
        q = rotate(project(y, "q", c.heads), cos, sin) * c.head_dim**-0.5
        k = rotate(project(y, "k", c.kv_heads), cos, sin).swapaxes(1, 2)  # [B, K, T, H]
        v = project(y, "v", c.kv_heads).swapaxes(1, 2)
        if side is not None:
            at = (0, 0, side_at, 0)
            k = jax.lax.dynamic_update_slice(side[0], k, at)
            v = jax.lax.dynamic_update_slice(side[1], v, at)
        q = q.reshape(B, T, c.kv_heads, c.group, c.head_dim).transpose(0, 2, 3, 1, 4)
        q = q.reshape(B, c.kv_heads, c.group * T, c.head_dim)
        past_k, past_v = past if past is not None else (None, None)
        out = attend(q, past_k, past_v, past_mask, k, v, new_mask)
        out = out.reshape(B, c.kv_heads, c.group, T, c.head_dim).transpose(0, 3, 1, 2, 4)
        wo = p("wo", init_out, c.heads, c.head_dim, D).reshape(c.heads * c.head_dim, D)
        x = x + matmul(out.reshape(B, T, -1), wo)

        y = rms_norm(x, p("norm_ffn", ones, D), c.norm_eps)
        gate = nn.silu(matmul(y, p("w_gate", init, D, c.ffn)))
        up = matmul(y, p("w_up", init, D, c.ffn))
        return x + matmul(gate * up, p("w_down", init_out, c.ffn, D)), (k, v)


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
        side_at: jax.Array | int = 0,
        read_at: jax.Array | None = None,
    ) -> tuple[jax.Array, KV]:
        """Logits of `tokens`, and their keys and values.

        Row b's tokens stand at positions past_length[b] + side_at + (0..T-1): behind the first
        `past_length[b]` slots of `past` and the first `side_at` slots of `side`.

        Args:
          tokens: int [B, T].
          past: keys and values of the accepted prefix, read-only, slots 0..past_length-1 real.
          past_length: int [B]; needed with `past`.
          side: side buffer of C slots that the new keys and values are written into at `side_at`;
            None means a fresh one of C = T.
          side_at: int scalar, first free slot of the side buffer.
          read_at: int [B, R], the chunk positions whose logits are wanted; None means all of them.

        Returns:
          float32 logits [B, T or R, V] ("prm": [B, T or R, 2]) and the side buffer, `KV` of C slots.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        B, T = tokens.shape
        embed = self.param("embed", nn.initializers.normal(0.02), (c.vocab, c.width), dtype)
        start = jnp.zeros([B], jnp.int32) if past_length is None else past_length
        cos, sin = rope_tables((start + side_at)[:, None] + jnp.arange(T), c)

        slots = T if side is None else side.k[0].shape[2]
        seen = jnp.arange(slots) <= side_at + jnp.arange(T)[:, None]  # [T, C], causal
        off = jnp.float32(-1e30)
        new_mask = jnp.tile(jnp.where(seen, 0.0, off), (c.group, 1))  # [G*T, C]
        past_mask = None
        if past is not None:
            real = jnp.arange(past.k[0].shape[2]) < past_length[:, None]
            past_mask = jnp.where(real, 0.0, off)[:, None, None, :]

        x = embed[tokens]
        new = []
        for i in range(c.layers):
            layer_past = None if past is None else (past.k[i], past.v[i])
            layer_side = None if side is None else (side.k[i], side.v[i])
            x, kv = Block(c, name=f"layer_{i}")(
                x, cos, sin, layer_past, past_mask, layer_side, side_at, new_mask
            )
            new.append(kv)
        if read_at is not None:
            x = jnp.take_along_axis(x, read_at[..., None], axis=1)
        x = rms_norm(
            x, self.param("norm_out", nn.initializers.ones, (c.width,), dtype), c.norm_eps
        )
        return self._head(x, embed), KV(*(tuple(part) for part in zip(*new)))

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


def init_params(config: ModelConfig, seed: int) -> dict:
    """Random parameters of a model, as a plain dict of arrays."""
    model = Qwen2(config)
    return model.init(jax.random.key(seed), jnp.zeros([1, 2], jnp.int32))["params"]
