"""Outcomes as read from a result folder, their subsets and folds."""

from dataclasses import replace

import fake_traces
import jax
import numpy as np
import pytest
from fake_outcomes import make

from trim_jax.errors import DataError
from trim_jax.eval.traces import COUNTERS, MODELS, load_result, tables
from trim_jax.query.outcomes import folds, from_result, pad_scores


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return load_result(fake_traces.write_result(tmp_path_factory.mktemp("o") / "run", range(25)))


@pytest.fixture(scope="module")
def outcomes(result):
    return from_result(result)


def test_both_models_own_outcomes(result, outcomes):
    found = tables(result)
    np.testing.assert_array_equal(outcomes.small_correct, found["never"].correct[0])
    np.testing.assert_array_equal(outcomes.large_correct, found["always"].correct[0])
    np.testing.assert_array_equal(outcomes.strong_tokens, found["always"].strong_tokens[0])
    trace = result.traces[found["never"].trace_index[0, 3, 1]]
    assert outcomes.small_texts[3][1] == "\n\n".join(s.text for s in trace.steps)
    assert outcomes.questions[3] == result.problems[3].problem
    mixed = result.traces[found["random"].trace_index[10, 3, 1]]  # p = 0.5
    assert outcomes.mixed_texts[3][1] == "\n\n".join(s.text for s in mixed.steps)


def test_scores_are_those_of_the_small_solution_up_to_the_first_rejected_draft(outcomes):
    cut = 0
    for i in range(len(outcomes)):
        for j, seed in enumerate(outcomes.seeds):
            # Below the lowest score of all the large model never writes: the whole solution.
            spec = {"thr": replace(fake_traces.POLICIES["thr"], settings=(1e-9,))}
            whole = [s.score for s in fake_traces.simulate([i], [seed], spec)[0].steps]
            first = next((t for t, r in enumerate(whole) if r < 0.05), len(whole) - 1)
            seen = outcomes.scores[i, j]
            np.testing.assert_allclose(seen[:first + 1], whole[:first + 1], rtol=1e-6)
            assert np.isnan(seen[first + 1:]).all()
            cut += first + 1 < len(whole)
    assert cut  # the rule was needed


def test_process_rewards_read_the_whole_small_solution_once(result, outcomes):
    found = tables(result)
    trace = result.traces[found["never"].trace_index[0, 2, 0]]
    prm = dict(zip(COUNTERS, outcomes.ledgers.prm[2, 0, MODELS.index("prm")]))
    assert prm == {"kept": 0, "discarded": 0, "prefilled": 60, "calls": 1,
                   "scored": sum(s.n_tokens for s in trace.steps) + len(trace.steps)}
    assert outcomes.ledgers.prm[..., :2, :].sum() == 0  # nobody else works


def test_without_a_threshold_there_are_no_rewards(result):
    names = ("never", "always")
    bare = replace(result, policies={n: result.policies[n] for n in names},
                   traces=tuple(t for t in result.traces if t.policy in names))
    found = from_result(bare)
    assert found.scores is None and found.mixed_texts is None and found.ledgers.prm is None
    assert found.take(np.array([1])).ledgers.prm is None


def test_gain_and_win():
    outcomes = make([[1, 1], [0, 0], [1, 0]], [[1, 1], [1, 1], [0, 0]])
    np.testing.assert_allclose(outcomes.gain, [0, 1, -0.5])
    np.testing.assert_allclose(outcomes.win, [0.5, 1, 0.25])


def test_take(outcomes):
    rows = np.array([7, 2])
    part = outcomes.take(rows)
    assert part.ids == (outcomes.ids[7], outcomes.ids[2]) and part.seeds == outcomes.seeds
    np.testing.assert_array_equal(part.small_correct, outcomes.small_correct[rows])
    np.testing.assert_array_equal(part.trace_index, outcomes.trace_index[:, rows])
    np.testing.assert_array_equal(part.ledgers.large, outcomes.ledgers.large[rows])
    assert part.mixed_texts[1] == outcomes.mixed_texts[2]
    np.testing.assert_array_equal(part.scores, outcomes.scores[rows])


def test_folds_test_every_row_once_and_never_train_on_it():
    found = folds(23, 5, jax.random.key(0))
    assert sorted(np.concatenate([test for _, test in found])) == list(range(23))
    for train, test in found:
        assert sorted([*train, *test]) == list(range(23))
    again = folds(23, 5, jax.random.key(0))
    assert all((a[1] == b[1]).all() for a, b in zip(found, again))
    assert any((a[1] != b[1]).any() for a, b in zip(found, folds(23, 5, jax.random.key(1)))
               if len(a[1]) == len(b[1]))
    with pytest.raises(DataError, match="3 questions cannot be split into 5"):
        folds(3, 5, jax.random.key(0))


def test_pad_scores():
    found = pad_scores([[[0.5]], [[0.25, 1.0]]])
    assert found.shape == (2, 1, 2)
    np.testing.assert_array_equal(found[1, 0], [0.25, 1.0])
    assert found[0, 0, 0] == 0.5 and np.isnan(found[0, 0, 1])
