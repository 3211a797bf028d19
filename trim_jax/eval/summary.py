"""All figures of one result, with intervals, as one JSON-able dictionary (``summary.json``).

Conventions. Accuracies, PGR, ``c`` and shares are fractions; tokens and FLOPs are means a problem.
An estimate is ``{"value", "low", "high"}``, the last two a 95 % bootstrap interval. ``null`` says
"not reached" in a cost to reach a target (``share_reached`` tells in which share of the resamples
it was reached) and "undefined" elsewhere, for instance every PGR when strong-only is no better
than weak-only. Curves over costs (``frontier``, ``paired``) are given at ``costs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trim_jax.errors import ResultError
from trim_jax.eval import analysis, bootstrap, metrics, paired, walltime
from trim_jax.eval.bootstrap import (Resamples, cost_estimates, estimate, estimates, interval,
                                     number, numbers)
from trim_jax.eval.choice import TARGET_PGR, choose_policy, choose_setting, find_anchor
from trim_jax.eval.metrics import Anchors, CurveMetrics
from trim_jax.eval.names import is_router, label_of, role_of
from trim_jax.eval.paired import Curve
from trim_jax.eval.selected import all_tables
from trim_jax.eval.traces import (COUNTERS, MODELS, SCHEMA_VERSION, TOKEN_COUNTERS, Result,
                                  Table)

REFERENCE = "thr"  # what step-level policies are compared with
PRICED_REFERENCE = "agg"  # and those with a price, at equal prices: one network for each


# --------------------------------------------------------------------------------- per-cell sums


@dataclass(frozen=True)
class _Columns:
    """Means of every setting of every policy: at the point, and in every resample.

    Attributes:
      point: name -> [columns].  drawn: name -> [resamples, columns].
      of: policy -> slice of the columns.
    """

    point: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]
    of: dict[str, slice]

    def get(self, name: str, policy: str) -> tuple[np.ndarray, np.ndarray]:
        return self.point[name][self.of[policy]], self.drawn[name][:, self.of[policy]]


def _parameters(result: Result) -> dict[str, int] | None:
    """Parameter counts ``provenance["parameters"]`` of the three models, if recorded."""
    counts = result.provenance.get("parameters") or {}
    return {m: int(counts[m]) for m in MODELS} if all(m in counts for m in MODELS) else None


def _per_trace(result: Result) -> dict[str, np.ndarray]:
    """Further quantities, one value a trace: steps, strong steps, waste, FLOPs (where known)."""
    out = {"steps": np.array([len(t.steps) for t in result.traces], float),
           "strong_steps": np.array([sum(s.writer == "large" for s in t.steps)
                                     for t in result.traces], float)}
    wasted = analysis.wasted_tokens(result)
    if wasted is not None:
        out["wasted"] = wasted.astype(float)
    return out


def _flops(table: Table, parameters: Mapping[str, int]) -> np.ndarray:
    """Estimated FLOPs of each cell, [settings, problems, seeds]: 2 a parameter and token."""
    tokens = table.ledger[..., TOKEN_COUNTERS].sum(-1).astype(float)
    return 2.0 * tokens @ np.array([parameters[m] for m in MODELS], float)


def _columns(result: Result, found: Mapping[str, Table], drawn: Resamples) -> _Columns:
    of, first = {}, 0
    for name, table in found.items():
        of[name] = slice(first, first + len(table.correct))
        first += len(table.correct)
    cells = {"accuracy": [t.correct for t in found.values()],
             "strong_tokens": [t.strong_tokens for t in found.values()]}
    for name, values in _per_trace(result).items():
        cells[name] = [values[t.trace_index] for t in found.values()]
    parameters = _parameters(result)
    if parameters:
        cells["flops"] = [_flops(t, parameters) for t in found.values()]
    stacked = {name: np.concatenate(parts).astype(float) for name, parts in cells.items()}
    return _Columns({name: v.mean((1, 2)) for name, v in stacked.items()},
                    {name: drawn.means(v) for name, v in stacked.items()}, of)


# ----------------------------------------------------------------------------------- one policy


def _setting_rows(name: str, table: Table, columns: _Columns, point: CurveMetrics,
                  samples: CurveMetrics, anchors: Anchors, strong_flops: tuple | None
                  ) -> list[dict[str, Any]]:
    """One row for each setting, with its estimates."""
    fields = {f: estimates(getattr(point, f), getattr(samples, f)) for f in ("accuracy", "c", "pgr")}
    # What follows from those is without an interval: a file for 30 policies stays small.
    fields |= {f: numbers(getattr(point, f)) for f in ("strong_tokens", "dibc")}
    # A share of nothing (no step, no strong token) is undefined, nan, without a warning.
    with np.errstate(invalid="ignore"):
        fields["strong_step_share"] = numbers(columns.get("strong_steps", name)[0]
                                              / columns.get("steps", name)[0])
        if "wasted" in columns.point:
            wasted, wasted_drawn = columns.get("wasted", name)
            fields["wasted_share"] = estimates(wasted / point.strong_tokens,
                                               wasted_drawn / samples.strong_tokens)
        if strong_flops is not None:
            flops, flops_drawn = columns.get("flops", name)
            fields["flops"] = flops.tolist()
            fields["flops_ratio"] = estimates(flops / strong_flops[0],
                                              flops_drawn / strong_flops[1][:, None])
    front = metrics.on_frontier(point.strong_tokens, point.accuracy, anchors.weak)
    return [{"value": value, "on_frontier": bool(front[i]),
             **{f: rows[i] for f, rows in fields.items()}}
            for i, value in enumerate(table.policy.settings)]


# Of a query-level router's settings the points of its curve: its steps are all of one writer.
_OF_STEPS = ("pgr", "dibc", "strong_step_share", "wasted_share")


def _ledger(table: Table, setting: int) -> dict[str, dict[str, float]]:
    """Means a problem of one setting, by model and counter."""
    means = table.ledger[setting].mean((0, 1))  # [models, counters]
    return {m: {c: float(means[j, k]) for k, c in enumerate(COUNTERS)}
            for j, m in enumerate(MODELS)}


def _curve(columns: _Columns, name: str, anchors: Anchors, drawn_anchors: Anchors) -> Curve:
    """Metrics and frontier of a policy, at the point and in every resample."""
    tokens, accuracy = (columns.get(f, name) for f in ("strong_tokens", "accuracy"))
    found = [(m := metrics.curve_metrics(tokens[i], accuracy[i], ends),
              metrics.value_at(metrics.frontier(m.c, m.accuracy, ends.weak), paired.COSTS))
             for i, ends in enumerate((anchors, drawn_anchors))]
    (point, front), (samples, fronts) = found
    return Curve(point, samples, front, fronts)


def _curve_summary(curve: Curve, anchors: Anchors, common: np.ndarray, common_drawn: np.ndarray
                   ) -> dict[str, Any]:
    """The figures of a whole curve: CPT, mean dIBC, APGR, budgets, and the frontier's band."""
    point, samples = curve.point, curve.samples
    band = interval(curve.fronts)
    cpt = cost_estimates(point.cpt, samples.cpt)
    budget = estimates(point.budget_accuracy, samples.budget_accuracy)
    return {
        "cpt": {f"{round(100 * x)}": {"c": c, "strong_tokens": number(t)} for x, c, t in
                zip(metrics.CPT_LEVELS, cpt, point.cpt * anchors.strong_cost)},
        "mean_dibc": {**estimate(point.mean_dibc, samples.mean_dibc),
                      "targets_reached": number(point.targets_reached)},
        "mean_dibc_common": estimate(metrics.mean_over(point.dibc_targets, common),
                                     metrics.mean_over(samples.dibc_targets, common_drawn)),
        "apgr": estimate(point.apgr, samples.apgr),
        "budget_accuracy": {f"{round(100 * x)}": e for x, e in zip(metrics.BUDGETS, budget)},
        "frontier": {"accuracy": numbers(curve.front), "low": numbers(band.low),
                     "high": numbers(band.high)},
    }


