"""The figures of a study: nothing is cut off, and every compared policy has a panel."""

import fake_traces
import pytest

from trim_jax.eval import study
from trim_jax.eval.summary import summarise
from trim_jax.eval.traces import PolicySpec, load_result

POLICIES = fake_traces.POLICIES | {
    "q": PolicySpec("q", "worth", (0.2, 0.5, 0.9)),
    "loglik": PolicySpec("loglik", "loglik", (0.1, 0.6)),
}


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = fake_traces.write_result(
        tmp_path_factory.mktemp("study") / "run", range(30), policies=POLICIES
    )
    result = load_result(folder)
    return summarise(result, result.validation) | {"name": "test"}


def boxes(fig, artists):
    """Extents of some artists, in fractions of the figure."""
    to_figure = fig.transFigure.inverted()
    return [artist.get_window_extent().transformed(to_figure) for artist in artists]


@pytest.mark.parametrize("runs", [1, 2])
def test_the_legend_lies_within_the_figure(summary, runs):
    fig = study.figure([summary] * runs)
    (box,) = boxes(fig, fig.legends)
    assert box.x0 >= 0 and box.x1 <= 1 and box.y0 >= 0
    named = {text.get_text() for text in fig.legends[0].get_texts()}
    assert {summary["policies"][name]["label"] for name in ("q", "loglik", "thr")} <= named


def test_every_compared_policy_has_a_panel_with_room_for_its_title(summary):
    fig = study.difference_figure([summary])
    panels = [ax for ax in fig.axes if ax.get_visible()]
    assert len(panels) == len(summary["paired"]["differences"]) >= 2
    titles = boxes(fig, [ax._left_title for ax in panels])
    for one, other in zip(titles, titles[1:]):
        assert one.x1 <= other.x0, "titles overlap"
    for ax in panels:  # a poor policy does not flatten the others
        low, high = ax.get_ylim()
        drawn = [y for line in ax.lines[:1] for y in line.get_ydata() if y == y]
        assert low <= min(drawn) and max(drawn) <= high


def test_policies_with_a_price_are_held_against_agg_at_each(tmp_path):
    worths = PolicySpec("agg", "worth", (0.2, 0.5, 0.9))
    policies = POLICIES | {"agg": worths, "seq": PolicySpec("seq", "worth", (0.2, 0.5))}
    result = load_result(fake_traces.write_result(tmp_path / "run", range(12), policies=policies))
    summary = summarise(result, result.validation)
    assert set(summary["paired"]["prices"]) == {"q"}, "only at the same prices"
    table = study.table(summary)
    (row,) = [line for line in table.splitlines() if line.startswith("| TRIM-Q | ")
              and "+0.0 [+0.0, +0.0]" in line]  # fmt: skip
    assert row.endswith("| - | - | - | - | +0.0 |"), "the same policy under two names"


def test_prices_are_listed_where_they_belong():
    entry = {"worth": [10, 20, 30, 40], "low": [-3, -2, -0.1, 0.1], "high": [-2, -1, 0.1, 0.2],
             "band_low": [-4, -2.5, -0.2, -0.1], "band_high": [-1, 0.5, 0.2, 0.3],
             "mean": {"value": -0.5, "low": -0.6, "high": -0.4}}  # fmt: skip
    assert study._at_prices(entry) == ["-50.0 [-60.0, -40.0]", "10, 20", "40", "10", "-", "-400.0"]
