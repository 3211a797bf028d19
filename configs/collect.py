"""Traces of training problems, for training policies and fitting the simulator.

    trim-jax collect
    trim-jax collect --config.collect.detours=12      # also both models' step after every text

TRIM-Thr at every threshold and random routing, forked, so that each distinct text is written once.
`trim-jax study` does the same for itself.
"""

from ml_collections import ConfigDict

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """2,000 problems of `policy_train`, one seed."""
    config = base.get_config()
    config.out = "results/arith-collected"
    config.store = "workdir/steps"
    config.seeds = (0,)
    config.data.split = "policy_train"
    config.data.limit = 2000
    del config["policy"]
    for name in ("oracle", "validation"):
        del config.sweep[name]

    # What is collected beside the sweep.
    config.collect = ConfigDict()
    # Solve each problem once more for each of so many first steps, with only that step written by
    # the large model: the traces then hold both models' step after every text of the small one.
    config.collect.detours = 0
    return config


RANGES = {"collect.detours": (0, None)}
