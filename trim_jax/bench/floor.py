"""The routed floor: how near the engine comes to models that never wait and never pad.

    floor = sum over kinds of work k of  used[k] / rate[k],     share = floor / wall time of the run

`used[k]` are the tokens that the engine read or wrote for a row (padding, idle rows and rows past
the end of their step do not count; a discarded draft does). `rate[k]` is what one of the engine's
own calls reaches, on all devices at once, when every slot of it does useful work: a full batch that
stands in its cache where it is needed, with room for a past of typical length and no more. The best
of the repeats counts, and they are interleaved with the runs that they are compared with.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from trim_jax.api import Trio
from trim_jax.bench.torch_baseline import Outcome
from trim_jax.commands import setup
from trim_jax.engine import loop, work
from trim_jax.engine.engine import EngineConfig, Request
from trim_jax.engine.rows import LARGE, PRM, SMALL, Rows, empty_rows
from trim_jax.engine.tokens import OVER, TokenTables
from trim_jax.engine.work import Tile
from trim_jax.models.qwen2 import Qwen2, empty_kv
from trim_jax.sharding import DATA, ROWS, WHOLE, by_rows

CALLS_A_ROUND = 3
# A past is rounded up to this many tokens.
ROUNDING = 32
MODEL_OF = {
    loop.CATCH_UP_SMALL: SMALL, loop.CATCH_UP_LARGE: LARGE, loop.SCORE: PRM,
    loop.DECODE_LARGE: LARGE, loop.DECODE_SMALL: SMALL,
}  # fmt: skip


def typical_past(asked: Sequence[Request], outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """Mean length of the text, and of the PRM's stream, over the beginnings of all steps."""
    prompts = {request.problem_id: request for request in asked}
    text, stream = [], []
    for outcome in outcomes:
        request, written = prompts[outcome.problem_id], 0
        for step in outcome.steps:
            text.append(len(request.prompt) + written)
            stream.append(len(request.prm_prompt) + written)
            written += len(step)
    return round(float(np.mean(text))), round(float(np.mean(stream)))


class Rates:
    """Best token rates of the five kinds of work at a full batch.

    Attributes:
      best: tokens per second by kind of work, in the order of `loop.WORK`; of all rounds so far.
      past: tokens before the new ones, by kind.
    """

    def __init__(self, config: ConfigDict, trio: Trio, rows: int, text: int, stream: int):
        """
        Args:
          rows: the full batch, as in `EngineConfig`.
          text, stream: typical past of the language models and of the PRM.
        """
        size = dataclasses.replace(setup.engine_config(config), rows=rows).shard(trio.mesh)
        self.best = [0.0] * len(loop.WORK)
        self.past = [stream if MODEL_OF[kind] == PRM else text for kind in range(len(loop.WORK))]
        self._calls = [
            _Call(config, trio, size, kind, past) for kind, past in enumerate(self.past)
        ]

    def measure(self) -> None:
        """One round: time every kind of work a few times, and keep the best."""
        for kind, call in enumerate(self._calls):
            fastest = min(call.seconds() for _ in range(CALLS_A_ROUND))
            self.best[kind] = max(self.best[kind], call.tokens / fastest)


