"""Figures are the same from run to run, and are drawn or left out according to the data."""

import copy
import re

import fake_traces
import pytest

from trim_jax.eval import figures
from trim_jax.eval.summary import summarise
from trim_jax.eval.traces import load_result


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = fake_traces.write_result(tmp_path_factory.mktemp("f") / "run", range(30))
    fake_traces.write_result(folder / "validation", range(500, 530), split="validation")
    return summarise(load_result(folder), resamples=60)


def drawn(summary):
    return {"frontier": figures.frontier_figure([summary]),
            "joint": figures.frontier_figure([summary, {**summary, "name": "other"}]),
            "recovery": figures.recovery_figure(summary),
            "compute": figures.compute_figure(summary),
            "interventions": figures.interventions_figure(summary, "thr"),
            "waste": figures.waste_figure(summary),
            "reliability": figures.reliability_figure(summary)}


def test_bytes_are_the_same_from_run_to_run(summary):
    one, two = drawn(summary), drawn(copy.deepcopy(summary))
    for name in one:
        assert figures.to_png(one[name], 60) == figures.to_png(two[name], 60), name
        assert figures.to_svg(one[name]) == figures.to_svg(two[name]), name
        # Drawing once more from one figure object changes nothing either.
        assert figures.to_svg(one[name]) == figures.to_svg(one[name]), name
    svg, png = figures.to_svg(one["frontier"]), figures.to_png(one["frontier"])
    assert "<dc:date>" not in svg and not re.search(r"20\d\d-\d\d-\d\d", svg)
    assert png.startswith(b"\x89PNG") and b"tIME" not in png and b"Software" not in png


def test_frontier_shows_policies_anchors_and_the_chosen_setting(summary):
    svg = figures.to_svg(figures.frontier_figure([summary]), text_as_text=True)
    for words in ("TRIM-Thr", "Random", "Oracle (upper bound, sees true labels)", "weak-only",
                  "strong-only", "on validation", "% of strong-only"):
        assert words in svg
    chosen = summary["policies"]["thr"]["operating_point"]["value"]
    assert f"k = {chosen:g}, chosen" in svg


def test_curve_goes_through_the_settings_of_the_frontier(summary):
    axes = figures.frontier_figure([summary]).axes[0]
    line = next(x for x in axes.get_lines() if x.get_label() == "TRIM-Thr")
    expected = [(100 * r["c"]["value"], 100 * r["accuracy"]["value"])
                for r in summary["policies"]["thr"]["settings"] if r["on_frontier"]]
    points = list(zip(*line.get_data()))
    assert set(expected) <= {(float(x), float(y)) for x, y in points}
    assert points[0][0] == 0.0 and points == sorted(points)


def test_compute_curve_leaves_out_the_settings_that_are_anchors(summary):
    axes = figures.compute_figure(summary).axes[0]
    line = next(x for x in axes.get_lines() if x.get_label() == "TRIM-Thr")
    rows = summary["policies"]["thr"]["settings"][1:-1]  # without k = 0 and k = 1
    assert line.get_xdata().tolist() == [100 * r["flops_ratio"]["value"] for r in rows]


def test_inline_svg_takes_its_colours_from_the_page(summary):
    for name, fig in drawn(summary).items():
        svg = figures.to_inline_svg(fig, name, "what <it> shows")
        assert svg.startswith("<svg") and svg.endswith("</svg>")
        assert "what &lt;it> shows</title>" in svg and f'aria-labelledby="{name}-title"' in svg
        assert "DejaVu" not in svg and not re.search(r"(fill|stroke): #(?!000000)", svg)
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert all(i.startswith(f"{name}-") for i in ids)
        for target in re.findall(r'(?:url\(#|href="#)([^")]+)', svg):
            assert target in ids


def test_figures_without_data_are_left_out(summary):
    bare = copy.deepcopy(summary)
    bare["parameters"] = bare["process_reward"] = None
    for policy in bare["policies"].values():
        policy["interventions"] = {"by_position": {"groups": [], "drafts": [], "regenerated": [],
                                                   "first_errors": None}, "by_kind": None}
        for row in policy["settings"]:
            row.pop("wasted_share")
    assert figures.compute_figure(bare) is None and figures.reliability_figure(bare) is None
    assert figures.interventions_figure(bare, "thr") is None and figures.waste_figure(bare) is None
    bare["policies"] = {n: bare["policies"][n] for n in ("never", "always", "oracle")}
    assert figures.recovery_figure(bare) is None


def test_undefined_recovery_is_drawn_as_nothing(summary):
    flat = copy.deepcopy(summary)
    for policy in flat["policies"].values():
        for row in policy["settings"]:
            row["c"] = row["pgr"] = row["dibc"] = {"value": None, "low": None, "high": None}
        policy["operating_point"] = None
    for fig in (figures.frontier_figure([flat]), figures.recovery_figure(flat),
                figures.waste_figure(flat)):
        figures.to_png(fig, dpi=50)


def test_policies_from_outside_have_styles_of_their_own():
    names = ["random", "a", "thr", "b"]
    styles = [figures.style_of(n, names) for n in names]
    assert len({s.color for s in styles}) == len({s.marker for s in styles}) == 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", [lambda s: figures.frontier_figure([s]), figures.compute_figure])
def test_a_legend_of_many_long_names_lies_below_the_axes(summary, draw):
    many = copy.deepcopy(summary)
    for i in range(16):
        name = f"thr-{i}"
        many["policies"][name] = {**copy.deepcopy(summary["policies"]["thr"]),
                                  "label": f"TRIM-Thr, a variant with quite a long name, {i}"}
    fig = draw(many)
    box = fig.legends[0].get_window_extent().transformed(fig.transFigure.inverted())
    assert len(fig.legends) == 1 and 0 <= box.x0 < box.x1 <= 1 and box.y0 >= 0
    axes = fig.axes[0].get_position()
    assert box.y1 < axes.y0 and axes.height * fig.get_figheight() > 2
