"""All figures of one result, with intervals, as one JSON-able dictionary (``summary.json``).

Conventions. Accuracies, PGR, ``c`` and shares are fractions; tokens and FLOPs are means a problem.
An estimate is ``{"value", "low", "high"}``, the last two a 95 % bootstrap interval. ``null`` says
"not reached" in a cost to reach a target (``share_reached`` tells in which share of the resamples
it was reached) and "undefined" elsewhere, for instance every PGR when strong-only is no better
than weak-only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trim_jax.errors import ResultError
from trim_jax.eval import analysis, bootstrap, metrics
from trim_jax.eval.bootstrap import Resamples, interval
from trim_jax.eval.metrics import Anchors, CurveMetrics
from trim_jax.eval.selected import QUERY, all_tables
from trim_jax.eval.traces import COUNTERS, MODELS, SCHEMA_VERSION, Result, Table

TARGET_PGR = 0.95
FRONTIER_GRID = np.arange(51) / 50.0  # costs (fractions of strong-only) of the frontier's band

LABELS = {"never": "Weak-only", "always": "Strong-only", "random": "Random", "thr": "TRIM-Thr",
          "oracle": "Oracle", "agg": "TRIM-Agg", "seq": "TRIM-Seq", "q": "TRIM-Q",
          "pomdp": "TRIM-POMDP", "pomdp_filtered": "TRIM-POMDP, filtered belief",
          "rsd": "RSD", "glimp": "GlimpRouter",
          "loglik": "Log-likelihood judge (in place of SpecReason)"}
ROLES = {"never": "anchor", "always": "anchor", "random": "baseline", "oracle": "upper bound"}

# Tokens that a model reads or writes; `calls` are not tokens.
_TOKEN_COUNTERS = [i for i, name in enumerate(COUNTERS) if name != "calls"]


def label_of(policy: str) -> str:
    """Display name; a policy from outside this package keeps its own name."""
    return LABELS.get(policy, policy)


def role_of(policy: str) -> str:
    """anchor, baseline, policy or upper bound."""
    return "baseline" if policy.startswith(QUERY) else ROLES.get(policy, "policy")


# ------------------------------------------------------------------------- anchors and the choice


def find_anchor(found: Mapping[str, Table], anchor: str) -> tuple[str, int]:
    """Policy and setting index of "never" or "always"; k = 0 and k = 1 of thr are their aliases.

    Raises:
      ResultError: the result has neither.
    """
    if anchor in found:
        return anchor, 0
    alias = {"never": 0.0, "always": 1.0}[anchor]
    if "thr" in found and alias in found["thr"].policy.settings:
        return "thr", found["thr"].policy.settings.index(alias)
    raise ResultError(f"the result has no {label_of(anchor)} anchor: run the policy {anchor!r}, "
                      f"or thr with k = {alias:g}")


def _point_anchors(found: Mapping[str, Table]) -> Anchors:
    weak, weak_at = find_anchor(found, "never")
    strong, strong_at = find_anchor(found, "always")
    return Anchors(weak=found[weak].correct[weak_at].mean(),
                   strong=found[strong].correct[strong_at].mean(),
                   strong_cost=found[strong].strong_tokens[strong_at].mean())


@dataclass(frozen=True)
class Choice:
    """A setting chosen on validation data.

    Attributes:
      index, value: the setting, as position and as parameter value, of the validation result.
      reached: whether its validation PGR reaches the target; if not, it is the best there is.
      pgr, c: on the validation data.
    """

    index: int
    value: float | None
    reached: bool
    pgr: float
    c: float


def choose_setting(found: Mapping[str, Table], policy: str,
                   target: float = TARGET_PGR) -> Choice | None:
    """The cheapest setting of ``policy`` whose PGR reaches ``target``, on validation tables.

    None where PGR is undefined (strong-only is no better than weak-only on these problems).

    Raises:
      ResultError: the tables lack the policy or an anchor.
    """
    if policy not in found:
        raise ResultError(f"the validation result has no policy {policy!r}")
    table, anchors = found[policy], _point_anchors(found)
    tokens = table.strong_tokens.mean((1, 2))
    gain = metrics.pgr(table.correct.mean((1, 2)), anchors)
    if np.isnan(gain).any():
        return None
    at, reached = metrics.cheapest_reaching(tokens, gain, target)
    c = metrics.relative_cost(tokens, anchors)
    return Choice(at, table.policy.settings[at], reached, float(gain[at]), float(c[at]))


# ------------------------------------------------------------------------------------- estimates


def number(value: Any) -> float | None:
    """A float for JSON: None for nan and infinities."""
    return float(value) if np.isfinite(value) else None


def estimate(point: Any, samples: np.ndarray) -> dict[str, float | None]:
    """An estimate of a scalar from its value and its resamples [B]."""
    found = interval(samples)
    return {"value": number(point), "low": number(found.low), "high": number(found.high)}


def _estimates(point: np.ndarray, samples: np.ndarray) -> list[dict[str, float | None]]:
    found = interval(samples)
    return [{"value": number(p), "low": number(lo), "high": number(hi)}
            for p, lo, hi in zip(point, found.low, found.high)]


def _cost_estimates(point: np.ndarray, samples: np.ndarray) -> list[dict[str, float | None]]:
    """Estimates of costs that may be out of reach: with the share of resamples that reach them."""
    shares = interval(samples).reached
    return [{**e, "share_reached": number(s)}
            for e, s in zip(_estimates(point, samples), shares)]


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
    tokens = table.ledger[..., _TOKEN_COUNTERS].sum(-1).astype(float)
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
    """One row for each setting: its estimates, and its ledger as means a problem."""
    fields = {f: _estimates(getattr(point, f), getattr(samples, f))
              for f in ("accuracy", "strong_tokens", "c", "pgr", "ibc", "dibc")}
    strong, strong_drawn = columns.get("strong_steps", name)
    steps, steps_drawn = columns.get("steps", name)
    # A share of nothing (no step, no strong token) is undefined, nan, without a warning.
    with np.errstate(invalid="ignore"):
        fields["strong_step_share"] = _estimates(strong / steps, strong_drawn / steps_drawn)
        if "wasted" in columns.point:
            wasted, wasted_drawn = columns.get("wasted", name)
            fields["wasted_tokens"] = _estimates(wasted, wasted_drawn)
            fields["wasted_share"] = _estimates(wasted / point.strong_tokens,
                                                wasted_drawn / samples.strong_tokens)
        if strong_flops is not None:
            flops, flops_drawn = columns.get("flops", name)
            fields["flops"] = _estimates(flops, flops_drawn)
            fields["flops_ratio"] = _estimates(flops / strong_flops[0],
                                               flops_drawn / strong_flops[1][:, None])
    front = metrics.on_frontier(point.strong_tokens, point.accuracy, anchors.weak)
    ledger = table.ledger.mean((1, 2))  # [settings, models, counters]
    return [{"value": value, "on_frontier": bool(front[i]),
             "ledger": {m: {c: float(ledger[i, j, k]) for k, c in enumerate(COUNTERS)}
                        for j, m in enumerate(MODELS)},
             **{f: rows[i] for f, rows in fields.items()}}
            for i, value in enumerate(table.policy.settings)]


def _curve_summary(point: CurveMetrics, samples: CurveMetrics, anchors: Anchors,
                   drawn_anchors: Anchors, common: np.ndarray, common_drawn: np.ndarray
                   ) -> dict[str, Any]:
    """The figures of a whole curve: CPT, mean dIBC, APGR, budgets, and the frontier's band."""
    front = metrics.value_at(metrics.frontier(point.c, point.accuracy, anchors.weak),
                             FRONTIER_GRID)
    band = interval(metrics.value_at(
        metrics.frontier(samples.c, samples.accuracy, drawn_anchors.weak), FRONTIER_GRID))
    cpt = _cost_estimates(point.cpt, samples.cpt)
    scale, scales = anchors.strong_cost, drawn_anchors.strong_cost[:, None]
    cpt_tokens = _cost_estimates(point.cpt * scale, samples.cpt * scales)
    budget = _estimates(point.budget_accuracy, samples.budget_accuracy)
    return {
        "cpt": {f"{round(100 * x)}": {"c": c, "strong_tokens": t}
                for x, c, t in zip(metrics.CPT_LEVELS, cpt, cpt_tokens)},
        "mean_dibc": {**estimate(point.mean_dibc, samples.mean_dibc),
                      "targets_reached": number(point.targets_reached)},
        "mean_dibc_common": estimate(metrics.mean_over(point.dibc_targets, common),
                                     metrics.mean_over(samples.dibc_targets, common_drawn)),
        "apgr": estimate(point.apgr, samples.apgr),
        "budget_accuracy": {f"{round(100 * x)}": e for x, e in zip(metrics.BUDGETS, budget)},
        "frontier": {"c": FRONTIER_GRID.tolist(), "accuracy": [number(v) for v in front],
                     "low": [number(v) for v in band.low], "high": [number(v) for v in band.high]},
    }


