"""Frontiers: cuts fixed in training, full price of a routed question, folds, tables, figures."""

import dataclasses

import fake_traces
import jax
import numpy as np
import pytest
from fake_outcomes import make, separable

from trim_jax.errors import DataError
from trim_jax.eval import bootstrap, metrics
from trim_jax.eval.traces import COUNTERS, MODELS, load_result, tables
from trim_jax.query import evaluate
from trim_jax.query.knn import NearestNeighbours
from trim_jax.query.outcomes import from_result
from trim_jax.query.router import QUESTION, SCORES, SOLUTION, Fitted, Router
from trim_jax.query.simple import BestSingle, RandomQuestions

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Fitted):
    """Scores that are given, [N, S]."""

    scores: np.ndarray

    def score(self, outcomes):
        return self.scores


def given(scores, calibration, reads=QUESTION):
    scores = np.array(scores, np.float32)
    return Given(name="given", reads=reads, chosen={}, scores=scores,
                 calibration=np.array(calibration, np.float32)[:, None])


def test_cuts_by_hand():
    levels = [0.1, 0.2, 0.3, 0.4, 0.5]
    found = evaluate.cuts(np.array(levels, np.float32), (0.0, 0.2, 0.5, 0.99, 1.0))
    np.testing.assert_allclose(found[1:4], [0.5, 0.4, 0.2])
    assert found[0] == np.inf and found[4] < -1e38


def test_equal_scores_go_together_and_never_exceed_the_share():
    tied = np.array([1, 2, 2, 2, 3], np.float32)
    found = evaluate.cuts(tied, (0.1, 0.2, 0.4, 0.6, 0.8))
    np.testing.assert_array_equal(found, [np.inf, 3, 3, 3, 2])


