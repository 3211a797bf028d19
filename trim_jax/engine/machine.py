"""The device side of an engine: the compiled loop, with its caches and weights on the mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trim_jax.engine import loop
from trim_jax.engine.loop import Carry, LoopConfig
from trim_jax.engine.rows import Rows
from trim_jax.sharding import ROWS, WHOLE, by_rows
from trim_jax.xla import loop_options, shared

TICKS = 48  # of the loop between two looks by the host, at most


class Seen(NamedTuple):
    """What the host looks at after a call, of all shards, end to end; see `Carry`.

    Arrays of the devices that every process can read whole, good until the next call.
    """

    phase: jax.Array
    head: jax.Array
    n_out: jax.Array
    work: jax.Array
    ticks: jax.Array


@shared
def programs(config: LoopConfig, mesh: Mesh | None) -> tuple[Callable, Callable]:
    """`loop.initial_carry` and `loop.run`, jitted.

    `config` is a skeleton: a second engine of the same shape, as every call of `trim_jax.route`
    makes one, compiles nothing, whatever its thresholds are.
    """
    init = functools.partial(loop.initial_carry, config)
    run = functools.partial(loop.run, config, max_ticks=TICKS)
    init, run = by_rows(init, mesh), by_rows(run, mesh, WHOLE, WHOLE, ROWS)
    return jax.jit(init), jax.jit(run, donate_argnums=2, compiler_options=loop_options())


class Machine:
    """One run of the loop at a time, on one device or a mesh.

    Where the mesh spans processes, all of them make the same calls in the same order; none of the
    methods waits for the devices, but for `out`.

    Attributes:
      params: of small, large and PRM, on the mesh. traced: settings and weights of the policies.
      init, run: the two programs.
    """

    def __init__(self, config: LoopConfig, params: tuple[Any, Any, Any], mesh: Mesh | None):
        self.config, self.params, self.mesh = config, params, mesh
        self.traced = self._replicated(config.traced)
        self._carry: Carry | None = None
        self.init, self.run = programs(config.skeleton, mesh)
        self._whole = lambda tree: tree
        if self._spans_processes:
            everywhere = NamedSharding(mesh, WHOLE)
            self._whole = jax.jit(lambda tree: tree, out_shardings=everywhere)

    def begin(self, fresh: bool) -> None:
        """Begin a run: with what the last one has left idle or, if `fresh`, with new caches."""
        if fresh:
            self._carry = None  # gives its memory back first
            self._carry = self.init()

    def call(self, rows: Rows, index: np.ndarray, tail: np.ndarray, more: bool) -> Seen:
        """Let the loop work until the host is needed.

        Args:
          rows: items, as NumPy arrays. index: int [shards * queue], which of them each place of
            the shards' queues holds. tail: int32 [shards], the end of each queue.
          more: whether the host has more items than these.
        """
        queue = jax.tree.map(lambda x: x[index], rows)
        placed = self._place((queue, tail, np.full(len(tail), more)), ROWS)
        carry = self.run(self.params, self.traced, loop.host_carry(self._carry, *placed))
        self._carry = carry
        return self._whole(Seen(carry.rows.phase, carry.head, carry.n_out, carry.work, carry.ticks))

    def out(self) -> Rows:
        """The records of all shards, [shards * out], as NumPy arrays."""
        return jax.device_get(self._whole(self._carry.out))

    def load_weights(self, policy: int, weights: Any) -> None:
        """Give a policy other weights, of the same shapes, for the runs that follow."""
        own = (self.traced[policy][0], self._replicated(weights))
        self.traced = (*self.traced[:policy], own, *self.traced[policy + 1 :])

    @property
    def _spans_processes(self) -> bool:
        return self.mesh is not None and self.mesh.is_multi_process

    def _replicated(self, tree: Any) -> Any:
        tree = jax.tree.map(jnp.asarray, tree)
        return self._place(tree, WHOLE) if self._spans_processes else tree

    def _place(self, tree: Any, spec: PartitionSpec) -> Any:
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        sharding = NamedSharding(self.mesh, spec)
        if not self._spans_processes:
            return jax.device_put(tree, sharding)

        # device_put would compare the values of all processes first, and NaN differs from NaN.
        def place(x) -> jax.Array:
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(place, tree)
