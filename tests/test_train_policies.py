"""Recipes: names, order, and that each policy is trained and saved under its recipe's name."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from fake_traces import write_result

from trim_jax.errors import ConfigError
from trim_jax.policies.features import Features
from trim_jax.policies.judged import judged
from trim_jax.policies.learned import Q
from trim_jax.policies.saved import load_policy
from trim_jax.policies.takeover import Takeover
from trim_jax.sim.process import simple_process
from trim_jax.train import policies as training
from trim_jax.train.policies import (
    RECIPES, Order, Recipe, check_names, in_order, train_apart, train_missing,
)  # fmt: skip
from trim_jax.train.q import QConfig

ORDER = Order(worths=(30.0, 300.0), thresholds=(0.0, 0.5, 1.0), max_steps=12, seed=0)


@pytest.fixture
def short(monkeypatch):
    """Trainings of a few updates."""
    few = dict(updates=2, problems=8, validations=1, validation_problems=8)
    for name in ("PPO", "PPO_SEQ"):
        monkeypatch.setattr(training, name, dataclasses.replace(getattr(training, name), **few))
    config = QConfig(iterations=2, problems=8, memory=2)
    monkeypatch.setattr(training.q, "QConfig", lambda: config)
    monkeypatch.setattr(training, "Q_TAKEOVER", config)


def test_unknown_and_repeated_names_are_refused():
    check_names(list(RECIPES))
    with pytest.raises(ConfigError, match="no recipe 'agg-relaese'; did you mean 'agg-release'"):
        check_names(["q", "agg-relaese"])
    check_names(["q-tuned", "agg-tuned", "q"])
    with pytest.raises(ConfigError, match="no recipe 'pomdp-tuned'"):
        check_names(["pomdp-tuned"])
    with pytest.raises(ConfigError, match="'q' is named twice"):
        check_names(["q", "agg", "q"])


def test_what_a_recipe_begins_with_comes_before_it(monkeypatch):
    nothing = RECIPES["agg"].train
    monkeypatch.setitem(RECIPES, "agg-more", Recipe(nothing, after=("agg",)))
    monkeypatch.setitem(RECIPES, "agg-most", Recipe(nothing, after=("agg-more", "q")))
    assert in_order(["agg-most", "seq", "agg"]) == ["agg", "agg-more", "q", "agg-most", "seq"]
    assert in_order(["seq", "q"]) == ["seq", "q"]
    assert in_order(["q-tuned", "seq", "q"]) == ["q", "seq"]  # tuning itself needs the models


def test_what_is_judged_learns_from_what_was_judged(tmp_path):
    scored, likely = simple_process(p_small=0.8), simple_process(p_small=0.6)
    material = training.Material(ORDER, None, tmp_path)
    vars(material).update(process=scored, judged_process=likely)
    worlds = []

    def make(config, policy, world):
        worlds.append(world)
        return lambda key: SimpleNamespace(weights={}, steps=np.zeros(1))

    for wrap, name in ((None, "q"), (judged, "q-judged")):
        done = material._learned(Q((10.0,), features=Features(price=True)), make, None, wrap)
        assert done.policy.full_name == name
    for world, process in zip(worlds, (scored, likely)):
        np.testing.assert_array_equal(world.process.logit, process.logit[:, :, :4])
        assert world.max_steps == 4  # those of its plan, not of the engine


def test_a_simulator_is_fitted_once_and_kept(tmp_path, monkeypatch):
    kept, calls = simple_process(p_small=0.7), []
    report = SimpleNamespace(drafts=3, rewrites=2, parameters={"rho": (0.5, 0.1)})
    for name in ("fit_result", "fit_judged"):
        monkeypatch.setattr(training, name, lambda *a, n=name: calls.append(n) or (kept, report))
    for judged_too in (False, True, False, True):
        found = training.simulator(None, tmp_path / "policies", 12, judged_too)
        np.testing.assert_array_equal(found.logit, kept.logit)
        assert found.history is not judged_too
    assert calls == ["fit_result", "fit_judged"]
    described = json.loads((tmp_path / "policies" / "simulator-judged.json").read_text())
    assert described == {"drafts": 3, "rewrites": 2, "effects": {"rho": [0.5, 0.1]}}


def test_another_process_trains_on_the_cpu_whatever_holds_the_accelerator(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")  # where there is none, or another process has it
    folder, out = write_result(tmp_path / "collected", range(20)), tmp_path / "policies"
    train_apart(folder, out, ["rsd", "pomdp"], ORDER)
    assert [load_policy(out / name).name for name in ("rsd", "pomdp")] == ["rsd", "pomdp"]


def test_policies_have_their_names_and_may_begin_with_others(tmp_path, short, monkeypatch):
    def opposite(material):
        begun = material.saved("agg-release")
        weights = {k: v for k, v in begun.weights.items()}
        weights["Dense_0"] = {k: -v for k, v in weights["Dense_0"].items()}
        return training.Training(dataclasses.replace(begun, weights=weights), 1.0, 7)

    monkeypatch.setitem(RECIPES, "agg-opposite", Recipe(opposite, after=("agg-release",)))
    folder, out = write_result(tmp_path / "collected", range(20)), tmp_path / "policies"
    names = ["agg-opposite", "pomdp-no_last", "thr-takeover", "q-takeover"]
    train_missing(folder, out, names, ORDER)
    found = {path.name: load_policy(path) for path in sorted(out.iterdir()) if path.is_dir()}
    assert sorted(found) == sorted([*names, "agg-release"])
    for name, policy in found.items():
        assert policy.full_name == name
        assert policy.settings == (ORDER.thresholds if name == "thr-takeover" else ORDER.worths)
    heads = [found[name].weights["Dense_0"]["kernel"] for name in ("agg-release", "agg-opposite")]
    np.testing.assert_array_equal(heads[0], -heads[1])
    assert found["agg-release"].features.product and not found["agg-release"].features.logit
    assert isinstance(found["q-takeover"], Takeover) and not found["pomdp-no_last"].sees_last
    took = json.loads((out / "agg-opposite" / "training.json").read_text())
    assert took == {"seconds": 1.0, "environment_steps": 7}

    # Again: only what is not there is trained.
    (out / "thr-takeover" / "policy.json").unlink()
    files = {p: p.stat().st_mtime_ns for p in out.rglob("policy.json")}
    train_missing(folder, out, names, ORDER)
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert load_policy(out / "thr-takeover").full_name == "thr-takeover"
