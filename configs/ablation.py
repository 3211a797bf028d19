"""The ablation: every policy beside its variants, in a study of their own.

    trim-jax study --config ablation

Each variant is trained or solved under its own rule: Agg's features, one network for each price or
one for all, the POMDP's belief and its rule for the last step, and routers whose first intervention
hands the rest to the large model. `trim_jax/train/policies.py` says what each name means; the
config ablation_prm is the same for noisier process reward models.
"""

from ml_collections import ConfigDict

from trim_jax.configs import study


def get_config() -> ConfigDict:
    """1,000 problems of `test`, one seed: more problems tell more apart than more seeds do."""
    config = study.get_config()
    config.out = "results/ablation"
    config.seeds = (0,)
    config.data.limit = 1000
    config.sweep.validation = 300
    config.study.hard = 0
    config.study.query = False
    config.study.timed = 0
    config.study.refits = 0
    config.study.policies = (
        "pomdp", "pomdp-no_last", "pomdp_filtered", "pomdp_filtered-no_last",
        "agg", "agg-product", "agg-paper", "agg-release", "agg-priced", "agg-takeover",
        "q", "q-takeover", "seq", "seq-separate", "thr-takeover",
    )  # fmt: skip
    return config
