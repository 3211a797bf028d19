"""Policies with weights as folders: `policy.json` (what it is) and `weights.safetensors`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load, save

from trim_jax.errors import CheckpointError
from trim_jax.policies.base import Policy
from trim_jax.policies.features import Features
from trim_jax.policies.learned import Agg, Q
from trim_jax.policies.pomdp import FilteredPomdp, Pomdp
from trim_jax.policies.sequence import Seq
from trim_jax.results import atomic_write

FAMILIES: dict[str, type[Policy]] = {
    family.name: family for family in (Agg, Seq, Q, Pomdp, FilteredPomdp)
}
DESCRIPTION, WEIGHTS = "policy.json", "weights.safetensors"


def is_saved(path: str | Path) -> bool:
    """Whether this is the folder of a policy."""
    return (Path(path) / DESCRIPTION).is_file()


def save_policy(folder: str | Path, policy: Policy) -> None:
    """Write a trained policy; the description last, so that a half-written folder is none.

    Raises:
      ResultError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        f.name: getattr(policy, f.name) for f in dataclasses.fields(policy) if f.name != "weights"
    }
    if "features" in fields:
        fields["features"] = dataclasses.asdict(fields["features"])
    flat = {k: np.ascontiguousarray(v) for k, v in flatten_dict(policy.weights, sep="/").items()}
    atomic_write(folder / WEIGHTS, [save(flat)])
    text = json.dumps({"family": policy.name, **fields}, indent=2, sort_keys=True) + "\n"
    atomic_write(folder / DESCRIPTION, [text.encode()])


def load_policy(folder: str | Path) -> Policy:
    """The policy that `save_policy` wrote.

    Raises:
      CheckpointError: there is none, or its files are damaged.
    """
    folder = Path(folder)
    try:
        fields: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
        family = FAMILIES[fields.pop("family")]
        if "features" in fields:
            fields["features"] = Features(**fields["features"])
        fields["settings"] = tuple(fields["settings"])
        weights = unflatten_dict(load((folder / WEIGHTS).read_bytes()), sep="/")
        return family(weights=weights, **fields)
    except Exception as error:  # whatever is wrong with the files, the reader needs their name
        raise CheckpointError(f"{folder}: not the folder of a trained policy: {error}") from error
