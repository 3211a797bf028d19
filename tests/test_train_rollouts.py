"""Solutions of the models as episodes: each price as if alone, and what explored where."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from trim_jax import api
from trim_jax.engine.engine import EngineConfig
from trim_jax.engine.rows import MODELS
from trim_jax.engine.store import StepStore
from trim_jax.errors import DataError
from trim_jax.policies import base
from trim_jax.policies.features import Features
from trim_jax.policies.learned import Q, excursion
from trim_jax.tasks.data import Problem
from trim_jax.train import q
from trim_jax.train.rollouts import Player

WORTHS = (5.0, 60.0, 1000.0)
POLICY = Q(WORTHS, features=Features(price=True, logit=True, token_scale=6.0, step_scale=6.0),
           excursions=4, token_unit=10.0)  # fmt: skip
WAYS, GREEDY = (0, 1), (2,)
PROBLEMS = [Problem(f"p{i}", "abc"[: 1 + i % 3], "", str(i), None, "tiny") for i in range(12)]
SIZE = EngineConfig(slots=8, rows=4, tail_rows=4, max_context=96, max_steps=6,
                    max_step_tokens=10, decode_chunk=4, extend_chunk=8)  # fmt: skip


@pytest.fixture(scope="module")
def trio():
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    own = tiny.tiny_trio()
    folders = {name: Path(name) for name in ("small", "large", "prm")}
    return api.Trio(folders, own.models, own.params, tokenizer, own.tables, tokenizer)


@pytest.fixture(scope="module")
def weights():
    """Of a network that prefers neither action at once."""
    return jax.tree.map(lambda x: 3.0 * x, POLICY.init_weights(jax.random.key(3)))


@pytest.fixture(scope="module")
def player(trio, weights):
    policy = dataclasses.replace(POLICY, weights=weights)
    return Player(trio, (*q.both_ways(policy), policy), SIZE)


@pytest.fixture(scope="module")
def episodes(player, weights):
    return player.play(weights, PROBLEMS, 5, WAYS)


def test_known_steps_are_not_played_again(trio, weights, episodes):
    policy = dataclasses.replace(POLICY, weights=weights)
    store = StepStore(MODELS)
    other = Player(trio, (*q.both_ways(policy), policy), SIZE, store=store)
    for known in (False, True):
        before = other.engine.executed.copy()
        played = other.play(weights, PROBLEMS, 5, WAYS)
        assert (other.engine.executed > before).any() != known
        for name in ("action", "mask", "reward", "strong_tokens"):
            np.testing.assert_array_equal(getattr(played, name), getattr(episodes, name))
    # Other weights play other ways, on what is known of them and what is not.
    mild = jax.tree.map(lambda x: 0.3 * x, weights)
    played = other.play(mild, PROBLEMS, 5, WAYS)
    other.engine.store = None
    want = other.play(mild, PROBLEMS, 5, WAYS)
    np.testing.assert_array_equal(played.action, want.action)
    assert (want.action != episodes.action).any()


def test_both_ways_part_at_the_step_that_the_drawn_number_tells(episodes):
    """So the number is the engine's own."""
    assert episodes.action.shape == (2, 3, 12, 6) and episodes.worth.shape == (2, 3, 12)
    np.testing.assert_array_equal(episodes.worth[1, :, 4], WORTHS)
    at = excursion(episodes.uniform[0, 0], POLICY.excursions)
    reached = 0
    for way, other in ((0, at.action), (1, 1 - at.action)):
        for setting in range(3):
            for i, (step, action) in enumerate(zip(at.step, other)):
                if episodes.mask[way, setting, i, step]:
                    assert episodes.action[way, setting, i, step] == action
                    reached += 1
    assert reached > 20
    before = np.arange(6) < np.asarray(at.step)[:, None]
    same = np.asarray(episodes.action[0] == episodes.action[1])
    assert same[:, before].all()


def test_the_rest_of_a_solution_is_what_the_policy_decides_at_that_price(episodes, weights):
    policy = dataclasses.replace(POLICY, weights=weights)
    gain = policy.gain(episodes.features(POLICY.features), episodes.worth[..., None])
    at = excursion(episodes.uniform, POLICY.excursions)
    greedy = np.asarray(episodes.mask & (jnp.arange(6) != at.step[..., None]))
    want = np.where(gain > 0, base.REGENERATE, base.ACCEPT)
    clear = np.abs(np.asarray(gain)) > 1e-4
    np.testing.assert_array_equal(np.asarray(episodes.action)[greedy & clear], want[greedy & clear])
    assert 0.1 < want[greedy].mean() < 0.9, "the network is not lively enough to test anything"


def test_prices_that_never_part_are_written_once_and_other_weights_need_no_new_engine(
    player, weights, episodes
):
    before, compiled = player.solutions, player.engine.machine.run._cache_size()
    assert 24 <= before < 72
    again = player.play(jax.tree.map(jnp.zeros_like, weights), PROBLEMS, 5, WAYS)
    # Without weights nothing is worth its tokens: the prices never part, and the ways only once.
    assert player.solutions - before <= 24
    np.testing.assert_array_equal(again.action[:, 0], again.action[:, 2])
    assert player.engine.machine.run._cache_size() == compiled
    np.testing.assert_array_equal(again.uniform, episodes.uniform)


def test_of_several_policies_only_those_asked_for_play(player, weights, episodes):
    greedy = player.play(weights, PROBLEMS, 5, GREEDY)
    assert greedy.action.shape == (1, 3, 12, 6)
    gain = dataclasses.replace(POLICY, weights=weights).gain(
        greedy.features(POLICY.features), greedy.worth[..., None]
    )
    want = np.where(gain > 0, base.REGENERATE, base.ACCEPT)
    clear = np.asarray(greedy.mask & (np.abs(gain) > 1e-4))
    np.testing.assert_array_equal(np.asarray(greedy.action)[clear], want[clear])
    # Before either way explores it is the same solution.
    np.testing.assert_array_equal(greedy.draft_score[0, :, :, 0], episodes.draft_score[0, :, :, 0])


def test_a_prompt_that_cannot_be_asked_is_named(player, weights):
    with pytest.raises(DataError, match="'odd' contains '<extra_0>'"):
        player.play(weights, [*PROBLEMS, Problem("odd", "a<extra_0>", "", "1", None, "")], 0, WAYS)
