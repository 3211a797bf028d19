"""The host's queues: balanced, first in first out, and what the devices are sent is a copy."""

import collections

import jax
import numpy as np

from trim_jax.engine.queues import Queues
from trim_jax.engine.rows import empty_rows

BLANK = jax.tree.map(lambda x: x[0], empty_rows(1, 1, 4, 4, 2, False, ()))


def rows(*items):
    """Rows that differ in their number, and in a field with an axis of its own."""
    number = lambda i: np.asarray(i, np.int32)  # noqa: E731
    return [BLANK.replace(item=number(i), tokens=np.full([4], i, np.int32)) for i in items]


def sent(queues, shards):
    """The numbers of the rows in each queue, as the devices see them; 0: nobody."""
    packed, index = queues.packed()
    places = jax.tree.map(lambda x: x[index], packed)
    assert (places.tokens == places.item[:, None]).all()
    return places.item.reshape(shards, -1).tolist()


def test_rows_are_dealt_to_the_shortest_queue_and_keep_their_order():
    queues = Queues(BLANK, shards=2, size=3)
    pending = collections.deque(rows(1, 2, 3))
    queues.deal(pending)
    assert not pending and sent(queues, 2) == [[1, 3, 0], [2, 0, 0]]
    pending.extend(rows(4, 5, 6, 7))
    queues.deal(pending)
    assert sent(queues, 2) == [[1, 3, 5], [2, 4, 6]]
    assert [int(row.item) for row in pending] == [7]  # both are full
    queues.drop(np.array([2, 1]))
    assert queues.waiting.tolist() == [1, 2] and sent(queues, 2) == [[5, 0, 0], [4, 6, 0]]
    queues.deal(pending)
    assert sent(queues, 2) == [[5, 7, 0], [4, 6, 0]]
    queues.drop(np.array([2, 2]))
    assert not queues.waiting.any() and sent(queues, 2) == [[0, 0, 0], [0, 0, 0]]


def test_what_was_packed_stays_as_it_is():
    queues = Queues(BLANK, shards=1, size=2)
    queues.deal(collections.deque(rows(1, 2)))
    packed, index = queues.packed()
    queues.drop(np.array([2]))
    queues.deal(collections.deque(rows(3, 4)))
    assert packed.item[index].tolist() == [1, 2]
