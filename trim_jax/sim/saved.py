"""A fitted process as a file: predictions come from the one that policies were trained in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load, save

from trim_jax.errors import CheckpointError
from trim_jax.results import atomic_write
from trim_jax.sim.process import Process

_NAMES = tuple(f.name for f in dataclasses.fields(Process) if f.name != "history")


def save_process(path: str | Path, process: Process) -> None:
    """Write the arrays of a process.

    Raises:
      ResultError: the file cannot be written.
    """
    arrays = {name: np.array(getattr(process, name), order="C") for name in _NAMES}
    atomic_write(Path(path), [save(arrays)])


def load_process(path: str | Path) -> Process:
    """The process that `save_process` wrote, without `history`.

    Raises:
      CheckpointError: there is none, or the file is damaged.
    """
    try:
        arrays = load(Path(path).read_bytes())
        return Process(**{name: jnp.asarray(arrays[name]) for name in _NAMES})
    except Exception as error:  # whatever is wrong with the file, the reader needs its name
        raise CheckpointError(f"{path}: not the file of a fitted simulator: {error}") from error
