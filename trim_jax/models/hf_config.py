"""The `config.json` of a Hugging Face Qwen2 folder, to and from `ModelConfig`."""

from __future__ import annotations

from typing import Any, Mapping

from trim_jax.models.qwen2 import ModelConfig

ARCHITECTURES = {"Qwen2ForCausalLM": "lm", "Qwen2ForProcessRewardModel": "prm"}
# float16 weights are read as float32, which holds them exactly: we have no float16 arithmetic.
DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}

_SIZES = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
}
# What transformers assumes where `config.json` is silent.
_DEFAULT_ROPE_THETA = 10_000.0
_DEFAULT_NORM_EPS = 1e-6
_DEFAULT_WINDOW_LAYERS = 28


def parse_config(raw: Mapping[str, Any]) -> tuple[ModelConfig | None, list[str]]:
    """The model that a `config.json` describes.

    Args:
      raw: the parsed file. rope_theta is read from the top level (transformers v4) or from
        `rope_parameters` (v5).

    Returns:
      The configuration (`dtype` as stored, "float32" where unsaid; None where no model can be
      made of the file) and everything in it that we cannot compute, one text each.
    """
    problems: list[str] = []
    architectures = raw.get("architectures")
    known = [a for a in architectures or () if a in ARCHITECTURES]
    if not known:
        problems.append(
            f"config.json: architectures {architectures!r}: only {' and '.join(ARCHITECTURES)} "
            "are supported"
        )
    problems += _unsupported(raw)
    rope = _rope(raw)
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        problems.append(f"config.json: scaled rotary embedding {rope} is not supported")

    sizes = {}
    for ours, theirs in _SIZES.items():
        value = raw.get(theirs)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"config.json: {theirs} is {value!r}, expected a positive integer")
        else:
            sizes[ours] = value
    if not known or len(sizes) < len(_SIZES):
        return None, problems

    head_dim = raw.get("head_dim")
    if head_dim is None:
        if sizes["width"] % sizes["heads"]:
            problems.append(
                f"config.json: hidden_size {sizes['width']} is no multiple of "
                f"num_attention_heads {sizes['heads']}"
            )
        head_dim = sizes["width"] // sizes["heads"]
    if head_dim % 2 or head_dim < 2:
        problems.append(f"config.json: head width {head_dim}, expected a positive even number")
    if sizes["heads"] % sizes["kv_heads"]:
        problems.append(
            f"config.json: num_attention_heads {sizes['heads']} is no multiple of "
            f"num_key_value_heads {sizes['kv_heads']}"
        )
    dtype = raw.get("dtype", raw.get("torch_dtype")) or "float32"
    if dtype not in DTYPES:
        problems.append(f"config.json: dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    config = ModelConfig(
        **sizes,
        head_dim=head_dim,
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", _DEFAULT_ROPE_THETA))),
        norm_eps=float(raw.get("rms_norm_eps", _DEFAULT_NORM_EPS)),
        tied=bool(raw.get("tie_word_embeddings", False)),
        head=ARCHITECTURES[known[0]],
        dtype=DTYPES.get(dtype, "float32"),
    )
    return config, problems


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    problems = []
    if raw.get("hidden_act", "silu") != "silu":
        problems.append(f"config.json: hidden_act {raw['hidden_act']!r}, only 'silu' is supported")
    layers = raw.get("num_hidden_layers")
    kinds = raw.get("layer_types")
    if kinds is not None:
        windowed = any(kind != "full_attention" for kind in kinds)
    else:
        # The released checkpoints carry sliding_window with use_sliding_window switched off.
        windowed = (
            bool(raw.get("use_sliding_window"))
            and raw.get("sliding_window", True) is not None
            and isinstance(layers, int)
            and raw.get("max_window_layers", _DEFAULT_WINDOW_LAYERS) < layers
        )
    if windowed:
        problems.append("config.json: sliding-window attention is in use and not supported")
    if raw.get("quantization_config"):
        problems.append("config.json: quantized weights (quantization_config) are not supported")
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append("config.json: partial_rotary_factor other than 1 is not supported")
    return problems


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings, v5 before v4; {} where there are none."""
    for name in ("rope_parameters", "rope_scaling"):
        if raw.get(name):
            return raw[name]
    return {}


def config_json(config: ModelConfig, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `config.json`, in the form that transformers v4 wrote and v5 still reads.

    Args:
      config: the model.
      extra: entries to add or replace, e.g. eos_token_id.
    """
    architecture = {head: name for name, head in ARCHITECTURES.items()}[config.head]
    entries = {
        "architectures": [architecture],
        "model_type": "qwen2",
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        "torch_dtype": config.dtype,
    }
    if config.head_dim * config.heads != config.width:
        entries["head_dim"] = config.head_dim
    return {**entries, **extra}
