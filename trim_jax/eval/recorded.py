"""Table and figure of `trim-jax recorded`: what was measured, and a prediction beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from trim_jax.eval import figures, metrics, style
from trim_jax.eval.bootstrap import interval
from trim_jax.eval.bootstrap import estimate, number

PREDICTED = "TRIM-Thr, PREDICTED by the simulator (not run)"
_LABELLED = 3  # baselines that the figure names
_GREYS, _FAINT = ("#3c444c", "#6b757f", "#959da6"), "#ced3d8"
_DASHES = ("-", (0, (4, 1.5)), (0, (1.5, 1.2)))


def curve(accuracy: Any, strong_tokens: Any, accuracy_samples: Any, token_samples: Any) -> dict:
    """Figures of a predicted curve from its points [K] and samples [resamples, K], with intervals.

    The first point is the small model alone, the last the large one: the prediction's own anchors.
    """
    rows = [np.asarray(x, float) for x in
            (accuracy, strong_tokens, accuracy_samples, token_samples)]  # fmt: skip
    ends = lambda a, c: metrics.Anchors(a[..., 0], a[..., -1], c[..., -1])  # noqa: E731
    point = metrics.curve_metrics(rows[1], rows[0], ends(rows[0], rows[1]))
    drawn = metrics.curve_metrics(rows[3], rows[2], ends(rows[2], rows[3]))
    each = lambda p, s: [estimate(p[i], s[:, i]) for i in range(len(p))]  # noqa: E731
    reached = interval(drawn.cpt).reached
    levels = [f"{round(100 * x)}" for x in metrics.CPT_LEVELS]
    budgets = [f"{round(100 * x)}" for x in metrics.BUDGETS]
    return {
        "accuracy": each(point.accuracy, drawn.accuracy), "c": each(point.c, drawn.c),
        "cpt": {level: {**e, "share_reached": number(r)}
                for level, e, r in zip(levels, each(point.cpt, drawn.cpt), reached)},
        "mean_dibc": {**estimate(point.mean_dibc, drawn.mean_dibc),
                      "targets_reached": number(point.targets_reached)},
        "apgr": estimate(point.apgr, drawn.apgr),
        "budget_accuracy": dict(zip(budgets, each(point.budget_accuracy, drawn.budget_accuracy))),
    }  # fmt: skip


def spread(by_seed: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """Every baseline's main figures, one a seed, from the outputs of `query.evaluate.measure`."""
    return {
        name: {"apgr": [m[name]["apgr"]["value"] for m in by_seed],
               "mean_dibc": [m[name]["mean_dibc"]["value"] for m in by_seed],
               **{f"cpt{x}": [m[name]["cpt"][x]["value"] for m in by_seed]
                  for x in by_seed[0][name]["cpt"]}}
        for name in by_seed[0]
    }  # fmt: skip


# ------------------------------------------------------------------------------------- the table


def _percent(e: Mapping[str, Any]) -> str:
    """Value and interval in percent; a cost that is out of reach has none."""
    show = lambda x: "not reached" if x is None else f"{100 * x:.1f}"  # noqa: E731
    high = "∞" if e["high"] is None else f"{100 * e['high']:.1f}"
    if e["low"] is None:
        return show(e["value"])
    return f"{show(e['value'])} [{100 * e['low']:.1f}, {high}]"


def _plain(e: Mapping[str, Any]) -> str:
    return "–" if e["value"] is None else f"{e['value']:.2f} [{e['low']:.2f}, {e['high']:.2f}]"


def _cells(row: Mapping[str, Any], seeds: str) -> list[str]:
    dibc, targets = row["mean_dibc"], row["mean_dibc"]["targets_reached"]
    reached = "–" if targets is None else f"{targets:.0f}"
    return [*(_percent(row["cpt"][x]) for x in row["cpt"]),
            f"{_plain(dibc)} ({reached})", _plain(row["apgr"]), seeds,
            _percent(row["budget_accuracy"]["20"])]  # fmt: skip


