"""`trim-jax solve "problem text"`: one routed solution in the terminal."""

from __future__ import annotations

import sys

from ml_collections import ConfigDict

from trim_jax import api
from trim_jax.commands import setup
from trim_jax.eval.traces import Trace
from trim_jax.policies.registry import make_policy
from trim_jax.tasks.data import Problem

_COLOURS = {"small": "36", "large": "35", "dim": "2", "bold": "1"}


def run(config: ConfigDict, text: str) -> Trace:
    """Solve `text`, print each step with its writer and score, and return the trace.

    Of a policy with several settings (a trained one) it is the one in the middle.
    """
    policy = make_policy(config.policy.name, config.policy.threshold, config.policy.p)
    trio = setup.load_models(config)
    problem = Problem("typed", text, "", "", None, "typed")
    traces = api.route(
        [problem], policy, trio, seeds=config.seeds[:1], instruction=config.data.instruction,
        prm_system=config.data.prm_system, sampling=setup.sampling(config),
        engine=setup.engine_config(config),
    )  # fmt: skip
    middle = len(policy.settings) // 2
    trace = next(t for t in traces if t.settings[0] <= middle < t.settings[1])
    print(render(trace, colour=sys.stdout.isatty()))
    return trace


def render(trace: Trace, colour: bool) -> str:
    """The solution as text, one line a step: writer, score, the step, the draft it replaced.

    The score is the PRM's, or, of a draft that the large model judged, its likelihood.
    """

    def paint(words: str, style: str) -> str:
        return f"\033[{_COLOURS[style]}m{words}\033[0m" if colour else words

    def number(score: float | None) -> str:
        return "     " if score is None else f"{score:.3f}"

    lines = []
    for step in trace.steps:
        drafted = step.draft_likelihood if step.score_draft is None else step.score_draft
        if step.draft is not None:
            lines.append(paint(f"small  {number(drafted)}  {step.draft}  (rejected)", "dim"))
        score = drafted if step.score is None and step.writer == "small" else step.score
        lines.append(f"{paint(f'{step.writer:<5}', step.writer)}  {number(score)}  {step.text}")
    answer = trace.answer if trace.answer is not None else f"none ({trace.finish})"
    total = sum(step.n_tokens for step in trace.steps)
    lines.append(paint(f"answer {answer}", "bold")
                 + f"   {trace.strong_tokens} of {total} tokens by the large model")  # fmt: skip
    return "\n".join(lines)
