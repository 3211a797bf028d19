"""The table and the figures of a study, from its summaries."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trim_jax.eval import figures, style
from trim_jax.eval.names import is_router
from trim_jax.eval.summary import PRICED_REFERENCE

Summary = Mapping[str, Any]
BUDGETS = ("10", "15", "20", "25", "30")
LEVELS = ("50", "80", "95")

_NOTES = """\
Differences are paired: both policies in the same resamples of problems and seeds. Accuracies are \
compared at equal cost, at 41 costs from 0 to 100 % of strong-only, and are in points. *Pointwise*: \
the 95 % interval at one cost alone excludes zero; of 41 some do so by chance. *Simultaneous*: the \
95 % band of the whole curve excludes zero, which is what a claim of "somewhere" needs. "Nowhere \
worse" means only that no limit shows it to be worse; how much worse it may still be, with 95 % \
confidence at all costs at once, is the column *at worst*. Δ mean dIBC is over the PGR targets that \
both reach; Δ CPT is in points of strong-only, negative is cheaper, and ∞ where one side does not \
reach the target."""


# ------------------------------------------------------------------------------------- the table


def _cell(entry: Mapping[str, Any] | None, scale: float = 100.0, digits: int = 1,
          gone: str = "-") -> str:
    """An estimate with its interval; `gone` where there is none."""
    if entry is None or entry["value"] is None:
        return gone
    text = [f"{scale * entry[part]:.{digits}f}" if entry[part] is not None else "-"
            for part in ("value", "low", "high")]  # fmt: skip
    return f"{text[0]} [{text[1]}, {text[2]}]"


def _change(entry: Mapping[str, Any], scale: float = 100.0, digits: int = 1) -> str:
    """A difference or ratio that may be out of reach at either end."""
    if entry["value"] is None and entry["low"] is None and entry["high"] is None:
        return "-"
    show = lambda x, gone: gone if x is None else f"{scale * x:+.{digits}f}"  # noqa: E731
    return (f"{show(entry['value'], 'not reached')} "
            f"[{show(entry['low'], '-∞')}, {show(entry['high'], '∞')}]")  # fmt: skip


def _stretches(found: Iterable[Sequence[float]]) -> str:
    """Costs in words: "5 to 20 %, 40 %"."""
    words = [f"{100 * a:g} %" if a == b else f"{100 * a:g} to {100 * b:g} %" for a, b in found]
    return ", ".join(words) or "-"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    line = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)]) + "\n"


def order(summary: Summary) -> list[str]:
    """Policies by role, and within a role by APGR, the best first; without the anchors."""
    roles = ("upper bound", "policy", "baseline")
    policies = {n: p for n, p in summary["policies"].items() if p["role"] in roles}
    height = lambda n: policies[n]["apgr"]["value"] or -1.0  # noqa: E731
    return sorted(policies, key=lambda n: (roles.index(policies[n]["role"]), -height(n)))


def table(summary: Summary) -> str:
    """One row a policy, as Markdown: its point chosen on validation, and its whole curve; then the
    paired differences from TRIM-Thr and TRIM-Agg, and the distance to the oracle.

    Percentages; costs in % of the large model's tokens when it writes alone.
    """
    head = ["policy", "chosen", "solved", "PGR", "strong tokens", "FLOPs of all three",
            "ms a problem, alone", "CPT50", "CPT80", "CPT95", "mean dIBC", "APGR",
            *(f"solved at {b} %" for b in BUDGETS)]  # fmt: skip
    times = (summary["walltime"] or {"policies": {}})["policies"]
    rows = []
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
        rows.append([
            entry["label"], *chosen, _cell(times[name]["ms"], 1.0, 2) if name in times else "-",
            *(_cell(entry["cpt"][x]["c"], gone="not reached") for x in LEVELS),
            _cell(entry["mean_dibc"], 1.0, 2), _cell(entry["apgr"], 1.0, 3),
            *(_cell(entry["budget_accuracy"][b]) for b in BUDGETS),
        ])  # fmt: skip
    parts = [_rows(head, rows)]
    if summary["walltime"]:
        parts.append("Wall time: median of the repeats with least and most, each policy alone at "
                     "its chosen setting.\n")  # fmt: skip
    return "\n".join([*parts, *_paired(summary)])


def _difference(entry: Mapping[str, Any]) -> list[str]:
    """The cells of one paired difference, under ``_DIFFERENCE``."""
    cells = []
    for kind in ("pointwise", "simultaneous"):
        worse = entry[kind]["worse"]
        cells += [f"no: {_stretches(worse)}" if worse else "yes", _stretches(entry[kind]["better"])]
    worst = entry["at_worst"]
    return [*cells, "-" if worst is None else f"{100 * worst:+.1f}",
            _change(entry["apgr"], 1.0, 3), _change(entry["mean_dibc"], 1.0, 2),
            *(_change(entry["cpt"][x]) for x in LEVELS)]  # fmt: skip


def _at_prices(entry: Mapping[str, Any]) -> list[str]:
    """The cells of one policy's differences at each price."""
    cells = []
    for low, high in (("low", "high"), ("band_low", "band_high")):
        for beyond in (lambda i: entry[high][i] < 0, lambda i: entry[low][i] > 0):
            at = [f"{worth:g}" for i, worth in enumerate(entry["worth"]) if beyond(i)]
            cells.append(", ".join(at) or "-")
    return [_change(entry["mean"]), *cells, f"{100 * min(entry['band_low']):+.1f}"]


