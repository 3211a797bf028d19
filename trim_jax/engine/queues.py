"""Items that wait for a slot, on the host: one queue for each shard of the data axis."""

from __future__ import annotations

import collections

import jax
import numpy as np

from trim_jax.engine.rows import Rows


class Queues:
    """Rows in the arrays that the devices are sent, so that each is copied into them once.

    Attributes:
      waiting: int [shards], rows in each queue.
    """

    def __init__(self, blank: Rows, shards: int, size: int):
        """
        Args:
          blank: a free row, without a leading axis. size: rows that a queue has room for.
        """
        self._blank, self._size = blank, size
        room = lambda x: np.empty([shards, size, *x.shape], x.dtype)  # noqa: E731
        self._rows = jax.tree.map(room, blank)
        self.waiting = np.zeros([shards], np.int32)

    def deal(self, pending: collections.deque[Rows]) -> None:
        """Take rows from the left of `pending` while there is room, each into the shortest queue."""
        fields = jax.tree.leaves(self._rows)
        while pending and self.waiting.min() < self._size:
            shard = int(self.waiting.argmin())
            row = jax.tree.leaves(pending.popleft())
            for field, value in zip(fields, row, strict=True):
                field[shard, self.waiting[shard]] = value
            self.waiting[shard] += 1

    def drop(self, heads: np.ndarray) -> None:
        """The first `heads` [shards] rows of each queue have left it."""
        for shard, (head, end) in enumerate(zip(heads, self.waiting)):
            for field in jax.tree.leaves(self._rows):
                field[shard, : end - head] = field[shard, head:end]
        self.waiting -= heads

    def packed(self) -> tuple[Rows, np.ndarray]:
        """A copy of the rows that wait, end to end behind a blank one, and which of them stand at
        each place of the queues, int [shards * size].
        """
        waiting, ends = self.waiting, np.cumsum(self.waiting)
        place = np.arange(self._size)
        begins = 1 + ends - waiting
        index = np.where(place < waiting[:, None], begins[:, None] + place, 0)

        def pack(blank: np.ndarray, field: np.ndarray) -> np.ndarray:
            return np.concatenate([blank[None], *(own[:n] for own, n in zip(field, waiting))])

        return jax.tree.map(pack, self._blank, self._rows), index.reshape(-1)