def _interventions(result: Result, table: Table, setting: int) -> dict[str, Any]:
    """Where one setting intervened, and what it met there."""
    def counts(found: analysis.Interventions | None) -> dict[str, Any] | None:
        if found is None:
            return None
        errors = found.first_errors
        return {"groups": list(found.groups), "drafts": found.drafts.tolist(),
                "regenerated": found.regenerated.tolist(),
                "first_errors": None if errors is None else errors.tolist()}

    by_position, by_kind = analysis.interventions(result, table, setting)
    return {"by_position": counts(by_position), "by_kind": counts(by_kind),
            "met": analysis.what_interventions_met(result, table, setting)}


def _operating_point(name: str, table: Table, rows: list[dict[str, Any]],
                     validation: Result | None, validation_tables: Mapping[str, Table] | None
                     ) -> dict[str, Any] | None:
    """The setting chosen on validation for ``TARGET_PGR``, with its row of the test data."""
    if validation_tables is None or name not in validation_tables:
        return None
    choice = choose_setting(validation_tables, name)
    if choice is None:
        return None
    if choice.value not in table.policy.settings:
        raise ResultError(f"{name}: {table.policy.parameter} = {choice.value:g}, chosen on "
                          "validation, is not among the settings of the test result; run both "
                          "with the same settings")
    at = table.policy.settings.index(choice.value)
    return {"target_pgr": TARGET_PGR, "setting": at, "value": choice.value,
            "reached_on_validation": choice.reached,
            "validation": {"pgr": choice.pgr, "c": choice.c,
                           "problems": len(validation.problems), "seeds": list(validation.seeds),
                           "problem_ids": [validation.problems[0].id, validation.problems[-1].id]},
            "test": {f: rows[at][f] for f in ("accuracy", "pgr", "c", "strong_tokens")}}


