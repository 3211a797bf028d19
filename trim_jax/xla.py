"""How long loops are compiled."""

from __future__ import annotations

import jax


def loop_options() -> dict[str, bool] | None:
    """`compiler_options` for `jax.jit` of a whole run or training: one long loop around others.

    On a CPU with two cores, XLA's concurrent schedule of nested loops can wait for itself for ever
    (jaxlib 0.10.2: about every third run of `train.ppo.make_train`); the sequential one is as fast.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_enable_concurrency_optimized_scheduler": False}
