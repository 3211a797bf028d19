"""`trim-jax bench`: speed and size of routing and of the simulator, from one run."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from trim_jax import provenance
from trim_jax.bench import floor, footprint, sharing, throughput, torch_baseline
from trim_jax.commands import setup
from trim_jax.errors import ResultError
from trim_jax.results import atomic_write, dumps
from trim_jax.sim import speed
from trim_jax.tasks.data import load_problems


def run(config: ConfigDict) -> dict[str, Any]:
    """Measure, print a table of each part, and keep bench.json up to date part by part.

    Returns:
      The content of bench.json: config, provenance, and the parts asked for: throughput (one entry
      a batch size, see `throughput.measure`), memory, sharing (`sharing.measure`), simulator
      (`speed.measure`), main_job.

    Raises:
      TrimError: the trio, the problems or the folder cannot be used.
    """
    out, settings, data = Path(config.out), config.bench, config.data
    largest = max(settings.batches)
    problems = load_problems(data.source, data.split, settings.rounds * largest)
    result: dict[str, Any] = {"config": config.to_dict()}
    _save(out, result)  # an unwritable folder is found now, not after minutes of measuring

    def measure_parts(parts: dict[str, tuple[Callable, Callable]]) -> None:
        for part, (measure, table) in parts.items():
            if part in settings.parts:
                result[part] = measure(config)
                _save(out, result)
                print(table(result[part]), end="\n\n")

    measure_parts(_APART)
    trio = setup.load_models(config)
    setup.check_prompts(config, trio, problems)
    result["provenance"] = provenance.collect(trio.folders, problems)
    if torch_baseline.has_torch():
        result["provenance"]["versions"]["torch"] = importlib.metadata.version("torch")
    _save(out, result)
    if "throughput" in settings.parts:
        result["throughput"] = []
        for batch in settings.batches:
            measured = throughput.measure(config, trio, problems[: settings.rounds * batch], batch)
            result["throughput"].append(measured)
            _save(out, result)
            print(throughput.table([measured]), floor.table(measured["floor"]), sep="\n\n",
                  end="\n\n")  # fmt: skip
    measure_parts(_HERE)
    print(f"bench.json: {out / 'bench.json'}")
    return result


def _memory_table(memory: dict[str, Any]) -> str:
    peaks = ", ".join(f"{peak:.0f}" for peak in memory["peaks_mb"])
    return (f"peak memory after each of {len(memory['peaks_mb'])} runs of {memory['problems']} "
            f"problems: {peaks} MB")  # fmt: skip


def _job_table(job: dict[str, float]) -> str:
    return f"main job: {job['seconds'] / 60:.2f} minutes, peak memory {job['peak_mb']:.0f} MB"


# How each of the other parts is measured and shown. Those in a process of its own come before this
# one touches a device: a TPU serves one process only.
_APART = {
    "memory": (footprint.memory_growth, _memory_table),
    "main_job": (footprint.main_job, _job_table),
}
_HERE = {
    "sharing": (sharing.measure, sharing.table),
    "simulator": (lambda config: speed.measure(config.bench.repeats), speed.table),
}


def _save(out: Path, result: dict[str, Any]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(
            f"cannot make {out}: {error.strerror}; choose another folder with --config.out=FOLDER"
        ) from None
    atomic_write(out / "bench.json", [dumps(result, indent=2, sort_keys=True).encode() + b"\n"])
