"""The study on fewer problems, with one seed, nothing tuned on the models.

    trim-jax study --config study_quick
"""

from ml_collections import ConfigDict

from trim_jax.configs import study


def get_config() -> ConfigDict:
    """300 problems of `test`, one seed."""
    config = study.get_config()
    config.out = "results/study-quick"
    config.store = ""  # without tuning nothing is asked for twice
    config.seeds = (0,)
    config.data.limit = 300
    config.sweep.validation = 150
    config.study.train = 600
    config.study.hard = 100
    # Tuning compiles an engine for each policy: a fifth of the time that this is to take. Agg once
    # more takes as long to train as on all problems.
    left = [p for p in config.study.policies if not p.endswith(("-tuned", "-priced"))]
    config.study.policies = tuple(left)
    config.study.timed = 30
    config.study.refits = 0
    return config

