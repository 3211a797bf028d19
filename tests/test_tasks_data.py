"""Reading and writing problems."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trim_jax.errors import DataError
from trim_jax.tasks import arith
from trim_jax.tasks.data import Problem, load_problems, read_jsonl, to_json, write_jsonl


def write_rows(path, rows):
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_arith_survives_the_round_trip(tmp_path):
    problems = arith.generate("hard", 20)
    write_jsonl(tmp_path / "hard.jsonl", problems)
    assert read_jsonl(tmp_path / "hard.jsonl") == problems
    assert load_problems(str(tmp_path / "hard.jsonl"), limit=3) == problems[:3]
    assert load_problems("arith", "hard", 20) == problems
    keys = json.loads((tmp_path / "hard.jsonl").read_text().splitlines()[0])
    assert list(keys) == ["id", "problem", "solution", "answer", "level", "source"]


text = st.text(st.characters(exclude_categories=["Cs"]))


@given(text.filter(str.strip), text, text.filter(str.strip), st.none() | st.integers(1, 5))
def test_any_text_survives_the_round_trip(problem, solution, answer, level):
    # In memory: a line is what `write_jsonl` writes, and no text may break out of its line.
    wanted = Problem("one", problem, solution, answer, level, "mine")
    line = to_json(wanted)
    assert "\n" not in line
    assert Problem(**json.loads(line)) == wanted


def test_a_users_file_needs_a_problem_and_an_answer_only(tmp_path):
    path = write_rows(
        tmp_path / "mine.jsonl",
        [
            '\ufeff{"problem": "2+2?", "answer": 4, "comment": [1]}',
            "",
            '{"problem": "1+1?", "solution": "It is \\\\boxed{2}.", "level": 3, "id": 7}\r',
        ],
    )
    assert read_jsonl(path) == [
        Problem("mine-00001", "2+2?", "", "4", None, "mine"),
        Problem("7", "1+1?", "It is \\boxed{2}.", "2", 3, "mine"),
    ]


def test_line_separators_inside_text_do_not_split_a_row(tmp_path):
    problem = Problem("a", "one\u2028two\u0085three", "", "3", None, "x")
    write_jsonl(tmp_path / "x.jsonl", [problem])
    assert read_jsonl(tmp_path / "x.jsonl") == [problem]


BAD_ROWS = {
    '{"problem": "a", "answer": "1"': "not JSON",
    '{"problem": "a \\x", "answer": "1"}': "not JSON: Invalid \\escape",
    '{"problem": "a \\ud800", "answer": "1"}': "'problem' has a broken \\u escape",
    '["a"]': "a JSON object is wanted, not a list",
    '{"answer": "1"}': "no 'problem'",
    '{"probelm": "a", "answer": "1"}': "no 'problem' (but 'probelm')",
    '{"problem": "  ", "answer": "1"}': "no 'problem'",
    '{"problem": 5, "answer": "1"}': "'problem' must be text, not a number",
    '{"problem": "a", "answer": true}': "'answer' must be text, not true/false",
    '{"problem": "a"}': "no 'answer'",
    '{"problem": "a", "solution": "so 5", "answer": ""}': "no 'answer'",
    '{"problem": "a", "answer": "1", "level": "hard"}': "'level' must be a whole number, not text",
    '{"problem": "a", "answer": "1", "id": ["x"]}': "'id' must be text, not a list",
    "[" * 100_000: "not JSON",
}


@pytest.mark.parametrize("row", BAD_ROWS, ids=BAD_ROWS.values())
def test_a_bad_row_is_named_with_its_line(tmp_path, row):
    path = write_rows(tmp_path / "p.jsonl", ['{"problem": "a", "answer": "1"}', row])
    with pytest.raises(DataError) as error:
        read_jsonl(path)
    assert f"line 2: {BAD_ROWS[row]}" in str(error.value) and str(path) in str(error.value)


def test_all_bad_rows_are_reported_at_once(tmp_path):
    good = '{"id": "q", "problem": "a", "answer": "1"}'
    path = write_rows(tmp_path / "p.jsonl", [good, "{", good, "5", '{"problem": "b"}'])
    with pytest.raises(DataError) as error:
        read_jsonl(path)
    lines = str(error.value).splitlines()
    assert "4 bad row(s)" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == [f"line {n}" for n in (2, 3, 4, 5)]
    assert "id 'q' was already used in line 1" in lines[2]


def test_rows_that_are_not_utf8(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"problem": "caf\u00e9?", "answer": "1"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        read_jsonl(path)


def test_a_very_long_list_of_bad_rows_is_cut(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", ["{"] * 500)
    with pytest.raises(DataError, match="and 400 more"):
        read_jsonl(path)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file(tmp_path, content):
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(DataError, match="holds no problems"):
        read_jsonl(tmp_path / "p.jsonl")


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="none.jsonl: cannot be read: No such file"):
        load_problems(str(tmp_path / "none.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="folder.jsonl: cannot be read"):
        load_problems(str(tmp_path / "folder.jsonl"))


def test_unknown_sources_and_limits():
    with pytest.raises(DataError, match="did you mean 'arith'"):
        load_problems("arit")
    with pytest.raises(DataError, match="did you mean 'test'"):
        load_problems("arith", "tset")
    with pytest.raises(DataError, match="limit"):
        load_problems("arith", "test", 0)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "p.jsonl"
    write_jsonl(path, arith.generate("test", 2))
    before = path.read_bytes()

    def broken():
        yield arith.generate("test", 1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, broken())
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["p.jsonl"]
    with pytest.raises(DataError, match="cannot be written"):
        write_jsonl(tmp_path / "no" / "p.jsonl", [])
