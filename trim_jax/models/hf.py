"""Hugging Face model folders, in both directions.

A folder holds `config.json`, the weights (`model.safetensors`, or shards with
`model.safetensors.index.json`) and the tokenizer's files. `WEIGHTS` is the one list of tensor
names, theirs and ours; reading, checking and writing all follow it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trim_jax.errors import CheckpointError
from trim_jax.models.hf_config import config_json, parse_config
from trim_jax.models.qwen2 import ModelConfig

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_GO_ON = "the same training command, run again, goes on where it stopped and writes the model"
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Exponent bits all set: NaN or infinity. bfloat16 has no fast isfinite in NumPy.
_EXPONENT = {"float32": ("u4", 0x7F800000), "bfloat16": ("u2", 0x7F80), "float16": ("u2", 0x7C00)}


class Weight(NamedTuple):
    """One tensor of the model, or one a layer where the names hold `{i}`.

    Attributes:
      theirs: name in the safetensors files. their_axes: its axes, letters of design notation;
        letters written together are one axis there ("NH": heads times head width).
      ours: path in the parameters, "/" between levels. our_axes: its axes, one letter each.
    """

    theirs: str
    their_axes: str
    ours: str
    our_axes: str


# Linear layers are stored [out, in]; our products read [in, out]. E is the inner width of the
# process-reward head (as wide as the model), C its two classes.
_BODY = (
    Weight("model.embed_tokens.weight", "V D", "embed", "VD"),
    Weight("model.layers.{i}.input_layernorm.weight", "D", "layer_{i}/norm_attn", "D"),
    Weight("model.layers.{i}.self_attn.q_proj.weight", "NH D", "layer_{i}/wq", "DNH"),
    Weight("model.layers.{i}.self_attn.q_proj.bias", "NH", "layer_{i}/bq", "NH"),
    Weight("model.layers.{i}.self_attn.k_proj.weight", "KH D", "layer_{i}/wk", "DKH"),
    Weight("model.layers.{i}.self_attn.k_proj.bias", "KH", "layer_{i}/bk", "KH"),
    Weight("model.layers.{i}.self_attn.v_proj.weight", "KH D", "layer_{i}/wv", "DKH"),
    Weight("model.layers.{i}.self_attn.v_proj.bias", "KH", "layer_{i}/bv", "KH"),
    Weight("model.layers.{i}.self_attn.o_proj.weight", "D NH", "layer_{i}/wo", "NHD"),
    Weight("model.layers.{i}.post_attention_layernorm.weight", "D", "layer_{i}/norm_ffn", "D"),
    Weight("model.layers.{i}.mlp.gate_proj.weight", "F D", "layer_{i}/w_gate", "DF"),
    Weight("model.layers.{i}.mlp.up_proj.weight", "F D", "layer_{i}/w_up", "DF"),
    Weight("model.layers.{i}.mlp.down_proj.weight", "D F", "layer_{i}/w_down", "FD"),
    Weight("model.norm.weight", "D", "norm_out", "D"),
)
_LM_HEAD = Weight("lm_head.weight", "V D", "lm_head", "DV")
_PRM_HEAD = (
    Weight("score.0.weight", "E D", "score_w1", "DE"),
    Weight("score.0.bias", "E", "score_b1", "E"),
    Weight("score.2.weight", "C E", "score_w2", "EC"),
    Weight("score.2.bias", "C", "score_b2", "C"),
)
# Rotary tables, which old transformers versions stored though they follow from the config.
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


class Tensor(NamedTuple):
    """A `Weight` of one layer with its sizes: names, and how to turn one side into the other."""

    theirs: str
    ours: str
    their_shape: tuple[int, ...]
    split_shape: tuple[int, ...]  # their axes with joined letters apart
    our_shape: tuple[int, ...]
    order: tuple[int, ...]  # of the split axes, on our side

    def load(self, array: np.ndarray) -> np.ndarray:
        """Their array as ours, a view."""
        return array.reshape(self.split_shape).transpose(self.order)

    def dump(self, array: np.ndarray) -> np.ndarray:
        """Our array as theirs, contiguous."""
        split = array.transpose(np.argsort(self.order))
        return np.ascontiguousarray(split.reshape(self.their_shape))


def tensors(config: ModelConfig) -> list[Tensor]:
    """Every tensor of a model, in the order of the forward pass."""
    c = config
    size = dict(V=c.vocab, D=c.width, E=c.width, F=c.ffn, N=c.heads, K=c.kv_heads, H=c.head_dim)
    size["C"] = 2
    shape = lambda letters: tuple(size[x] for x in letters)  # noqa: E731
    if c.head == "prm":
        weights = _BODY + _PRM_HEAD
    else:
        weights = _BODY if c.tied else (*_BODY, _LM_HEAD)
    out = []
    for w in weights:
        axes, letters = w.their_axes.split(), w.their_axes.replace(" ", "")
        for i in range(c.layers) if "{i}" in w.theirs else [0]:
            out.append(
                Tensor(
                    theirs=w.theirs.format(i=i),
                    ours=w.ours.format(i=i),
                    their_shape=tuple(math.prod(shape(axis)) for axis in axes),
                    split_shape=shape(letters),
                    our_shape=shape(w.our_axes),
                    order=tuple(letters.index(x) for x in w.our_axes),
                )
            )
    return out


# --- reading -------------------------------------------------------------------------------------


class _Stored(NamedTuple):
    """Where a tensor lies, from the header of its file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # in safetensors' spelling