def _shown_setting(operating: dict[str, Any] | None, point: CurveMetrics) -> dict[str, Any]:
    """The setting that details are shown of: the operating point, or else the cheapest of this
    very data that recovers the target (a description of the data, not a choice)."""
    if operating is not None:
        return {"setting": operating["setting"], "why": "chosen on validation"}
    if np.isnan(point.pgr).any():
        return {"setting": len(point.pgr) // 2, "why": "middle of the settings"}
    at, _ = metrics.cheapest_reaching(point.strong_tokens, point.pgr, TARGET_PGR)
    return {"setting": at, "why": "cheapest here that reaches the target"}


# ----------------------------------------------------------------------------- the whole result


def _process_reward(result: Result, drawn: Resamples) -> dict[str, Any] | None:
    """AUC and reliability of the process reward model, or None without scores and labels."""
    steps = analysis.scored_steps(result)
    if steps is None:
        return None

    def auc(mask: np.ndarray) -> dict[str, Any]:
        found = analysis.auc(steps.where(mask), drawn)
        return {"value": number(found.auc), "low": number(found.low), "high": number(found.high),
                "steps": found.steps, "wrong": found.wrong}

    def curve(mask: np.ndarray) -> dict[str, Any] | None:
        if not mask.any():
            return None
        found = analysis.reliability(steps.where(mask), drawn)
        return {"edges": found.edges.tolist(), "steps": found.steps.tolist(),
                "mean_score": [number(v) for v in found.mean_score],
                "right": [number(v) for v in found.right],
                "low": [number(v) for v in found.band.low],
                "high": [number(v) for v in found.band.high],
                "calibration_error": found.calibration_error}

    writers = {"small": ~steps.by_large, "large": steps.by_large}
    positions = np.unique(steps.position).tolist()
    everything = np.ones(len(steps.score), bool)
    return {
        "auc": auc(everything),
        "by_writer": {w: auc(mask) for w, mask in writers.items()},
        "by_position": {w: {"position": positions,
                            "auc": [auc(mask & (steps.position == p)) for p in positions]}
                        for w, mask in writers.items()},
        "reliability": {"all": curve(everything), **{w: curve(m) for w, m in writers.items()}},
    }


def summarise(result: Result, validation: Result | None = None, *,
              resamples: int | None = None, seed: int = bootstrap.SEED) -> dict[str, Any]:
    """Every figure of the report, with intervals; deterministic.

    Args:
      result: a finished run.
      validation: where settings are chosen; by default the result's own ``validation/``.
      resamples: of the bootstrap; by default what the run's config says, else 2,000.
      seed: of the bootstrap, recorded in the summary.

    Raises:
      ResultError: a cell has no trace, or an anchor is missing.
    """
    validation = validation or result.validation
    resamples = resamples or (result.config.get("sweep") or {}).get("bootstrap",
                                                                    bootstrap.RESAMPLES)
    found = all_tables(result)
    validation_tables = all_tables(validation) if validation else None
    drawn = bootstrap.resample(len(result.problems), len(result.seeds), resamples, seed)
    columns = _columns(result, found, drawn)

    ends = {side: find_anchor(found, name) for side, name in (("weak", "never"),
                                                              ("strong", "always"))}
    at = {side: columns.of[name].start + i for side, (name, i) in ends.items()}
    anchors, drawn_anchors = (
        Anchors(weak=values["accuracy"][..., at["weak"]],
                strong=values["accuracy"][..., at["strong"]],
                strong_cost=values["strong_tokens"][..., at["strong"]])
        for values in (columns.point, columns.drawn))
    strong_flops = ((columns.point["flops"][at["strong"]],
                     columns.drawn["flops"][:, at["strong"]]) if "flops" in columns.point else None)

    curves = {name: _curve(columns, name, anchors, drawn_anchors) for name in found}
    roles = {name: role_of(name) for name in found}
    compared = [n for n, role in roles.items() if role in ("policy", "baseline")]
    common = metrics.common_targets([curves[n].point for n in compared or found])
    common_drawn = metrics.common_targets([curves[n].samples for n in compared or found])

    policies = {}
    for name, table in found.items():
        rows = _setting_rows(name, table, columns, curves[name].point, curves[name].samples,
                             anchors, strong_flops)
        operating = (None if roles[name] == "anchor" else
                     _operating_point(name, table, rows, validation, validation_tables))
        shown = _shown_setting(operating, curves[name].point)
        policies[name] = {
            "label": label_of(name), "role": roles[name], "parameter": table.policy.parameter,
            "settings": [{f: v for f, v in row.items() if f not in _OF_STEPS} for row in rows]
            if is_router(name) else rows,
            "operating_point": operating,
            "shown": {**shown, "ledger": _ledger(table, shown["setting"])},
            **_curve_summary(curves[name], anchors, common, common_drawn),
            # A query-level router intervenes in no step.
            "interventions": None if is_router(name) else _interventions(result, table,
                                                                         shown["setting"]),
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "name": result.name,
        "data": dict(result.config.get("data") or {}),
        "problems": len(result.problems),
        "seeds": list(result.seeds),
        "bootstrap": {"resamples": resamples, "seed": seed, "level": bootstrap.LEVEL,
                      "unit": "problems, their seeds nested"},
        "anchors": {side: {"policy": name, "setting": i, "ledger": _ledger(found[name], i)}
                    for side, (name, i) in ends.items()},
        "gap": estimate(anchors.strong - anchors.weak, drawn_anchors.strong - drawn_anchors.weak),
        "main_policy": _main_policy(roles),
        "policies": policies,
        "compared": compared,
        "common_targets": int(common.sum()),
        "costs": paired.COSTS.tolist(),
        "against_random": _against_random(compared, curves, common, common_drawn),
        "paired": _paired(curves, roles, validation_tables,
                          len(result.problems) * len(result.seeds))
        | {"prices": _at_prices(found, drawn)},
        "walltime": _walltime(result, policies),
        "process_reward": _process_reward(result, drawn),
        "parameters": _parameters(result),
        "executed": result.executed,
    }


def _main_policy(roles: Mapping[str, str]) -> str:
    """The policy of the headline: thr, or else the first that is no baseline."""
    ranked = sorted(roles, key=lambda n: (n != "thr", roles[n] != "policy",
                                          roles[n] != "baseline", roles[n] == "anchor"))
    return ranked[0]


def _against_random(compared: list[str], curves: Mapping[str, Curve], common: np.ndarray,
                    common_drawn: np.ndarray) -> dict[str, Any]:
    """Paired differences from random routing, per policy; empty when random was not run."""
    if "random" not in compared:
        return {}

    def both(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return tuple({"apgr": m.apgr,
                      "mean_dibc_common": metrics.mean_over(m.dibc_targets, mask)}
                     for m, mask in ((curves[name].point, common),
                                     (curves[name].samples, common_drawn)))

    base, base_drawn = both("random")
    out = {}
    for name in compared:
        if name != "random":
            point, drawn = both(name)
            out[name] = {f: estimate(point[f] - base[f], drawn[f] - base_drawn[f]) for f in point}
    return out


def _paired(curves: Mapping[str, Curve], roles: Mapping[str, str],
            validation: Mapping[str, Table] | None, cells: int) -> dict[str, Any]:
    """Step-level policies against ``REFERENCE`` and the oracle, and the best of them against the
    best query-level router; the best are chosen on validation, by APGR."""
    steps = [n for n, role in roles.items() if role == "policy"]
    candidates = {"step": steps, "query": [n for n in roles if is_router(n)]}
    best = {kind: choose_policy(validation, names) if validation is not None else None
            for kind, names in candidates.items()}
    chosen = {kind: None if found is None else {"policy": found[0], "validation_apgr": found[1]}
              for kind, found in best.items()}
    bounds = [n for n, role in roles.items() if role == "upper bound"]
    return {
        "reference": REFERENCE if REFERENCE in curves else None,
        "differences": {n: paired.difference(curves[n], curves[REFERENCE], cells)
                        for n in steps if n != REFERENCE and REFERENCE in curves},
        "chosen": chosen,
        "step_against_query": None if None in best.values() else paired.difference(
            curves[best["step"][0]], curves[best["query"][0]], cells),
        "to_oracle": {n: paired.to_upper_bound(curves[n], curves[bounds[0]])
                      for n in steps if bounds},
    }


def _at_prices(found: Mapping[str, Table], drawn: bootstrap.Resamples) -> dict[str, Any]:
    """Policies with a price against ``PRICED_REFERENCE``, at each price that they were run at."""
    reference = found.get(PRICED_REFERENCE)
    if reference is None:
        return {}
    dial = lambda table: (table.policy.parameter, table.policy.settings)  # noqa: E731
    return {name: paired.at_prices(table, reference, drawn) for name, table in found.items()
            if name != PRICED_REFERENCE and dial(table) == dial(reference)}


def _walltime(result: Result, policies: Mapping[str, Any]) -> dict[str, Any] | None:
    """Times of each policy alone (:mod:`trim_jax.eval.walltime`), at the chosen settings.

    Raises:
      ResultError: a time is of another setting than the chosen one.
    """
    found = walltime.read(result.folder)
    for name, entry in (found or {"policies": {}})["policies"].items():
        point = policies[name]["operating_point"] if name in policies else None
        if point is not None and point["setting"] != entry["setting"]:
            raise ResultError(f"{result.folder / walltime.FILE}: {name} was timed at setting "
                              f"{entry['setting']}, chosen is {point['setting']}: delete the file "
                              "and run again")
    return found
