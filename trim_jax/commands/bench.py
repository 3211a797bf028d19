"""`trim-jax bench`: speed and size, as ratios from one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from trim_jax import provenance
from trim_jax.bench import floor, footprint, throughput
from trim_jax.commands import setup
from trim_jax.errors import ResultError
from trim_jax.results import atomic_write, dumps
from trim_jax.tasks import prompts
from trim_jax.tasks.data import load_problems


def run(config: ConfigDict) -> dict[str, Any]:
    """Measure, print a table of each part, and keep bench.json up to date part by part.

    Returns:
      The content of bench.json: config, provenance, throughput (one entry a batch size, see
      `throughput.measure`), memory, and main_job where it was asked for.

    Raises:
      TrimError: the trio, the problems or the folder cannot be used.
    """
    out, settings = Path(config.out), config.bench
    largest = max(settings.batches)
    data = config.data
    problems = load_problems(data.source, data.split, settings.rounds * largest)
    trio = setup.load_models(config)
    prompts.check_prompts(
        trio.tokenizer, problems, data.instruction, config.engine.max_context
    )
    result: dict[str, Any] = {
        "config": config.to_dict(), "provenance": provenance.collect(trio.folders, problems)
    }  # fmt: skip
    _save(out, result)  # an unwritable folder is found now, not after minutes of measuring

    result["throughput"] = []
    for batch in settings.batches:
        measured = throughput.measure(config, trio, problems[: settings.rounds * batch], batch)
        result["throughput"].append(measured)
        _save(out, result)
        print(throughput.table([measured]), floor.table(measured["floor"]), sep="\n\n", end="\n\n")
    result["memory"] = memory = footprint.memory_growth(config)
    _save(out, result)
    print(f"peak memory: {memory['peak_mb']:.0f} MB after {memory['problems']} problems, "
          f"{memory['peak_mb_after_more']:.0f} MB after {memory['more_problems']} more "
          f"({memory['growth_mb']:+.1f} MB)")
    if settings.main_job:
        result["main_job"] = job = footprint.main_job(config)
        _save(out, result)
        print(f"main job: {job['seconds'] / 60:.2f} minutes, peak memory {job['peak_mb']:.0f} MB")
    print(f"bench.json: {out / 'bench.json'}")
    return result


def _save(out: Path, result: dict[str, Any]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(
            f"cannot make {out}: {error.strerror}; choose another folder with --config.out=FOLDER"
        ) from None
    atomic_write(out / "bench.json", [dumps(result, indent=2, sort_keys=True).encode() + b"\n"])
