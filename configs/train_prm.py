"""Trains the process-reward model of the shipped trio on sampled solutions of both models.

    trim-jax train-prm --config configs/train_prm.py

Resumable: the same command continues from the last checkpoint in the folder `out`.
"""

from ml_collections import ConfigDict

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """The training split, and where the checkpoints go."""
    config = base.pick("out", "trio", "data")
    config.out = "workdir/prm"
    config.data.split = "train"
    config.data.limit = None
    return config
