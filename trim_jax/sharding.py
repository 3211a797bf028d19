"""Where parameters live on a mesh of devices: rows of a batch over `data`, heads over `model`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from trim_jax.errors import ConfigError
from trim_jax.models.qwen2 import LOGICAL_AXES, ModelConfig, init_params

DATA, MODEL = "data", "model"

# Logical axis of a parameter -> mesh axis; those not named here are replicated. With heads and
# ffn split, each layer needs one all-reduce after attention and one after the feed-forward.
RULES = {"heads": MODEL, "kv_heads": MODEL, "ffn": MODEL, "vocab": MODEL}
# These are replicated where the mesh axis does not divide them: Qwen2.5 has 2 to 8 key-value
# heads, a small part of the weights, and its vocabulary is padded differently by size.
REPLICATED_IF_UNEVEN = {"kv_heads", "vocab"}
_FIELDS = {"heads": "num_attention_heads", "ffn": "intermediate_size", "vocab": "vocab_size"}


def make_mesh(data: int, model: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` times `model` devices, for shardings that the compiler propagates.

    Args:
      data: shards of the batch. model: shards of each model.
      devices: what to choose from; None means all devices.

    Raises:
      ConfigError: a size is below 1, or there are too few devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if data < 1 or model < 1:
        raise ConfigError(f"a mesh of data={data} times model={model}: both must be at least 1")
    if data * model > len(devices):
        raise ConfigError(
            f"a mesh of data={data} times model={model} needs {data * model} devices, "
            f"there are {len(devices)}"
        )
    kinds = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=kinds, devices=devices)


def param_shardings(config: ModelConfig, mesh: Mesh) -> Any:
    """The placement of every parameter of a model.

    Returns:
      A tree like the parameters of `Qwen2`, of `NamedSharding`.

    Raises:
      ConfigError: the `model` axis of the mesh does not divide the heads or the feed-forward
        width. A vocabulary that it does not divide is replicated, with a warning.
    """
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    uneven: dict[str, int] = {}

    def place(path, leaf) -> NamedSharding:
        spec = []
        for axis, size in zip(LOGICAL_AXES[path[-1].key], leaf.shape, strict=True):
            over = RULES.get(axis)
            if over is not None and size % mesh.shape[over]:
                uneven[axis] = size
                over = None
            spec.append(over)
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings = jax.tree_util.tree_map_with_path(place, shapes)
    shards = mesh.shape[MODEL]
    wrong = {axis: n for axis, n in uneven.items() if axis not in REPLICATED_IF_UNEVEN}
    if wrong:
        found = ", ".join(f"{axis} ({_FIELDS[axis]}) {size}" for axis, size in wrong.items())
        common = math.gcd(config.heads, config.ffn)
        usable = [n for n in range(1, common + 1) if common % n == 0 and n <= mesh.size]
        raise ConfigError(
            f"mesh axis {MODEL}={shards} does not divide {found}; usable sizes of "
            f"{MODEL}: {', '.join(map(str, usable))}"
        )
    if "vocab" in uneven:
        warnings.warn(
            f"mesh axis {MODEL}={shards} does not divide vocab ({_FIELDS['vocab']}) "
            f"{config.vocab}: embedding and language-model head are replicated on every device",
            stacklevel=2,
        )
    return shardings


def by_path(shardings: Any) -> Callable[[str], NamedSharding]:
    """`param_shardings` as a function of the parameter's path, e.g. "layer_0/wq".

    This is the argument `shardings` of `trim_jax.models.hf.load_model`.
    """

    def sharding(path: str) -> NamedSharding:
        level = shardings
        for name in path.split("/"):
            level = level[name]
        return level

    return sharding
