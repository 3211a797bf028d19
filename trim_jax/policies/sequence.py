"""TRIM-Seq: a causal transformer over the scores and lengths of all steps (method, section 2).

At step t it reads (r_1, c_1), ..., (r_{t-1}, c_{t-1}) of the steps that stood, and (r_t, c_t) of
the draft. A rewrite replaces its draft in that sequence, so in training a solution is read as two
streams: the steps that stood, causal, and the drafts, each of which sees the steps before it and
itself. While routing, each row keeps the keys and values of the steps that stood, and a decision
adds two tokens: the last step that stood, and the draft. Both give the same numbers.

The price joins behind the transformer only, where its last vector turns into logits and a value.
What a row keeps is therefore the same at every price: all of them can share it, and the transformer
runs once for all.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from trim_jax.policies import base
from trim_jax.policies.features import log_worth
from trim_jax.policies.learned import ActorCritic, Priced, choose, own_network


class Layer(nn.Module):
    """Pre-norm attention and feed-forward; the caller says what the keys and values are."""

    width: int
    heads: int

    def setup(self):
        self.norm, self.ffn_norm = nn.LayerNorm(), nn.LayerNorm()
        self.qkv = nn.Dense(3 * self.width)
        self.out = nn.Dense(self.width)
        self.up, self.down = nn.Dense(2 * self.width), nn.Dense(self.width)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys, values [..., T, D] of x [..., T, D]."""
        return tuple(jnp.split(self.qkv(self.norm(x)), 3, axis=-1))

    def finish(self, x, q, k, v, mask) -> jax.Array:
        """x, and what q [..., T, D] finds in k, v [..., S, D] where `mask` [..., T, S] allows."""
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)  # noqa: E731
        mask = mask[..., None, :, :]
        found = jax.nn.dot_product_attention(split(q), split(k), split(v), mask=mask)
        x = x + self.out(found.reshape(x.shape))
        return x + self.down(nn.gelu(self.up(self.ffn_norm(x))))


