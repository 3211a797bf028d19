"""Figures of a summary (:func:`trim_jax.eval.summary.summarise`), drawn with matplotlib.

Each function returns a ``matplotlib.figure.Figure``; :func:`to_png` and :func:`to_svg` give bytes
that are the same from run to run (no dates, no random ids).
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from trim_jax.eval.names import is_router
from trim_jax.eval.style import (BLUE, BRICK, GREEN, GRID, INK, MUTED, ORANGE, PAPER, RC, SKY,
                                 VARIABLES, WRITER_COLORS, Style, style_of)

Summary = Mapping[str, Any]

_FEW_WRONG = 10  # an AUC of fewer wrong steps is not drawn: its interval fills the axes

_RUNS = (Style(BLUE, "o", "-"), Style(ORANGE, "s", (0, (5, 2))), Style(GREEN, "^", (0, (1.5, 1.5))),
         Style(BRICK, "D", "-"), Style(SKY, "v", "-"))  # of several runs on one page

PERCENT = FuncFormatter(lambda v, _: f"{v:g} %")
LEGEND_SHARE = 0.25  # of a figure's height that a legend below the axes may take from them


def routed_policies(summary: Summary) -> list[str]:
    """Policies that are drawn as curves, the main one last, so that it lies on top.

    Of the query-level routers only the best one (:func:`best_router`).
    """
    policies = summary["policies"]
    roles = {n: p["role"] for n, p in policies.items()
             if p["role"] != "anchor" and (not is_router(n) or n == best_router(summary))}
    depth = ("upper bound", "baseline", "policy")
    return sorted(roles, key=lambda n: (n == summary["main_policy"], depth.index(roles[n])))


def legend_order(summary: Summary) -> list[str]:
    """The drawn policies as a legend lists them: the main one, step-level ones, the others."""
    roles = ("policy", "baseline", "upper bound")
    names = routed_policies(summary)
    return sorted(names, key=lambda n: (n != summary["main_policy"], is_router(n), roles.index(
        summary["policies"][n]["role"])))


def best_router(summary: Summary) -> str | None:
    """The query-level router chosen on validation; without a choice the first by name."""
    chosen = summary["paired"]["chosen"]["query"]
    return chosen["policy"] if chosen else min(filter(is_router, summary["policies"]), default=None)


def series(rows: Sequence[Mapping[str, Any]], field: str, part: str = "value") -> np.ndarray:
    """One part of an estimate over the settings of a policy, as floats; null becomes nan."""
    return np.array([r[field][part] for r in rows], float)


def new_figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(**grid)


def laid_out(fig: Figure) -> Figure:
    """Fixes the layout, which would otherwise shift by a hair at each further drawing."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    return fig


def _legend_below(fig: Figure, ax: Axes, columns: int) -> None:
    """A legend under the axes, where it covers no data; the main policy first.

    It has as many of ``columns`` as the figure has room for, and the figure grows with a long one.
    """
    handles, labels = ax.get_legend_handles_labels()
    for ncols in range(columns, 0, -1):
        legend = fig.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=ncols)
        size = legend.get_window_extent()
        if ncols == 1 or size.width <= fig.bbox.width:
            break
        legend.remove()
    above = (size.height - LEGEND_SHARE * fig.bbox.height) / fig.dpi
    fig.set_figheight(fig.get_figheight() + max(above, 0))


def _name(summary: Summary, policy: str) -> str:
    entry = summary["policies"][policy]
    note = " (upper bound, sees true labels)" if entry["role"] == "upper bound" else ""
    return entry["label"] + note


# --------------------------------------------------------------------------------- the frontier


def anchor_row(summary: Summary, side: str) -> Mapping[str, Any]:
    anchor = summary["anchors"][side]
    return summary["policies"][anchor["policy"]]["settings"][anchor["setting"]]


def _error_bar(ax: Axes, x: float, estimate: Mapping[str, Any], color: str) -> None:
    ax.vlines(100 * x, 100 * estimate["low"], 100 * estimate["high"], color=color, linewidth=1.2)


