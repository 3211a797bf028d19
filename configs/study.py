"""Every policy on the same problems with the same models: what each costs, and what it recovers.

    trim-jax study                                # an hour and a half on two cores, resumable
    trim-jax study --config study_quick           # on fewer problems, nothing tuned

Traces of `policy_train` are collected once; the simulator is fitted to them, the policies are
trained on it, settings are chosen on `validation`, and everything is measured on `test` and, without
retraining, on `hard`. Writes report.html, table.md, study.png and the trained policies.
"""

from ml_collections import ConfigDict

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """All of `test`, three seeds."""
    config = base.get_config()
    config.out = "results/study"
    config.store = "workdir/steps"
    config.data.limit = None
    config.sweep.validation = 1000
    del config["policy"]

    config.engine.chunk_problems = 50
    base.add_study(config)
    return config
