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
    config.model.width = 96
    config.model.layers = 3
    config.model.heads = 3
    config.model.kv_heads = 1
    config.model.head_dim = 32
    config.model.ffn = 256
    # Stopped while it still errs: a router needs a small model that is right on two problems in five.
    config.train.steps = 2250
    config.train.cosine_steps = 3000
    config.train.learning_rate = 3e-3
    config.train.save_every = 250
    return config
