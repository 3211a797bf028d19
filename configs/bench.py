"""Routed throughput against the same loop in transformers and PyTorch, and the routed floor.

    trim-jax bench

The two programs run the same weights on the same machine, in turns, and the best of the repeats
counts. Quote the ratios of one run; the rates themselves belong to the machine.
"""

from ml_collections import ConfigDict

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """What routing needs, and what is repeated how often."""
    config = base.pick("out", "trio", "data", "sampling", "engine", "policy")
    config.out = "results/bench"

    # What is measured.
    config.bench = ConfigDict()
    # Batch sizes to measure.
    config.bench.batches = (64, 8)
    # Interleaved repeats of each program.
    config.bench.repeats = 5
    return config


RANGES = {"bench.batches": (1, None), "bench.repeats": (1, None)}