def draw_curve(ax: Axes, run: Summary, policy: str, style: Style, label: str,
               band: float = 0.14) -> None:
    """Frontier as a line with its band (of opacity ``band``), settings as markers, hollow where
    dominated."""
    entry = run["policies"][policy]
    rows, front = entry["settings"], entry["frontier"]
    c, accuracy = series(rows, "c"), series(rows, "accuracy")
    if np.isnan(c).any():
        return
    grid = np.array(run["costs"])
    inside = grid <= c.max() + 1e-9
    corners = sorted({(0.0, front["accuracy"][0])} | {
        (x, y) for x, y, r in zip(c, accuracy, rows) if r["on_frontier"]})
    xs, ys = np.array(corners).T
    if band:
        low, high = (np.array(front[side], float)[inside] for side in ("low", "high"))
        ax.fill_between(100 * grid[inside], 100 * low, 100 * high, color=style.color, alpha=band,
                        linewidth=0)
    ax.plot(100 * xs, 100 * ys, color=style.color, linestyle=style.dash, marker=style.marker,
            markevery=slice(1, None), markeredgewidth=0, label=label)
    hollow = [(x, y) for x, y, r in zip(c, accuracy, rows) if not r["on_frontier"] and x > 0]
    if hollow:
        hx, hy = np.array(hollow).T
        ax.plot(100 * hx, 100 * hy, linestyle="none", marker=style.marker, color=style.color,
                markerfacecolor=PAPER, markeredgewidth=1.1, markersize=4)


def band_opacity(run: Summary, policy: str) -> float:
    """Of a policy's band: the more bands, the lighter; none for baselines among many policies."""
    steps = sum(p["role"] == "policy" for p in run["policies"].values())
    if steps <= 2:
        return 0.14
    return 0.07 if run["policies"][policy]["role"] == "policy" else 0.0


def _mark_operating_point(ax: Axes, entry: Mapping[str, Any], style: Style) -> None:
    chosen = entry["operating_point"]
    if chosen is None or chosen["test"]["c"]["value"] is None:
        return
    x, y = 100 * chosen["test"]["c"]["value"], 100 * chosen["test"]["accuracy"]["value"]
    ax.plot([x], [y], marker="o", markersize=12, markerfacecolor="none", linestyle="none",
            markeredgecolor=style.color, markeredgewidth=1.6)
    value = f"{entry['parameter']} = {chosen['value']:g}" if entry["parameter"] else entry["label"]
    ax.annotate(f"{value}, chosen\non validation", (x, y), xytext=(16, -26),
                textcoords="offset points", color=style.color, va="top", fontsize=9,
                arrowprops={"arrowstyle": "-", "color": style.color, "linewidth": 0.8,
                            "shrinkA": 0, "shrinkB": 7})


def _recovery_axis(ax: Axes, weak: float, strong: float) -> None:
    """The share of the gap that is recovered, on the right; drawn only where there is a gap."""
    if strong <= weak:
        return
    right = ax.secondary_yaxis("right", functions=(
        lambda y: (y / 100 - weak) / (strong - weak) * 100,
        lambda g: (weak + g / 100 * (strong - weak)) * 100))
    right.set_yticks([0, 50, 80, 95], ["0 %", "50 %", "80 %", "95 %"], fontsize=8.5)
    right.set_ylabel("share of the gap recovered (PGR)")
    right.spines["right"].set_visible(False)


def frontier_figure(runs: Sequence[Summary]) -> Figure:
    """Accuracy against strong tokens (% of strong-only), with intervals and both anchors.

    One run: every policy. Several: the main policy of each, on the axes of its own anchors.
    """
    with rc_context(RC):
        fig, ax = new_figure(9.2, 5.5)
        if len(runs) == 1:
            _draw_run(ax, runs[0])
        else:
            for i, run in reversed(list(enumerate(runs))):  # the first on top
                name, style = run["main_policy"], _RUNS[i % len(_RUNS)]
                draw_curve(ax, run, name, style,
                           f"{run['name']}: {run['policies'][name]['label']}")
                for x, side in ((0, "weak"), (1, "strong")):
                    row = anchor_row(run, side)["accuracy"]
                    _error_bar(ax, x, row, style.color)
                    ax.plot([100 * x], [100 * row["value"]], color=style.color, marker="D",
                            markersize=5)
        ax.set_xlim(-3, max(103, ax.get_xlim()[1]))
        ax.set_xlabel("tokens written by the large model, % of strong-only")
        ax.set_ylabel("problems solved")
        ax.xaxis.set_major_formatter(PERCENT)
        ax.yaxis.set_major_formatter(PERCENT)
        _legend_below(fig, ax, 2 if len(runs) > 1 else 4)
        return laid_out(fig)


