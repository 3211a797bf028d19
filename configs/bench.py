"""Speed and size: routed throughput against transformers, the routed floor, memory.

    trim-jax bench

The two programs run the same weights on the same machine, in turns, and the best of the repeats
counts. Quote the ratios of one run; the rates themselves belong to the machine. Takes some minutes;
with `--config.bench.main_job=true` it also times `trim-jax sweep`.
"""

from ml_collections import ConfigDict

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """What routing needs, and what is repeated how often."""
    config = base.pick("out", "trio", "data", "sampling", "engine")
    config.out = "results/bench"
    # How many problems are routed follows from the settings below.
    del config.data["limit"]

    # What is measured.
    config.bench = ConfigDict()
    # Batch sizes: rows a model call works on. Each is run with as many solutions in flight, and
    # with eight times as many.
    config.bench.batches = (64, 8)
    # Problems of a run, in batches: at batch 64, 16 are 1,024 problems.
    config.bench.rounds = 16
    # Interleaved repeats of each program.
    config.bench.repeats = 5
    # The large model rewrites a step whose score is below this. At the default it writes 22 % of
    # the steps of the validation split with the shipped trio; 20 to 30 % are wanted.
    config.bench.threshold = 0.85
    # Also time the main job, the whole of `trim-jax sweep`, in a process of its own.
    config.bench.main_job = False
    return config


RANGES = {
    "bench.batches": (1, None),
    "bench.rounds": (1, None),
    "bench.repeats": (1, None),
    "bench.threshold": (0.0, 1.0),
}
