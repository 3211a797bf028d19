"""Trains a process reward model on noisy labels, for the ablation.

    trim-jax train-prm --config train_prm_noisy

As train_prm, and as long, but the label of every fifth step is wrong. The model is exported to
`out`/model; `trim-jax study --config ablation_prm` shows what it costs each policy.
"""

from ml_collections import ConfigDict

from trim_jax.configs import train_prm


def get_config() -> ConfigDict:
    """The shipped model's training with a fifth of the labels flipped."""
    config = train_prm.get_config()
    config.out = "workdir/prm_noisy"
    config.sample.label_noise = 0.2
    return config