def _draw_run(ax: Axes, run: Summary) -> None:
    weak, strong = anchor_row(run, "weak")["accuracy"], anchor_row(run, "strong")["accuracy"]
    ends = 100 * weak["value"], 100 * strong["value"]
    ax.plot([0, 100], ends, color=MUTED, linewidth=1, linestyle=(0, (1, 2)),
            label="whole problems at random")
    names = routed_policies(run)
    for name in names:
        draw_curve(ax, run, name, style_of(name, names), _name(run, name),
                   band=band_opacity(run, name))
    for x, estimate, label, align in ((0, weak, "weak-only", "left"),
                                      (1, strong, "strong-only", "right")):
        _error_bar(ax, x, estimate, INK)
        ax.plot([100 * x], [100 * estimate["value"]], color=INK, marker="D", markersize=6,
                zorder=5)
        ax.annotate(f"{label}  {100 * estimate['value']:.1f} %", (100 * x,
                    100 * estimate["value"]), xytext=(9 if x == 0 else 0, -4 if x == 0 else 12),
                    textcoords="offset points", ha=align, va="center", fontweight="bold")
    main = run["main_policy"]
    _mark_operating_point(ax, run["policies"][main], style_of(main, names))
    _recovery_axis(ax, weak["value"], strong["value"])


