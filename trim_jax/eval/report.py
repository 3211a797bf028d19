"""The report: ``summary.json``, the frontier figure, and one self-contained HTML page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from trim_jax.errors import ResultError
from trim_jax.eval import figures, viewer
from trim_jax.eval.names import LABELS
from trim_jax.eval.summary import summarise
from trim_jax.eval.traces import MODELS, SCHEMA_VERSION, Result, load_result
from trim_jax.results import atomic_write, dumps

__all__ = ["summarise", "write_report"]

NOT_REACHED, UNDEFINED = "not reached", "–"


# -------------------------------------------------------------------------- numbers on the page


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return UNDEFINED if value is None else f"{100 * value:.{digits}f}\u202f%"


def ratio(value: float | None) -> str:
    """A ratio such as dIBC, with its sign."""
    return UNDEFINED if value is None else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def score(value: float | None) -> str:
    """A score or an area, such as AUC."""
    return UNDEFINED if value is None else f"{value:.3f}"


def count(value: float | None) -> str:
    """Tokens or calls, with as many digits as are worth reading."""
    if value is None:
        return UNDEFINED
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def big(value: float | None) -> str:
    """A large number with a unit, such as 3.2 G."""
    if value is None:
        return UNDEFINED
    for unit, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g}\u202f{unit}"
    return f"{value:.3g}"


def estimate(entry: Mapping[str, Any] | None, kind: str = "percent") -> Markup:
    """A value with its interval. Of a cost to reach a target, null means that it is not reached."""
    if entry is None:
        return Markup(UNDEFINED)
    show = {"percent": percent, "ratio": ratio, "count": count,
            "score": score}[kind]
    is_cost = "share_reached" in entry
    if entry["value"] is None and not (is_cost and entry["share_reached"] is not None):
        return Markup(UNDEFINED)
    missing = NOT_REACHED if is_cost else UNDEFINED
    value, low, high = (missing if entry[part] is None else show(entry[part])
                        for part in ("value", "low", "high"))
    if low == high:  # an anchor measured against itself does not vary; neither does "not reached"
        return Markup('<span class="est">{}</span>').format(value)
    unit = "\u202f%"
    if low.endswith(unit) and high.endswith(unit):
        low = low.removesuffix(unit)
    return Markup('<span class="est">{} <span class="ci">{} to {}</span></span>').format(
        value, low, high)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (dotted name, text) rows."""
    if isinstance(value, Mapping):
        return [row for key, item in value.items()
                for row in flatten(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, (Mapping, list, tuple)) for item in value):
            return [row for i, item in enumerate(value) for row in flatten(item, f"{prefix}.{i}")]
        return [(prefix, ", ".join(str(item) for item in value))]
    return [(prefix, "" if value is None else str(value))]


def _setting(entry: Mapping[str, Any], at: int) -> str:
    """A policy's setting in words, such as "k = 0.35"; empty when it has no parameter."""
    value = entry["settings"][at]["value"]
    return "" if value is None else f"{entry['parameter'] or 'setting'} = {value:g}"


# --------------------------------------------------------------------------------------- the page

_ROLE_ORDER = ("policy", "baseline", "upper bound", "anchor")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trim_jax.eval", "templates"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, ratio=ratio, count=count, big=big, est=estimate)
    environment.globals.update(setting_of=_setting, models=MODELS)
    return environment


def _order(run: Mapping[str, Any]) -> list[str]:
    """Policies as they are listed: the main one first, anchors last."""
    policies = run["policies"]
    return sorted(policies, key=lambda n: (_ROLE_ORDER.index(policies[n]["role"]),
                                           n != run["main_policy"], n == "always"))


def _inline_figures(run: Mapping[str, Any], prefix: str) -> dict[str, Markup]:
    """SVG elements of one run's section, by name; a figure without data is left out."""
    title = f"{run['name']}: "
    drawn = {
        "frontier": (figures.frontier_figure([run]),
                     "problems solved against tokens written by the large model, per policy"),
        "recovery": (figures.recovery_figure(run), "gap recovered and cost against the parameter"),
        "compute": (figures.compute_figure(run), "problems solved against FLOPs of all models"),
        "interventions": (figures.interventions_figure(run, run["main_policy"]),
                          "share of drafts replaced, by step and by operation"),
        "waste": (figures.waste_figure(run), "strong tokens spent after a wrong step"),
        "reliability": (figures.reliability_figure(run),
                        "reliability and AUC of the process reward model"),
    }
    return {name: Markup(figures.to_inline_svg(fig, f"{prefix}-{name}", title + what))
            for name, (fig, what) in drawn.items() if fig is not None}


