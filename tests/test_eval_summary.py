"""The summary against values computed directly from the traces, and its choice of a setting."""

import json
from dataclasses import replace

import fake_traces
import numpy as np
import pytest

from trim_jax.errors import ResultError
from trim_jax.eval.choice import choose_policy
from trim_jax.eval.summary import choose_setting, find_anchor, summarise
from trim_jax.eval.traces import PolicySpec, load_result, tables
from trim_jax.results import dumps

RESAMPLES = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = fake_traces.write_result(tmp_path_factory.mktemp("s") / "run", range(60))
    fake_traces.write_result(folder / "validation", range(500, 560), split="validation")
    return folder


@pytest.fixture(scope="module")
def result(folder):
    return load_result(folder)


@pytest.fixture(scope="module")
def summary(result):
    return summarise(result, resamples=RESAMPLES)


def only(result, *names):
    """The same result with some of its policies."""
    return replace(result, policies={n: result.policies[n] for n in names}, validation=None,
                   traces=tuple(t for t in result.traces if t.policy in names))


def test_settings_are_means_over_traces(result, summary):
    table = tables(result)["thr"]
    rows = summary["policies"]["thr"]["settings"]
    assert [r["value"] for r in rows] == list(fake_traces.GRID)
    for at in (0, 7, 20):
        row = rows[at]
        traces = [result.traces[i] for i in table.trace_index[at].ravel()]
        assert row["accuracy"]["value"] == pytest.approx(np.mean([t.correct for t in traces]))
        assert row["strong_tokens"] == pytest.approx(np.mean([t.strong_tokens for t in traces]))
        large = [[s.writer == "large" for s in t.steps] for t in traces]
        assert row["strong_step_share"] == pytest.approx(
            sum(map(sum, large)) / sum(map(len, large)))
    shown = summary["policies"]["thr"]["shown"]
    traces = [result.traces[i] for i in table.trace_index[shown["setting"]].ravel()]
    assert shown["ledger"]["prm"]["scored"] == pytest.approx(
        np.mean([t.ledger.prm.scored for t in traces]))
    assert rows[0]["accuracy"]["value"] == (
        summary["policies"]["never"]["settings"][0]["accuracy"]["value"])


def test_every_estimate_has_an_interval_around_it(summary):
    for policy in summary["policies"].values():
        for row in policy["settings"]:
            for field in ("accuracy", "c", "pgr", "flops_ratio"):
                e = row[field]
                assert e["low"] <= e["value"] <= e["high"]
    accuracy = summary["policies"]["thr"]["settings"][5]["accuracy"]
    assert accuracy["low"] < accuracy["high"]