def test_a_routed_question_pays_the_whole_large_solution_and_no_other_pays():
    outcomes = make([[1, 0], [0, 0]], [[1, 1], [1, 0]], tokens=[[7, 8], [9, 10]])
    found = evaluate.sweep(given([[0.9, 0.1], [0.4, 0.4]], [0.2, 0.5]), outcomes, (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(found.strong_tokens,
                                  [[[0, 0], [0, 0]], [[7, 0], [0, 0]], [[7, 8], [9, 10]]])
    np.testing.assert_array_equal(found.correct,
                                  [[[1, 0], [0, 0]], [[1, 0], [0, 0]], [[1, 1], [1, 0]]])


def test_cuts_come_from_training_and_not_from_the_questions_that_are_judged():
    outcomes = make([[0]] * 4, [[1]] * 4)
    high = evaluate.sweep(given([[1], [2], [3], [4]], [0.1, 0.2]), outcomes, (0.0, 0.5, 1.0))
    assert high.routed[1].all()  # all above the training scores
    low = evaluate.sweep(given([[1], [2], [3], [4]], [9, 10]), outcomes, (0.0, 0.5, 1.0))
    assert not low.routed[1].any()


class Spy(Router):
    """Records what it was trained on, and refuses to score any of it."""

    name = "spy"

    def __init__(self):
        self.trained = []

    def fit(self, outcomes, key):
        self.trained.append(set(outcomes.ids))
        seen = set(outcomes.ids)

        class Checked(Fitted):
            def score(self, outcomes):
                assert not seen & set(outcomes.ids)
                return np.ones(outcomes.small_correct.shape, np.float32)

        return Checked(name="spy", reads=QUESTION, calibration=np.ones((2, 1), np.float32),
                       chosen={"fold": len(self.trained)})


def test_cross_validation_never_trains_on_its_test_fold():
    outcomes, spy = separable(23), Spy()
    (found,) = evaluate.cross_validate(outcomes, KEY, [spy])
    assert len(spy.trained) == 5
    assert all(sum(i in t for t in spy.trained) == 4 for i in outcomes.ids)
    assert found.routed[-1].all() and not found.routed[0].any()
    assert [c["fold"] for c in found.chosen] == [1, 2, 3, 4, 5]


def test_cross_validation_keeps_every_question_in_its_row():
    outcomes = separable(60)
    knn = NearestNeighbours(neighbours=(5,))
    found, _ = evaluate.cross_validate(outcomes, KEY, [knn])
    at = found.shares.index(0.5)
    assert (found.routed[at] == ~outcomes.small_correct).mean() > 0.9


def test_compare_refuses_a_question_in_both_splits():
    with pytest.raises(DataError, match="0-q3 is in the training and the test"):
        evaluate.compare(separable(5), separable(5).take(np.array([3])), KEY)


def test_compare_runs_every_baseline_better_than_random():
    train, test = separable(80), separable(40, seed=1)
    small = [dataclasses.replace(r, layers=1, width=16, heads=2, learning_rates=(3e-3,))
             if r.name == "query-bert" else r for r in evaluate.baselines()]
    found = evaluate.compare(train, test, KEY, small)
    assert len({f.name for f in found}) == len(found) == 11 + 6
    figures = evaluate.measure(found, test, bootstrap.resample(40, 1, 50))
    for name, row in figures.items():
        if name not in ("query-random", "query-best-single"):
            assert row["apgr"]["value"] > 0.65, name
    assert figures["query-best-single"]["apgr"]["value"] == pytest.approx(0.5)
    names = [r.name for r in evaluate.baselines(scores=False)]
    assert len(names) == 9 and not any("prm" in n for n in names)


# ------------------------------------------------------------------------- beside other policies


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return load_result(fake_traces.write_result(tmp_path_factory.mktemp("q") / "run", range(20)))


def cell(ledger, at):
    return {m: dict(zip(COUNTERS, ledger[at][i].tolist())) for i, m in enumerate(MODELS)}


def test_table_points_at_the_traces_of_the_model_that_answered(result):
    outcomes, found = from_result(result), tables(result)
    fitted = RandomQuestions().fit(outcomes, KEY)
    table = evaluate.to_table(evaluate.sweep(fitted, outcomes), outcomes)
    correct = np.array([t.correct for t in result.traces])
    tokens = np.array([t.strong_tokens for t in result.traces])
    np.testing.assert_array_equal(correct[table.trace_index], table.correct)
    np.testing.assert_array_equal(tokens[table.trace_index], table.strong_tokens)
    # A router of questions pays for nothing but the model that it picks.
    routed = table.strong_tokens > 0
    np.testing.assert_array_equal(
        table.ledger, np.where(routed[..., None, None], found["always"].ledger[[0]],
                               found["never"].ledger[[0]]))
    assert table.policy.settings == evaluate.SHARES


@pytest.mark.parametrize("reads", [SOLUTION, SCORES])
def test_a_router_that_reads_the_solution_pays_for_it(result, reads):
    outcomes = from_result(result)
    scores = np.zeros(outcomes.small_correct.shape, np.float32)
    scores[4] = 1.0
    frontier = evaluate.sweep(given(scores, [0, 0, 1], reads), outcomes, (0.0, 0.5, 1.0))
    table = evaluate.to_table(frontier, outcomes)
    never, always = cell(outcomes.ledgers.small, (4, 0)), cell(outcomes.ledgers.large, (4, 0))
    read = cell(outcomes.ledgers.prm, (4, 0))["prm"] if reads == SCORES else never["prm"]
    routed, kept = cell(table.ledger, (1, 4, 0)), cell(table.ledger, (0, 4, 0))
    assert routed["large"] == always["large"] and kept["large"] == never["large"]
    assert routed["prm"] == kept["prm"] == read
    assert kept["small"] == never["small"]
    # The small solution is thrown away; what the small model did in the large run comes on top.
    thrown = never["small"] | {"kept": 0, "discarded": never["small"]["kept"]}
    assert routed["small"] == {c: thrown[c] + always["small"][c] for c in COUNTERS}


def test_only_results_have_tables():
    outcomes = separable(5)
    frontier = evaluate.sweep(BestSingle().fit(outcomes, KEY), outcomes)
    with pytest.raises(DataError, match="only outcomes of a result folder"):
        evaluate.to_table(frontier, outcomes)


def test_figures_are_those_of_the_common_metrics():
    outcomes = make([[0, 0], [1, 1], [0, 0]], [[1, 1], [1, 1], [1, 0]],
                    tokens=[[10, 10], [10, 10], [20, 20]])
    frontier = evaluate.sweep(given([[3, 3], [1, 1], [2, 2]], [1, 2, 3]), outcomes,
                              (0.0, 0.34, 0.67, 1.0))
    row = evaluate.measure([frontier], outcomes, bootstrap.resample(3, 2, 20))["given"]
    np.testing.assert_allclose(row["accuracy"], [1 / 3, 2 / 3, 5 / 6, 5 / 6])
    np.testing.assert_allclose(row["c"], [0, 0.25, 0.75, 1.0])
    want = metrics.curve_metrics(frontier.strong_tokens.mean((1, 2)), row["accuracy"],
                                 metrics.Anchors(1 / 3, 5 / 6, 40 / 3))
    assert row["apgr"]["value"] == pytest.approx(want.apgr)
    assert row["cpt"]["50"]["value"] == pytest.approx(0.1875)  # three quarters of the way to 2/3
    assert row["budget_accuracy"]["10"]["value"] == pytest.approx(1 / 3 + 0.4 / 3)
    assert "apgr_over_random" not in row