_DIFFERENCE = ["nowhere worse, pointwise", "better at, pointwise", "nowhere worse, simultaneous",
               "better at, simultaneous", "at worst", "Δ APGR", "Δ mean dIBC", "Δ CPT50", "Δ CPT80",
               "Δ CPT95"]  # fmt: skip


def _paired(summary: Summary) -> list[str]:
    """The sections of paired differences, as far as there are any."""
    found, policies = summary["paired"], summary["policies"]
    ranked = order(summary)
    chosen = found["chosen"]
    label = lambda kind: policies[chosen[kind]["policy"]]["label"]  # noqa: E731
    parts = []
    if found["differences"]:
        rows = [[policies[n]["label"], *_difference(found["differences"][n])]
                for n in ranked if n in found["differences"]]  # fmt: skip
        parts += [f"### Against {policies[found['reference']]['label']}\n",
                  _rows(["policy", *_DIFFERENCE], rows), _NOTES + "\n"]  # fmt: skip
    if found["step_against_query"]:
        pair = f"{label('step')} less {label('query')}"
        parts += ["### The best step-level policy against the best query-level router\n",
                  "Both chosen on validation, by APGR: "
                  + " and ".join(f"{label(k)} ({chosen[k]['validation_apgr']:.3f} there)"
                                 for k in ("step", "query")) + ".\n",
                  _rows(["pair", *_DIFFERENCE],
                        [[pair, *_difference(found["step_against_query"])]])]  # fmt: skip
    if found["prices"]:
        rows = [[policies[n]["label"], *_at_prices(found["prices"][n])]
                for n in ranked if n in found["prices"]]  # fmt: skip
        parts += [f"### Against {policies[PRICED_REFERENCE]['label']}, at equal prices\n",
                  _rows(["policy", "mean of all prices", "below at, pointwise",
                         "above at, pointwise", "below at, simultaneous",
                         "above at, simultaneous", "at worst"], rows),
                  "Differences of what the policies are trained for, right answers less tokens of "
                  "the large model / worth, in points; prices are worths.\n"]  # fmt: skip
    if found["to_oracle"]:
        best = chosen["step"]["policy"] if chosen["step"] else None
        rows = [[policies[n]["label"] + (" (best on validation)" if n == best else ""),
                 _cell(found["to_oracle"][n]["mean_dibc"]),
                 _ratio(found["to_oracle"][n]["cpt95"])]
                for n in ranked if n in found["to_oracle"]]  # fmt: skip
        parts += ["### Against the oracle\n",
                  _rows(["policy", "mean dIBC, % of the oracle's (aim: at least 75)",
                         "CPT95, times the oracle's (aim: at most 1.6)"], rows)]  # fmt: skip
    return parts


def _ratio(entry: Mapping[str, Any]) -> str:
    """A ratio of costs; its upper end is infinite where some resamples do not reach the target."""
    if entry["value"] is None and entry["low"] is None:
        return "not reached"
    show = lambda x, gone: gone if x is None else f"{x:.2f}"  # noqa: E731
    return (f"{show(entry['value'], 'not reached')} "
            f"[{show(entry['low'], '-')}, {show(entry['high'], '∞')}]")  # fmt: skip


# ----------------------------------------------------------------------------------- the figures


def _axes(ax: Axes, run: Summary) -> None:
    count = len(run["seeds"])
    ax.set_title(f"{run['name']}: {run['problems']:,} problems, {count} "
                 f"seed{'s' if count > 1 else ''}")  # fmt: skip
    ax.set_xlabel("tokens written by the large model, % of strong-only")
    ax.xaxis.set_major_formatter(figures.PERCENT)


