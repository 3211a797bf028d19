"""The trace schema, the result folder's reader, and the expansion to cells."""

import copy
import json

import fake_traces
import numpy as np
import pytest

from trim_jax.errors import ResultError
from trim_jax.eval import traces
from trim_jax.eval.traces import dump_traces, load_result, tables, traces_from_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_traces.write_result(tmp_path_factory.mktemp("traces") / "run", range(6))


@pytest.fixture
def row():
    """A trace with an accepted and a regenerated step, as JSON."""
    for trace in fake_traces.simulate(range(20), [0]):
        if {s.action for s in trace.steps} == {"accept", "regenerate"} and trace.policy == "thr":
            return json.loads(dump_traces([trace]))
    raise AssertionError("the simulation has no such trace")


def test_round_trip(row):
    traces = traces_from_json(row)
    assert json.loads(dump_traces(traces)) == row
    assert traces_from_json(json.loads(dump_traces(traces))) == traces
    assert set(row) == {"problem_id", "seed", "cells", "finish", "answer", "correct",
                        "strong_tokens", "steps", "ledger"}


def test_policies_with_the_same_history_share_a_line(row):
    shared = row | {"cells": [["thr", 0, 2], ["q", 1, 2], ["q", 4, 5]]}
    found = traces_from_json(shared)
    assert [(t.policy, t.settings) for t in found] == [("thr", (0, 2)), ("q", (1, 2)), ("q", (4, 5))]
    other = traces_from_json(row | {"seed": 7, "cells": [["thr", 0, 1]]})
    text = dump_traces([found[0], *other, *found[1:]])
    assert [json.loads(line) for line in text.splitlines()] == [
        shared, row | {"seed": 7, "cells": [["thr", 0, 1]]}]


def test_folder_round_trip(folder):
    result = load_result(folder)
    assert result.name == "run" and result.seeds == (0, 1) and len(result.problems) == 6
    want = fake_traces.simulate(range(6), (0, 1))
    assert len(result.traces) == len(want) and set(result.traces) == set(want)
    assert len((folder / "traces.jsonl").read_text().splitlines()) < len(want), "nothing is shared"
    assert result.policies == fake_traces.POLICIES
    assert result.executed["decode_small"]["used"] == 850 and result.validation is None


def _edit(row, path, value):
    row = copy.deepcopy(row)
    target = row
    for key in path[:-1]:
        target = target[key]
    if value is KeyError:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return row


@pytest.mark.parametrize("path, value, message", [
    (("seed",), KeyError, "trace lacks seed"),
    (("sed",), 0, "trace has unknown sed"),
    (("seed",), True, "seed must be a whole number"),
    (("cells",), [], "list of"),
    (("cells", 0, 1), 50, "half-open range"),
    (("cells", 0, 1), -1, "half-open range"),
    (("finish",), "stopped", "finish must be one of boxed, eos, steps, context"),
    (("answer",), 12, "answer must be a string or null"),
    (("correct",), 1, "correct must be true or false"),
    (("strong_tokens",), 1, "strong_tokens is 1, but the large model's steps have"),
    (("steps", 0, "score"), 1.5, r"step 1: score must be a number in \[0, 1\] or null, got 1.5"),
    (("steps", 0, "score"), float("nan"), "step 1: score must be a number"),
    (("steps", 0, "n_tokens"), 2.0, "step 1: n_tokens must be a whole number"),
    (("steps", 0, "action"), "keep", "step 1: action must be one of accept, regenerate, direct"),
    (("steps", 0, "text"), KeyError, "step 1 lacks text"),
    (("ledger", "prm"), KeyError, "ledger lacks prm"),
    (("ledger", "prm", "calls"), -1, "ledger: prm.calls must be a whole number >= 0"),
])
def test_invalid_trace_names_the_field(row, path, value, message):
    with pytest.raises(ResultError, match=message):
        traces_from_json(_edit(row, path, value))


def test_draft_belongs_to_a_regenerated_step(row):
    accepted = next(i for i, s in enumerate(row["steps"]) if s["action"] == "accept")
    rewritten = next(i for i, s in enumerate(row["steps"]) if s["action"] == "regenerate")
    with pytest.raises(ResultError, match="must be null when the action is 'accept'"):
        traces_from_json(_edit(row, ("steps", accepted, "draft"), "x"))
    with pytest.raises(ResultError, match="draft must be a string"):
        traces_from_json(_edit(row, ("steps", rewritten, "draft"), None))
    with pytest.raises(ResultError, match="action 'accept' means writer 'small'"):
        traces_from_json(_edit(row, ("steps", accepted, "writer"), "large"))


