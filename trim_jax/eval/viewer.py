"""The traces that the report page carries for its viewer, packed small.

A step's text is the same in every setting and policy with the same history, so texts and steps are
stored once and traces refer to them by position. The JSON is deflated and base64-encoded; the page
unpacks it with the browser's own ``DecompressionStream``.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from trim_jax.eval.traces import COUNTERS, FINISHES, MODELS, Result, StepTrace

MAX_PROBLEMS = 200

_ACTIONS = ("accept", "regenerate", "direct")


class _Numbering(dict):
    """Positions of distinct values, in the order of their first use; None is -1."""

    def of(self, value: Hashable) -> int:
        return -1 if value is None else self.setdefault(value, len(self))


def sample_problems(count: int, limit: int) -> list[int]:
    """At most ``limit`` of ``count`` positions, evenly spaced: a sample without chance."""
    return list(range(count)) if count <= limit else [i * count // limit for i in range(limit)]


def _packed_step(step: StepTrace, texts: _Numbering, kinds: _Numbering) -> tuple:
    return (texts.of(step.text), _ACTIONS.index(step.action), step.score_draft, step.score,
            step.n_tokens, texts.of(step.draft), step.draft_tokens, step.right, step.draft_right,
            kinds.of(step.kind), step.draft_likelihood)


def pack(result: Result, summary: Mapping[str, Any], order: Sequence[str],
         limit: int = MAX_PROBLEMS) -> dict[str, Any]:
    """The viewer's data for one run: JSON-able, all settings of at most ``limit`` problems.

    Policies are listed in ``order``, those without traces of their own left out.
    """
    order = [name for name in order if name in result.policies]
    shown = [result.problems[i] for i in sample_problems(len(result.problems), limit)]
    problem_at = {p.id: i for i, p in enumerate(shown)}
    seed_at = {s: i for i, s in enumerate(result.seeds)}
    policy_at = {name: i for i, name in enumerate(order)}
    texts, kinds, steps = _Numbering(), _Numbering(), _Numbering()
    traces = []
    for trace in result.traces:
        if trace.problem_id not in problem_at:
            continue
        used = [sum(getattr(getattr(trace.ledger, model), counter) for counter in COUNTERS
                    if counter != "calls") for model in MODELS]
        traces.append([
            problem_at[trace.problem_id], seed_at[trace.seed], policy_at[trace.policy],
            *trace.settings, FINISHES.index(trace.finish), texts.of(trace.answer),
            int(trace.correct), trace.strong_tokens, used,
            [steps.of(_packed_step(s, texts, kinds)) for s in trace.steps]])
    policies = summary["policies"]
    return {
        "name": summary["name"],
        "total": len(result.problems),
        "problems": [[p.id, p.problem, p.answer, p.solution, p.level] for p in shown],
        "seeds": list(result.seeds),
        "policies": [{"name": n, "label": policies[n]["label"], "role": policies[n]["role"],
                      "parameter": result.policies[n].parameter,
                      "settings": list(result.policies[n].settings),
                      "shown": policies[n]["shown"]["setting"]} for n in order],
        "main": policy_at[summary["main_policy"]],
        "strong": [policy_at[summary["anchors"]["strong"]["policy"]],
                   summary["anchors"]["strong"]["setting"]],
        "finishes": list(FINISHES), "actions": list(_ACTIONS),
        "texts": list(texts), "kinds": list(kinds), "steps": list(steps), "traces": traces,
    }


def encode(data: Mapping[str, Any]) -> str:
    """Deflated, base64-encoded JSON: characters that need no escaping in a page."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")
