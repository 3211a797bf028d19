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
from trim_jax.policies.judged import Judged
from trim_jax.policies.learned import Agg, Q
from trim_jax.policies.neighbours import Glimp, LogLik, Rsd
from trim_jax.policies.pomdp import FilteredPomdp, Pomdp
from trim_jax.policies.sequence import Seq
from trim_jax.policies.simple import Threshold
from trim_jax.policies.takeover import Takeover
from trim_jax.results import atomic_write

FAMILIES: dict[str, type[Policy]] = {
    family.name: family
    for family in (Agg, Seq, Q, Pomdp, FilteredPomdp, Threshold, Rsd, Glimp, LogLik)
} | {"takeover": Takeover, "judged": Judged}
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
    flat = flatten_dict(policy.weights or {}, sep="/")
    atomic_write(folder / WEIGHTS, [save({k: np.ascontiguousarray(v) for k, v in flat.items()})])
    text = json.dumps(_describe(policy), indent=2, sort_keys=True) + "\n"
    atomic_write(folder / DESCRIPTION, [text.encode()])


def load_policy(folder: str | Path) -> Policy:
    """The policy that `save_policy` wrote.

    Raises:
      CheckpointError: there is none, or its files are damaged.
    """
    folder = Path(folder)
    try:
        fields: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
        weights = unflatten_dict(load((folder / WEIGHTS).read_bytes()), sep="/")
        return _build(fields, weights or None)
    except Exception as error:  # whatever is wrong with the files, the reader needs their name
        raise CheckpointError(f"{folder}: not the folder of a trained policy: {error}") from error


def _describe(policy: Policy) -> dict[str, Any]:
    """The fields of a policy but for its weights, and of one inside it likewise."""
    fields = {
        f.name: getattr(policy, f.name) for f in dataclasses.fields(policy) if f.name != "weights"
    }
    if "features" in fields:
        fields["features"] = dataclasses.asdict(fields["features"])
    if "policy" in fields:
        fields["policy"] = _describe(fields["policy"])
    family = next(name for name, family in FAMILIES.items() if type(policy) is family)
    return {"family": family, **fields}


def _build(fields: dict[str, Any], weights: Any) -> Policy:
    """The policy that `_describe` described; one inside it has the same weights."""
    family = FAMILIES[fields.pop("family")]
    if "features" in fields:
        fields["features"] = Features(**fields["features"])
    if "policy" in fields:
        fields["policy"] = _build(fields["policy"], weights)
    fields["settings"] = tuple(fields["settings"])
    return family(weights=weights, **fields)
