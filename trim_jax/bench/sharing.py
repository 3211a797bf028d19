"""What shared steps save: one run for all thresholds, runs for each of them with a store, without.

Settings share every step on which they agree, so a sweep costs the distinct histories only. The
runs apart go through the same compiled program, and each fills and drains its batches once, as it
would alone; with a store, each finds the steps of those before it. Tokens that were read and
written are counted beside the seconds: their quotient does not depend on the machine.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from trim_jax import api
from trim_jax.bench.throughput import Run, run_engine
from trim_jax.commands import setup
from trim_jax.engine.engine import Cells
from trim_jax.engine.rows import MODELS
from trim_jax.engine.store import StepStore
from trim_jax.policies.simple import Threshold
from trim_jax.tasks.data import load_problems

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(21))
BATCHES = 4  # as many problems as rows of a model call, so many times


def measure(config: ConfigDict) -> dict[str, Any]:
    """Time the thresholds together and each alone, in turns; the best repeat of each counts.

    Returns:
      {"problems", "settings", "histories": distinct ones, "together": seconds of each repeat,
      "apart", "kept": likewise, of each setting, without and with a store that is empty before the
      first, "known": seconds together where the store holds all, "ratio": best apart, summed, over
      best together, "kept_ratio": likewise over the best with a store, "tokens": of one repeat,
      together, apart and kept}.
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
    engine.store = StepStore(MODELS)
    run_engine(engine, asked[:1])
    together: list[float] = []
    known: list[float] = []
    apart: list[list[float]] = [[] for _ in alone]
    kept: list[list[float]] = [[] for _ in alone]
    for _ in tqdm(range(config.bench.repeats), desc="sharing", unit=" repeats"):
        engine.store = None
        joint, each = run_engine(engine, asked), [run_engine(engine, one) for one in alone]
        engine.store = StepStore(MODELS)
        stored = [run_engine(engine, one) for one in alone]
        together.append(joint.seconds)
        known.append(run_engine(engine, asked).seconds)
        for seconds, runs in ((apart, each), (kept, stored)):
            for mine, run in zip(seconds, runs):
                mine.append(run.seconds)
    return {
        "problems": len(problems),
        "settings": len(THRESHOLDS),
        "histories": len(joint.outcomes),
        "together": together,
        "apart": apart,
        "kept": kept,
        "known": known,
        "ratio": sum(map(min, apart)) / min(together),
        "kept_ratio": sum(map(min, apart)) / sum(map(min, kept)),
        "tokens": {
            "together": _tokens(joint), "apart": sum(map(_tokens, each)),
            "kept": sum(map(_tokens, stored)),
        },
    }


def _tokens(run: Run) -> int:
    """Read and written by the models."""
    return int(run.executed[:, 1].sum())


def table(result: dict[str, Any]) -> str:
    """The figures, as text."""
    runs = result["problems"] * result["settings"]
    tokens = result["tokens"]
    apart, kept = (sum(map(min, result[name])) for name in ("apart", "kept"))
    return (f"{result['settings']} thresholds on {result['problems']} problems: {runs:,} runs have "
            f"{result['histories']:,} distinct histories; {min(result['together']):.1f} s in one "
            f"run, {apart:.1f} s in a run for each, {result['ratio']:.2f} times; "
            f"{tokens['apart'] / tokens['together']:.2f} times the tokens. With a store of steps: "
            f"{kept:.1f} s in a run for each, {result['kept_ratio']:.2f} times less, and "
            f"{tokens['apart'] / tokens['kept']:.2f} times fewer tokens; "
            f"{min(result['known']):.1f} s in one run once all is known")  # fmt: skip
