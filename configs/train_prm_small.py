"""Trains a smaller process reward model, for the ablation.

    trim-jax train-prm --config train_prm_small

As train_prm, but on the small model's body: 0.55 million parameters instead of 2.28. The model is
exported to `out`/model; `trim-jax study --config ablation_prm` shows what it costs each policy.
"""

from ml_collections import ConfigDict

from trim_jax.configs import train_prm


def get_config() -> ConfigDict:
    """The small model's body and two more layers."""
    config = train_prm.get_config()
    config.out = "workdir/prm_small"
    config.body = "small"
    return config
