"""Tuning on solutions of a process whose best policy is known, in place of the models'."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_process
from tiny_process import ENV

from trim_jax.errors import CheckpointError, ConfigError
from trim_jax.policies.features import Features
from trim_jax.policies.learned import Agg, Q
from trim_jax.tasks.data import Problem
from trim_jax.train import ppo, q, tuning
from trim_jax.train.episodes import play
from trim_jax.train.tuning import TuneConfig, tune

WORTHS = (60.0, 1000.0)
TINY = Features(token_scale=40.0, step_scale=3.0, price=True)
AGG = Agg(WORTHS, features=TINY)
VALUE = Q(WORTHS, features=TINY, excursions=3, token_unit=40.0)
BY_PPO = ppo.PpoConfig(epochs=10, learning_rate=5e-3)
BY_Q = q.QConfig(updates=40)
PROBLEMS = [Problem(f"p{i}", f"{i}?", "", str(i), None, "tiny") for i in range(250)]
CONFIG = TuneConfig(rounds=12, problems=50, held_out=150)


class Players:
    """Plays policies in the tiny process, as `rollouts.Player` does with the models."""

    max_steps, origin = tiny_process.STEPS, "the tiny process"

    def __init__(self, policies):
        self.policies, self.solutions, self.asked = policies, 0, []
        self.run = jax.jit(self._run, static_argnums=(2, 3))

    def _run(self, weights, key, n, which):
        worth = jnp.repeat(jnp.asarray(WORTHS), n)
        own = [dataclasses.replace(self.policies[i], weights=weights) for i in which]
        found = jax.tree.map(lambda *x: jnp.stack(x), *(play(ENV, p, key, worth) for p in own))
        return jax.tree.map(lambda x: x.reshape(len(own), len(WORTHS), n, *x.shape[2:]), found)

    def keep_steps(self):
        """There are none."""

    def play(self, weights, problems, seed, which):
        self.asked.append((problems[0].id, problems[-1].id, len(problems), seed, tuple(which)))
        self.solutions += len(which) * len(WORTHS) * len(problems)
        return self.run(weights, jax.random.key(seed), len(problems), tuple(which))


@pytest.mark.parametrize("policy, learning", [(AGG, BY_PPO), (VALUE, BY_Q)])
def test_from_nothing_it_learns_the_tiny_process(policy, learning, tmp_path):
    got = tune(policy, learning, Players, PROBLEMS, tmp_path, CONFIG)
    for worth in WORTHS:
        assert tiny_process.regret(got.policy, worth) < 0.06, worth
    ways = 1 if policy is AGG else 2
    assert got.steps == 12 * 50 * 2 * ways * 3
    assert got.solutions == 12 * 50 * 2 * ways + 13 * 150 * 2
    mean = got.held_out.objective.mean(axis=1)
    assert got.best_round == mean.argmax() > 0 and not got.policy.explore
    np.testing.assert_allclose(got.gain, mean.max() - mean[0], atol=1e-5)
    assert 0 < got.error < 0.1


def stopping(after):
    """Players that die at the `after`-th call of `play`, all of them together."""
    calls = []

    class Stopping(Players):
        def play(self, *asked):
            calls.append(asked)
            if len(calls) > after:
                raise KeyboardInterrupt
            return super().play(*asked)

    return Stopping


def test_a_killed_tuning_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    config = dataclasses.replace(CONFIG, rounds=3)
    want = tune(VALUE, BY_Q, Players, PROBLEMS, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        tune(VALUE, BY_Q, stopping(4), PROBLEMS, tmp_path / "killed", config)
    players = []
    make = lambda policies: players.append(Players(policies)) or players[-1]  # noqa: E731
    got = tune(VALUE, BY_Q, make, PROBLEMS, tmp_path / "killed", config)
    # The start and round 1 were done. Problems in order but for those held out, a seed a round.
    held_out = ("p100", "p249", 150, 0, (2,))
    assert players[0].asked == [
        ("p50", "p99", 50, 2, (0, 1)), held_out, ("p0", "p49", 50, 3, (0, 1)), held_out
    ]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, got.policy.weights, want.policy.weights)
    jax.tree.map(np.testing.assert_array_equal, got.held_out, want.held_out)
    assert got[1:4] == want[1:4] and got.steps == want.steps and got.solutions == want.solutions


def test_the_start_is_kept_where_no_round_is_better(tmp_path):
    start = dataclasses.replace(AGG, weights=tuning.fresh_weights(AGG, jax.random.key(1)))
    learning = dataclasses.replace(BY_PPO, learning_rate=0.0)
    config = dataclasses.replace(CONFIG, rounds=2)
    got = tune(start, learning, Players, PROBLEMS, tmp_path, config)
    assert (got.best_round, got.gain, got.error) == (0, 0.0, 0.0)
    jax.tree.map(np.testing.assert_array_equal, got.policy.weights, start.weights)


def test_what_does_not_fit_is_refused(tmp_path):
    config = dataclasses.replace(CONFIG, rounds=1)
    tune(AGG, BY_PPO, Players, PROBLEMS, tmp_path, config)
    other = dataclasses.replace(config, seed=3)
    with pytest.raises(CheckpointError, match="(?s)another tuning.*tuning.seed: 3 here, 0 in"):
        tune(AGG, BY_PPO, Players, PROBLEMS, tmp_path, other)
    (tmp_path / tuning.STATE).write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="tuning.safetensors: cannot be read"):
        tune(AGG, BY_PPO, Players, PROBLEMS, tmp_path, config)
    with pytest.raises(ConfigError, match=r"held_out \(150\) leaves none of 150"):
        tune(AGG, BY_PPO, Players, PROBLEMS[:150], tmp_path / "few", config)
    with pytest.raises(ConfigError, match="rounds must be at least 1"):
        TuneConfig(rounds=0)
