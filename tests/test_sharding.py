"""Parameters on a mesh: the same numbers on every mesh, and errors that name the axis.

`conftest.py` gives the test process eight fake devices.
"""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_models import lively

from trim_jax import sharding
from trim_jax.engine.engine import EngineConfig
from trim_jax.errors import ConfigError
from trim_jax.models import hf
from trim_jax.models.qwen2 import ModelConfig, Qwen2
from trim_jax.sharding import (
    ROWS, WHOLE, all_devices, by_path, by_rows, make_mesh, param_shardings,
)  # fmt: skip

CONFIG = ModelConfig(
    vocab=64, width=32, layers=2, heads=8, kv_heads=2, head_dim=4, ffn=48, tied=False
)
PRM = ModelConfig(vocab=64, width=32, layers=2, heads=8, kv_heads=4, head_dim=4, ffn=48, head="prm")


@functools.partial(jax.jit, static_argnums=0)
def two_chunks(config, params, tokens, lengths):
    """Logits of a first chunk, and of a second one behind `lengths` tokens of the first."""
    model = Qwen2(config)
    first, past = model.apply({"params": params}, tokens[:, :6])
    second, _ = model.apply({"params": params}, tokens[:, 6:], past, lengths)
    return first, second


def inputs(config):
    """Parameters, tokens [8, 10], and how much of the first chunk of each row is kept [8]."""
    rng = np.random.default_rng(0)
    tokens, lengths = rng.integers(0, config.vocab, (8, 10)), rng.integers(0, 7, 8)
    return lively(config), jnp.asarray(tokens), jnp.asarray(lengths)


@pytest.mark.parametrize(
    "config,data,model",
    [(CONFIG, 2, 4), (CONFIG, 4, 2), (CONFIG, 1, 8), (CONFIG, 8, 1), (PRM, 2, 4)],
)
def test_forward_pass_is_the_same_on_every_mesh(config, data, model):
    params, tokens, lengths = inputs(config)
    want = two_chunks(config, params, tokens, lengths)

    mesh = make_mesh(data, model)
    placed = jax.device_put(params, param_shardings(config, mesh))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    got = two_chunks(config, placed, *jax.device_put((tokens, lengths), rows))
    for a, b in zip(want, got):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert len(got[0].sharding.device_set) == 8


@pytest.mark.parametrize("data,model", [(2, 4), (8, 1)])
def test_forward_pass_is_the_same_with_rows_mapped_by_hand(data, model):
    """The engine maps rows over `data` itself and leaves `model` to the compiler."""
    params, tokens, lengths = inputs(CONFIG)
    mesh = make_mesh(data, model)
    placed = jax.device_put(params, param_shardings(CONFIG, mesh))
    mapped = by_rows(functools.partial(two_chunks, CONFIG), mesh, WHOLE, ROWS, ROWS)
    want = two_chunks(CONFIG, params, tokens, lengths)
    for a, b in zip(want, jax.jit(mapped)(placed, tokens, lengths)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_each_device_holds_its_share_only():
    mesh = make_mesh(2, 4)
    placed = jax.device_put(lively(CONFIG), param_shardings(CONFIG, mesh))
    part = lambda x: x.addressable_shards[0].data.shape  # noqa: E731
    layer = placed["layer_1"]
    assert part(placed["embed"]) == (16, 32)
    assert part(placed["lm_head"]) == (32, 16)
    assert part(layer["wq"]) == (32, 2, 4)
    assert part(layer["bq"]) == (2, 4)
    assert part(layer["wo"]) == (2, 4, 32)
    assert part(layer["w_gate"]) == part(layer["w_up"]) == (32, 12)
    assert part(layer["w_down"]) == (12, 32)
    assert part(layer["wk"]) == (32, 2, 4)  # two key-value heads on four devices: replicated
    assert part(layer["norm_attn"]) == (32,)
    two = jax.device_put(lively(CONFIG), param_shardings(CONFIG, make_mesh(4, 2)))
    assert part(two["layer_0"]["wk"]) == part(two["layer_0"]["wv"]) == (32, 1, 4)


def test_loading_places_every_tensor_on_the_mesh(tmp_path):
    params = lively(CONFIG)
    hf.save_model(tmp_path / "m", CONFIG, params)
    config = hf.load_config(tmp_path / "m")
    shardings = param_shardings(config, make_mesh(2, 4))
    _, placed = hf.load_model(tmp_path / "m", shardings=by_path(shardings))
    assert jax.tree.map(lambda x: x.sharding, placed) == shardings
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    hf.save_model(tmp_path / "again", config, placed)
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()


def test_heads_and_ffn_that_do_not_divide_are_named_with_their_sizes():
    config = ModelConfig(
        vocab=64, width=24, layers=1, heads=6, kv_heads=2, head_dim=4, ffn=36, tied=True
    )
    expected = "model=8 does not divide .*heads .* 6.*usable sizes of model: 1, 2, 3, 6"
    with pytest.raises(ConfigError, match=expected) as error:
        param_shardings(config, make_mesh(1, 8))
    assert re.search(r"ffn .* 36", str(error.value))


def test_uneven_vocabulary_is_replicated_and_said():
    config = ModelConfig(
        vocab=62, width=32, layers=1, heads=8, kv_heads=4, head_dim=4, ffn=48, tied=False
    )
    with pytest.warns(UserWarning, match="model=4 does not divide vocab .* 62.*replicated"):
        shardings = param_shardings(config, make_mesh(2, 4))
    assert shardings["embed"].is_fully_replicated and shardings["lm_head"].is_fully_replicated
    assert not shardings["layer_0"]["wq"].is_fully_replicated
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        param_shardings(config, make_mesh(4, 2))  # 2 divides 62: nothing to say


@pytest.mark.parametrize("data,model,match", [(4, 4, "needs 16 devices.* 8"), (0, 8, "data=0")])
def test_impossible_mesh(data, model, match):
    with pytest.raises(ConfigError, match=match):
        make_mesh(data, model)


def test_all_devices_are_as_many_as_there_are_cores(monkeypatch):
    monkeypatch.setattr(sharding, "cores", lambda: 3)
    small = sharding.COPIES // 3
    assert dict(all_devices(small).shape) == {"data": 3, "model": 1}
    assert all_devices(small + 1) is None  # three copies would take too much
    monkeypatch.setattr(sharding, "cores", lambda: 1)
    assert all_devices(small) is None


def test_cores_share_what_one_shard_would_have():
    size = EngineConfig(slots=20, rows=8, tail_rows=2)
    assert size.shard(make_mesh(8, 1)) == EngineConfig(slots=3, rows=1, tail_rows=2)
    assert size.shard(make_mesh(2, 4)) == EngineConfig(slots=10, rows=4, tail_rows=2)
    assert size.shard(None) == size


def test_smaller_mesh_than_the_machine():
    assert make_mesh(1, 2).size == 2
