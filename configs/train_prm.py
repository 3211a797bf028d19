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
    base.add_training(config)
    config.out = "workdir/prm"
    config.data.split = "train"
    config.data.limit = 153_000
    # What the PRM learns from.
    config.sample = ConfigDict()
    # The last so many problems of the split; those before are the language models' own.
    config.sample.problems = 3000
    # Half of the solutions are sampled as in routing, half at this temperature, which errs more.
    config.sample.hot = 1.3
    # The large model's body first learns to predict in the PRM's stream; else as in `train`.
    config.adapt = ConfigDict()
    # Updates.
    config.adapt.steps = 200
    # Length of its cosine in updates.
    config.adapt.cosine_steps = 200
    # Its highest learning rate.
    config.adapt.learning_rate = 1e-3
    config.train.steps = 1000
    config.train.cosine_steps = 1000
    config.train.learning_rate = 3e-3
    config.train.warmup = 100
    config.train.save_every = 200
    return config


RANGES = {"sample.problems": (1, None), "sample.hot": (0.0, None), "adapt.steps": (1, None)}
