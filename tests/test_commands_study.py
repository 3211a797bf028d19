"""The study from end to end with the shipped trio, little data and short trainings."""

import json

import pytest

from trim_jax.api import route
from trim_jax.commands import study
from trim_jax.config import load_config
from trim_jax.engine.engine import EngineConfig
from trim_jax.errors import ConfigError
from trim_jax.eval.traces import load_result
from trim_jax.policies.registry import make_policy
from trim_jax.tasks.data import load_problems
from trim_jax.train import policies as training
from trim_jax.train.q import QConfig

SMALL = ["--config.study.train=50", "--config.data.limit=4", "--config.sweep.validation=4",
         "--config.study.hard=2", "--config.study.worths=30,300", "--config.sweep.bootstrap=50",
         "--config.engine.slots=64", "--config.engine.rows=16", "--config.engine.max_context=383",
         "--config.study.query=false", "--config.sweep.thresholds=0,0.5,0.9,1",
         "--config.sweep.random=0.5",
         "--config.study.tune_rounds=1", "--config.study.tune_problems=4",
         "--config.study.timed=2", "--config.study.refits=2",
         # One of each kind: solved, learned, tuned on the models, judged, on likelihood, peeking.
         "--config.study.policies=pomdp_filtered,q,q-tuned,q-judged,loglik,glimp"]  # fmt: skip


@pytest.fixture
def short(monkeypatch):
    """Trainings of a few updates, in this process."""
    monkeypatch.setattr(training.q, "QConfig", lambda: QConfig(iterations=2, problems=8, memory=2))
    monkeypatch.setattr(study, "train_apart", training.train_missing)


def test_a_study_from_end_to_end_and_again(tmp_path, short):
    out = tmp_path / "study"
    places = [f"--config.out={out}", f"--config.store={tmp_path / 'steps'}"]
    config = load_config("study", [*SMALL, "--config.seeds=0", *places])
    assert study.run(config) == out / "report.html"
    table = (out / "table.md").read_text()
    assert [line for line in table.splitlines() if line.startswith("## ")] == [
        "## test: 4 problems, seeds 0", "## hard: 2 problems, seeds 0"]  # fmt: skip
    assert table.count("| TRIM-POMDP, filtered belief | ") >= 2
    names = {"thr", "random", "oracle", *config.study.policies}
    for part in (out, out / "hard", out / "validation"):
        assert set(load_result(part).policies) == names
    assert set(load_result(out / "collected").policies) == {"thr", "random", "loglik"}
    # Settings of the harder problems are those that validation has chosen.
    points = [json.loads((part / "summary.json").read_text())["policies"]["q"]["operating_point"]
              for part in (out, out / "hard")]  # fmt: skip
    if points[0] is not None:  # on so few problems the gap may vanish
        assert points[0]["value"] == points[1]["value"]
    predicted = (out / "simulator.txt").read_text().splitlines()[1:]
    assert {line.split()[0] for line in predicted} == names - {"glimp"}
    assert all(line.count("agree") == 2 for line in predicted)
    assert (out / "study.png").stat().st_size > 10_000
    assert "times less" in table
    timed = json.loads((out / "walltime.json").read_text())
    assert timed["problems"] == 2 and all(len(each) == 3 for _, _, each in timed["repeats"])
    # A tuned policy goes on from the one of the simulator, and says what came of it.
    took = json.loads((out / "policies" / "q-tuned" / "training.json").read_text())
    assert took["solutions"] > 0 and took["best_round"] in (0, 1)
    assert make_policy(str(out / "policies" / "q-tuned")).full_name == "q-tuned"

    # A trained policy is a policy like any other.
    traces = route(load_problems("arith", "test", 1), make_policy(str(out / "policies" / "q")),
                   engine=EngineConfig(slots=16, rows=16))  # fmt: skip
    assert {t.policy for t in traces} == {"q"}

    # The same command again computes nothing, and ends with the same files.
    times = {"timings.json", "provenance.json", ".lock"}
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name not in times}
    (out / "report.html").unlink()
    study.run(config)
    assert {p: p.read_bytes() for p in files} == files


def test_a_study_needs_labels_and_a_validation_split(tmp_path):
    for override, message in [("--config.data.source=mine.jsonl", "data.source"),
                              ("--config.sweep.validation=0", "sweep.validation")]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            study.run(load_config("study_quick", [override, f"--config.out={tmp_path}"]))
