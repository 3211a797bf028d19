"""The study with another process reward model, made worse on purpose.

    trim-jax train-prm --config train_prm_noisy
    trim-jax study --config ablation_prm --config.trio.prm=workdir/prm_noisy/model
        --config.out=results/ablation-prm-noisy

    trim-jax train-prm --config train_prm_small
    trim-jax study --config ablation_prm --config.trio.prm=workdir/prm_small/model
        --config.out=results/ablation-prm-small

Traces are collected and policies trained anew with that model. The same problems and seed as in the
config ablation, which has the shipped one.
"""

from ml_collections import ConfigDict

from trim_jax.configs import ablation


def get_config() -> ConfigDict:
    """1,000 problems of `test`, one seed, one policy of each kind."""
    config = ablation.get_config()
    config.out = "results/ablation-prm"
    config.study.policies = ("pomdp", "pomdp_filtered", "q", "agg")
    return config
