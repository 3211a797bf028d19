"""Provenance: hashes notice every change, and nothing depends on time, machine or folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import pytest

import trim_jax
from trim_jax import provenance
from trim_jax.errors import CheckpointError, DataError
from trim_jax.eval.traces import SCHEMA_VERSION
from trim_jax.provenance import collect, hash_checkpoint, hash_data


@dataclass(frozen=True)
class Row:
    id: str
    problem: str
    answer: str


ROWS = [Row("a", "1+1", "2"), Row("b", "2+2", "4")]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                 "model.safetensors.index.json", "config.json", "tokenizer.json",
                 "tokenizer_config.json", "README.md"):
        (folder / name).write_text(name)
    return folder


def test_every_file_that_decides_the_numbers_is_hashed(checkpoint):
    hashes = hash_checkpoint(checkpoint)
    assert sorted(hashes) == ["config.json", "model-00001-of-00002.safetensors",
                              "model-00002-of-00002.safetensors", "model.safetensors.index.json",
                              "tokenizer.json", "tokenizer_config.json"]
    assert hashes["tokenizer.json"] == hashlib.sha256(b"tokenizer.json").hexdigest()
    for name in hashes:
        (checkpoint / name).write_text("changed")
        changed = hash_checkpoint(checkpoint)
        assert {n for n in hashes if changed[n] != hashes[n]} == {name}
        (checkpoint / name).write_text(name)
    (checkpoint / "README.md").write_text("changed")
    assert hash_checkpoint(checkpoint) == hashes


def test_missing_or_empty_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path}/none: no such checkpoint folder"):
        hash_checkpoint(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"{tmp_path}: no \\*.safetensors"):
        hash_checkpoint(tmp_path)


def test_data_hash_notices_content_order_and_number(tmp_path):
    others = [ROWS[::-1], ROWS[:1], [*ROWS, ROWS[0]], [replace(ROWS[0], answer="3"), ROWS[1]], []]
    assert len({hash_data(rows) for rows in [ROWS, *others]}) == 6
    assert hash_data(ROWS) == hash_data(list(ROWS))
    (tmp_path / "rows.jsonl").write_text("x\n")
    assert hash_data(tmp_path / "rows.jsonl") == hashlib.sha256(b"x\n").hexdigest()
    with pytest.raises(DataError, match="none.jsonl"):
        hash_data(str(tmp_path / "none.jsonl"))


def test_collect_says_what_decides_a_result_and_nothing_else(checkpoint, tmp_path, monkeypatch):
    jax.devices()  # JAX reads the flags only once, and would die of these
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=2 --xla_dump_to=/home/me/dump --xla_b=true")
    value = collect({"small": checkpoint}, ROWS)
    assert list(value) == ["schema_version", "commit", "uncommitted_changes", "versions", "device",
                           "numerics", "weights", "data"]
    assert value["schema_version"] == SCHEMA_VERSION
    assert value["versions"]["trim_jax"] == trim_jax.__version__
    assert {"python", "jax", "flax", "transformers", "numpy"} <= value["versions"].keys()
    assert value["device"]["platform"] == "cpu" and value["device"]["count"] == 8
    assert value["numerics"]["xla_flags"] == "--xla_a=2 --xla_dump_to=<path> --xla_b=true"
    assert value["weights"] == {"small": hash_checkpoint(checkpoint)}
    assert value["data"] == hash_data(ROWS)

    moved = tmp_path / "elsewhere"
    shutil.copytree(checkpoint, moved)
    monkeypatch.chdir(tmp_path)
    assert json.dumps(collect({"small": moved}, ROWS)) == json.dumps(value)
    for private in (str(tmp_path), str(Path.home()), str(Path(trim_jax.__file__).parent)):
        assert private not in json.dumps(value)


# ---- Commit ----


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
                          cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A small repository that holds this package's code and configs."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    package = Path(trim_jax.__file__).parent
    root = tmp_path / "checkout"
    (root / "trim_jax" / "eval").mkdir(parents=True)
    (root / "configs").mkdir()
    (root / "results").mkdir()
    for name in ("__init__.py", "errors.py", "provenance.py", "eval/__init__.py",
                 "eval/traces.py"):
        shutil.copy(package / name, root / "trim_jax" / name)
    (root / "configs" / "base.py").write_text("x = 1\n")
    (root / "results" / "summary.json").write_text("{}\n")
    (root / ".gitignore").write_text("__pycache__/\n.venv/\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "all")
    return root


def commit_seen_by(package_root: Path) -> list:
    program = ("import json, pathlib, trim_jax; from trim_jax import provenance; "
               "print(json.dumps(provenance._commit(pathlib.Path(trim_jax.__file__))))")
    out = subprocess.run([sys.executable, "-c", program], cwd=package_root.parent, check=True,
                         capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(package_root)}).stdout
    return json.loads(out)


def test_commit_and_changes_of_the_code_are_seen_but_not_those_of_results(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert commit_seen_by(checkout) == [commit, False]
    (checkout / "results" / "summary.json").write_text("{1}\n")
    assert commit_seen_by(checkout) == [commit, False]
    (checkout / "configs" / "base.py").write_text("x = 2\n")
    assert commit_seen_by(checkout) == [commit, True]
    git(checkout, "checkout", "configs")
    (checkout / "trim_jax" / "new.py").write_text("")
    assert commit_seen_by(checkout) == [commit, True]


def test_installed_package_does_not_take_the_commit_of_the_repository_around_it(checkout):
    site = checkout / ".venv" / "site-packages"
    shutil.copytree(checkout / "trim_jax", site / "trim_jax")
    assert commit_seen_by(site) == ["unknown", None]


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance._commit(Path(trim_jax.__file__)) == ("unknown", None)
