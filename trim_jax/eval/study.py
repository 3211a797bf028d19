"""The table and the figure of a study, from its summaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from trim_jax.eval import figures

Summary = Mapping[str, Any]
BUDGETS = ("10", "15", "20", "25", "30")
_DRAWN_BASELINES = 2


def _cell(entry: Mapping[str, Any] | None, scale: float = 100.0, digits: int = 1) -> str:
    """An estimate with its interval."""
    if entry is None or entry["value"] is None:
        return "not reached"
    text = [f"{scale * entry[part]:.{digits}f}" if entry[part] is not None else "-"
            for part in ("value", "low", "high")]  # fmt: skip
    return f"{text[0]} [{text[1]}, {text[2]}]"


def order(summary: Summary) -> list[str]:
    """Policies by role, and within a role by APGR, the best first; without the anchors."""
    roles = ("upper bound", "policy", "baseline")
    policies = {n: p for n, p in summary["policies"].items() if p["role"] in roles}
    height = lambda n: policies[n]["apgr"]["value"] or -1.0  # noqa: E731
    return sorted(policies, key=lambda n: (roles.index(policies[n]["role"]), -height(n)))


def table(summary: Summary) -> str:
    """One row a policy, as Markdown: its point chosen on validation, and its whole curve.

    Percentages; costs in % of the large model's tokens when it writes alone.
    """
    head = ["policy", "chosen", "solved", "PGR", "strong tokens", "FLOPs of all three",
            "CPT50", "CPT80", "CPT95", "mean dIBC", "APGR",
            *(f"solved at {b} %" for b in BUDGETS)]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in order(summary):
        entry = summary["policies"][name]
        point = entry["operating_point"]
        if point is None:
            chosen = ["-"] * 5
        else:
            test = point["test"]
            ratio = entry["settings"][point["setting"]].get("flops_ratio")
            dial = f"{entry['parameter']} = {point['value']:g}" if entry["parameter"] else "-"
            chosen = [
                dial + ("" if point["reached_on_validation"] else " (below the target)"),
                _cell(test["accuracy"]), _cell(test["pgr"]), _cell(test["c"]), _cell(ratio),
            ]  # fmt: skip
        lines.append("| " + " | ".join([
            entry["label"], *chosen,
            *(_cell(entry["cpt"][x]["c"]) for x in ("50", "80", "95")),
            _cell(entry["mean_dibc"], 1.0, 2), _cell(entry["apgr"], 1.0, 3),
            *(_cell(entry["budget_accuracy"][b]) for b in BUDGETS),
        ]) + " |")  # fmt: skip
    return "\n".join(lines) + "\n"


def drawn(summary: Summary) -> list[str]:
    """Policies of the figure: all but the query-level routers, of which the best ones."""
    names = order(summary)
    query = [n for n in names if n.startswith("query-")]
    return [n for n in names if n not in query[_DRAWN_BASELINES:]]


def figure(runs: Sequence[Summary]) -> Figure:
    """The frontiers of each run (test, hard), side by side."""
    with rc_context(figures.RC):
        fig, axes = figures.new_figure(6.4 * len(runs), 5.6, ncols=len(runs), squeeze=False)
        for ax, run in zip(axes[0], runs):
            names = drawn(run)
            for name in reversed(names):
                style = figures.style_of(name, names)
                figures.draw_curve(ax, run["policies"][name], style, run["policies"][name]["label"],
                                   band=run["policies"][name]["role"] == "policy")  # fmt: skip
            weak, strong = (figures.anchor_row(run, side)["accuracy"] for side in ("weak", "strong"))
            for x, entry in ((0, weak), (1, strong)):
                ax.plot([100 * x], [100 * entry["value"]], color=figures.INK, marker="D", zorder=5)
            ax.set_title(f"{run['name']}: {run['problems']} problems, {len(run['seeds'])} seeds")
            ax.set_xlabel("tokens written by the large model, % of strong-only")
            ax.set_ylabel("problems solved")
            ax.xaxis.set_major_formatter(figures.PERCENT)
            ax.yaxis.set_major_formatter(figures.PERCENT)
            ax.legend(loc="lower right", fontsize=8)
        return figures.laid_out(fig)
