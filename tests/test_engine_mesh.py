"""The same solutions on every mesh of eight devices."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import by_setting, assert_as_reference

MESHES = ("8x1", "4x2", "2x4")
PROBLEMS = 8
# A busy machine may keep a fake device waiting for longer than XLA's patience.
PATIENCE = " --xla_cpu_collective_call_terminate_timeout_seconds=600"


@pytest.fixture(scope="module")
def solutions(tmp_path_factory):
    """{mesh: solutions}, from one process for all meshes."""
    out = tmp_path_factory.mktemp("mesh") / "solutions.pickle"
    script = Path(__file__).with_name("mesh_solutions.py")
    flags = os.environ["XLA_FLAGS"] + PATIENCE  # eight devices, from conftest.py
    subprocess.run(
        [sys.executable, script, out, str(PROBLEMS), *MESHES],
        env=os.environ | {"XLA_FLAGS": flags}, check=True, timeout=1200,
    )  # fmt: skip
    return pickle.loads(out.read_bytes())


@pytest.mark.parametrize("mesh", MESHES)
def test_solutions_are_the_same_on_every_mesh(solutions, mesh):
    assert_as_reference(by_setting(solutions[mesh]))
