"""A small latent-state simulation that writes schema-valid result folders for tests.

Each problem has a difficulty, each operation its own; the small model errs often, the large one
seldom, and the process reward is a noisy view of the truth. As in the engine, the text of a step is
a function of (problem, seed, action history) alone, whatever the policy, so that settings with
equal histories share one trace.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trim_jax.eval.traces import (Ledger, ModelLedger, PolicySpec, ProblemRecord, StepTrace,
                                  Trace, dump_traces, index_files)

# log-odds that the small and the large model get the operation right
KINDS = {"add": (3.4, 6.0), "sub": (2.9, 5.6), "times": (1.3, 5.2), "product": (0.0, 3.8),
         "divide": (0.5, 4.2)}
GRID = tuple(i / 20 for i in range(21))
POLICIES = {
    "never": PolicySpec("never", None, (None,)),
    "always": PolicySpec("always", None, (None,)),
    "random": PolicySpec("random", "p", GRID),
    "thr": PolicySpec("thr", "k", GRID),
    "oracle": PolicySpec("oracle", None, (None,)),
}


@dataclass(frozen=True)
class Node:
    """What both models would write after one history: right or wrong, score, length."""

    draft_ok: bool
    strong_ok: bool
    draft_score: float
    strong_score: float
    draft_tokens: int
    strong_tokens: int
    coin: float
    slip: int


def _steps_of(problem: int) -> tuple[float, list[str], int]:
    rng = random.Random(problem * 7919 + 1)
    kinds = [rng.choices(list(KINDS), (5, 4, 3, 2, 1))[0] for _ in range(rng.randint(3, 9))]
    return rng.gauss(0.0, 0.8), ["start", *kinds, "answer"], rng.randint(3, 40)


@lru_cache(maxsize=None)
def _node(problem: int, seed: int, history: str, prefix_ok: bool) -> Node:
    difficulty, kinds, _ = _steps_of(problem)
    weak, strong = KINDS.get(kinds[len(history)], (5.0, 7.0))
    rng = random.Random(f"{problem}/{seed}/{history}")
    draft_ok, strong_ok = (rng.random() < 1 / (1 + math.exp(difficulty - logit))
                           for logit in (weak, strong))

    def score(ok: bool) -> float:
        looks_right = (ok and prefix_ok) != (rng.random() < 0.04)  # the judge errs now and then
        return round(rng.betavariate(9, 0.8) if looks_right else rng.betavariate(1.1, 4), 4)

    return Node(draft_ok, strong_ok, score(draft_ok), score(strong_ok), rng.randint(9, 18),
                rng.randint(9, 18), rng.random(), rng.choice((-3, -2, -1, 1, 2, 10)))


def _sentence(kind: str, value: int) -> tuple[str, int]:
    """A step that turns ``value`` into the next one."""
    if kind == "start":
        return f"Start with {value}.", value
    if kind == "answer":
        return f"So the answer is $\\boxed{{{value}}}$.", value
    number = 2 + abs(value * 7 + len(kind)) % 9
    symbol, result = {"add": ("+", value + number), "sub": ("-", value - number),
                      "times": ("*", value * 2), "product": ("*", value * number),
                      "divide": ("/", value // number)}[kind]
    shown = 2 if kind == "times" else number
    return f"{kind.capitalize()} by {shown}: {value}{symbol}{shown}={result}.", result


def _write(kind: str, value: int, ok: bool, slip: int) -> tuple[str, int]:
    text, result = _sentence(kind, value)
    if ok:
        return text, result
    wrong = result + slip
    return text.replace(f"={result}", f"={wrong}").replace(f"{{{result}}}", f"{{{wrong}}}").replace(
        f"with {result}", f"with {wrong}"), wrong


def gold_of(problem: int) -> int:
    _, kinds, value = _steps_of(problem)
    for kind in kinds:
        value = _sentence(kind, value)[1]
    return value


def route(problem: int, seed: int, policy: str,
          regenerate: Callable[[Node, bool], bool] | None, sees_scores: bool) -> Trace:
    """One solution; ``regenerate(node, prefix_ok)`` decides, None means the large model alone."""
    _, kinds, value = _steps_of(problem)
    history, ok, steps = "", True, []
    small, large, scored = [0, 0, 0], [0, 0], 0
    for kind in kinds:
        node = _node(problem, seed, history, ok)
        draft, draft_value = _write(kind, value, node.draft_ok, node.slip)
        rewrite, strong_value = _write(kind, value, node.strong_ok, node.slip + 1)
        score = node.draft_score if sees_scores else None
        if regenerate is None or regenerate(node, ok):
            direct = regenerate is None
            steps.append(StepTrace(
                text=rewrite, writer="large", action="direct" if direct else "regenerate",
                score_draft=None if direct else score,
                score=node.strong_score if sees_scores else None, n_tokens=node.strong_tokens,
                draft=None if direct else draft,
                draft_tokens=None if direct else node.draft_tokens,
                right=ok and node.strong_ok,
                draft_right=None if direct else ok and node.draft_ok, kind=kind))
            history, ok, value = history + "r", ok and node.strong_ok, strong_value
            small[1] += 0 if direct else node.draft_tokens
            large[0] += node.strong_tokens
            large[1] += 1
        else:
            steps.append(StepTrace(
                text=draft, writer="small", action="accept", score_draft=score, score=score,
                n_tokens=node.draft_tokens, draft=None, draft_tokens=None,
                right=ok and node.draft_ok, draft_right=None, kind=kind))
            history, ok, value = history + "a", ok and node.draft_ok, draft_value
            small[0] += node.draft_tokens
        small[2] += 0 if regenerate is None else 1
        scored += (len(draft) + 1) * sees_scores
    prompt = 60
    ledger = Ledger(
        ModelLedger(small[0], small[1], prompt * (small[2] > 0) + large[0], 0, small[2]),
        ModelLedger(large[0], 0, (prompt + small[0]) * (large[1] > 0), 0, large[1]),
        ModelLedger(0, 0, prompt * (scored > 0), scored, len(steps) * (scored > 0)))
    return Trace(problem_id=f"arith-test-{problem:05d}", seed=seed, policy=policy, settings=(0, 1),
                 finish="boxed", answer=str(value), correct=value == gold_of(problem),
                 strong_tokens=large[0], steps=tuple(steps), ledger=ledger)


def _rule(policy: str, setting: float | None) -> tuple[Callable[[Node, bool], bool] | None, bool]:
    """The decision of a policy at a setting, and whether it calls the process reward model."""
    if policy == "never" or (policy == "thr" and setting == 0.0):
        return (lambda node, ok: False), False
    if policy == "always" or (policy == "thr" and setting == 1.0):
        return None, False
    if policy == "random":
        return (lambda node, ok: node.coin < setting), False
    if policy == "oracle":
        return (lambda node, ok: ok and not node.draft_ok), False
    return (lambda node, ok: node.draft_score < setting), True


def _history(trace: Trace) -> tuple:
    return tuple((s.action, s.score_draft) for s in trace.steps)


def simulate(problems: Sequence[int], seeds: Sequence[int],
             policies: dict[str, PolicySpec] = POLICIES) -> list[Trace]:
    """Traces of every cell; neighbouring settings with one history share a trace."""
    traces = []
    for problem in problems:
        for seed in seeds:
            for name, spec in policies.items():
                runs = [route(problem, seed, name, *_rule(name, s)) for s in spec.settings]
                first = 0
                for end in range(1, len(runs) + 1):
                    if end == len(runs) or _history(runs[end]) != _history(runs[first]):
                        fields = {f: getattr(runs[first], f) for f in Trace.__slots__}
                        traces.append(Trace(**{**fields, "settings": (first, end)}))
                        first = end
    return traces


def write_result(folder: Path, problems: Sequence[int] = range(40), seeds: Sequence[int] = (0, 1),
                 policies: dict[str, PolicySpec] = POLICIES, split: str = "test") -> Path:
    """Writes a complete result folder and returns it."""
    folder.mkdir(parents=True)
    records = []
    for p in problems:
        _, kinds, value = _steps_of(p)
        solution = []
        for kind in kinds:
            text, value = _sentence(kind, value)
            solution.append(text)
        records.append(ProblemRecord(
            f"arith-test-{p:05d}",
            f"Take {_steps_of(p)[2]} & apply: {', '.join(kinds[1:-1])}. What is the result?",
            str(gold_of(p)), len(kinds), "\n\n".join(solution)))
    for name, text in index_files(policies, records, seeds).items():
        (folder / name).write_text(text, encoding="utf-8")
    traces = simulate(problems, seeds, policies)
    (folder / "traces.jsonl").write_text(dump_traces(traces), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(
        {"data": {"source": "arith", "split": split}, "policy": {"name": "thr"}}))
    (folder / "provenance.json").write_text(json.dumps({
        "schema_version": 1, "commit": "0123abcd", "device": "cpu", "jax": "0.10.2",
        "parameters": {"small": 1_000_000, "large": 4_000_000, "prm": 2_000_000}}))
    (folder / "executed.json").write_text(json.dumps(
        {"decode_small": {"slots": 900, "used": 850, "calls": 12},
         "score": {"slots": 0, "used": 0, "calls": 0}}))
    return folder
