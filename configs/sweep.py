"""The main job: TRIM-Thr at every threshold against its anchors, on the embedded benchmark.

    trim-jax sweep

Needs no download, no accelerator and no network. Writes results/arith-sweep: the frontier figure,
summary.json, every routed solution, and report.html to browse them. Another trio and data set:

    trim-jax sweep --config.out=results/math500 --config.data.source=math500.jsonl
        --config.trio.small=SMALL --config.trio.large=LARGE --config.trio.prm=PRM
"""

from ml_collections import ConfigDict

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """The shared defaults, which are those of this study."""
    return base.get_config()
