"""Trains the large language model of the shipped trio.

    trim-jax train-lm --config configs/train_large.py

Resumable: the same command continues from the last checkpoint in the folder `out`.
"""

from ml_collections import ConfigDict

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """The training split, and where the checkpoints go."""
    config = base.pick("out", "data")
    config.out = "workdir/large"
    config.data.split = "train"
    config.data.limit = None
    return config
