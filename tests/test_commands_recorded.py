"""`trim-jax recorded` on small made-up files: what is written, resuming, and errors that help."""

import json

import pytest

from recorded_pairs import make_files
from trim_jax import cli
from trim_jax.query import evaluate
from trim_jax.query.knn import NearestNeighbours
from trim_jax.query.simple import RandomQuestions

SMALL = ["--config.folds=2", "--config.seeds=0,1", "--config.bootstrap=20", "--config.refits=3",
         "--config.simulated=400", "--config.thresholds=0.3,0.5,0.9"]  # fmt: skip


@pytest.fixture(autouse=True)
def few_routers(monkeypatch):
    """All routers have tests of their own; the two quickest serve here."""
    monkeypatch.setattr(evaluate, "baselines", lambda: (RandomQuestions(), NearestNeighbours()))


def arguments(files, out):
    return ["recorded", f"--config.out={out}", *SMALL,
            *(f"--config.{name}={path}" for name, path in files.items())]  # fmt: skip


@pytest.fixture
def done(tmp_path, capsys):
    files, out = make_files(tmp_path), tmp_path / "run"
    assert cli.main(arguments(files, out)) == 0
    return files, out, capsys.readouterr().out


def test_files_figures_and_notes(done, tmp_path):
    files, out, printed = done
    names = {"summary.json", "table.md", "frontier.png", "frontier.svg", "config.json",
             "provenance.json"}
    assert names <= {p.name for p in out.iterdir()}
    for name in names - {"frontier.png"}:
        assert str(tmp_path) not in (out / name).read_text()
    text = (out / "table.md").read_text()
    assert text in printed
    assert "PREDICTED" in text and "proxy" in text and "trim_jax/assets/tokenizer" in text
    assert "not run" in text
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["baselines"]) == {"query-random", "query-knn", "query-knn-per-token"}
    assert all(len(s["apgr"]) == 2 for s in summary["spread"].values())
    assert summary["anchors"]["unboxed_small"] == pytest.approx(0.1)
    assert summary["files"]["small"]["name"] == "small.jsonl"
    assert len(summary["files"]["small"]["sha256"]) == 64
    predicted = summary["predicted"]
    assert "PREDICTED" in predicted["label"] and "not run" in predicted["label"]
    for row in predicted["variants"].values():
        assert row["thresholds"] == [0, 0.3, 0.5, 0.9, 1]
        assert row["c"][0]["value"] == 0 and row["c"][-1]["value"] == 1
        assert len(row["parameters"]) == 2
    for found in summary["check"].values():
        assert abs(found["weak"][0] - found["weak"][1]) < 0.08
        assert abs(found["strong"][0] - found["strong"][1]) < 0.08
        assert found["strong_tokens"][1] == pytest.approx(found["strong_tokens"][0], rel=0.1)


def test_a_killed_run_goes_on_to_the_same_files(done):
    files, out, _ = done
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    for chunk in ("00001.jsonl", "00003.jsonl"):
        (out / "chunks" / chunk).unlink()
    (out / "summary.json").unlink()
    assert cli.main(arguments(files, out)) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before


def test_errors_name_the_field_or_the_file(tmp_path, capsys):
    files = make_files(tmp_path)

    def error(**changed):
        assert cli.main(arguments({**files, **changed}, tmp_path / "run")) == 2
        return capsys.readouterr().err

    assert "--config.large=nowhere.jsonl: no such file" in error(large="nowhere.jsonl")
    assert "--config.questions is empty: name the file" in error(questions="")
    assert "no gap to recover" in error(small=files["large"], large=files["small"])
    lines = files["large"].read_text().splitlines()
    row = json.loads(lines[3])
    for field, value, message in (
        ("prm_scores", row["prm_scores"] + [0.5], "question q3 needs one process reward per step"),
        ("prm_scores", [1.5] * len(row["steps"]), "question q3: prm_scores must be in"),
        ("id", "other", "no row for question q3"),
    ):
        lines[3] = json.dumps({**row, field: value})
        (tmp_path / "bad.jsonl").write_text("\n".join(lines))
        found = error(large=tmp_path / "bad.jsonl")
        assert "bad.jsonl" in found and message in found
    assert cli.main([*arguments(files, tmp_path / "run"), "--config.folds=99"]) == 2
    assert "--config.folds=99" in capsys.readouterr().err
    assert cli.main([*arguments(files, tmp_path / "run"), "--config.seeds="]) == 2
    assert "--config.seeds" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
