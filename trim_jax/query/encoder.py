"""The BERT-style router: a small bidirectional transformer that reads the question.

As RouteLLM's BERT router it classifies a question as won by the large model, a tie, or won by the
small model. It is trained here from random weights, on nothing but the training questions.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from trim_jax.query.descent import HELD_OUT_PARTS, Descent, minimise
from trim_jax.query.outcomes import Outcomes, folds
from trim_jax.query.router import Fitted, Router, per_seed

_PIECE = re.compile(r"\\?[A-Za-z]+|\d|[^\sA-Za-z\d]")
_PAD, _UNKNOWN, _FIRST = 0, 1, 2


def build_vocabulary(texts: Sequence[str], size: int) -> dict[str, int]:
    """Ids of the most frequent pieces (words, single digits, marks) that occur at least twice."""
    counts = Counter(p for t in texts for p in _PIECE.findall(t.lower()))
    ranked = sorted((p for p, c in counts.items() if c > 1), key=lambda p: (-counts[p], p))
    return {p: i + _FIRST for i, p in enumerate(ranked[:size - _FIRST])}


def tokenize(texts: Sequence[str], vocabulary: Mapping[str, int], length: int) -> np.ndarray:
    """Ids int32 [N, length], padded with 0; of a longer text the first pieces."""
    out = np.full((len(texts), length), _PAD, np.int32)
    for row, text in enumerate(texts):
        ids = [vocabulary.get(p, _UNKNOWN) for p in _PIECE.findall(text.lower())[:length]]
        out[row, :len(ids)] = ids
    return out


class EncoderNet(nn.Module):
    """Pre-norm transformer encoder with a classifier on the mean of its outputs.

    tokens int32 [B, T] -> logits float32 [B, 3]: large wins, tie, small wins.
    """

    vocabulary: int
    layers: int
    width: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        real = tokens != _PAD  # [B, T]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        x = drop(x + self.param("positions", nn.initializers.normal(0.02),
                                (tokens.shape[1], self.width)))
        for _ in range(self.layers):
            y = nn.LayerNorm()(x)
            y = nn.MultiHeadDotProductAttention(self.heads, qkv_features=self.width)(
                y, y, mask=real[:, None, None, :])
            x = x + drop(y)
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + drop(nn.Dense(self.width)(y))
        x = jnp.where(real[..., None], nn.LayerNorm()(x), 0.0).sum(1)
        return nn.Dense(3)(drop(x / jnp.maximum(real.sum(1), 1)[:, None]))


def verdicts(outcomes: Outcomes) -> np.ndarray:
    """Shares of (large wins, tie, small wins) over the seeds of each question, float32 [N, 3]."""
    won = (outcomes.large_correct & ~outcomes.small_correct).mean(1)
    lost = (~outcomes.large_correct & outcomes.small_correct).mean(1)
    return np.stack([won, 1 - won - lost, lost], 1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Encoder(Router):
    """Scores a question by P(large wins) - P(small wins).

    Attributes:
      layers, width, heads, dropout: of the encoder.
      vocabulary: pieces kept, at most. length: pieces read, at most.
      learning_rates: candidates; chosen, like the epoch, by the held-out log loss.
    """

    name = "query-bert"
    layers: int = 2
    width: int = 32
    heads: int = 4
    dropout: float = 0.3
    vocabulary: int = 2000
    length: int = 128
    learning_rates: tuple[float, ...] = (3e-4, 1e-3)

    def fit(self, outcomes, key):
        vocabulary = build_vocabulary(outcomes.questions, self.vocabulary)
        tokens = tokenize(outcomes.questions, vocabulary, self.length)
        length = max(1, int((tokens != _PAD).sum(1).max()))  # no longer than the longest question
        data = {"tokens": tokens[:, :length], "verdict": verdicts(outcomes)}
        train, held = folds(len(outcomes), HELD_OUT_PARTS, key)[0]
        part = lambda rows: {k: v[rows] for k, v in data.items()}  # noqa: E731
        net = EncoderNet(len(vocabulary) + _FIRST, self.layers, self.width, self.heads,
                         self.dropout)
        start = net.init(jax.random.fold_in(key, 1), data["tokens"][:1], train=False)

        def loss(params, batch, key):
            logits = net.apply(params, batch["tokens"], train=key is not None,
                               rngs=None if key is None else {"dropout": key})
            return optax.softmax_cross_entropy(logits, batch["verdict"]).mean()

        found = {}
        for rate in self.learning_rates:
            found[rate] = minimise(loss, start, part(train), part(held),
                                   jax.random.fold_in(key, 2),
                                   Descent(rate, 0.1, epochs=20, patience=5, rows=32),
                                   f"{self.name}, learning rate {rate:g}")
        rate = min(found, key=lambda r: found[r][1])
        params, value, epoch = found[rate]
        return _FittedEncoder(
            name=self.name, reads=self.reads,
            chosen={"learning_rate": rate, "epoch": epoch, "held_out_loss": value},
            calibration=_scores(net, params, data["tokens"][held])[:, None], rows=held,
            is_gain=True, net=net, params=params, vocabulary=vocabulary, length=length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FittedEncoder(Fitted):
    net: EncoderNet
    params: Any
    vocabulary: Mapping[str, int]
    length: int

    def score(self, outcomes: Outcomes) -> np.ndarray:
        tokens = tokenize(outcomes.questions, self.vocabulary, self.length)
        return per_seed(_scores(self.net, self.params, tokens), outcomes)


def _scores(net: EncoderNet, params: Any, tokens: np.ndarray) -> np.ndarray:
    chance = jax.jit(lambda t: jax.nn.softmax(net.apply(params, t, train=False)))(tokens)
    return np.asarray(chance[:, 0] - chance[:, 2])
