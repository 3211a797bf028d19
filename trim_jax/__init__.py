"""TRIM in JAX: a small model writes, a process-reward model judges, a large model repairs.

`import trim_jax` is instant and imports no JAX; the names below are loaded on first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Problem": "trim_jax.tasks.data",
    "load_problems": "trim_jax.tasks.data",
    "use_cores": "trim_jax.xla",
    "load_trio": "trim_jax.api",
    "route": "trim_jax.api",
    "Threshold": "trim_jax.policies.simple",
    "Policy": "trim_jax.policies.base",
    "make_policy": "trim_jax.policies.registry",
    "load_process": "trim_jax.sim.saved",
    "rollout": "trim_jax.sim.env",
    "TrimError": "trim_jax.errors",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    """Imports the module that owns a public name the first time that the name is used."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'trim_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
