"""How long loops are compiled, and when not again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

PROGRAMS = 4  # kept of each kind: those of a study's parts, not of everything a notebook tried


def shared(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, which jits what its arguments say, with the same result for equal arguments.

    Arguments that cannot be hashed, as a user's policy may be, get a result of their own.
    """
    kept = functools.lru_cache(maxsize=PROGRAMS)(make)

    @functools.wraps(make)
    def made(*args: Any) -> Any:
        try:
            hash(args)
        except TypeError:
            return make(*args)
        return kept(*args)

    return made


def loop_options() -> dict[str, bool] | None:
    """`compiler_options` for `jax.jit` of a whole run or training: one long loop around others.

    On a CPU with two cores, XLA's concurrent schedule of nested loops can wait for itself for ever
    (jaxlib 0.10.2: about every third run of `train.ppo.make_train`); the sequential one is as fast.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_enable_concurrency_optimized_scheduler": False}