def load_config(folder: str | Path, dtype: str | None = None) -> ModelConfig:
    """The configuration of a model folder, checked against the headers of its weights.

    Reads no weights, so it is quick for any size. Arguments and errors as `load_model`, NaN apart.
    """
    return _open(Path(folder), dtype)[0]


def load_model(
    folder: str | Path,
    dtype: str | None = None,
    shardings: Callable[[str], jax.sharding.Sharding | None] | None = None,
) -> tuple[ModelConfig, dict]:
    """Read a model folder, one tensor in memory at a time besides the result.

    Args:
      folder: a folder of Qwen2ForCausalLM or Qwen2ForProcessRewardModel (Qwen2.5-Math-PRM).
      dtype: "float32" or "bfloat16", the type of the weights in memory; None means as stored
        (float16 as float32).
      shardings: path of a parameter ("layer_0/wq") -> where it is placed; None means the default
        device. Each tensor is placed as soon as it is read.

    Returns:
      The configuration and the parameters of `Qwen2`.

    Raises:
      CheckpointError: the folder or a file of it is missing, half-written or unreadable; the
        config asks for what `Qwen2` does not compute; tensors are missing, unused or mis-shaped;
        weights are NaN or infinite. All findings of one kind are in one error.
    """
    folder = Path(folder)
    config, stored = _open(folder, dtype)
    params: dict = {}
    bad = []
    for tensor in tensors(config):
        array = _read(folder, tensor.theirs, stored[tensor.theirs])
        if not _finite(array):
            bad.append(f"tensor {tensor.theirs}: NaN or infinite values")
            continue
        sharding = shardings(tensor.ours) if shardings else None
        *parents, name = tensor.ours.split("/")
        level = params
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = _place(tensor.load(array), config.dtype, sharding)
    if bad:
        raise _error(folder, bad)
    return config, params


def _open(folder: Path, dtype: str | None) -> tuple[ModelConfig, dict[str, _Stored]]:
    """Configuration and headers of a folder in which everything but the values has been checked."""
    if dtype not in (None, "float32", "bfloat16"):
        raise CheckpointError(f"{folder}: dtype {dtype!r}, expected 'float32' or 'bfloat16'")
    config, problems = parse_config(_read_json(folder, CONFIG))
    stored, file_problems = _headers(folder)
    problems += file_problems
    # With a file unreadable or the wrong architecture, a list of missing tensors is only noise.
    if config is not None and not file_problems:
        if config.head == "lm":
            config = dataclasses.replace(config, tied=_tied(folder, config, stored))
        problems += _check(config, stored)
    if problems:
        raise _error(folder, problems)
    return dataclasses.replace(config, dtype=dtype or config.dtype), stored


def _read_json(folder: Path, name: str) -> dict:
    if not folder.is_dir():
        hint, old = "", _beside(folder, "old")
        if old.exists():
            hint = f"; its replacement was interrupted, rename {old} to get it back"
        elif _is_training_run(folder.parent):
            hint = f"; {folder.parent} holds an unfinished training run: {_GO_ON}"
        raise CheckpointError(f"{folder}: no such model folder{hint}")
    path, model = folder / name, folder / "model"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        inside = sorted(p.name for p in folder.iterdir())
        if model.is_dir():
            raise CheckpointError(f"{folder}: no {name}; the model is in {model}") from None
        found = ", ".join(inside[:8]) or "nothing"
        raise CheckpointError(f"{folder}: no {name} (found: {found})") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    if name == CONFIG and _is_of_training(value):
        raise CheckpointError(f"{folder}: the model is in {model}" if model.is_dir() else
                              f"{folder}: an unfinished training run: {_GO_ON}")  # fmt: skip
    return value


