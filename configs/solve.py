"""One problem, routed, shown in the terminal step by step.

    trim-jax solve "Start with 46. Add 27. What is the result?"

Each step is shown with its writer, its score and what the router did. Another policy:

    trim-jax solve "..." --config.policy=random --config.policy.p=0.3
"""

from ml_collections import ConfigDict

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """What routing needs, with one seed."""
    config = base.pick("seeds", "trio", "data", "sampling", "engine", "policy")
    del config.data["source"], config.data["split"], config.data["limit"]
    del config.engine["chunk_problems"]
    # The first one is the solution's sampling seed.
    config.seeds = (0,)
    return config