@pytest.mark.parametrize("name, change, message", [
    ("policies.json", lambda t: t.replace('"schema_version": 3', '"schema_version": 9'),
     "schema version 9"),
    ("policies.json", lambda t: t.replace('"seeds"', '"sedes"'), "policies.json: needs seeds"),
    ("problems.json", lambda t: t.replace('"answer"', '"anwser"', 1), "problem 1 lacks 'answer'"),
    ("problems.json", lambda t: t.replace("test-00001", "test-00000"), "occurs twice"),
    ("config.json", lambda t: t[:-1], "config.json: cannot be read"),
    ("traces.jsonl", lambda t: t.replace('"seed":0', '"seed":null', 1), "line 1: seed must be"),
    ("traces.jsonl", lambda t: t[:-30], r"traces.jsonl, line \d+: "),
])
def test_broken_file_is_named(tmp_path, name, change, message):
    folder = fake_traces.write_result(tmp_path / "r", range(2), (0,))
    text = (folder / name).read_text()
    assert change(text) != text
    (folder / name).write_text(change(text))
    with pytest.raises(ResultError, match=message):
        load_result(folder)


def test_unfinished_or_absent_folder(tmp_path):
    with pytest.raises(ResultError, match="no such result folder"):
        load_result(tmp_path / "nothing")
    with pytest.raises(ResultError, match="is .* a result folder"):
        load_result(tmp_path)
    folder = fake_traces.write_result(tmp_path / "r", range(2), (0,))
    (folder / "traces.jsonl").unlink()
    with pytest.raises(ResultError, match="not finished: start the same command again"):
        load_result(folder)


def test_validation_inside_the_folder(tmp_path):
    folder = fake_traces.write_result(tmp_path / "r", range(2), (0,))
    fake_traces.write_result(folder / "validation", range(100, 103), (0,), split="validation")
    result = load_result(folder)
    assert len(result.validation.problems) == 3
    assert result.validation.config["data"]["split"] == "validation"


# ------------------------------------------------------------------------------------- expansion


def test_tables_repeat_each_trace_over_its_settings(folder):
    result = load_result(folder)
    table = tables(result)["thr"]
    assert table.correct.shape == table.strong_tokens.shape == (21, 6, 2)
    assert table.ledger.shape == (21, 6, 2, 3, 5)
    seen = 0
    for number, trace in enumerate(result.traces):
        if trace.policy != "thr":
            continue
        first, end = trace.settings
        cell = (slice(first, end), int(trace.problem_id[-5:]), trace.seed)
        assert (table.trace_index[cell] == number).all()
        assert (table.correct[cell] == trace.correct).all()
        assert (table.strong_tokens[cell] == trace.strong_tokens).all()
        large = table.ledger[cell][:, traces.MODELS.index("large"), traces.COUNTERS.index("kept")]
        assert (large == trace.ledger.large.kept).all()
        seen += end - first
    assert seen == table.correct.size


def _rewrite(folder, edit):
    path = folder / "traces.jsonl"
    rows = edit([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.mark.parametrize("edit, message", [
    (lambda rows: [r | {"cells": [c for c in r["cells"] if c[:2] != ["thr", 0] or r["seed"] == 0
                                  or not r["problem_id"].endswith("1")]} for r in rows],
     r"no trace for policy thr k=0, problem arith-test-00001, seed 1"),
    (lambda rows: rows + rows[:1], "a second trace of never for problem arith-test-00000, seed 0"),
    (lambda rows: [{**rows[0], "cells": [["agg", 0, 1]]}] + rows[1:], "policy 'agg' is not in"),
    (lambda rows: [{**rows[0], "problem_id": "x"}] + rows[1:], "problem 'x' is not in"),
    (lambda rows: [{**rows[0], "seed": 7}] + rows[1:], "seed 7 is not in"),
    (lambda rows: [{**rows[0], "cells": [["never", 0, 2]]}] + rows[1:], "never has only 1 settings"),
])
def test_missing_double_and_unknown_cells_are_errors(tmp_path, edit, message):
    folder = fake_traces.write_result(tmp_path / "r", range(2), (0, 1))
    _rewrite(folder, edit)
    with pytest.raises(ResultError, match=message):
        tables(load_result(folder))


def test_simulation_is_deterministic_and_routing_beats_chance():
    one = fake_traces.simulate(range(4), (0,))
    fake_traces._node.cache_clear()
    assert fake_traces.simulate(range(4), (0,)) == one
    many = fake_traces.simulate(range(60), (0, 1))
    accuracy = {p: np.mean([t.correct for t in many if t.policy == p]) for p in ("never", "always")}
    assert accuracy["never"] < 0.6 < 0.8 < accuracy["always"]