def compute_figure(summary: Summary) -> Figure | None:
    """Accuracy against the estimated FLOPs of all three models; None where they are unknown."""
    if (summary["parameters"] is None
            or anchor_row(summary, "strong")["flops_ratio"]["value"] is None):
        return None
    with rc_context(RC):
        fig, ax = new_figure(6.2, 3.7)
        names = routed_policies(summary)
        # k = 0 and k = 1 of thr are the anchors: no PRM, no drafts. A line to them would pass
        # through costs that no setting has.
        anchors = [(anchor_row(summary, side)["flops"], anchor_row(summary, side)["accuracy"])
                   for side in ("weak", "strong")]
        for name in names:
            rows = [r for r in summary["policies"][name]["settings"]
                    if (r["flops"], r["accuracy"]) not in anchors]
            style = style_of(name, names)
            flops, accuracy = series(rows, "flops_ratio"), series(rows, "accuracy")
            low, high = series(rows, "accuracy", "low"), series(rows, "accuracy", "high")
            if len(rows) == 1:
                ax.vlines(100 * flops, 100 * low, 100 * high, color=style.color, linewidth=1.2)
            else:
                ax.fill_between(100 * flops, 100 * low, 100 * high, color=style.color,
                                alpha=0.14, linewidth=0)
            ax.plot(100 * flops, 100 * accuracy, color=style.color, linestyle=style.dash,
                    marker=style.marker, markeredgewidth=0, label=_name(summary, name))
        for side in ("weak", "strong"):
            row = anchor_row(summary, side)
            ax.plot([100 * row["flops_ratio"]["value"]], [100 * row["accuracy"]["value"]],
                    color=INK, marker="D", markersize=6)
            ax.annotate(f"{side}-only", (100 * row["flops_ratio"]["value"],
                        100 * row["accuracy"]["value"]), xytext=(0, 9),
                        textcoords="offset points", ha="center", fontweight="bold")
        ax.axvline(100, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        ax.set_xlim(left=0)
        ax.set_xlabel("estimated FLOPs of all three models, % of strong-only")
        ax.set_ylabel("problems solved")
        ax.xaxis.set_major_formatter(PERCENT)
        ax.yaxis.set_major_formatter(PERCENT)
        _legend_below(fig, ax, 3)
        return laid_out(fig)


# ------------------------------------------------------------------------------- small figures


def recovery_figure(summary: Summary) -> Figure | None:
    """PGR and cost against the parameter, one panel a policy; None without such a policy."""
    names = [n for n in routed_policies(summary)[::-1]
             if len(summary["policies"][n]["settings"]) > 1 and not is_router(n)]
    if not names:
        return None
    with rc_context(RC):
        columns = min(len(names), 3)
        rows = -(-len(names) // columns)
        fig, axes = new_figure(min(3.9 * columns + 0.6, 11), 0.5 + 2.8 * rows, ncols=columns,
                               nrows=rows, sharey=True, squeeze=False)
        for ax in axes.flat[len(names):]:
            ax.remove()
        for ax, name in zip(axes.flat, names):
            entry, style = summary["policies"][name], style_of(name, names)
            points = entry["settings"]
            value = np.array([r["value"] for r in points], float)
            ax.fill_between(value, 100 * series(points, "pgr", "low"),
                            100 * series(points, "pgr", "high"), color=style.color, alpha=0.16,
                            linewidth=0)
            ax.plot(value, 100 * series(points, "pgr"), color=style.color, marker=style.marker,
                    markeredgewidth=0, label="gap recovered (PGR)")
            ax.plot(value, 100 * series(points, "c"), color=MUTED, linestyle=(0, (4, 2)),
                    linewidth=1.4, label="strong tokens, % of strong-only")
            chosen = entry["operating_point"]
            if chosen is not None and chosen["value"] is not None:
                ax.axvline(chosen["value"], color=style.color, linewidth=1, linestyle=(0, (1, 2)))
            ax.set_title(entry["label"])
            ax.set_xlabel({"k": "threshold k", "p": "probability p"}.get(
                entry["parameter"], entry["parameter"]))
            ax.yaxis.set_major_formatter(PERCENT)
        handles, labels = axes[0][0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=2)
        return laid_out(fig)


def interventions_figure(summary: Summary, policy: str) -> Figure | None:
    """Where drafts are replaced, by step position and by operation, against where they err."""
    found = summary["policies"][policy]["interventions"] or {"by_position": None, "by_kind": None}
    panels = [(found["by_position"], "By step", "step"), (found["by_kind"], "By operation", None)]
    panels = [p for p in panels if p[0] is not None and p[0]["groups"]]
    if not panels:
        return None
    with rc_context(RC):
        fig, axes = new_figure(4.5 * len(panels), 3.3, ncols=len(panels), sharey=True, squeeze=False)
        color = style_of(policy, routed_policies(summary)).color
        for ax, (counts, title, xlabel) in zip(axes[0], panels):
            at, drafts = np.arange(len(counts["groups"])), np.array(counts["drafts"], float)
            if counts["first_errors"] is not None:
                ax.bar(at, 100 * np.array(counts["first_errors"]) / drafts, width=0.74,
                       color=GRID, edgecolor=MUTED, linewidth=0.8,
                       label="drafts that are the first error")
            ax.plot(at, 100 * np.array(counts["regenerated"]) / drafts, linestyle="none",
                    marker="o", markersize=7, color=color, label="drafts replaced")
            long = sum(len(str(g)) for g in counts["groups"]) > 32
            ax.set_xticks(at, counts["groups"], rotation=30 if long else 0,
                          ha="right" if long else "center")
            ax.grid(axis="x", visible=False)
            ax.set_title(title)
            ax.yaxis.set_major_formatter(PERCENT)
            if xlabel:
                ax.set_xlabel(xlabel)
        axes[0][0].set_ylim(bottom=0)  # shared
        axes[0][0].set_ylabel("share of drafts")
        handles, labels = axes[0][0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=2)
        return laid_out(fig)


def waste_figure(summary: Summary) -> Figure | None:
    """Share of strong tokens spent after an irrecoverable step; None without true labels."""
    names = [n for n in routed_policies(summary)
             if "wasted_share" in summary["policies"][n]["settings"][0]]
    if not names:
        return None
    with rc_context(RC):
        fig, ax = new_figure(6.2, 3.3)
        for name in names:
            style = style_of(name, names)
            rows = [r for r in summary["policies"][name]["settings"]
                    if r["wasted_share"]["value"] is not None and r["c"]["value"] is not None]
            if not rows:
                continue
            c, waste = 100 * series(rows, "c"), 100 * series(rows, "wasted_share")
            low, high = (100 * series(rows, "wasted_share", side) for side in ("low", "high"))
            order = np.argsort(c, kind="stable")
            if len(rows) > 1:
                ax.fill_between(c[order], low[order], high[order], color=style.color, alpha=0.14,
                                linewidth=0)
            ax.plot(c[order], waste[order], color=style.color, linestyle=style.dash,
                    marker=style.marker, markeredgewidth=0, label=_name(summary, name))
        ax.set_ylim(bottom=-0.02 * ax.get_ylim()[1])  # a marker at zero is whole
        ax.set_xlim(left=0)
        ax.set_xlabel("tokens written by the large model, % of strong-only")
        ax.set_ylabel("of these, spent in vain")
        ax.xaxis.set_major_formatter(PERCENT)
        ax.yaxis.set_major_formatter(PERCENT)
        _legend_below(fig, ax, 3)
        return laid_out(fig)


def reliability_figure(summary: Summary) -> Figure | None:
    """Reliability curve of the process reward model, and its AUC by step and writer."""
    judge = summary["process_reward"]
    if judge is None:
        return None
    with rc_context(RC):
        fig, (left, right) = new_figure(9.0, 3.7, ncols=2)
        _draw_reliability(left, judge["reliability"]["all"])
        writers = (("small", "drafts of the small model", "o", -0.09),
                   ("large", "rewrites of the large model", "s", 0.09))
        for writer, label, marker, shift in writers:
            color = WRITER_COLORS[writer]
            found = judge["by_position"][writer]
            rows = [(p + shift, a) for p, a in zip(found["position"], found["auc"])
                    if a["value"] is not None and a["wrong"] >= _FEW_WRONG]
            if not rows:
                continue
            x = [p for p, _ in rows]
            right.vlines(x, [a["low"] for _, a in rows], [a["high"] for _, a in rows],
                         color=color, linewidth=1.2)
            right.plot(x, [a["value"] for _, a in rows], color=color, marker=marker,
                       linestyle="none", markersize=6, label=label)
        right.set_title("Right against wrong newest step (AUC)")
        right.set_xlabel("step")
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        if right.get_legend_handles_labels()[0]:
            low = right.get_ylim()[0]
            right.set_ylim(low - 0.4 * (1 - low), 1.0 + 0.03 * (1 - low))  # room for the legend
            right.legend(loc="lower left")
        return laid_out(fig)


def _draw_reliability(ax: Axes, curve: Mapping[str, Any]) -> None:
    edges, steps = np.array(curve["edges"]), np.array(curve["steps"], float)
    mean, share, low, high = (np.array(curve[f], float) for f in
                              ("mean_score", "right", "low", "high"))
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)), label="calibrated")
    ax.bar((edges[1:] + edges[:-1]) / 2, steps / steps.sum(), width=np.diff(edges) * 0.86,
           color=GRID, edgecolor=MUTED, linewidth=0.6, label="share of steps")
    filled = steps > 0
    ax.fill_between(mean[filled], low[filled], high[filled], color=BLUE, alpha=0.16, linewidth=0)
    ax.plot(mean[filled], share[filled], color=BLUE, marker="o", markeredgewidth=0,
            label="share that is right")
    ax.set_title("Score against truth")
    ax.set_xlabel("score")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.legend(loc="upper left")


