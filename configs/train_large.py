"""Trains the large language model of the shipped trio.

    trim-jax train-lm --config train_large

Resumable: the same command continues from the last checkpoint in the folder `out`. The model is
exported to `out`/model.
"""

from ml_collections import ConfigDict

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """A large Qwen2 on 150,000 problems of the training split."""
    config = base.pick("out", "data")
    base.add_language_model(config)
    base.add_training(config)
    config.out = "workdir/large"
    config.data.split = "train"
    config.data.limit = 150_000
    config.model.width = 192
    config.model.layers = 4
    config.model.heads = 4
    config.model.kv_heads = 1
    config.model.head_dim = 32
    config.model.ffn = 512
    config.train.steps = 4500
    config.train.cosine_steps = 4500
    config.train.learning_rate = 2e-3
    config.train.save_every = 500
    return config
