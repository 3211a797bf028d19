"""The best policy is chosen on the tables that are given, by APGR."""

from __future__ import annotations

import dataclasses

import fake_traces
import pytest

from trim_jax.eval import metrics
from trim_jax.eval.choice import choose_policy
from trim_jax.eval.metrics import Anchors
from trim_jax.eval.traces import load_result, tables


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return tables(load_result(fake_traces.write_result(tmp_path_factory.mktemp("c") / "r",
                                                       range(40))))  # fmt: skip


def test_the_best_is_that_of_the_largest_apgr(found):
    name, height = choose_policy(found, ["random", "thr", "not-there"])
    ends = Anchors(found["never"].correct.mean(), found["always"].correct.mean(),
                   found["always"].strong_tokens.mean())  # fmt: skip
    thr = found["thr"]
    assert name == "thr" and height == pytest.approx(metrics.curve_metrics(
        thr.strong_tokens.mean((1, 2)), thr.correct.mean((1, 2)), ends).apgr)
    assert choose_policy(found, ["random"])[0] == "random"


def test_no_choice_without_candidates_or_without_a_gap(found):
    assert choose_policy(found, ["not-there"]) is None
    flat = {**found, "always": dataclasses.replace(found["always"],
                                                   correct=found["never"].correct)}
    assert choose_policy(flat, ["thr"]) is None
