"""Embeddings of texts for the routers that compare questions.

An `Embedding` maps texts to vectors. Routers take an `Embedder`: it sees the training texts (never
their labels) and returns an embedding. The default, `TfIdf`, needs no download. A pretrained
encoder plugs in as `lambda texts: my_encoder`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Embedding = Callable[[Sequence[str]], np.ndarray]  # texts [N] -> float32 [N, D], rows of length 1
Embedder = Callable[[Sequence[str]], Embedding]

_PIECE = re.compile(r"\\?[a-z]+|\d+|[^\sa-z\d]")


def _features(text: str) -> Iterator[str]:
    """Words, pairs of words, and character 3- and 4-grams of the words of a text."""
    # A number counts by its number of digits: its value says nothing about other questions.
    pieces = ["0" * len(p) if p.isdigit() else p for p in _PIECE.findall(text.lower())]
    yield from pieces
    yield from map(" ".join, zip(pieces, pieces[1:]))
    for piece in pieces:
        word = f"<{piece}>"
        for n in (3, 4):
            yield from (f"#{word[i:i + n]}" for i in range(len(word) - n + 1))


@functools.lru_cache(maxsize=16384)  # several routers, and every fold, read the same texts
def _hashed(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Hash and count of each distinct feature of a text."""
    counts = Counter(_features(text))
    hashes = [zlib.crc32(feature.encode()) for feature in counts]
    return np.array(hashes, np.int64), np.array(list(counts.values()), np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)


@dataclasses.dataclass(frozen=True)
class TfIdf:
    """Hashed n-gram TF-IDF, projected on the leading singular vectors of the training texts.

    Attributes:
      buckets: features are hashed into so many.
      dim: singular vectors kept, at most.
    """

    buckets: int = 4096
    dim: int = 64

    def __call__(self, texts: Sequence[str]) -> Embedding:
        """Fits inverse document frequencies and projection on `texts`."""
        counts = self._counts(texts)
        idf = np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1.0
        weighted = unit(counts * idf)
        # Right singular vectors from the small Gram matrix: texts are fewer than buckets.
        values, left = np.linalg.eigh((weighted @ weighted.T).astype(np.float64))
        keep = np.argsort(values)[::-1][:self.dim]
        keep = keep[values[keep] > 1e-9]
        basis = weighted.T @ (left[:, keep] / np.sqrt(values[keep])).astype(np.float32)

        def embed(texts: Sequence[str]) -> np.ndarray:
            return unit(unit(self._counts(texts) * idf) @ basis).astype(np.float32)

        return embed

    def _counts(self, texts: Sequence[str]) -> np.ndarray:
        """1 + log of the count of each bucket's features, float32 [N, buckets]."""
        out = np.zeros((len(texts), self.buckets), np.float32)
        for row, text in enumerate(texts):
            hashes, counts = _hashed(text)
            np.add.at(out[row], hashes % self.buckets, 1.0 + np.log(counts))
        return out