def table(summary: Mapping[str, Any]) -> str:
    """The whole result as Markdown."""
    anchors, tokens = summary["anchors"], summary["tokens"]
    head = ["router", "reads", "CPT(50 %)", "CPT(80 %)", "CPT(95 %)", "mean ΔIBC (targets)", "APGR",
            "APGR by seed", "solved at c = 20 %"]  # fmt: skip
    rows = []
    for name in ranked(summary):
        row = summary["baselines"][name]
        values = summary["spread"][name]["apgr"]
        seeds = ", ".join("–" if v is None else f"{v:.2f}" for v in values)
        rows.append([name, row["reads"], *_cells(row, seeds)])
    for name, row in summary["predicted"]["variants"].items():
        rows.append([f"*TRIM-Thr, PREDICTED: {name}*", "every step", *_cells(row, "–")])
    line = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
    check = [
        f"{name}: small alone {c['weak'][1]:.1%}, {c['weak'][0]:.1%}; "
        f"large alone {c['strong'][1]:.1%}, {c['strong'][0]:.1%}; "
        f"steps of the small {c['steps_small'][1]:.2f}, {c['steps_small'][0]:.2f}, "
        f"of the large {c['steps_large'][1]:.2f}, {c['steps_large'][0]:.2f}; "
        f"strong tokens {c['strong_tokens'][1]:.0f}, {c['strong_tokens'][0]:.0f}"
        for name, c in summary["check"].items()
    ]
    variants = summary["predicted"]["variants"]
    return "\n".join([
        f"# {summary['files']['small']['name']} against {summary['files']['large']['name']}", "",
        f"{summary['questions']} questions. Small model alone {_percent(anchors['weak'])} %, large "
        f"model alone {_percent(anchors['strong'])} % at {tokens['strong_only']['value']:.0f} "
        f"tokens a question; without a boxed answer, hence wrong: {anchors['unboxed_small']:.1%} "
        f"and {anchors['unboxed_large']:.1%}.", "",
        line(head), line(["---"] * len(head)), *map(line, rows), "",
        "CPT: least strong tokens, in % of strong-only, that recover so much of the gap. "
        "All with 95 % intervals.", "",
        *(f"- {note}" for note in summary["notes"]),
        *(f"- Prediction *{name}*: {row['label']}." for name, row in variants.items()), "",
        "Check of the simulator's anchors (predicted, recorded and cut at 30 steps):", "",
        *(f"- {text}" for text in check), "",
    ])  # fmt: skip


def ranked(summary: Mapping[str, Any]) -> list[str]:
    """The baselines by APGR, the best first."""
    rows = summary["baselines"]
    apgr = {name: row["apgr"]["value"] for name, row in rows.items()}
    return sorted(rows, key=lambda n: -np.inf if apgr[n] is None else apgr[n], reverse=True)


# ------------------------------------------------------------------------------------ the figure


def figure(summary: Mapping[str, Any]) -> Figure:
    """Baselines in grey, the best of them named; anchors; the prediction dashed, with its band."""
    with rc_context(style.RC):
        fig, ax = figures.new_figure(9.2, 5.8)
        weak, strong = (summary["anchors"][side] for side in ("weak", "strong"))
        ax.plot([0, 100], [100 * weak["value"], 100 * strong["value"]], color=style.MUTED,
                linewidth=1, linestyle=(0, (1, 2)), label="whole questions at random")  # fmt: skip
        order = ranked(summary)
        for i, name in reversed(list(enumerate(order))):
            row = summary["baselines"][name]
            named = i < _LABELLED
            ax.plot(100 * np.array(row["c"], float), 100 * np.array(row["accuracy"], float),
                    color=_GREYS[i] if named else _FAINT, zorder=3 if named else 1.5,
                    linewidth=1.6 if named else 1.1, linestyle=_DASHES[i] if named else "-",
                    label=f"{name} (recorded)" if named else
                    "other query-level baselines (recorded)" if i == _LABELLED else None,
                    )  # fmt: skip
        _draw_predicted(ax, summary["predicted"]["variants"])
        for x, anchor, label, align, shift in ((0, weak, "small alone", "left", (9, -14)),
                                               (1, strong, "large alone", "right", (-9, -78))):
            low, y, high = (100 * anchor[part] for part in ("low", "value", "high"))
            ax.vlines(100 * x, low, high, color=style.INK, linewidth=1.2)
            ax.plot([100 * x], [y], color=style.INK, marker="D", markersize=6, zorder=6)
            ax.annotate(f"{label}  {y:.1f} %", (100 * x, y), xytext=shift, ha=align,
                        textcoords="offset points", fontweight="bold", zorder=6)  # fmt: skip
        ax.set_xlim(-3, 103)
        ax.set_xlabel("tokens written by the large model (proxy count), % of strong-only")
        ax.set_ylabel("problems solved")
        ax.xaxis.set_major_formatter(figures.PERCENT)
        ax.yaxis.set_major_formatter(figures.PERCENT)
        handles, labels = ax.get_legend_handles_labels()
        fig.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2)
        return figures.laid_out(fig)


def _draw_predicted(ax, variants: Mapping[str, Mapping[str, Any]]) -> None:
    """The first variant with its band and the others thin, all dashed."""
    colors = (style.BLUE, style.SKY, style.ORANGE)
    for i, (name, row) in reversed(list(enumerate(variants.items()))):
        c = 100 * figures.series([{"c": e} for e in row["c"]], "c")
        low, value, high = (
            100 * np.array([e[part] for e in row["accuracy"]], float)
            for part in ("low", "value", "high")
        )
        if i == 0:
            ax.fill_between(c, low, high, color=colors[0], alpha=0.12, linewidth=0)
        text = PREDICTED if i == 0 else f"the same, PREDICTED under other assumptions: {name}"
        ax.plot(c, value, color=colors[i % 3], linestyle=(0, (5, 2)), label=text,
                linewidth=2.2 if i == 0 else 1.3, zorder=5 if i == 0 else 4)  # fmt: skip
