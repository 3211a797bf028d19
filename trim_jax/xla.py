"""The devices that JAX sees, how long loops are compiled, and when not again."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import jax

_FORCED = "xla_force_host_platform_device_count"
CORES = 8  # that are devices, at most: a smaller share of the solutions in flight fills no batches
PROGRAMS = 4  # kept of each kind: those of a study's parts, not of everything a notebook tried


def use_cores() -> None:
    """Make each core of a CPU a device, so that models work on all of them at once.

    Calls of small models are too short to be worth sharing between cores, but two at once are not:
    routing the shipped trio on two cores is half as fast again. To be called before JAX looks for
    devices; afterwards, or where JAX_NUM_CPU_DEVICES or XLA_FLAGS say how many there are, it
    changes nothing.
    """
    said = jax.config.jax_num_cpu_devices >= 0 or _FORCED in os.environ.get("XLA_FLAGS", "")
    if not said:
        with contextlib.suppress(RuntimeError):  # JAX has looked already
            jax.config.update("jax_num_cpu_devices", min(cores(), CORES))


def cores() -> int:
    """Those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


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
