"""A process comes back from its file as it was."""

from pathlib import Path

import jax
import numpy as np
import pytest

import trim_jax
from trim_jax.errors import CheckpointError
from trim_jax.sim.process import simple_process
from trim_jax.sim.saved import load_process, save_process


def test_a_process_comes_back_as_it_was(tmp_path):
    process = simple_process(p_small=0.7).replace(lucky=np.float32(0.25))
    save_process(tmp_path / "it", process)
    found = load_process(tmp_path / "it")
    assert jax.tree.structure(found) == jax.tree.structure(process)
    for a, b in zip(jax.tree.leaves(process), jax.tree.leaves(found)):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


def test_a_missing_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.*not the file of a fitted simulator"):
        load_process(tmp_path / "nowhere")
    save_process(tmp_path / "it", simple_process())
    (tmp_path / "it").write_bytes((tmp_path / "it").read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="it: not the file"):
        load_process(tmp_path / "it")


def test_the_kept_simulator_of_the_study_has_its_anchors():
    results = Path(__file__).parent.parent / "results" / "arith-study"
    process = trim_jax.load_process(results / "policies" / "simulator.safetensors")
    policy = trim_jax.Threshold((0.0, 0.9, 1.0))
    found = trim_jax.rollout(process, policy, jax.random.key(0), 20_000)
    # Of `test`: 41.5 % and 94.3 % are solved, the gap nearly closed for a third of the tokens.
    np.testing.assert_allclose(found.accuracy[::2], [0.41, 0.94], atol=0.03)
    assert found.accuracy[1] > 0.85
    assert 0.2 < found.strong_tokens[1] / found.strong_tokens[2] < 0.45
