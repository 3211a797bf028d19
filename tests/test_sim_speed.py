"""The timed process is as large as a fitted one and does what a process does."""

import jax
import numpy as np

from trim_jax.policies.simple import Threshold
from trim_jax.sim import speed
from trim_jax.sim.env import rollout


def test_the_timed_process_is_a_working_one():
    process = speed.arith_sized()
    assert process.scores.shape == (2, 3, 13, 16, 129) and process.max_steps == 30
    assert (np.diff(process.scores, axis=-1) >= 0).all()
    found = rollout(process, Threshold((0.5,)), jax.random.key(0), 4000, (0.0, 0.5, 1.0))
    assert 0.1 < found.accuracy[0] < found.accuracy[1] - 0.1
    assert found.strong_tokens[0] == 0 < found.strong_tokens[1] < found.strong_tokens[2]


def test_rates_are_of_the_work_done():
    found = speed.measure(2, rows=64, seconds=0.05)
    assert found["rows"] == 64 and found["repeats"] == 2
    for name in ("bare", "network"):
        assert found[name]["best"] >= found[name]["median"] > 1e4
    assert found["bare"]["best"] > found["network"]["best"]
    assert "million steps a second" in speed.table(found)
