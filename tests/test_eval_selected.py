"""Tables of policies that choose among recorded solutions: stored, read back, summarised."""

import dataclasses

import fake_traces
import numpy as np
import pytest

from trim_jax.errors import ResultError
from trim_jax.eval import figures, selected
from trim_jax.eval.study import order, table
from trim_jax.eval.summary import summarise
from trim_jax.eval.traces import PolicySpec, load_result, tables

SHARES = (0.0, 0.5, 1.0)


@pytest.fixture
def folder(tmp_path):
    folder = fake_traces.write_result(tmp_path / "run", range(30))
    fake_traces.write_result(folder / "validation", range(500, 530), split="validation")
    for part in (folder, folder / "validation"):
        (part / selected.FILE).write_bytes(selected.pack({"query-half": half(load_result(part))}))
    return folder


def half(result):
    """No problem, every second one, and all of them to the large model."""
    ends = [tables(result)[name] for name in ("never", "always")]
    routed = np.arange(len(result.problems)) % 2 == 1
    masks = [np.zeros_like(routed), routed, np.ones_like(routed)]

    def pick(field):
        small, large = (getattr(end, field)[0] for end in ends)
        shape = (-1, *[1] * (small.ndim - 1))
        return np.stack([np.where(mask.reshape(shape), large, small) for mask in masks])

    return dataclasses.replace(
        ends[0], policy=PolicySpec("query-half", "share", SHARES),
        **{name: pick(name) for name in ("correct", "strong_tokens", "ledger", "trace_index")},
    )  # fmt: skip


def test_what_is_stored_is_read_back(folder):
    result = load_result(folder)
    want, got = half(result), selected.all_tables(result)["query-half"]
    for field in dataclasses.fields(want):
        np.testing.assert_array_equal(getattr(got, field.name), getattr(want, field.name))
    assert selected.pack({"query-half": want}) == (folder / selected.FILE).read_bytes()


def test_it_stands_in_the_summary_as_a_baseline_with_a_chosen_setting(folder):
    summary = summarise(load_result(folder), resamples=50)
    entry = summary["policies"]["query-half"]
    ends = [summary["policies"][name]["settings"][0] for name in ("never", "always")]
    assert entry["role"] == "baseline" and "query-half" in summary["compared"]
    assert entry["settings"][0]["accuracy"] == ends[0]["accuracy"]
    assert entry["settings"][2]["strong_tokens"] == ends[1]["strong_tokens"]
    # Half of the problems cannot recover 95 % of the gap: all of them are sent.
    assert entry["operating_point"]["value"] == 1.0
    assert entry["apgr"]["value"] < summary["policies"]["thr"]["apgr"]["value"]


def test_the_table_of_a_study_has_a_row_a_policy_in_order(folder):
    summary = summarise(load_result(folder), resamples=50)
    rows = table(summary).split("\n\n")[0].splitlines()[2:]
    labels = [row.split(" | ")[0].strip("| ") for row in rows]
    assert labels[:2] == ["Oracle", "TRIM-Thr"] and set(labels[2:]) == {"Random", "query-half"}
    assert all(row.count("|") == rows[0].count("|") for row in rows)
    point = summary["policies"]["thr"]["operating_point"]["test"]["accuracy"]["value"]
    assert f"{100 * point:.1f} [" in rows[1]
    assert set(figures.routed_policies(summary)) == set(order(summary))


def test_a_damaged_file_is_named(folder):
    (folder / selected.FILE).write_bytes(b"no archive")
    with pytest.raises(ResultError, match="selected.npz: cannot be used"):
        summarise(load_result(folder), resamples=10)
