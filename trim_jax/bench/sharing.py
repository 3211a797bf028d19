"""What one run for all thresholds saves: its wall time against that of a run for each of them.

Settings share every step on which they agree, so a sweep costs the distinct histories only. The
runs apart go through the same compiled program, and each fills and drains its batches once, as it
would alone. Tokens that were read and written are counted beside the seconds: their quotient does
not depend on the machine.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from trim_jax import api
from trim_jax.bench.throughput import Run, run_engine
from trim_jax.commands import setup
from trim_jax.engine.engine import Cells
from trim_jax.policies.simple import Threshold
from trim_jax.tasks.data import load_problems

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(21))
BATCHES = 4  # as many problems as rows of a model call, so many times


def measure(config: ConfigDict) -> dict[str, Any]:
    """Time the thresholds together and each alone, in turns; the best repeat of each counts.

    Returns:
      {"problems", "settings", "histories": distinct ones, "together": seconds of each repeat,
      "apart": likewise, of each setting, "ratio": best apart, summed, over best together, "tokens":
      of one repeat, together and apart}.
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
    run_engine(engine, asked)  # compile, and warm up
    together: list[float] = []
    apart: list[list[float]] = [[] for _ in alone]
    for _ in range(config.bench.repeats):
        joint, each = run_engine(engine, asked), [run_engine(engine, one) for one in alone]
        together.append(joint.seconds)
        for known, run in zip(apart, each):
            known.append(run.seconds)
    return {
        "problems": len(problems),
        "settings": len(THRESHOLDS),
        "histories": len(joint.outcomes),
        "together": together,
        "apart": apart,
        "ratio": sum(map(min, apart)) / min(together),
        "tokens": {"together": _tokens(joint), "apart": sum(map(_tokens, each))},
    }


def _tokens(run: Run) -> int:
    """Read and written by the models."""
    return int(run.executed[:, 1].sum())


def table(result: dict[str, Any]) -> str:
    """The figures, as text."""
    runs = result["problems"] * result["settings"]
    apart, tokens = sum(map(min, result["apart"])), result["tokens"]
    return (f"{result['settings']} thresholds on {result['problems']} problems: {runs:,} runs have "
            f"{result['histories']:,} distinct histories; {min(result['together']):.1f} s in one "
            f"run, {apart:.1f} s in a run for each, {result['ratio']:.2f} times; "
            f"{tokens['apart'] / tokens['together']:.2f} times the tokens")  # fmt: skip