# -------------------------------------------------------------------------------------- output


def to_png(fig: Figure, dpi: int = 160) -> bytes:
    """PNG bytes; the same figure gives the same bytes."""
    out = io.BytesIO()
    with rc_context(RC):
        fig.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def to_svg(fig: Figure, text_as_text: bool = False) -> str:
    """SVG text; the same figure gives the same text.

    Args:
      fig: the figure.
      text_as_text: keep words as text, in the reader's fonts (smaller, searchable), instead of
        drawing them as paths (looks the same everywhere).
    """
    out = io.StringIO()
    with rc_context({**RC, "svg.fonttype": "none" if text_as_text else "path"}):
        fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def to_inline_svg(fig: Figure, name: str, title: str) -> str:
    """An ``<svg>`` element for a page: scales with it, takes its colours from CSS variables
    (``--fig-ink``, ``--fig-blue``, ...), and has ``title`` as its accessible name.

    ``name`` keeps the ids of several figures apart.
    """
    svg = to_svg(fig, text_as_text=True)
    svg = svg[svg.index("<svg"):].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r'(?<=\bid=")', f"{name}-", svg)
    svg = re.sub(r"(?<=url\(#)", f"{name}-", svg)
    svg = re.sub(r'(?<=href="#)', f"{name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--fig-{variable})")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups()
    svg = svg.replace(f'width="{width}pt" height="{height}pt"',
                      f'role="img" aria-labelledby="{name}-title" '
                      f'style="max-width:{float(width) * 4 / 3:.0f}px"', 1)
    end = svg.index(">") + 1
    escaped = title.replace("&", "&amp;").replace("<", "&lt;")
    return f'{svg[:end]}<title id="{name}-title">{escaped}</title>{svg[end:]}'