def test_dibc_identity_and_anchors(summary):
    for row in summary["policies"]["thr"]["settings"][1:]:
        assert row["dibc"] == pytest.approx(row["pgr"]["value"] / row["c"]["value"] - 1)
    always = summary["policies"]["always"]
    assert always["settings"][0]["pgr"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert always["cpt"]["95"]["c"]["value"] == pytest.approx(0.95)
    assert always["mean_dibc"]["value"] == pytest.approx(0.0)
    never = summary["policies"]["never"]
    assert never["cpt"]["50"]["c"] == {"value": None, "low": None, "high": None,
                                       "share_reached": 0.0}
    assert never["apgr"]["value"] == 0.0
    assert {side: (a["policy"], a["setting"]) for side, a in summary["anchors"].items()} == {
        "weak": ("never", 0), "strong": ("always", 0)}
    assert summary["anchors"]["weak"]["ledger"]["large"]["calls"] == 0.0


def test_flops_are_two_a_parameter_and_token(result, summary):
    row = summary["policies"]["thr"]["settings"][10]
    table = tables(result)["thr"]
    led = table.ledger[10].mean((0, 1))  # [models, counters], calls last
    expected = 2 * (led[:, :4].sum(1) * [1e6, 4e6, 2e6]).sum()
    assert row["flops"] == pytest.approx(expected)
    always = summary["policies"]["always"]["settings"][0]
    assert row["flops_ratio"]["value"] == pytest.approx(expected / always["flops"])
    assert always["flops_ratio"]["high"] == 1.0


def test_thr_beats_random_and_the_oracle_bounds_both(summary):
    policies = summary["policies"]
    assert summary["main_policy"] == "thr" and summary["compared"] == ["random", "thr"]
    assert policies["oracle"]["role"] == "upper bound"
    apgr = {n: policies[n]["apgr"]["value"] for n in ("random", "thr", "oracle")}
    assert apgr["random"] < apgr["thr"] < apgr["oracle"]
    gain = summary["against_random"]["thr"]["apgr"]
    assert gain["low"] > 0 and gain["value"] == pytest.approx(apgr["thr"] - apgr["random"])


def test_mean_dibc_over_common_targets(summary):
    thr, random = (summary["policies"][n] for n in ("thr", "random"))
    assert summary["common_targets"] == min(thr["mean_dibc"]["targets_reached"],
                                            random["mean_dibc"]["targets_reached"])
    if summary["common_targets"] == thr["mean_dibc"]["targets_reached"]:
        assert thr["mean_dibc_common"]["value"] == pytest.approx(thr["mean_dibc"]["value"])


def test_the_best_policy_is_chosen_on_validation(result, summary):
    names = [n for n, p in summary["policies"].items() if p["role"] == "policy"]
    chosen = summary["paired"]["chosen"]["step"]
    want = choose_policy(tables(result.validation), names)
    assert (chosen["policy"], chosen["validation_apgr"]) == want
    assert choose_policy(tables(result), names)[1] != want[1]  # else it tests nothing


def test_operating_point_is_chosen_on_validation(result, summary):
    found = tables(result.validation)
    choice = choose_setting(found, "thr", 0.95)
    gain, cost = [], []
    weak, strong = found["never"].correct.mean(), found["always"].correct.mean()
    for at in range(21):
        gain.append((found["thr"].correct[at].mean() - weak) / (strong - weak))
        cost.append(found["thr"].strong_tokens[at].mean())
    reaching = [at for at in range(21) if gain[at] >= 0.95]
    assert choice.reached and choice.index == min(reaching, key=lambda at: cost[at])
    chosen = summary["policies"]["thr"]["operating_point"]
    assert chosen["value"] == choice.value and chosen["setting"] == choice.index
    row = summary["policies"]["thr"]["settings"][choice.index]
    assert chosen["test"]["pgr"] == row["pgr"] and chosen["validation"]["pgr"] == choice.pgr
    assert chosen["validation"]["problem_ids"] == ["arith-test-00500", "arith-test-00559"]
    assert summary["policies"]["always"]["operating_point"] is None


def test_choice_falls_back_to_the_best_and_says_so(result):
    low = PolicySpec("thr", "k", fake_traces.GRID[:4])
    validation = replace(only(result.validation, "never", "always"), policies={
        **only(result.validation, "never", "always").policies, "thr": low}, traces=tuple(
        replace(t, settings=(t.settings[0], min(t.settings[1], 4))) for t in
        result.validation.traces if t.policy in ("never", "always")
        or t.policy == "thr" and t.settings[0] < 4))
    choice = choose_setting(tables(validation), "thr", 0.95)
    assert not choice.reached and choice.pgr < 0.95


def test_without_validation_no_setting_is_chosen(result):
    summary = summarise(replace(result, validation=None), resamples=20)
    assert summary["policies"]["thr"]["operating_point"] is None
    assert summary["policies"]["thr"]["shown"]["why"] == "cheapest here that reaches the target"


def test_setting_missing_on_test_is_an_error(result):
    wanted = tables(result.validation)
    value = choose_setting(wanted, "thr").value
    spec = result.policies["thr"]
    other = replace(spec, settings=tuple(0.123 if v == value else v for v in spec.settings))
    with pytest.raises(ResultError, match=rf"k = {value:g}, chosen on validation, is not among"):
        summarise(replace(result, policies={**result.policies, "thr": other}), resamples=5)


def test_anchors_may_be_the_ends_of_thr(result):
    alone = only(result, "thr")
    assert find_anchor(tables(alone), "never") == ("thr", 0)
    assert find_anchor(tables(alone), "always") == ("thr", 20)
    summary, full = (summarise(r, resamples=20) for r in (alone, result))
    assert summary["against_random"] == {} and summary["main_policy"] == "thr"
    assert summary["policies"]["thr"]["cpt"]["80"] == full["policies"]["thr"]["cpt"]["80"]
    with pytest.raises(ResultError, match="no Weak-only anchor"):
        summarise(only(result, "random", "always"), resamples=5)


def test_no_gap_is_undefined_everywhere_and_still_summarised(result):
    never = {(t.problem_id, t.seed): t.correct for t in result.traces if t.policy == "never"}
    flat = replace(result, traces=tuple(
        replace(t, correct=never[t.problem_id, t.seed]) if t.policy == "always" else t
        for t in result.traces))
    summary = json.loads(dumps(summarise(flat, resamples=50)))
    thr = summary["policies"]["thr"]
    assert summary["gap"]["value"] == 0.0
    assert thr["cpt"]["95"]["c"] == {"value": None, "low": None, "high": None,
                                     "share_reached": None}
    assert thr["mean_dibc"]["value"] is None and thr["mean_dibc"]["targets_reached"] is None
    assert thr["settings"][3]["pgr"]["value"] is None
    assert thr["settings"][3]["accuracy"]["value"] is not None


def test_custom_policy_is_the_main_one_without_thr(tmp_path):
    policies = {**{n: fake_traces.POLICIES[n] for n in ("never", "always", "random")},
                "my_rule": PolicySpec("my_rule", "cutoff", (0.3, 0.6, 0.9))}
    folder = fake_traces.write_result(tmp_path / "r", range(12), (0,), policies)
    summary = summarise(load_result(folder), resamples=20)
    assert summary["main_policy"] == "my_rule"
    assert summary["policies"]["my_rule"]["role"] == "policy"
    assert summary["policies"]["my_rule"]["label"] == "my_rule"


def test_same_result_same_text(result, summary):
    again = dumps(summarise(result, resamples=RESAMPLES), indent=2, sort_keys=True)
    assert again == dumps(summary, indent=2, sort_keys=True)


def test_config_sets_the_number_of_resamples(result):
    asked = replace(result, config={**result.config, "sweep": {"bootstrap": 30}}, validation=None)
    assert summarise(asked)["bootstrap"]["resamples"] == 30


def test_process_reward_quality(summary):
    judge = summary["process_reward"]
    small = judge["by_writer"]["small"]
    assert 0.9 < small["low"] < small["value"] < small["high"] < 1.0
    assert judge["by_position"]["small"]["position"] == judge["by_position"]["large"]["position"]
    total = sum(a["steps"] for w in ("small", "large") for a in judge["by_position"][w]["auc"])
    assert total == judge["auc"]["steps"]
    assert sum(judge["reliability"]["all"]["steps"]) == judge["auc"]["steps"]
