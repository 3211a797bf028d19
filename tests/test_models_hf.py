"""Model folders that cannot be used: one clear error each, and nothing lost when writing fails."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_models import lively

from trim_jax.errors import CheckpointError
from trim_jax.models import hf
from trim_jax.models.hf_config import config_json, parse_config
from trim_jax.models.qwen2 import ModelConfig, init_params

CONFIG = ModelConfig(vocab=40, width=16, layers=4, heads=4, kv_heads=2, head_dim=4, ffn=24)
UNTIED = dataclasses.replace(CONFIG, tied=False, layers=2)
PRM = dataclasses.replace(CONFIG, head="prm", layers=1)
TOKENIZER = Path(hf.__file__).parents[1] / "assets" / "tokenizer"


@pytest.fixture
def folder(tmp_path):
    """A good model folder, in one file."""
    hf.save_model(tmp_path / "model", CONFIG, lively(CONFIG))
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path):
    """A good model folder of several files."""
    hf.save_model(tmp_path / "sharded", CONFIG, lively(CONFIG), max_shard_bytes=6_000)
    return tmp_path / "sharded"


def edit_config(folder, **entries):
    """Change entries of config.json; None removes one."""
    path = folder / hf.CONFIG
    raw = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


def edit_weights(folder, change):
    """Apply `change` to the dict of stored arrays."""
    arrays = load_file(folder / hf.SINGLE)
    change(arrays)
    save_file(arrays, folder / hf.SINGLE)


def refusal(folder, **kwargs) -> str:
    """The message with which a folder is refused; it names the folder."""
    with pytest.raises(CheckpointError) as error:
        hf.load_model(folder, **kwargs)
    assert str(folder) in str(error.value)
    return str(error.value)


# --- what is written is what is read -------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, UNTIED, PRM], ids=["tied", "untied", "prm"])
def test_table_covers_every_parameter(config):
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    ours = {t.ours: t.our_shape for t in hf.tensors(config)}
    assert ours == {path: leaf.shape for path, leaf in hf._leaves(shapes)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("limit", [5_000_000_000, 4_000])
@pytest.mark.parametrize("config", [CONFIG, UNTIED, PRM], ids=["tied", "untied", "prm"])
def test_round_trip(tmp_path, config, limit, dtype):
    config = dataclasses.replace(config, dtype=dtype, rope_theta=1234.5, norm_eps=3e-6)
    params = lively(config)
    hf.save_model(tmp_path / "a" / "m", config, params, max_shard_bytes=limit)
    found, back = hf.load_model(tmp_path / "a" / "m")
    assert found == config == hf.load_config(tmp_path / "a" / "m")
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert {x.dtype for x in jax.tree.leaves(back)} == {jnp.dtype(dtype)}
    files = sorted((tmp_path / "a" / "m").glob("*.safetensors"))
    assert (len(files) > 1) == (limit == 4_000)
    for file in files:
        with safe_open(file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt"}  # transformers v4 refuses files without
    largest = max(int(np.prod(t.our_shape)) for t in hf.tensors(config)) * 4
    assert all(f.stat().st_size < max(limit, largest) + 4_000 for f in files)


def test_float32_parameters_are_stored_as_the_config_says(tmp_path):
    params = lively(CONFIG)
    hf.save_model(tmp_path / "m", dataclasses.replace(CONFIG, dtype="bfloat16"), params)
    stored = load_file(tmp_path / "m" / hf.SINGLE)
    assert {x.dtype.name for x in stored.values()} == {"bfloat16"}
    _, back = hf.load_model(tmp_path / "m", dtype="float32")
    np.testing.assert_array_equal(back["embed"], params["embed"].astype(jnp.bfloat16))
    assert back["embed"].dtype == jnp.float32


def test_float16_is_read_as_float32(folder):
    edit_weights(folder, lambda w: w.update({k: v.astype(np.float16) for k, v in w.items()}))
    edit_config(folder, torch_dtype="float16")
    config, params = hf.load_model(folder)
    assert config.dtype == "float32" and params["embed"].dtype == jnp.float32


def test_extra_entries_and_tokenizer_files(tmp_path):
    extra = {"eos_token_id": [2, 5], "max_position_embeddings": 512}
    hf.save_model(tmp_path / "m", CONFIG, lively(CONFIG), TOKENIZER, extra=extra)
    raw = json.loads((tmp_path / "m" / hf.CONFIG).read_text())
    assert extra.items() <= raw.items()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "m" / name).read_bytes() == (TOKENIZER / name).read_bytes()


def test_two_equal_exports_are_equal_files(tmp_path):
    for name in "ab":
        hf.save_model(tmp_path / name, CONFIG, lively(CONFIG), TOKENIZER)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in "ab")
    assert a == b


# --- tied or untied ------------------------------------------------------------------------------


def test_head_equal_to_the_embedding_stays_tied(folder):
    edit_weights(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"]}))
    assert hf.load_model(folder)[0].tied


def test_head_unlike_the_embedding_wins_over_the_config(folder):
    head = {}

    def change(weights):
        head["w"] = weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1

    edit_weights(folder, change)
    config, params = hf.load_model(folder)
    assert not config.tied
    np.testing.assert_array_equal(params["lm_head"], head["w"].T)


def test_untied_without_a_head_is_missing_it(folder):
    edit_config(folder, tie_word_embeddings=False)
    assert "lm_head.weight: missing, expected [40, 16]" in refusal(folder)


# --- config.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entries,expected",
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": None}, "architectures None"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, "sliding"),
        ({"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "sliding"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "linear"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"hidden_size": "16"}, "hidden_size is '16'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of .* 3"),
        ({"hidden_size": 18}, "hidden_size 18 is no multiple of"),
        ({"head_dim": 5}, "head width 5"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_config_that_we_do_not_compute(folder, entries, expected):
    edit_config(folder, **entries)
    with pytest.raises(CheckpointError, match=expected):
        hf.load_config(folder)


def test_all_findings_come_in_one_error(folder):
    edit_config(folder, hidden_act="gelu", rope_scaling={"type": "yarn"}, head_dim=4)

    def change(weights):
        del weights["model.norm.weight"]
        weights["model.layers.1.mlp.up_proj.weight"] = np.zeros((24, 17), np.float32)
        weights["model.extra"] = np.zeros(3, np.float32)
        for i in range(4):
            del weights[f"model.layers.{i}.self_attn.q_proj.bias"]

    edit_weights(folder, change)
    message = refusal(folder)
    assert "gelu" in message and "yarn" in message
    assert "tensor model.norm.weight: missing, expected [16]" in message
    assert "tensor model.layers.1.mlp.up_proj.weight: expected [24, 16], found [24, 17]" in message
    assert "tensor model.extra: not used, found [3]" in message
    assert "tensor model.layers.{0-3}.self_attn.q_proj.bias: missing, expected [16]" in message
    assert len(message.splitlines()) == 7


def test_released_configs_are_understood():
    """The entries that matter of Qwen2.5-1.5B-Instruct and of Qwen2.5-Math-PRM-7B."""
    common = {
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06,
        "sliding_window": 4096,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
    }
    small, problems = parse_config(
        common
        | {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "max_window_layers": 21,
            "num_attention_heads": 12,
            "num_hidden_layers": 28,
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        }
    )
    assert not problems
    assert small == ModelConfig(
        vocab=151936, width=1536, layers=28, heads=12, kv_heads=2, head_dim=128, ffn=8960,
        rope_theta=1e6, tied=True, head="lm", dtype="bfloat16",
    )  # fmt: skip
    prm, problems = parse_config(
        common
        | {
            "architectures": ["Qwen2ForProcessRewardModel"],
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_window_layers": 28,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rope_theta": 10000,
            "tie_word_embeddings": False,
            "vocab_size": 152064,
        }
    )
    assert not problems
    assert (prm.head, prm.head_dim, prm.rope_theta, prm.tied) == ("prm", 128, 1e4, False)


def test_rotary_base_of_both_transformers_versions():
    raw = config_json(CONFIG, {})
    assert raw["rope_theta"] == CONFIG.rope_theta  # v4, and v5 reads it too
    newer = {k: v for k, v in raw.items() if k != "rope_theta"}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 77.0}
    assert parse_config(newer)[0].rope_theta == 77.0
    del newer["rope_parameters"]
    assert parse_config(newer)[0].rope_theta == 10_000.0  # transformers' default


@pytest.mark.parametrize("text", ['{"a": ', "[1]", ""])
def test_config_that_is_no_json_object(folder, text):
    (folder / hf.CONFIG).write_text(text)
    assert hf.CONFIG in refusal(folder)


def test_unknown_dtype(folder):
    assert "'float16', expected 'float32' or 'bfloat16'" in refusal(folder, dtype="float16")


# --- files ---------------------------------------------------------------------------------------


def test_missing_folder(tmp_path):
    assert "no such model folder" in refusal(tmp_path / "nowhere")


def test_folder_without_config(folder):
    (folder / hf.CONFIG).unlink()
    assert f"no {hf.CONFIG} (found: {hf.SINGLE})" in refusal(folder)


def test_training_folders(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"train": {"steps": 10}}')
    assert "an unfinished training run: the same training command" in refusal(run)
    assert "an unfinished training run: the same training command" in refusal(run / "model")
    hf.save_model(run / "model", CONFIG, lively(CONFIG))
    assert f"the model is in {run / 'model'}" in refusal(run)


def test_a_model_folder_may_hold_checkpoints(folder):
    (folder / "checkpoints").mkdir()
    assert hf.load_config(folder) == CONFIG


def test_folder_without_weights(folder):
    (folder / hf.SINGLE).unlink()
    assert f"neither {hf.SINGLE} nor {hf.INDEX}" in refusal(folder)
    (folder / "pytorch_model.bin").touch()
    assert "convert the PyTorch weights" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_half_written_weights(folder, keep):
    path = folder / hf.SINGLE
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(folder)
    assert f"file {hf.SINGLE}: half-written or damaged ({path.stat().st_size} bytes" in message
    assert "missing" not in message  # the tensors of a file that cannot be read are not listed


def test_missing_and_damaged_shards_are_named_together(sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 3
    shards[0].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    message = refusal(sharded)
    assert f"file {shards[0].name}: missing, named in {hf.INDEX}" in message
    assert f"file {shards[2].name}: half-written or damaged" in message
    assert shards[1].name not in message


def test_index_without_a_weight_map(sharded):
    (sharded / hf.INDEX).write_text("{}")
    assert f"{hf.INDEX}: no weight_map" in refusal(sharded)


def test_weights_of_an_unsupported_type(folder):
    def change(weights):
        weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.int8)

    edit_weights(folder, change)
    assert "tensor model.norm.weight: stored as I8" in refusal(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_all_named(tmp_path, dtype):
    hf.save_model(tmp_path / "m", dataclasses.replace(CONFIG, dtype=dtype), lively(CONFIG))

    def change(weights):
        weights["model.norm.weight"][3] = np.nan
        weights["model.layers.2.mlp.up_proj.weight"][5, 5] = -np.inf

    edit_weights(tmp_path / "m", change)
    message = refusal(tmp_path / "m")
    assert "tensor model.norm.weight: NaN or infinite" in message
    assert "tensor model.layers.2.mlp.up_proj.weight: NaN or infinite" in message
    assert len(message.splitlines()) == 3
    hf.load_config(tmp_path / "m")  # reads no values


def test_rotary_tables_of_old_checkpoints_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda w: w.update({name: np.ones(2, np.float32)}))
    assert hf.load_model(folder)[0] == CONFIG


# --- writing -------------------------------------------------------------------------------------


def listing(path):
    return sorted(p.name for p in path.iterdir())


def test_a_model_is_replaced_whole(folder):
    hf.save_model(folder, CONFIG, lively(CONFIG, seed=1), max_shard_bytes=6_000)
    assert hf.SINGLE not in listing(folder)
    np.testing.assert_array_equal(
        hf.load_model(folder)[1]["norm_out"], lively(CONFIG, seed=1)["norm_out"]
    )
    assert listing(folder.parent) == ["model"]


def test_a_folder_with_other_things_is_left_alone(folder):
    (folder / "checkpoints").mkdir()
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    with pytest.raises(CheckpointError, match=f"{folder}: holds checkpoints"):
        hf.save_model(folder, CONFIG, lively(CONFIG, seed=1))
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    (folder.parent / "file").touch()
    with pytest.raises(CheckpointError, match="holds a file"):
        hf.save_model(folder.parent / "file", CONFIG, lively(CONFIG))


@pytest.mark.parametrize(
    "change,expected",
    [
        (lambda p: p.pop("norm_out"), r"norm_out: expected \(16,\), found None"),
        (lambda p: p.update(other=p["embed"]), r"other: expected None, found \(40, 16\)"),
        (lambda p: p.update(embed=p["embed"].T), r"embed: expected \(40, 16\), found \(16, 40\)"),
        (lambda p: p.update(norm_out=p["norm_out"] / 0.0), "norm_out: NaN or infinite"),
    ],
    ids=["missing", "unused", "shape", "nan"],
)
def test_parameters_that_cannot_be_written(folder, change, expected):
    params = lively(CONFIG)
    change(params)
    with pytest.raises(CheckpointError, match=expected):
        hf.save_model(folder, CONFIG, params)
    assert hf.load_model(folder)[0] == CONFIG  # what was there is still there
    assert listing(folder.parent) == ["model"]


def test_no_tokenizer_to_copy(folder, tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path}/none: no tokenizer"):
        hf.save_model(folder, CONFIG, lively(CONFIG), tmp_path / "none")
    assert hf.load_model(folder)[0] == CONFIG
    assert listing(tmp_path) == ["model"]


def run_writer(folder, before: str, extra: str = "None"):
    """Replace the model in `folder`, in a process of its own."""
    script = f"""
        import collections, os, resource, signal, sys
        from test_models_hf import CONFIG, hf, lively

        class Deadly(collections.UserDict):
            def keys(self):
                os.kill(os.getpid(), signal.SIGKILL)

        {before}
        try:
            hf.save_model({str(folder)!r}, CONFIG, lively(CONFIG, seed=1), extra={extra})
        except hf.CheckpointError as error:
            sys.exit(str(error))
    """
    tests = Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("interrupted", [False, True])
def test_disk_full_keeps_the_old_model(folder, interrupted):
    """Also where an earlier replacement was killed when the old model had just been moved away."""
    before = (folder / hf.SINGLE).read_bytes()
    if interrupted:
        shutil.move(folder, folder.with_name(".model.old"))
    done = run_writer(folder, "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
    assert done.returncode == 1 and "cannot be written" in done.stderr
    assert (folder / hf.SINGLE).read_bytes() == before
    assert listing(folder.parent) == ["model"]


def test_killed_while_writing_keeps_the_old_model(folder):
    before = (folder / hf.SINGLE).read_bytes()
    # config.json is written after the weights: the writer dies between the two.
    assert run_writer(folder, "", extra="Deadly(a=1)").returncode == -signal.SIGKILL
    assert listing(folder.with_name(".model.partial")) == [hf.SINGLE]
    assert (folder / hf.SINGLE).read_bytes() == before
    assert listing(folder.parent) == [".model.partial", "model"]
    hf.save_model(folder, CONFIG, lively(CONFIG, seed=1))  # and the next run cleans up
    assert listing(folder.parent) == ["model"]


def test_interrupted_replacement_is_explained(folder):
    shutil.move(folder, folder.with_name(".model.old"))
    assert "rename" in refusal(folder) and ".model.old" in refusal(folder)
    hf.save_model(folder, CONFIG, lively(CONFIG))
    assert listing(folder.parent) == ["model"]