def _is_of_training(config: Any) -> bool:
    """Whether this is the config of a training command, whose model goes to `model` beside it."""
    return isinstance(config, dict) and "train" in config and "model_type" not in config


def _is_training_run(folder: Path) -> bool:
    try:
        return _is_of_training(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False


def _headers(folder: Path) -> tuple[dict[str, _Stored], list[str]]:
    """Tensors of all weight files by name, and what is wrong with the files."""
    if (folder / SINGLE).exists():
        names = [SINGLE]
    elif (folder / INDEX).exists():
        weight_map = _read_json(folder, INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            return {}, [f"{INDEX}: no weight_map"]
        names = sorted(set(weight_map.values()))
    else:
        hint = "; convert the PyTorch weights" if any(folder.glob("*.bin")) else ""
        return {}, [f"neither {SINGLE} nor {INDEX}{hint}"]
    stored, problems = {}, []
    for name in names:
        path = folder / name
        if not path.exists():
            problems.append(f"file {name}: missing, named in {INDEX}")
            continue
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():
                    part = file.get_slice(key)
                    stored[key] = _Stored(path, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            size = path.stat().st_size
            problems.append(f"file {name}: half-written or damaged ({size} bytes; {error})")
    return stored, problems


def _tied(folder: Path, config: ModelConfig, stored: Mapping[str, _Stored]) -> bool:
    """Whether the head is the embedding; the weights decide where they contradict the config."""
    embed, head = _BODY[0].theirs, _LM_HEAD.theirs
    if not config.tied or head not in stored:
        return config.tied
    if embed not in stored or stored[embed].shape != stored[head].shape:
        return False
    return np.array_equal(_read(folder, embed, stored[embed]), _read(folder, head, stored[head]))


def _check(config: ModelConfig, stored: Mapping[str, _Stored]) -> list[str]:
    """Missing, mis-shaped, unsupported and unused tensors."""
    problems = []
    expected = {t.theirs: t.their_shape for t in tensors(config)}
    for name, shape in expected.items():
        if name not in stored:
            problems.append(f"tensor {name}: missing, expected {list(shape)}")
        elif stored[name].shape != shape:
            found = list(stored[name].shape)
            problems.append(f"tensor {name}: expected {list(shape)}, found {found}")
        elif stored[name].dtype not in _STORED:
            problems.append(
                f"tensor {name}: stored as {stored[name].dtype}, expected {', '.join(_STORED)}"
            )
    for name in sorted(set(stored) - set(expected)):
        # A process-reward model may keep the head of the language model it was trained from.
        unread_head = name == _LM_HEAD.theirs and (config.head == "prm" or config.tied)
        if not unread_head and not _IGNORED.fullmatch(name):
            problems.append(f"tensor {name}: not used, found {list(stored[name].shape)}")
    return problems


def _read(folder: Path, name: str, stored: _Stored) -> np.ndarray:
    try:
        with safe_open(stored.file, framework="numpy") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder}: tensor {name} cannot be read ({error})") from None


def _finite(array: np.ndarray) -> bool:
    integer, bits = _EXPONENT[array.dtype.name]
    return not ((array.view(integer) & bits) == bits).any()


def _place(array: np.ndarray, dtype: str, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """`array`, converted, on its devices; each device receives its own part only."""
    convert = lambda index: np.ascontiguousarray(array[index], dtype=jnp.dtype(dtype))  # noqa: E731
    if sharding is None:
        placed = jnp.asarray(convert(...))
    else:
        placed = jax.make_array_from_callback(array.shape, sharding, convert)
    return placed.block_until_ready()  # or the host copies of later tensors would pile up


def _error(folder: Path, problems: list[str], what: str = "used") -> CheckpointError:
    return CheckpointError("\n  ".join([f"{folder} cannot be {what}:", *_grouped(problems)]))


def _grouped(problems: list[str]) -> Iterator[str]:
    """One line for what many layers share, so that a wrong folder does not print 300 lines."""
    groups: dict[str, list[str]] = {}
    for problem in problems:
        groups.setdefault(re.sub(r"(layers)\.\d+\.", r"\1.{}.", problem), []).append(problem)
    for pattern, members in groups.items():
        if len(members) < 3:
            yield from members
            continue
        layers = [int(re.search(r"layers\.(\d+)\.", m).group(1)) for m in members]
        run = layers == list(range(layers[0], layers[-1] + 1))
        text = f"{layers[0]}-{layers[-1]}" if run else ",".join(map(str, layers))
        yield pattern.replace("{}", f"{{{text}}}", 1)


# --- writing -------------------------------------------------------------------------------------


def save_model(
    folder: str | Path,
    config: ModelConfig,
    params: Mapping,
    tokenizer_folder: str | Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder that `load_model` and transformers (v4 and v5) read.

    The folder appears whole or not at all: it is written beside itself and renamed. A model
    folder that is already there is replaced.

    Args:
      folder: where to; its parents are created.
      config: the model; the weights are stored in `config.dtype`.
      params: parameters of `Qwen2`, on any devices.
      tokenizer_folder: where the tokenizer's files are copied from.
      max_shard_bytes: size of a weight file above which another one is begun.
      extra: entries added to `config.json`, e.g. {"eos_token_id": 2}.

    Raises:
      CheckpointError: the parameters do not fit `config` or are not finite; `folder` holds
        something other than a model; it cannot be written; no tokenizer in `tokenizer_folder`.
    """
    folder = Path(folder).absolute()
    _check_params(folder, config, params)
    if folder.exists():
        others = sorted(p.name for p in folder.iterdir() if not _ours(p)) if folder.is_dir() else []
        if others or not folder.is_dir():
            raise CheckpointError(
                f"{folder}: holds {', '.join(others[:8]) or 'a file'}, which is no part of a model "
                "folder and would be lost; choose another folder"
            )
    partial, old = _beside(folder, "partial"), _beside(folder, "old")
    try:
        # Left behind by a run that was killed here.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if bad := _write_weights(partial, config, params, max_shard_bytes):
            raise _error(folder, bad, "written")
        if tokenizer_folder is not None:
            _copy_tokenizer(Path(tokenizer_folder), partial)
        text = json.dumps(config_json(config, extra or {}), indent=2)
        (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written ({error})") from None
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)


def _beside(folder: Path, role: str) -> Path:
    """The hidden folder next to `folder` that is being written or replaced."""
    return folder.with_name(f".{folder.name}.{role}")


def _ours(path: Path) -> bool:
    """Whether `save_model` writes files of this name."""
    return path.name in (CONFIG, INDEX, *TOKENIZER_FILES) or bool(_SHARD.fullmatch(path.name))


def _leaves(params: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _check_params(folder: Path, config: ModelConfig, params: Mapping) -> None:
    found = {path: tuple(value.shape) for path, value in _leaves(params)}
    expected = {t.ours: t.our_shape for t in tensors(config)}
    problems = [
        f"parameter {path}: expected {expected.get(path)}, found {found.get(path)}"
        for path in sorted({*found, *expected})
        if found.get(path) != expected.get(path)
    ]
    if problems:
        raise _error(folder, problems, "written")


def _write_weights(folder: Path, config: ModelConfig, params: Mapping, limit: int) -> list[str]:
    """Writes the weight files, one file's tensors in host memory at a time.

    Returns:
      The parameters that are not finite, after which nothing more was written.
    """
    dtype = jnp.dtype(config.dtype)
    files: list[list[Tensor]] = [[]]
    used = 0
    for tensor in tensors(config):
        size = math.prod(tensor.our_shape) * dtype.itemsize
        if files[-1] and used + size > limit:
            files.append([])
            used = 0
        files[-1].append(tensor)
        used += size
    values, bad, weight_map = dict(_leaves(params)), [], {}
    for i, group in enumerate(files):
        name = SINGLE if len(files) == 1 else f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        arrays = {}
        for tensor in group:
            array = tensor.dump(np.asarray(values[tensor.ours]).astype(dtype))
            if not _finite(array):
                bad.append(f"parameter {tensor.ours}: NaN or infinite values")
            arrays[tensor.theirs] = array
        if not bad:
            save_file(arrays, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(arrays, name)
    if bad:
        return bad
    if len(files) > 1:
        total = sum(math.prod(t.our_shape) for t in tensors(config)) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return []


def _copy_tokenizer(source: Path, target: Path) -> None:
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "vocab.json"} & set(present):
        raise CheckpointError(f"{source}: no tokenizer (neither tokenizer.json nor vocab.json)")
    for name in present:
        shutil.copyfile(source / name, target / name)