def _ledger_rows(run: Mapping[str, Any], anchors: Mapping[str, Any]) -> list[tuple]:
    """(label, setting in words, row, ledger) of each policy at its shown setting, and of both
    anchors, which need not be policies of their own."""
    policies = run["policies"]
    rows = []
    for name in _order(run):
        entry, at = policies[name], policies[name]["shown"]["setting"]
        if entry["role"] != "anchor":
            rows.append((entry["label"], _setting(entry, at), entry["settings"][at],
                         entry["shown"]["ledger"]))
    return rows + [(LABELS[name], "", anchors[side], run["anchors"][side]["ledger"])
                   for side, name in (("weak", "never"), ("strong", "always"))]


def _executed_table(executed: Mapping[str, Any]) -> dict[str, Any] | None:
    """Kinds of work as rows, with the share of executed row-slots that did useful work."""
    if not executed:
        return None
    columns = list(next(iter(executed.values())))
    return {"columns": columns,
            "rows": [(kind.replace("_", " "), [row[c] for c in columns],
                      row["used"] / row["slots"] if row.get("slots") else None)
                     for kind, row in executed.items()]}


def _section(result: Result, run: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What the template needs of one run."""
    policies = run["policies"]
    anchors = {side: policies[a["policy"]]["settings"][a["setting"]]
               for side, a in run["anchors"].items()}
    return {
        "run": run,
        "id": f"run{index + 1}",
        "figures": _inline_figures(run, f"run{index + 1}"),
        "main": policies[run["main_policy"]],
        "routed": figures.routed_policies(run)[::-1],
        "order": _order(run),
        "anchors": anchors,
        "ledger": _ledger_rows(run, anchors),
        "provenance": flatten(result.provenance),
        "config": json.dumps(result.config, indent=2, ensure_ascii=False),
        "executed": _executed_table(result.executed or {}),
    }


def _page(results: Sequence[Result], runs: Sequence[Mapping[str, Any]]) -> str:
    environment = _environment()
    limit = max(1, viewer.MAX_PROBLEMS // len(runs))
    packed = [viewer.pack(result, run, _order(run), limit) for result, run in zip(results, runs)]
    assets = {name: Markup(environment.loader.get_source(environment, name)[0])
              for name in ("report.css", "report.js")}
    joint = None
    if len(runs) > 1:
        joint = Markup(figures.to_inline_svg(
            figures.frontier_figure(runs), "joint", "all runs: problems solved against tokens "
            "written by the large model"))
    return environment.get_template("report.html.j2").render(
        sections=[_section(r, s, i) for i, (r, s) in enumerate(zip(results, runs))],
        runs=runs, joint=joint, css=assets["report.css"], js=assets["report.js"],
        payloads=[Markup(escape(viewer.encode(p))) for p in packed],
        shown=[(len(p["problems"]), p["total"]) for p in packed]).lstrip()


def _distinct_names(results: Sequence[Result]) -> list[str]:
    """Folder names, numbered where several folders have the same."""
    seen: dict[str, int] = {}
    names = []
    for result in results:
        seen[result.name] = seen.get(result.name, 0) + 1
        names.append(result.name if seen[result.name] == 1
                     else f"{result.name} ({seen[result.name]})")
    return names


def _one_line_each(text: str) -> str:
    """Indented JSON with every innermost object and list on one line."""
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda m: re.sub(r"\n *", " ", m[0]), text)


def write_report(folders: Sequence[str | Path | Result], out: str | Path, *,
                 resamples: int | None = None, validation: Result | None = None) -> Path:
    """Writes ``summary.json``, ``frontier.png``, ``frontier.svg`` and ``report.html``.

    Args:
      folders: finished result folders, or what `load_result` made of them; several are compared on
        one page.
      out: the folder to write to, made if needed; for a single run usually that run's own.
      resamples: of the bootstrap; by default what each run's config says.
      validation: where settings are chosen; by default each run's own ``validation/``.

    Returns:
      The path of the page.

    Raises:
      ResultError: a folder is not a finished result, or ``out`` cannot be written.
    """
    if not folders:
        raise ResultError("no result folder given")
    results = [f if isinstance(f, Result) else load_result(f) for f in folders]
    names = _distinct_names(results)
    runs = [{**summarise(result, validation, resamples=resamples), "name": name}
            for result, name in zip(results, names)]
    combined = runs[0] if len(runs) == 1 else {"schema_version": SCHEMA_VERSION, "runs": runs}
    # The page shows what the file says: both come from the rounded numbers.
    text = _one_line_each(dumps(combined, indent=1, sort_keys=True)) + "\n"
    runs = [json.loads(dumps(run)) for run in runs]
    figure = figures.frontier_figure(runs)
    files = {
        "summary.json": text.encode("utf-8"),
        "frontier.png": figures.to_png(figure),
        "frontier.svg": figures.to_svg(figure).encode("utf-8"),
        "report.html": _page(results, runs).encode("utf-8"),
    }
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"{out}: cannot be made: {error.strerror}") from None
    for name, content in files.items():
        atomic_write(out / name, [content])
    return out / "report.html"
