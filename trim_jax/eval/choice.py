"""Whatever is chosen, is chosen on validation data: a policy's setting, and the best policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from trim_jax.errors import ResultError
from trim_jax.eval import metrics
from trim_jax.eval.metrics import Anchors
from trim_jax.eval.names import label_of
from trim_jax.eval.traces import Table

TARGET_PGR = 0.95


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


def _anchors(found: Mapping[str, Table]) -> Anchors:
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
    table, anchors = found[policy], _anchors(found)
    tokens = table.strong_tokens.mean((1, 2))
    gain = metrics.pgr(table.correct.mean((1, 2)), anchors)
    if np.isnan(gain).any():
        return None
    at, reached = metrics.cheapest_reaching(tokens, gain, target)
    c = metrics.relative_cost(tokens, anchors)
    return Choice(at, table.policy.settings[at], reached, float(gain[at]), float(c[at]))


def choose_policy(found: Mapping[str, Table], names: Iterable[str]) -> tuple[str, float] | None:
    """The policy of ``names`` with the largest APGR on validation tables, and that APGR.

    None where the tables have none of them, or APGR is undefined.

    Raises:
      ResultError: the tables lack an anchor.
    """
    anchors = _anchors(found)
    heights = {n: float(metrics.curve_metrics(found[n].strong_tokens.mean((1, 2)),
                                              found[n].correct.mean((1, 2)), anchors).apgr)
               for n in names if n in found}  # fmt: skip
    if not heights or np.isnan(list(heights.values())).any():
        return None
    best = max(heights, key=heights.get)
    return best, heights[best]
