"""The routed loop: one jitted program that keeps three models busy over many solutions.

Every slot is in a phase of its own. A tick runs the model with the most useful work waiting, on the
rows that wait for it, and then takes every row as far as it goes without a model. Finished rows go
to `out`, free slots are refilled from `queue`; no row waits for another, and the host is asked only
when one of the two has run dry or full.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.engine import rows as R
from trim_jax.engine import steps, work
from trim_jax.engine.rows import Rows, where
from trim_jax.engine.sampling import Sampling
from trim_jax.engine.tokens import TokenTables
from trim_jax.engine.work import Tile
from trim_jax.models.qwen2 import KV, ModelConfig, Qwen2, empty_kv
from trim_jax.policies.base import Policy

# Kinds of work, in the order of preference where two have equally full batches waiting.
CATCH_UP_SMALL, CATCH_UP_LARGE, SCORE, DECODE_LARGE, DECODE_SMALL = range(5)
WORK = ("catch_up_small", "catch_up_large", "score", "decode_large", "decode_small")


@dataclasses.dataclass(frozen=True, eq=False)
class LoopConfig:
    """Static settings of the loop, for one shard of the data axis.

    Attributes:
      models: configurations of small, large and PRM.
      policies: the policies of the run; a row names one by index.
      tables: token tables of the shared vocabulary.
      sampling: how tokens are drawn.
      slots: rows in flight. rows: rows a model call works on (at most `slots`; equal: masking, no
        gather). tail_rows: the smaller batch used when few rows wait.
      context: S. prm_context: P. max_steps: M. max_step_tokens: a step is cut there.
      decode_chunk: tokens a decode call writes at most. extend_chunk: tokens an extend call reads.
      past_sizes: numbers of cache slots that calls are compiled for, ascending; the last is S or P.
      queue, out: capacity of the two buffers.
      fork_reserve: slots that stay free of new problems, for forks.
    """

    models: tuple[ModelConfig, ModelConfig, ModelConfig]
    policies: tuple[Policy, ...]
    tables: TokenTables
    sampling: Sampling
    slots: int
    rows: int
    tail_rows: int
    context: int
    prm_context: int
    max_steps: int
    max_step_tokens: int
    decode_chunk: int
    extend_chunk: int
    past_sizes: tuple[int, ...]
    queue: int
    out: int
    fork_reserve: int

    @property
    def references(self) -> bool:
        return any(policy.needs_reference for policy in self.policies)

    def blank(self, rows: int) -> Rows:
        """`rows` free rows with the shapes of this run."""
        states = steps.initial_states(self.policies, rows)
        return R.empty_rows(
            rows, self.context, self.prm_context, self.max_steps, self.references, states
        )


@flax.struct.dataclass
class Carry:
    """State of the loop. Scalars are arrays [1], so that a mesh can hold one per data shard.

    Attributes:
      rows: the slots. kv: caches of small, large, PRM.
      queue: items; head, tail: int32 [1], the next one and the end.
      out: records; n_out: int32 [1].
      more: bool [1], the host has more items than the queue.
      work: int32 [1, 5, 3], per kind of work: slots executed, slots used, calls (in this run call).
      ticks: int32 [1].
    """

    rows: Rows
    kv: tuple[KV, KV, KV]
    queue: Rows
    head: jax.Array
    tail: jax.Array
    out: Rows
    n_out: jax.Array
    more: jax.Array
    work: jax.Array
    ticks: jax.Array


def when(condition: jax.Array, function: Callable[[Any], Any], value: Any) -> Any:
    """`function(value)` if `condition` else `value`.

    As a loop of at most one round: a conditional would copy the caches, a loop works in place.
    """
    once = lambda c: (jnp.zeros_like(condition), function(c[1]))  # noqa: E731
    return jax.lax.while_loop(lambda c: c[0], once, (condition, value))[1]


def initial_carry(config: LoopConfig) -> Carry:
    """An idle loop; call it inside jit, so the caches are born where they live."""
    c = config
    zero = jnp.zeros([1], jnp.int32)
    sizes = (c.context, c.context, c.prm_context)
    return Carry(
        rows=jax.tree.map(jnp.asarray, c.blank(c.slots)),
        kv=tuple(empty_kv(m, c.slots, size) for m, size in zip(c.models, sizes)),
        queue=jax.tree.map(jnp.asarray, c.blank(c.queue)),
        head=zero, tail=zero,
        out=jax.tree.map(jnp.asarray, c.blank(c.out)),
        n_out=zero,
        more=jnp.zeros([1], bool),
        work=jnp.zeros([1, len(WORK), 3], jnp.int32),
        ticks=zero,
    )  # fmt: skip


def run(config: LoopConfig, params: tuple[Any, Any, Any], carry: Carry, max_ticks: int) -> Carry:
    """Work until the host is needed: queue dry with more to come, `out` nearly full, or all done."""
    carry = carry.replace(
        head=jnp.zeros_like(carry.head), n_out=jnp.zeros_like(carry.n_out),
        work=jnp.zeros_like(carry.work), ticks=jnp.zeros_like(carry.ticks),
    )  # fmt: skip

    def go_on(c: Carry) -> jax.Array:
        free = (c.rows.phase == R.FREE).sum()
        queued = c.tail[0] > c.head[0]
        # Refill early only if slots would stand idle for want of items.
        starved = c.more[0] & ~queued & (free > config.fork_reserve + config.rows // 2)
        room = config.out - c.n_out[0] >= 2 * config.slots
        alive = (free < config.slots) | queued
        return alive & room & ~starved & (c.ticks[0] < max_ticks)

    return jax.lax.while_loop(go_on, lambda c: _tick(config, params, c), carry)


def _tick(config: LoopConfig, params, carry: Carry) -> Carry:
    carry = _settle(config, carry)
    waiting = _waiting(carry.rows)
    full = jnp.minimum(waiting.sum(axis=1), config.rows)  # [5]
    chosen = jnp.argmax(full)
    carry = carry.replace(ticks=carry.ticks + 1)
    for kind in range(len(WORK)):
        index = min(kind % 3, 2) if kind < 3 else (R.LARGE if kind == DECODE_LARGE else R.SMALL)
        length = carry.rows.length[:, index]
        here = (chosen == kind) & (full[kind] > 0)
        many = full[kind] > config.tail_rows
        longest = jnp.where(waiting[kind], length, 0).max()
        end = config.prm_context if index == R.PRM else config.context
        sizes = [size for size in config.past_sizes if size < end] + [end]
        for rows in sorted({config.tail_rows, config.rows}):
            fits_rows = (many == (rows == config.rows)) | (config.tail_rows == config.rows)
            for below, size in zip([-1] + sizes, sizes):
                fits = here & fits_rows & (longest > below) & (longest <= size)
                do = lambda c, t=Tile(rows, size), k=kind, m=index: _work(  # noqa: E731
                    config, params, c, waiting[k], k, m, t
                )
                carry = when(fits, do, carry)
    return carry


def _waiting(rows: Rows) -> jax.Array:
    """bool [5, B]: the rows that wait for each kind of work."""
    drafting, writing = rows.phase == R.DRAFTING, rows.phase == R.WRITING
    behind = rows.length[:, :2] < rows.n_text[:, None] - 1
    return jnp.stack(
        [
            drafting & behind[:, R.SMALL],
            writing & behind[:, R.LARGE],
            rows.phase == R.SCORING,
            writing & ~behind[:, R.LARGE],
            drafting & ~behind[:, R.SMALL],
        ]
    )


def _work(config: LoopConfig, params, carry: Carry, mask, kind: int, index: int, tile: Tile) -> Carry:
    model, own, kv = Qwen2(config.models[index]), params[index], carry.kv[index]
    if kind in (CATCH_UP_SMALL, CATCH_UP_LARGE):
        rows, kv, slots = work.catch_up(
            model, own, kv, carry.rows, mask, index, tile, config.extend_chunk
        )
    elif kind == SCORE:
        rows, kv, slots = work.score(
            model, own, kv, carry.rows, mask, config.tables.separator, tile, config.extend_chunk
        )
    else:
        rows, kv, slots = work.decode(
            model, own, kv, carry.rows, mask, index, tile, config.decode_chunk,
            config.tables, config.sampling, config.max_step_tokens,
        )  # fmt: skip
    counted = jnp.concatenate([slots, jnp.ones([1], slots.dtype)]).astype(jnp.int32)
    return carry.replace(
        rows=rows,
        kv=tuple(kv if i == index else old for i, old in enumerate(carry.kv)),
        work=carry.work.at[0, kind].add(counted),
    )


def _settle(config: LoopConfig, carry: Carry) -> Carry:
    """Take every row as far as it goes without a model."""
    rows = steps.finish_drafts(carry.rows, config.tables)
    carry = carry.replace(rows=steps.decide(rows, config.policies))
    forking = lambda c: (c.rows.phase == R.FORK_ACCEPT) | (c.rows.phase == R.FORK_DRAFT)  # noqa: E731
    carry = jax.lax.while_loop(lambda c: forking(c).any(), lambda c: _fork(c, forking(c)), carry)
    rows = steps.commit(steps.reject(carry.rows), config.tables)
    carry = carry.replace(rows=rows)
    carry = when((rows.phase == R.DONE).any(), _emit, carry)
    free = (carry.rows.phase == R.FREE).sum()
    fits = (carry.tail[0] > carry.head[0]) & (free > config.fork_reserve)
    carry = when(fits, lambda c: _admit(c, config.fork_reserve), carry)
    return carry.replace(rows=steps.plan(carry.rows, config.policies))


def _fork(carry: Carry, forking: jax.Array) -> Carry:
    """Part one row: settings below `cut` stay, the others move to a free slot or out to the queue."""
    rows = carry.rows
    parent = jnp.argmax(forking)
    free = rows.phase == R.FREE
    child = jnp.where(free.any(), jnp.argmax(free), rows.phase.shape[0])
    one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, parent, keepdims=False), rows)
    before = one.phase == R.FORK_DRAFT
    low = jnp.where(before, R.DRAFTING, R.ACCEPTED)
    high = jnp.where(before, R.WRITING, R.REJECTED)
    moved = one.replace(lo=one.cut, phase=high, spilled=~free.any())
    put = lambda full, value, at: full.at[at].set(value, mode="drop")  # noqa: E731
    rows = rows.replace(
        hi=rows.hi.at[parent].set(one.cut), phase=rows.phase.at[parent].set(low)
    )
    rows = jax.tree.map(lambda full, value: put(full, value, child), rows, moved)
    out_at = jnp.where(free.any(), carry.out.phase.shape[0], carry.n_out[0])
    out = jax.tree.map(lambda full, value: put(full, value, out_at), carry.out, moved)

    def copy_row(full):
        row = jax.lax.dynamic_index_in_dim(full, parent, keepdims=False)
        return put(full, row, child)

    return carry.replace(
        rows=rows, out=out, n_out=carry.n_out + ~free.any(), kv=jax.tree.map(copy_row, carry.kv)
    )


def _emit(carry: Carry) -> Carry:
    """DONE rows go to `out`, their slots are free."""
    done = carry.rows.phase == R.DONE
    size = carry.out.phase.shape[0]
    at = jnp.where(done, carry.n_out[0] + jnp.cumsum(done) - 1, size)
    out = jax.tree.map(lambda o, x: o.at[at].set(x, mode="drop"), carry.out, carry.rows)
    rows = carry.rows.replace(phase=jnp.where(done, R.FREE, carry.rows.phase))
    return carry.replace(rows=rows, out=out, n_out=carry.n_out + done.sum())


def _admit(carry: Carry, reserve: int) -> Carry:
    """Free slots beyond the reserve take the next items of the queue."""
    free = carry.rows.phase == R.FREE
    rank = jnp.cumsum(free) - 1
    ready = jnp.minimum(carry.tail[0] - carry.head[0], free.sum() - reserve)
    take = free & (rank < ready)
    at = jnp.clip(carry.head[0] + rank, 0, carry.queue.phase.shape[0] - 1)
    items = jax.tree.map(lambda x: x[at], carry.queue)
    return carry.replace(
        rows=where(take, items, carry.rows), head=carry.head + jnp.maximum(ready, 0)
    )


def host_carry(carry: Carry, queue: Rows, tail: np.ndarray, more: np.ndarray) -> Carry:
    """The carry with a new queue from the host."""
    return carry.replace(queue=queue, tail=tail, more=more)
