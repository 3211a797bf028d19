"""Trains the small language model of the shipped trio.

    trim-jax train-lm --config train_small

Resumable: the same command continues from the last checkpoint in the folder `out`. The model is
exported to `out`/model.
"""

from ml_collections import ConfigDict

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """A small Qwen2 on 150,000 problems of the training split."""
    config = base.pick("out", "data")
    base.add_language_model(config)
    base.add_training(config)
    config.out = "workdir/small"
    config.data.split = "train"
    config.data.limit = 150_000
    config.model.width = 64
    config.model.layers = 2
    config.model.heads = 2
    config.model.kv_heads = 1
    config.model.head_dim = 32
    config.model.ffn = 192
    config.train.steps = 4000
    config.train.cosine_steps = 4000
    config.train.learning_rate = 3e-3
    config.train.save_every = 250
    return config
