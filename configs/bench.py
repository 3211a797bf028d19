"""Speed and size: against transformers, the routed floor, memory, shared steps, the simulator.

    trim-jax bench
    trim-jax bench --config.bench.parts=simulator       # its steps a second alone, some seconds

The two programs run the same weights on the same machine, in turns, and the best of the repeats
counts. Quote the ratios of one run; the rates themselves belong to the machine. Each part takes some
minutes.
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
    # Which parts: throughput (with the floor), memory, sharing, which times all thresholds in one
    # run against a run for each, with a store of steps and without, simulator, and main_job, which
    # times the whole of `trim-jax sweep` in a process of its own.
    config.bench.parts = ("throughput", "memory", "sharing", "simulator")
    # Batch sizes: rows a model call works on. Each is run with as many solutions in flight, and
    # with eight times as many.
    config.bench.batches = (64, 8)
    # Problems of a run, in batches: at batch 64, 16 are 1,024 problems.
    config.bench.rounds = 16
    # Interleaved repeats of each program, of a run together and apart, and of each of the
    # simulator's two.
    config.bench.repeats = 5
    # The large model rewrites a step whose score is below this. At the default it writes 22 % of
    # the steps of the validation split with the shipped trio; 20 to 30 % are wanted.
    config.bench.threshold = 0.85
    return config


RANGES = {
    "bench.batches": (1, None),
    "bench.rounds": (1, None),
    "bench.repeats": (1, None),
    "bench.threshold": (0.0, 1.0),
}

CHOICES = {"bench.parts": ("throughput", "memory", "sharing", "simulator", "main_job")}
