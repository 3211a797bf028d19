"""Batches of similar length, in an order that depends on nothing but the seed and the step."""

from __future__ import annotations

import dataclasses
from typing import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Example:
    """One training sequence.

    Attributes:
      tokens: token ids, int32 [T + 1] for a language model (inputs and next tokens overlap).
      target: what is learned at each position, int32, aligned with `tokens`; see the loss.
      weight: float32, aligned with `target`; 0 where nothing is learned.
    """

    tokens: np.ndarray
    target: np.ndarray
    weight: np.ndarray


class LengthBuckets:
    """Examples grouped by length, padded to a multiple of `multiple`: few shapes, little padding.

    `batch(step)` is a pure function of (seed, step), so a resumed run sees the same data.
    """

    def __init__(self, examples: Sequence[Example], rows: int, seed: int, multiple: int = 32):
        self.examples, self.rows, self.seed, self.multiple = examples, rows, seed, multiple
        lengths = np.array([len(e.tokens) for e in examples])
        self.bucket = -(-lengths // multiple)
        self.batches_per_epoch = sum(
            int((self.bucket == b).sum()) // rows for b in np.unique(self.bucket)
        )
        if self.batches_per_epoch == 0:
            raise ValueError(f"{len(examples)} examples do not fill one batch of {rows} rows")
        self._epoch = -1
        self._order: list[np.ndarray] = []

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Arrays [rows, T] of batch `step`: tokens, target, weight."""
        epoch, index = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        chosen = self._order[index]
        length = int(self.bucket[chosen[0]]) * self.multiple
        out = {
            "tokens": np.zeros([self.rows, length], np.int32),
            "target": np.zeros([self.rows, length], np.int32),
            "weight": np.zeros([self.rows, length], np.float32),
        }
        for row, i in enumerate(chosen):
            example = self.examples[i]
            for name, array in out.items():
                value = getattr(example, name)
                array[row, : len(value)] = value
        return out

    def _shuffle(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.examples))
        batches = []
        for b in np.unique(self.bucket):
            members = order[self.bucket[order] == b]
            full = len(members) // self.rows * self.rows
            batches += list(members[:full].reshape(-1, self.rows))
        return [batches[i] for i in rng.permutation(len(batches))]
