"""The same solutions on every mesh of eight devices, and as users compile the loop."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HURRY
from tiny import by_setting, assert_as_reference

MESHES = ("8x1", "4x2", "2x4")
PROBLEMS = 8
# A busy machine may keep a fake device waiting for longer than XLA's patience.
PATIENCE = " --xla_cpu_collective_call_terminate_timeout_seconds=600"


def solved(out, flags, *meshes):
    """{mesh: solutions}, from a process of its own with these XLA flags."""
    script = Path(__file__).with_name("mesh_solutions.py")
    subprocess.run(
        [sys.executable, script, out, str(PROBLEMS), *meshes],
        env=os.environ | {"XLA_FLAGS": flags}, check=True, timeout=1200,
    )  # fmt: skip
    return pickle.loads(out.read_bytes())


@pytest.fixture(scope="module")
def solutions(tmp_path_factory):
    """{mesh: solutions}, from one process for all meshes."""
    out = tmp_path_factory.mktemp("mesh") / "solutions.pickle"
    return solved(out, os.environ["XLA_FLAGS"] + PATIENCE, *MESHES)  # eight devices: conftest.py


@pytest.mark.parametrize("mesh", MESHES)
def test_solutions_are_the_same_on_every_mesh(solutions, mesh):
    assert_as_reference(by_setting(solutions[mesh]))


def test_solutions_are_the_same_as_users_compile(tmp_path):
    flags = os.environ["XLA_FLAGS"].replace(HURRY, "")
    (found,) = solved(tmp_path / "solutions.pickle", flags, "none").values()
    assert_as_reference(by_setting(found))
