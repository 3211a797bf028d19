"""Training commands from end to end on little data: what they leave, resume and refuse."""

import json

import numpy as np
import pytest

from trim_jax.commands import train
from trim_jax.config import load_config
from trim_jax.errors import CheckpointError, ResultError
from trim_jax.models.hf import load_config as model_config
from trim_jax.models.hf import load_model

SHORT = ["--config.train.rows=4", "--config.train.steps=4", "--config.train.cosine_steps=4",
         "--config.train.warmup=1", "--config.train.save_every=2"]  # fmt: skip
TINY = ["--config.model.width=16", "--config.model.layers=1", "--config.model.ffn=32"]
FEW = [*SHORT, "--config.data.limit=40", "--config.sample.problems=6", "--config.adapt.steps=2",
       "--config.adapt.cosine_steps=2", "--config.engine.slots=16",
       "--config.engine.rows=8"]  # fmt: skip


def test_a_language_model_is_trained_exported_and_not_mixed_with_another(tmp_path):
    out = tmp_path / "lm"
    asked = [*SHORT, *TINY, "--config.data.limit=200", f"--config.out={out}"]
    assert train.train_lm(load_config("train_small", asked)) == out / "model"
    model, params = load_model(out / "model", "float32")
    assert (model.width, model.layers, model.head) == (16, 1, "lm")
    assert all(np.isfinite(x).all() for x in params["layer_0"].values())
    assert [step for step, _ in json.loads((out / "loss.json").read_text())] == [2, 4]
    assert (out / "loss.png").stat().st_size > 5_000
    made = json.loads((out / "provenance.json").read_text())
    assert made["commit"] and made["data"] and made["weights"] == {}
    with pytest.raises(CheckpointError, match="the model is in"):
        model_config(out)

    with pytest.raises(ResultError, match="(?s)another config.*train.learning_rate: 0.1 here"):
        train.train_lm(load_config("train_small", [*asked, "--config.train.learning_rate=0.1"]))


def test_a_killed_prm_training_samples_nothing_again(tmp_path, monkeypatch):
    out = tmp_path / "prm"
    config = load_config("train_prm_small", [*FEW, f"--config.out={out}"])

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train_prm(config)
    with monkeypatch.context() as patch:
        patch.setattr(train, "Engine", killed)
        assert train.train_prm(config) == out / "model"
    assert model_config(out / "model").head == "prm"
    examples = train._unpacked(out / train.EXAMPLES)
    assert len(examples) > 6 and all(len(e.tokens) == len(e.weight) for e in examples)
    assert {int(label) for e in examples for label in e.target[e.weight == 1]} == {0, 1}
    made = json.loads((out / "provenance.json").read_text())
    assert sorted(made["weights"]) == ["large", "small"]

    noisy = load_config(
        "train_prm_small", [*FEW, f"--config.out={out}", "--config.sample.label_noise=0.2"]
    )
    with pytest.raises(ResultError, match="(?s)another config.*sample.label_noise: 0.2 here"):
        train.train_prm(noisy)
    (out / train.EXAMPLES).write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="examples.npz: cannot be read"):
        train.train_prm(config)