class SequenceNet(nn.Module):
    """Transformer over steps, `whole` or step by step (`advance`), and heads of its vectors."""

    layers: int = 2
    width: int = 64
    heads: int = 4

    def setup(self):
        self.embed = nn.Dense(self.width)
        self.blocks = [Layer(self.width, self.heads) for _ in range(self.layers)]
        self.norm = nn.LayerNorm()
        self.actor_critic = ActorCritic(self.width)

    def weigh(self, x: jax.Array, price: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [..., 2] and values [...] of vectors [..., D]; `price` [..., 1], or [..., 0]."""
        return self.actor_critic(jnp.concatenate([x, price], axis=-1))

    def evaluate(self, stood: jax.Array, drafts: jax.Array, price: jax.Array):
        """Logits [N, M, 2] and values [N, M] at every step of solutions; `price` [N, M, 1 or 0]."""
        return self.weigh(self.whole(stood, drafts), price)

    def whole(self, stood: jax.Array, drafts: jax.Array) -> jax.Array:
        """Vectors [N, M, D] of every draft of solutions.

        Args:
          stood, drafts: tokens [N, M, F] of the steps that stood and of the drafts.
        """
        M = stood.shape[1]
        steps = jnp.arange(M)
        before = steps[:, None] > steps  # [step, earlier step]
        same = jnp.eye(M, dtype=bool)
        mask = jnp.block([[before | same, jnp.zeros_like(same)], [before, same]])
        x = self.embed(jnp.concatenate([stood, drafts], axis=1))
        for block in self.blocks:
            q, k, v = block.project(x)
            x = block.finish(x, q, k, v, jnp.broadcast_to(mask, (len(x), 2 * M, 2 * M)))
        return self.norm(x[:, M:])

    def advance(
        self, kv: jax.Array, t: jax.Array, last: jax.Array, draft: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Vectors [B, D] of drafts, and the keys and values with the last step that stood.

        Args:
          kv: float32 [layers, 2, B, M, D], of the steps that stood before the last one.
          t: int32 [B], step in question. last: token [B, F] of step t-1 as it stood, ignored at
            t = 0. draft: token [B, F] of the draft of step t.
        """
        B, M = kv.shape[2:4]
        slots = jnp.arange(M)
        past = slots < t[:, None]  # [B, M]
        # The last step sees all that stood, itself included; the draft also sees itself.
        own = jnp.broadcast_to(jnp.array([False, True]), (B, 2))
        mask = jnp.concatenate([jnp.stack([past, past], axis=1), own[..., None]], axis=2)
        x = self.embed(jnp.stack([last, draft], axis=1))
        here = (slots == t[:, None] - 1)[..., None]  # [B, M, 1]; no slot at t = 0
        kept = []
        for block, (old_k, old_v) in zip(self.blocks, kv):
            q, k, v = block.project(x)
            all_k = jnp.where(here, k[:, :1], old_k)
            all_v = jnp.where(here, v[:, :1], old_v)
            kept.append(jnp.stack([all_k, all_v]))
            with_draft = lambda old, new: jnp.concatenate([old, new[:, 1:]], axis=1)  # noqa: E731
            x = block.finish(x, q, with_draft(all_k, k), with_draft(all_v, v), mask)
        return self.norm(x[:, 1]), jnp.stack(kept)


@flax.struct.dataclass
class Memory:
    """What a row carries between decisions.

    Attributes:
      kv: float32 [B, layers, 2, M, D], keys and values of the steps that stood.
      draft_tokens: int32 [B], of the last draft.
      large_tokens: int32 [B], at the last decision: what was added since is the rewrite's length.
    """

    kv: jax.Array
    draft_tokens: jax.Array
    large_tokens: jax.Array


@dataclasses.dataclass(frozen=True)
class Seq(Priced):
    """TRIM-Seq, with the same training as TRIM-Agg (`trim_jax.train.ppo`).

    Attributes:
      price: one network for all prices, whose heads see the price; otherwise one for each, as in
        the paper. Every leaf of `weights` has a leading axis of networks, of length 1 with `price`.
      max_steps: no solution is longer; the engine's `max_steps`.
      layers, width, heads: of the transformer (ours: the paper gives none).
      token_scale, step_scale: lengths and step numbers are divided by these.
    """

    name: ClassVar[str] = "seq"
    steps_alone: ClassVar[bool] = False
    price: bool = True
    max_steps: int = 30
    layers: int = 2
    width: int = 64
    heads: int = 4
    token_scale: float = 300.0
    step_scale: float = 30.0

    @property
    def networks(self) -> int:
        return 1 if self.price else len(self.settings)

    @property
    def longest(self) -> int:
        return self.max_steps

    @property
    def state_knows_dial(self) -> bool:
        return not self.price  # each network has keys and values of its own

    @property
    def network(self) -> SequenceNet:
        return SequenceNet(self.layers, self.width, self.heads)

    def token(self, score: jax.Array, tokens: jax.Array, t: jax.Array) -> jax.Array:
        """float32 [..., 3] of one step; an unscored one (NaN) counts as scored 1."""
        columns = [
            jnp.where(jnp.isnan(score), 1.0, score),
            tokens / self.token_scale,
            (t + 1) / self.step_scale,
        ]
        return jnp.stack([x.astype(jnp.float32) for x in jnp.broadcast_arrays(*columns)], axis=-1)

    def seen_price(self, worth: jax.Array) -> jax.Array:
        """float32 [..., 1], what the heads see of the price; [..., 0] where they see none."""
        return log_worth(worth)[..., None] if self.price else jnp.zeros([*worth.shape, 0])

    def init_weights(self, key: jax.Array) -> Any:
        """Parameters of one network, without the leading axis."""
        steps, price = jnp.zeros([1, 2, 3]), self.seen_price(jnp.ones([1, 2]))
        return self.network.init(key, steps, steps, price, method="evaluate")["params"]

    def seen(self, episodes: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What `evaluate` sees of `train.episodes.Episodes`: steps that stood and drafts, float32
        [N, M, 3], and prices."""
        t = jnp.arange(episodes.mask.shape[-1])
        stood = self.token(episodes.score, episodes.tokens, t)
        drafts = self.token(episodes.draft_score, episodes.draft_tokens, t)
        price = self.seen_price(jnp.broadcast_to(episodes.worth[..., None], episodes.mask.shape))
        return stood, drafts, price

    def evaluate(self, params: Any, seen: Any) -> tuple[jax.Array, jax.Array]:
        """Logits [N, M, 2] and values [N, M] of one network, of what is `seen` of solutions."""
        return self.network.apply({"params": params}, *seen, method="evaluate")

    def init(self, rows):
        zero = jnp.zeros([rows], jnp.int32)
        kv = jnp.zeros([rows, self.layers, 2, self.max_steps, self.width])
        return Memory(kv, zero, zero)

    def decide(self, dial, obs, state):
        rewritten = obs.large_tokens - state.large_tokens
        n_tokens = jnp.where(rewritten > 0, rewritten, state.draft_tokens)
        before = jnp.maximum(obs.t - 1, 0)
        score = jnp.take_along_axis(obs.scores, before[:, None], axis=1)[:, 0]
        last = self.token(score, n_tokens, before)
        draft = self.token(obs.draft_score, obs.draft_tokens, obs.t)
        kv = jnp.moveaxis(state.kv, 0, 2)

        def run(params):
            ask = functools.partial(self.network.apply, {"params": params})
            x, after = ask(kv, obs.t, last, draft, method="advance")
            logits, _ = ask(x, self.seen_price(dial), method="weigh")
            return logits, jnp.moveaxis(after, 2, 0)

        logits, after = jax.tree.map(
            lambda x: own_network(x, self.settings, dial), jax.vmap(run)(self.weights)
        )
        action = choose(logits, obs.uniform, self.explore)
        return action, Memory(after, obs.draft_tokens, obs.large_tokens)