def _interventions_json(found: analysis.Interventions | None) -> dict[str, Any] | None:
    if found is None:
        return None
    errors = found.first_errors
    return {"groups": list(found.groups), "drafts": found.drafts.tolist(),
            "regenerated": found.regenerated.tolist(),
            "first_errors": None if errors is None else errors.tolist()}


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

    points, samples = {}, {}
    for name in found:
        tokens, accuracy = (columns.get(f, name) for f in ("strong_tokens", "accuracy"))
        points[name] = metrics.curve_metrics(tokens[0], accuracy[0], anchors)
        samples[name] = metrics.curve_metrics(tokens[1], accuracy[1], drawn_anchors)
    roles = {name: role_of(name) for name in found}
    compared = [n for n, role in roles.items() if role in ("policy", "baseline")]
    common = metrics.common_targets([points[n] for n in compared or found])
    common_drawn = metrics.common_targets([samples[n] for n in compared or found])

    policies = {}
    for name, table in found.items():
        rows = _setting_rows(name, table, columns, points[name], samples[name], anchors,
                             strong_flops)
        operating = (None if roles[name] == "anchor" else
                     _operating_point(name, table, rows, validation, validation_tables))
        shown = _shown_setting(operating, points[name])
        by_position, by_kind = analysis.interventions(result, table, shown["setting"])
        policies[name] = {
            "label": label_of(name), "role": roles[name], "parameter": table.policy.parameter,
            "settings": rows, "operating_point": operating, "shown": shown,
            **_curve_summary(points[name], samples[name], anchors, drawn_anchors, common,
                             common_drawn),
            "interventions": {
                "by_position": _interventions_json(by_position),
                "by_kind": _interventions_json(by_kind),
                "met": analysis.what_interventions_met(result, table, shown["setting"])},
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "name": result.name,
        "data": dict(result.config.get("data") or {}),
        "problems": len(result.problems),
        "seeds": list(result.seeds),
        "bootstrap": {"resamples": resamples, "seed": seed, "level": bootstrap.LEVEL,
                      "unit": "problems, their seeds nested"},
        "anchors": {side: {"policy": name, "setting": i} for side, (name, i) in ends.items()},
        "gap": estimate(anchors.strong - anchors.weak, drawn_anchors.strong - drawn_anchors.weak),
        "main_policy": _main_policy(roles),
        "policies": policies,
        "compared": compared,
        "common_targets": int(common.sum()),
        "against_random": _against_random(compared, points, samples, common, common_drawn),
        "process_reward": _process_reward(result, drawn),
        "parameters": _parameters(result),
        "executed": result.executed,
    }


def _main_policy(roles: Mapping[str, str]) -> str:
    """The policy of the headline: thr, or else the first that is no baseline."""
    ranked = sorted(roles, key=lambda n: (n != "thr", roles[n] != "policy",
                                          roles[n] != "baseline", roles[n] == "anchor"))
    return ranked[0]


def _against_random(compared: list[str], points: Mapping[str, CurveMetrics],
                    samples: Mapping[str, CurveMetrics], common: np.ndarray,
                    common_drawn: np.ndarray) -> dict[str, Any]:
    """Paired differences from random routing, per policy; empty when random was not run."""
    if "random" not in compared:
        return {}

    def both(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return tuple({"apgr": m[name].apgr,
                      "mean_dibc_common": metrics.mean_over(m[name].dibc_targets, mask)}
                     for m, mask in ((points, common), (samples, common_drawn)))

    base, base_drawn = both("random")
    out = {}
    for name in compared:
        if name != "random":
            point, drawn = both(name)
            out[name] = {f: estimate(point[f] - base[f], drawn[f] - base_drawn[f]) for f in point}
    return out
