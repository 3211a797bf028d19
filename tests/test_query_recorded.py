"""Recorded solutions of real models: reading, the token proxy, unboxed answers, and real data."""

import json

import jax
import numpy as np
import pytest

from recorded_pairs import llama_files
from trim_jax.errors import DataError
from trim_jax.eval import bootstrap
from trim_jax.query.evaluate import cross_validate, measure
from trim_jax.query.knn import NearestNeighbours
from trim_jax.query.recorded import load_pair, proxy_count
from trim_jax.query.simple import RandomQuestions


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def solution(id, steps, correct, scores=None):
    return {"id": id, "steps": steps, "prm_scores": scores or [0.5] * len(steps),
            "correct": correct}


@pytest.fixture
def files(tmp_path):
    small = [solution("a", ["one two", "\\boxed{1}"], True, [0.9, 0.8]),
             solution("b", ["no answer here"], True, [0.3])]
    large = [solution("b", ["x y z", "so", "\\boxed{2}"], True),
             solution("a", ["\\boxed{7}"], False)]
    return (write(tmp_path / "small.jsonl", small), write(tmp_path / "large.jsonl", large),
            write(tmp_path / "questions.jsonl", [{"id": i, "problem": f"What is {i}?"}
                                                 for i in "cab"]))


def test_rows_meet_by_id(files):
    found = load_pair(*files, count=lambda text: len(text.split()))
    assert found.ids == ("a", "b") and found.questions == ("What is a?", "What is b?")
    assert found.large_correct.tolist() == [[False], [True]]
    # Steps are counted one by one, without their delimiters.
    assert found.strong_tokens.tolist() == [[1], [5]]
    np.testing.assert_allclose(found.scores[0, 0], [0.9, 0.8])
    assert np.isnan(found.scores[1, 0, 1])
    assert found.large_texts[1] == ("x y z\n\nso\n\n\\boxed{2}",)


def test_an_unboxed_solution_is_wrong_whatever_was_recorded(files):
    found = load_pair(*files, count=len)
    assert found.small_correct.tolist() == [[True], [False]]
    assert found.small_answered.tolist() == [[True], [False]]


def test_the_proxy_counts_with_the_shipped_tokenizer():
    count = proxy_count()
    assert count("") == 0 and count("12") == 2  # one token per digit
    assert count("12 34") > count("12")


@pytest.mark.parametrize(("file", "rows", "message"), [
    (1, [solution("a", ["x"], True)], "large.jsonl: no row for question b"),
    (2, [{"id": "a", "problem": "?"}], "questions.jsonl: no row for question b"),
    (0, [{"id": "a", "steps": []}], "small.jsonl, line 1: lacks prm_scores, correct"),
    (0, [solution("a", ["x"], True)] * 2, "small.jsonl, line 2: a second row of a"),
    (0, [solution("a", ["x"], True, [0.1, 0.2])], "small.jsonl: question a needs one process"),
    (0, [], "small.jsonl: no rows"),
])
def test_bad_files_are_named(files, file, rows, message):
    write(files[file], rows)
    with pytest.raises(DataError, match=message):
        load_pair(*files)


def test_missing_file(files, tmp_path):
    with pytest.raises(DataError, match="nowhere.jsonl: cannot be read"):
        load_pair(tmp_path / "nowhere.jsonl", *files[1:])


def test_llama_on_math500():
    found = load_pair(*llama_files())
    assert found.small_correct.mean() == pytest.approx(0.21)
    assert found.large_correct.mean() == pytest.approx(0.438)
    frontiers = cross_validate(found, jax.random.key(0), [RandomQuestions(), NearestNeighbours()])
    figures = measure(frontiers, found, bootstrap.resample(500, 1, 200))
    assert figures["query-knn"]["apgr"]["value"] > 0.55
