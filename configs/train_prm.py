"""Trains the process reward model of the shipped trio on sampled solutions of both models.

    trim-jax train-prm

Solutions are sampled on problems that the language models have not seen, labelled step by step,
and learned by a PRM that starts from the large model's body. Resumable: the same command continues
from the last checkpoint in the folder `out`. The model is exported to `out`/model. It takes about
20 minutes on two CPU cores: 5 to sample, 3 for the body, 10 for the new layers.
"""

from ml_collections import ConfigDict

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """The large model's body and two more layers."""
    config = base.pick("out", "trio", "data", "sampling", "engine")
    # It is what the PRM is made for; and training is in float32 on one device.
    del config.trio["prm"], config.engine["dtype"], config.engine["chunk_problems"]
    del config.engine["mesh_data"], config.engine["mesh_model"]
    base.add_reward_model(config)
    base.add_training(config)
    config.out = "workdir/prm"
    config.data.split = "train"
    config.data.limit = 153_000
    config.train.steps = 1000
    config.train.cosine_steps = 1000
    config.train.learning_rate = 3e-3
    config.train.warmup = 100
    config.train.save_every = 200
    return config