def figure(runs: Sequence[Summary]) -> Figure:
    """The frontiers of each run (test, hard), side by side, under one legend.

    Step-level policies in colour with their bands; the query-level router chosen on validation in
    slate, the others faint.
    """
    with rc_context(style.RC):
        fig, axes = figures.new_figure(6.6 * len(runs), 6.4, ncols=len(runs), squeeze=False)
        handles: dict[str, Any] = {}
        for ax, run in zip(axes[0], runs):
            names = figures.routed_policies(run)
            routers = [n for n in run["policies"] if is_router(n) and n not in names]
            for name in routers:
                _draw_faint(ax, run, name)
            for name in names:
                figures.draw_curve(ax, run, name, style.style_of(name, names),
                                   run["policies"][name]["label"],
                                   band=figures.band_opacity(run, name))  # fmt: skip
            for x, side in ((0, "weak"), (1, "strong")):
                entry = figures.anchor_row(run, side)["accuracy"]
                ax.plot([100 * x], [100 * entry["value"]], color=style.INK, marker="D",
                        markersize=6, zorder=5)  # fmt: skip
                ax.annotate(f"{side}-only", (100 * x, 100 * entry["value"]), va="center",
                            xytext=(9, -4) if x == 0 else (2, 11), ha="right" if x else "left",
                            textcoords="offset points", fontweight="bold")  # fmt: skip
            _axes(ax, run)
            ax.set_ylabel("problems solved")
            ax.yaxis.set_major_formatter(figures.PERCENT)
            drawn = dict(zip(*ax.get_legend_handles_labels()[::-1]))
            handles |= {label: drawn[label] for label in
                        (run["policies"][n]["label"] for n in figures.legend_order(run))}  # fmt: skip
            if routers:
                handles[f"other query-level routers ({len(routers)})"] = Line2D(
                    [], [], color=style.FAINT, linewidth=1)
        fig.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize=8.5,
                   ncols=2 * len(runs))  # fmt: skip
        return figures.laid_out(fig)


def _draw_faint(ax: Axes, run: Summary, name: str) -> None:
    accuracy = np.array(run["policies"][name]["frontier"]["accuracy"], float)
    ax.plot(100 * np.array(run["costs"]), 100 * accuracy, color=style.FAINT, linewidth=1, zorder=1.5)


def difference_figure(runs: Sequence[Summary]) -> Figure | None:
    """Accuracy less that of TRIM-Thr at equal cost: one panel a policy, one block of panels a run.

    Dark: pointwise intervals. Light: simultaneous band. None without such a policy.
    """
    shown = [n for n in order(runs[0]) if n in runs[0]["paired"]["differences"]]
    if not shown:
        return None
    columns = min(len(shown), 4)
    lines = -(-len(shown) // columns)
    reference = runs[0]["policies"][runs[0]["paired"]["reference"]]["label"]
    with rc_context(style.RC):
        fig, axes = figures.new_figure(
            max(3.0 * columns, 6.0), 0.9 + 2.6 * lines * len(runs), ncols=columns,
            nrows=lines * len(runs), squeeze=False)  # fmt: skip
        for i, run in enumerate(runs):
            block = axes[i * lines:(i + 1) * lines].flat
            for ax in block[len(shown):]:
                ax.set_visible(False)
            for ax, name in zip(block, shown):
                _draw_difference(ax, run, name, style.style_of(name, shown).color)
        fig.suptitle(f"Problems solved at equal cost, less those of {reference}, in points. Dark: "
                     "95 % at each cost.\nLight: 95 % of whole curves.", fontsize=10, x=0.01,
                     ha="left")  # fmt: skip
        fig.supxlabel("tokens written by the large model, % of strong-only", fontsize=9.5,
                      color=style.MUTED)  # fmt: skip
        return figures.laid_out(fig)


def _draw_difference(ax: Axes, run: Summary, name: str, color: str) -> None:
    curve = {part: 100 * np.array(values, float)
             for part, values in run["paired"]["differences"][name]["curve"].items()}  # fmt: skip
    x = 100 * np.array(run["costs"])
    ax.fill_between(x, curve["band_low"], curve["band_high"], color=color, alpha=0.14, linewidth=0)
    ax.fill_between(x, curve["low"], curve["high"], color=color, alpha=0.26, linewidth=0)
    ax.plot(x, curve["value"], color=color, linewidth=1.6)
    ax.axhline(0, color=style.INK, linewidth=0.9)
    label = "\n".join(textwrap.wrap(run["policies"][name]["label"], width=30))
    ax.set_title(f"{label}\n{run['name']}", fontsize=9)
    ax.xaxis.set_major_formatter(figures.PERCENT)
