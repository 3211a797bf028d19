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
from trim_jax.xla import cores

DATA, MODEL = "data", "model"
COPIES = 2**30  # bytes that copies of the weights may take, one for each core of a CPU

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


def all_devices(weights: int) -> Mesh | None:
    """Rows over all devices of this process; on a CPU, over no more than it has cores.

    Args:
      weights: bytes of the models. Each core needs a copy; one device works for large ones, whose
        calls are long enough to be shared.

    Returns:
      None where that is the default device alone.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        devices = devices[: cores()]
        devices = devices if weights * len(devices) <= COPIES else devices[:1]
    return make_mesh(len(devices), 1, devices) if len(devices) > 1 else None


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


ROWS, WHOLE = PartitionSpec(DATA), PartitionSpec()


def by_rows(function: Callable, mesh: Mesh | None, *arguments: PartitionSpec) -> Callable:
    """`function` on every shard of the data axis for itself; `arguments` are each `ROWS` or `WHOLE`.

    All that it returns is split by rows. None of the shards waits for another. Without a mesh,
    `function` itself.
    """
    if mesh is None:
        return function
    # Where models are not split, nothing is left to the partitioner, which takes its time.
    manual = {DATA} if mesh.shape[MODEL] > 1 else {DATA, MODEL}
    return jax.shard_map(
        function, mesh=mesh, in_specs=arguments, out_specs=ROWS, axis_names=manual, check_vma=False
    )


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
