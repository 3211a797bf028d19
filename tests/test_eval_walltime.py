"""Wall times are read, and a file that cannot be used is named."""

from __future__ import annotations

import json

import fake_traces
import pytest

from trim_jax.errors import ResultError
from trim_jax.eval import walltime
from trim_jax.eval.study import table
from trim_jax.eval.summary import summarise
from trim_jax.eval.traces import load_result


def test_median_least_and_most(tmp_path):
    assert walltime.read(tmp_path) is None
    (tmp_path / walltime.FILE).write_text(json.dumps(
        {"problems": 20, "repeats": [["thr", 3, [0.012, 0.010, 0.011]]]}))
    found = walltime.read(tmp_path)
    assert found["problems"] == 20
    thr = found["policies"]["thr"]
    assert thr["setting"] == 3 and thr["repeats"] == 3
    assert thr["ms"] == pytest.approx({"value": 11.0, "low": 10.0, "high": 12.0})


@pytest.mark.parametrize("text", ["{", "{}", '{"problems": 1, "repeats": [["thr", 0, []]]}',
                                  '{"problems": 1, "repeats": [["thr", 0, [-1]]]}'])  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / walltime.FILE).write_text(text)
    with pytest.raises(ResultError, match="walltime.json: cannot be used"):
        walltime.read(tmp_path)


def test_it_stands_in_the_table_at_the_chosen_setting_only(tmp_path):
    folder = fake_traces.write_result(tmp_path / "run", range(20), (0,))
    fake_traces.write_result(folder / "validation", range(500, 530), (0,), split="validation")
    at = summarise(load_result(folder), resamples=5)["policies"]["thr"]["operating_point"]["setting"]
    entry = {"problems": 20, "repeats": [["thr", at, [0.0123, 0.0101]], ["never", 0, [0.001]]]}
    (folder / walltime.FILE).write_text(json.dumps(entry))
    rows = table(summarise(load_result(folder), resamples=5)).splitlines()
    assert "| 11.20 [10.10, 12.30] |" in next(r for r in rows if r.startswith("| TRIM-Thr"))
    column = rows[0].split("|").index(" ms a problem, alone ")
    assert next(r for r in rows if r.startswith("| Random")).split("|")[column] == " - "
    entry["repeats"][0][1] = at + 1
    (folder / walltime.FILE).write_text(json.dumps(entry))
    with pytest.raises(ResultError, match=f"thr was timed at setting {at + 1}, chosen is {at}"):
        summarise(load_result(folder), resamples=5)