class _Call:
    """One of the engine's calls, on every shard, on rows that all have work for the whole of it."""

    def __init__(self, config: ConfigDict, trio: Trio, size: EngineConfig, kind: int, past: int):
        shards = trio.mesh.shape[DATA] if trio.mesh else 1
        rows, which = size.rows, MODEL_OF[kind]
        decoding = kind in (loop.DECODE_SMALL, loop.DECODE_LARGE)
        chunk = size.decode_chunk if decoding else size.extend_chunk
        self.tokens = shards * rows * chunk
        self.params = trio.params[which]
        tile = Tile(rows, -(-past // ROUNDING) * ROUNDING, chunk)
        context = tile.past + chunk + 1  # decoding must not meet the end of the context
        every = jnp.arange(rows)

        def act(params, kv, at):
            taken = work.first(every >= 0, every, rows, smaller=0)
            args = Qwen2(trio.models[which]), params, kv, at, taken, lambda call, kv: call(tile, kv)
            if kind == loop.SCORE:
                _, kv, slots = work.score(*args, trio.tables.separator, chunk)
            elif decoding:
                _, kv, slots = work.decode(
                    *args, which, chunk, _endless(trio.tables), setup.sampling(config),
                    max_step_tokens=context,
                )  # fmt: skip
            else:
                _, kv, slots = work.catch_up(*args, which, chunk)
            return kv, slots[None]

        begin = lambda: (  # noqa: E731
            empty_kv(trio.models[which], rows, context),
            _rows_at(rows, past, 0 if decoding else chunk, context, config, trio),
        )
        self.kv, self.rows = jax.jit(by_rows(begin, trio.mesh))()
        self.run = jax.jit(by_rows(act, trio.mesh, WHOLE, ROWS, ROWS), donate_argnums=1)
        self.kv, slots = jax.block_until_ready(self.run(self.params, self.kv, self.rows))
        if slots.sum(axis=0).tolist() != [self.tokens, self.tokens]:
            raise AssertionError(f"a call of {loop.WORK[kind]} used {slots} of {self.tokens} slots")

    def seconds(self) -> float:
        begun = time.perf_counter()
        self.kv, _ = jax.block_until_ready(self.run(self.params, self.kv, self.rows))
        return time.perf_counter() - begun


def _rows_at(
    rows: int, past: int, unread: int, context: int, config: ConfigDict, trio: Trio
) -> Rows:
    """Rows whose models have read `past` tokens, and have `unread` more to read."""
    blank = empty_rows(rows, 1, context, context, config.engine.max_steps, False, ())
    text = np.full([rows, context], trio.tables.delimiter, np.int32)
    many = lambda n, *shape: np.full([rows, *shape], n, np.int32)  # noqa: E731
    row = blank.replace(
        tokens=text, prm_tokens=text, n_tokens=many(past + unread + 1), n_prm=many(past + unread),
        length=many(past, 3), covered=many(past, 3),
    )  # fmt: skip
    return jax.tree.map(jnp.asarray, row)


def _endless(tables: TokenTables) -> TokenTables:
    """Tables in which nothing ends a step."""
    going_on = np.where(tables.step_next == OVER, 0, tables.step_next)
    return dataclasses.replace(
        tables, step_next=going_on, is_eos=np.zeros_like(tables.is_eos)
    )


def account(
    executed: np.ndarray, wall: float, best: Sequence[float], past: Sequence[int]
) -> dict[str, Any]:
    """Hold a run against its floor.

    Args:
      executed: int [5, 3], slots, used slots and calls by kind of work. wall: seconds it took.
      best, past: of `Rates`.

    Returns:
      {"kinds": {kind: calls, slots, used, used_share, tokens_per_second, past, floor_seconds,
      padding_seconds}, "floor_seconds", "wall_seconds", "share"}. `padding_seconds` is what the
      slots without use would take at the same rate; what neither explains is time in smaller
      batches, longer pasts, moving rows, and bookkeeping.
    """
    kinds = {}
    for kind, name in enumerate(loop.WORK):
        slots, used, calls = (int(n) for n in executed[kind])
        rate = best[kind]
        kinds[name] = {
            "calls": calls,
            "slots": slots,
            "used": used,
            "used_share": used / max(slots, 1),
            "tokens_per_second": rate,
            "past": past[kind],
            "floor_seconds": used / rate,
            "padding_seconds": (slots - used) / rate,
        }
    total = sum(entry["floor_seconds"] for entry in kinds.values())
    return {
        "kinds": kinds, "floor_seconds": total, "wall_seconds": wall, "share": total / wall
    }  # fmt: skip


def table(account: dict[str, Any]) -> str:
    """The account as text."""
    lines = [
        f"{'routed floor':<16}{'calls':>8}{'slots':>10}{'used':>10}{'used/slots':>12}"
        f"{'best tok/s':>12}{'floor s':>10}{'padding s':>11}"
    ]
    for name, kind in account["kinds"].items():
        lines.append(
            f"{name:<16}{kind['calls']:>8}{kind['slots']:>10}{kind['used']:>10}"
            f"{kind['used_share']:>12.1%}{kind['tokens_per_second']:>12.0f}"
            f"{kind['floor_seconds']:>10.2f}{kind['padding_seconds']:>11.2f}"
        )
    padding = sum(kind["padding_seconds"] for kind in account["kinds"].values())
    lines.append(
        f"floor {account['floor_seconds']:.2f} s of {account['wall_seconds']:.2f} s: "
        f"{account['share']:.1%}; padding {padding:.2f} s, the rest "
        f"{account['wall_seconds'] - account['floor_seconds'] - padding:.2f} s"
    )
    return "\n".join(lines)
