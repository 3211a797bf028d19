"""Recorded solutions as the simulator reads them: first wrong steps, events, cuts, bad files."""

import json

import numpy as np
import pytest

from recorded_pairs import llama_files, make_files, write
from trim_jax.errors import DataError
from trim_jax.sim import solutions as S
from trim_jax.sim.process import S0, S1, S2

NAN = np.nan


def test_the_first_error_follows_the_method():
    scores = np.array([
        [0.35, 0.34, 0.1],  # wrong: the first below 0.35, not the lowest
        [0.9, 0.35, 0.8],  # wrong, none below: the lowest
        [0.9, 0.1, 0.8],   # right, whatever the scores
        [0.5, 0.4, NAN],   # wrong, two steps
    ])  # fmt: skip
    found = S.first_error(scores, np.array([3, 3, 3, 2]), np.array([0, 0, 1, 0], bool))
    assert found.tolist() == [1, 1, 3, 1]


def test_events_of_a_solution():
    one = S.Solutions(
        correct=np.array([True, False]), n=np.array([2, 3]),
        scores=np.array([[0.9, 0.8, NAN], [0.7, 0.2, 0.6]]),
        tokens=np.array([[3, 4, 0], [5, 6, 7]]), error=np.array([2, 1]),
    )  # fmt: skip
    found = one.events(np.array([1, 0]))
    assert found.problem.tolist() == [1, 1, 1, 0, 0] and found.t.tolist() == [0, 1, 2, 0, 1]
    assert found.state.tolist() == [S0, S2, S1, S0, S0]
    assert found.min_score.tolist() == [1, 0.7, 0.2, 1, 0.9]
    assert found.tokens.tolist() == [5, 6, 7, 3, 4]


def test_reading_cuts_long_solutions_and_keeps_the_order(tmp_path):
    files = make_files(tmp_path)
    rows = [json.loads(line) for line in files["large"].read_text().splitlines()]
    write(files["large"], rows[::-1])
    pair = S.read(*files.values(), count=lambda text: len(text.split()), max_steps=3)
    assert pair.ids[:2] == ("q0", "q1") and pair.level.tolist()[:4] == [0, 1, 2, 0]
    n = np.array([len(row["steps"]) for row in rows])
    np.testing.assert_array_equal(pair.large.n, np.minimum(n, 3))
    right = np.array([row["correct"] for row in rows])
    np.testing.assert_array_equal(pair.large.correct, right & (n <= 3))
    assert pair.large.tokens[0, 0] == 4  # "step 0 gives 0"
    assert not pair.small.correct[0]  # no box


def test_errors_drawn_by_likelihood_have_the_true_distribution():
    """A judge that doubts one right step in six: the rule then sees errors far too early."""
    rng = np.random.default_rng(0)
    right = np.minimum.accumulate(rng.uniform(size=(3000, 6)) < 0.8, axis=1)
    low = rng.uniform(size=right.shape) < np.where(right, 0.16, 0.9)
    scores = np.where(low, rng.uniform(0, 0.34, low.shape), rng.uniform(0.5, 1, low.shape))
    n, correct = np.full(3000, 6), right[:, -1]
    truth = np.bincount(right.sum(1)[~correct], minlength=6) / (~correct).sum()

    def misfit(error):
        return np.abs(np.bincount(error[~correct], minlength=6) / (~correct).sum() - truth).sum()

    by_rule = S.Solutions(correct, n, scores, np.ones_like(n), S.first_error(scores, n, correct))
    drawn = S.resampled_errors(by_rule, np.ones(3000), rng)
    assert (drawn.error[correct] == 6).all() and (drawn.error[~correct] < 6).all()
    assert misfit(by_rule.error) > 0.15 > 2 * misfit(drawn.error)


def test_bad_scores_are_named(tmp_path):
    files = make_files(tmp_path)
    bad = [{"id": f"q{i}", "steps": ["a"], "prm_scores": [NAN], "correct": True} for i in range(60)]
    with pytest.raises(DataError, match="large.jsonl: question q0: prm_scores must be in"):
        S.read(files["small"], write(files["large"], bad), files["questions"])


def test_llama_on_math500():
    pair = S.read(*llama_files())
    # No right solution is lost by the cut at 30 steps.
    assert pair.small.correct.mean() == pytest.approx(0.21)
    assert pair.large.correct.mean() == pytest.approx(0.438)
    assert len(np.unique(pair.level)) == 5
