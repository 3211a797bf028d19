"""Policies by name, and policies of a user's own."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable

from trim_jax.errors import ConfigError
from trim_jax.policies import saved
from trim_jax.policies.base import Policy
from trim_jax.policies.neighbours import Glimp, LogLik, Rsd
from trim_jax.policies.simple import Always, Never, Oracle, Random, Threshold

# Name -> (threshold, p) -> policy. A policy without a dial ignores both, and one whose dial is not a
# score or a probability keeps its own.
POLICIES: dict[str, Callable[[float, float], Policy]] = {
    "never": lambda threshold, p: Never(),
    "always": lambda threshold, p: Always(),
    "thr": lambda threshold, p: Threshold((threshold,)),
    "random": lambda threshold, p: Random((p,)),
    "oracle": lambda threshold, p: Oracle(),
    "rsd": lambda threshold, p: Rsd((threshold,)),
    "glimp": lambda threshold, p: Glimp(),
    "loglik": lambda threshold, p: LogLik(),
}


def make_policy(name: str, threshold: float = 0.5, p: float = 0.5) -> Policy:
    """A policy by its name, `module:function` for one of your own, or the folder of a trained one.

    The module is looked for in the working directory too; the function takes no argument and
    returns a `Policy`.

    Raises:
      ConfigError: the name is unknown (the nearest one is named), the module cannot be imported,
        or the function returns something else.
    """
    if ":" in name:
        return _own_policy(name)
    if saved.is_saved(name):
        return saved.load_policy(name)
    if name not in POLICIES:
        nearest = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"policy.name: no policy {name!r}; did you mean {nearest!r}? "
            f"(known: {', '.join(POLICIES)}, my_module:make_policy, or the folder of a trained policy)"
        )
    return POLICIES[name](threshold, p)


def _own_policy(name: str) -> Policy:
    module_name, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"policy.name: cannot import {module_name!r}: {error}") from None
    finally:
        sys.path.pop(0)
    if not callable(getattr(module, function, None)):
        raise ConfigError(f"policy.name: {module_name} has no function {function!r}")
    policy = getattr(module, function)()
    if not isinstance(policy, Policy):
        raise ConfigError(
            f"policy.name: {name}() returned {type(policy).__name__}, not a trim_jax Policy"
        )
    return policy
