"""What one run for all thresholds saves: its wall time against that of a run for each of them.

Settings share every step on which they agree, so a sweep costs the distinct histories only. The
runs apart go through the same compiled program, with as many solutions in flight and without
compiling again, so the quotient is what the sharing alone saves.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from trim_jax import api
from trim_jax.commands import setup
from trim_jax.engine.engine import Cells, Engine, Request
from trim_jax.policies.simple import Threshold
from trim_jax.tasks.data import load_problems

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(21))
BATCHES = 4  # of problems


def measure(config: ConfigDict) -> dict[str, Any]:
    """Time the thresholds together and each alone, in turns; the best repeat of each counts.

    Returns:
      {"problems", "settings", "histories": distinct ones, "together": seconds of each repeat,
      "apart": likewise, of each setting, "ratio": best apart, summed, over best together}.
    """
    data, policy = config.data, Threshold(THRESHOLDS)
    problems = load_problems(data.source, data.split, BATCHES * config.engine.rows)
    trio = setup.load_models(config)
    engine = setup.make_engine(config, trio, [policy])
    asked = list(api.requests(trio, [policy], problems, (0,), data.instruction, data.prm_system))
    alone = [
        [dataclasses.replace(request, cells=(Cells(0, k, k + 1),)) for request in asked]
        for k in range(len(THRESHOLDS))
    ]
    _seconds(engine, asked)  # compile, and warm up
    together: list[float] = []
    apart: list[list[float]] = [[] for _ in alone]
    for _ in range(config.bench.repeats):
        together.append(_seconds(engine, asked))
        for seconds, requests in zip(apart, alone):
            seconds.append(_seconds(engine, requests))
    return {
        "problems": len(problems),
        "settings": len(THRESHOLDS),
        "histories": sum(1 for _ in engine.run(asked)),
        "together": together,
        "apart": apart,
        "ratio": sum(map(min, apart)) / min(together),
    }


def _seconds(engine: Engine, requests: Sequence[Request]) -> float:
    begun = time.perf_counter()
    collections.deque(engine.run(requests), maxlen=0)
    return time.perf_counter() - begun


def table(result: dict[str, Any]) -> str:
    """The figures, as text."""
    runs = result["problems"] * result["settings"]
    apart = sum(map(min, result["apart"]))
    return (f"{result['settings']} thresholds on {result['problems']} problems: {runs:,} runs have "
            f"{result['histories']:,} distinct histories; {min(result['together']):.1f} s in one "
            f"run, {apart:.1f} s in a run for each, {result['ratio']:.2f} times")  # fmt: skip
