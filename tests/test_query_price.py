"""Gain per token: the order that a price per token wants, from lengths that can be known."""

import dataclasses

import jax
import numpy as np
import pytest
from fake_outcomes import make, separable

from trim_jax.query.evaluate import cross_validate
from trim_jax.query.knn import NearestNeighbours
from trim_jax.query.price import per_token
from trim_jax.query.router import QUESTION, SOLUTION, Fitted
from trim_jax.query.simple import RandomQuestions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Fitted):
    value: float = 0.5

    def score(self, outcomes):
        return np.full(outcomes.small_correct.shape, self.value, np.float32)


def given(n, reads=QUESTION):
    return Given(name="given", reads=reads, chosen={}, is_gain=True, rows=np.arange(n),
                 calibration=np.full((n, 1), 0.5, np.float32))


def words(n):
    return " ".join(["word"] * n)


def test_of_equal_gains_the_cheaper_question_comes_first():
    # log tokens is exactly linear in log(1 + words): tokens = 4 * (1 + words).
    lengths = [1, 3, 7, 15]
    train = make([[0]] * 4, [[1]] * 4, [words(n) for n in lengths],
                 tokens=[[4 * (1 + n)] for n in lengths])
    fitted = per_token(given(4), train)
    test = make([[0]] * 2, [[1]] * 2, [words(31), words(1)])
    np.testing.assert_allclose(fitted.score(test), [[0.5 / 128], [0.5 / 8]], rtol=1e-5)
    np.testing.assert_allclose(fitted.calibration[:, 0], [0.5 / 8, 0.5 / 16, 0.5 / 32, 0.5 / 64],
                               rtol=1e-5)
    assert fitted.name == "given-per-token" and fitted.reads == QUESTION


def test_only_a_router_that_reads_the_solution_knows_its_length():
    lengths = [1, 3, 7, 15]
    train = make([[0]] * 4, [[1]] * 4, ["same"] * 4, tokens=[[4 * (1 + n)] for n in lengths],
                 small_texts=tuple((words(n),) for n in lengths))
    blind, seeing = per_token(given(4), train), per_token(given(4, SOLUTION), train)
    assert np.ptp(blind.score(train)) < 1e-6
    np.testing.assert_allclose(seeing.tokens(train), train.strong_tokens, rtol=1e-6)


def test_costs_of_the_judged_questions_are_never_read():
    train, test = separable(80), separable(30, seed=1)
    fitted = per_token(NearestNeighbours().fit(train, jax.random.key(0)), train)
    dear = dataclasses.replace(test, strong_tokens=test.strong_tokens * 99)
    np.testing.assert_array_equal(fitted.score(test), fitted.score(dear))


def test_cross_validation_has_both_forms_of_a_router_of_gains():
    found = cross_validate(separable(30), jax.random.key(0),
                           [NearestNeighbours(neighbours=(5,)), RandomQuestions()])
    assert [f.name for f in found] == ["query-knn", "query-random", "query-knn-per-token"]


def test_only_gains_have_a_price():
    outcomes = separable(10)
    random = RandomQuestions().fit(outcomes, jax.random.key(0))
    with pytest.raises(ValueError, match="query-random are no gains"):
        per_token(random, outcomes)
