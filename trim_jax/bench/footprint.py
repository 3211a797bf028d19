"""Memory and wall time, measured from outside: each in a fresh process of its own.

Peak memory is that of the process itself (VmHWM), not the `ru_maxrss` of a child, which on Linux
begins at the size of the parent that started it.
"""

from __future__ import annotations

import collections
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from trim_jax.config import to_json
from trim_jax.errors import TrimError

RUNS = 8  # after each of which memory is looked at
# What the children run; their last line of output is JSON.
_GROWTH = "from trim_jax.bench.footprint import growth_child; growth_child()"
_COMMAND = "from trim_jax.bench.footprint import command_child; command_child()"


def peak_megabytes(who: int = resource.RUSAGE_SELF) -> float:
    """Largest resident set so far, of this process or (RUSAGE_CHILDREN) of its largest child."""
    status = Path("/proc/self/status")
    if who == resource.RUSAGE_SELF and status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(who).ru_maxrss / unit


def memory_growth(config: ConfigDict) -> dict[str, Any]:
    """Peak memory of a process after each of several runs of as many problems, with other seeds.

    It rises in the first runs, until every buffer of the host has once been as full as it gets.

    Returns:
      {"problems": of each run, "peaks_mb": after each}.
    """
    return _child(_GROWTH, [], to_json(config))


def growth_child() -> None:
    """Route N problems a few times, and print the peaks; the config comes on stdin."""
    from trim_jax.bench import throughput
    from trim_jax.commands import setup
    from trim_jax.tasks.data import load_problems
    from trim_jax.xla import use_cores

    config = ConfigDict(json.load(sys.stdin))
    setup.enable_compilation_cache()
    use_cores()
    slots = config.engine.slots
    problems = load_problems(config.data.source, config.data.split, 2 * slots)
    trio = setup.load_models(config)
    engine = throughput.make_engine(config, trio, config.engine.rows, slots)
    peaks = []
    for seed in range(RUNS):
        asked = throughput.requests(config, trio, problems, seed)
        collections.deque(engine.run(asked), maxlen=0)
        peaks.append(peak_megabytes())
    print(json.dumps({"problems": len(problems), "peaks_mb": peaks}))


def main_job(config: ConfigDict) -> dict[str, float]:
    """`trim-jax sweep` with the trio of `config`, from nothing: no compiled program, no results.

    Returns:
      {"seconds": wall time from starting the process to its end, "peak_mb": of the process,
      "workers_peak_mb": of the largest of the processes that it started}.
    """
    with tempfile.TemporaryDirectory() as folder:
        trio = [f"--config.trio.{name}={path}" for name, path in config.trio.items() if path]
        return run_command(["sweep", f"--config.out={folder}/sweep", *trio], f"{folder}/cache")


def run_command(arguments: Sequence[str], cache: str) -> dict[str, float]:
    """Run `trim-jax` with `arguments` in a fresh process, compiled programs kept in `cache`.

    Returns:
      As `main_job`.

    Raises:
      TrimError: the command failed; it has said why on stderr.
    """
    begun = time.perf_counter()
    peaks = _child(_COMMAND, arguments, "", TRIM_JAX_CACHE=cache)
    return {"seconds": time.perf_counter() - begun, **peaks}


def command_child() -> None:
    """Run the command line in sys.argv, and print the peaks."""
    from trim_jax.cli import main

    status = main(sys.argv[1:])
    if status:
        sys.exit(status)
    workers = peak_megabytes(resource.RUSAGE_CHILDREN)
    print(json.dumps({"peak_mb": peak_megabytes(), "workers_peak_mb": workers}))


def _child(code: str, arguments: Sequence[str], stdin: str, **environment: str) -> dict[str, Any]:
    """Run Python code in a fresh process; what it says on stderr is seen, its last line is read."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], input=stdin, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    if done.returncode:
        raise TrimError(f"bench: the process that was measured failed, status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
