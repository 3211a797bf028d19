"""Routed throughput: our engine and the same loop on transformers, in turns.

Both programs get the same requests, tokenised beforehand, and are timed until the last solution is
there, as token ids. They take turns, so that a slow minute of the machine hits both, and the best
repeat of each counts. Every repeat has a seed of its own, so the accuracies, which must agree, come
from all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from trim_jax import api
from trim_jax.bench import floor, torch_baseline
from trim_jax.bench.torch_baseline import Outcome, TorchProcesses, TorchRouter
from trim_jax.commands import setup
from trim_jax.engine.engine import Engine, Request, Solution
from trim_jax.engine.rows import LARGE
from trim_jax.policies.simple import Threshold
from trim_jax.tasks.data import Problem
from trim_jax.tasks.grading import extract_boxed, grade_many

TORCH = "transformers"
# Solutions in flight, in batches: at batch 64, the 512 that are the default of a sweep.
IN_FLIGHT = 8
COMPILATION = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Run:
    """One timed run: wall seconds, what came out, and the work executed (int [5, 3]) if known."""

    seconds: float
    outcomes: list[Outcome]
    executed: np.ndarray | None = None


Program = Callable[[list[Request]], Run]


def requests(
    config: ConfigDict, trio: api.Trio, problems: Sequence[Problem], seed: int
) -> list[Request]:
    """One request per problem, at the threshold of the benchmark."""
    data = config.data
    policy = Threshold((config.bench.threshold,))
    asked = api.requests(trio, [policy], problems, [seed], data.instruction, data.prm_system)
    return list(asked)


def outcome(solution: Solution) -> Outcome:
    """What a solution of our engine has in common with one of the baseline."""
    return Outcome(
        solution.request.problem_id,
        solution.request.seed,
        tuple(step.tokens for step in solution.steps),
        tuple(step.writer == LARGE for step in solution.steps),
        solution.strong_tokens,
    )


def make_engine(config: ConfigDict, trio: api.Trio, rows: int, slots: int) -> Engine:
    """Our engine with model calls of `rows` rows and `slots` solutions in flight."""
    size = dataclasses.replace(setup.engine_config(config), rows=rows, slots=slots)
    policy = Threshold((config.bench.threshold,))
    return Engine(
        trio.models, trio.params, trio.tables, [policy], size, setup.sampling(config), trio.mesh
    )


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """A list that grows by one entry with every compilation that happens meanwhile."""
    seen: list[str] = []

    def listen(event: str, duration: float, **kwargs: Any) -> None:
        if event == COMPILATION:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def measure(
    config: ConfigDict, trio: api.Trio, problems: Sequence[Problem], batch: int
) -> dict[str, Any]:
    """Time the programs on `problems`, `batch` rows a model call.

    Returns:
      {"programs": {name: figures}, "ratio": {name: over transformers with `batch` solutions at
      once}, "lead": {name: over transformers as it was fastest}, "compilations": number while
      timing, "floor": see `floor.account`}, JSON-able.
    """
    engines = {
        _name(slots): make_engine(config, trio, batch, slots) for slots in (IN_FLIGHT * batch, batch)
    }
    programs: dict[str, Program] = {
        name: lambda asked, engine=engine: run_engine(engine, asked)
        for name, engine in engines.items()
    }
    with contextlib.ExitStack() as stack:
        if torch_baseline.has_torch():
            programs |= _torch_programs(config, trio, batch, stack)
        return _in_turns(config, trio, problems, batch, programs)


def _torch_programs(
    config: ConfigDict, trio: api.Trio, batch: int, stack: contextlib.ExitStack
) -> dict[str, Program]:
    """Transformers with `batch` solutions at once, and as it may be faster: with as many as we have
    in flight, and with a process for each core.
    """
    how = config.bench.threshold, setup.sampling(config), setup.engine_config(config)
    apart = stack.enter_context(contextlib.closing(TorchProcesses(trio, *how)))
    routers = {TORCH: TorchRouter(trio, *how), f"{TORCH}, {apart.cores} processes": apart}
    programs = {}
    for name, router in routers.items():
        for at_once in (batch, IN_FLIGHT * batch):
            title = name if at_once == batch else f"{name}, {at_once} at once"
            programs[title] = functools.partial(_run_torch, router, at_once)
    return programs


def _in_turns(
    config: ConfigDict, trio: api.Trio, problems: Sequence[Problem], batch: int,
    programs: dict[str, Program],
) -> dict[str, Any]:  # fmt: skip
    """See `measure`."""
    runs: dict[str, list[Run]] = {name: [] for name in programs}
    total = (config.bench.repeats + 1) * len(programs)
    with tqdm(total=total, desc=f"{batch} rows a call", unit=" runs") as bar:
        warm_up = requests(config, trio, problems[:batch], config.bench.repeats)
        for program in programs.values():
            last = program(warm_up)
            bar.update()
        rates = floor.Rates(config, trio, batch, *floor.typical_past(warm_up, last.outcomes))
        rates.measure()
        with compilations() as compiled:
            for seed in range(config.bench.repeats):
                asked = requests(config, trio, problems, seed)
                for name, program in programs.items():
                    runs[name].append(program(asked))
                    bar.set_postfix_str(f"{name}: {runs[name][-1].seconds:.1f} s", refresh=False)
                    bar.update()
                rates.measure()
    figures = {name: _figures(done, problems, trio) for name, done in runs.items()}
    speed = {name: entry["problems_per_second"] for name, entry in figures.items()}
    theirs = [name for name in speed if name.startswith(TORCH)]
    ours = min(runs[_name(IN_FLIGHT * batch)], key=lambda run: run.seconds)
    return {
        "batch": batch,
        "problems": len(problems),
        "programs": figures,
        "ratio": {name: speed[name] / speed[TORCH] for name in speed if theirs},
        "lead": {
            name: speed[name] / max(speed[one] for one in theirs)
            for name in speed
            if theirs and name not in theirs
        },
        "compilations": len(compiled),
        "floor": floor.account(ours.executed, ours.seconds, rates.best, rates.past),
    }


def _name(slots: int) -> str:
    return f"trim_jax, {slots} in flight"


def run_engine(engine: Engine, asked: list[Request]) -> Run:
    """Our engine's run of these requests; only the solving is timed."""
    before, begun = engine.executed.copy(), time.perf_counter()
    solutions = list(engine.run(asked))
    seconds = time.perf_counter() - begun
    return Run(seconds, [outcome(s) for s in solutions], engine.executed - before)


def _run_torch(router: TorchRouter | TorchProcesses, batch: int, asked: list[Request]) -> Run:
    begun = time.perf_counter()
    outcomes = router.solve(asked, batch, seed=asked[0].seed)
    return Run(time.perf_counter() - begun, outcomes)


def _figures(runs: Sequence[Run], problems: Sequence[Problem], trio: api.Trio) -> dict[str, Any]:
    """Speed from the best run, everything else from all of them."""
    gold = {problem.id: problem.answer for problem in problems}
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    texts = trio.tokenizer.batch_decode([sum(o.steps, ()) for o in outcomes])
    right = grade_many([(extract_boxed(t), gold[o.problem_id]) for t, o in zip(texts, outcomes)])
    # The repeats solve the same problems, which are the unit.
    by_problem: dict[str, list[bool]] = {}
    for o, verdict in zip(outcomes, right):
        by_problem.setdefault(o.problem_id, []).append(verdict)
    each = [np.mean(verdicts) for verdicts in by_problem.values()]
    per_problem = [sum(steps) for steps in (o.regenerated for o in outcomes)]
    steps = sum(len(o.steps) for o in outcomes)
    seconds = [run.seconds for run in runs]
    return {
        "seconds": seconds,
        "problems_per_second": len(problems) / min(seconds),
        "accuracy": float(np.mean(right)),
        "accuracy_standard_error": float(np.std(each) / len(each) ** 0.5),
        "regenerated_share_of_steps": sum(per_problem) / steps,
        "steps_per_problem": steps / len(outcomes),
        "strong_tokens_per_problem": float(np.mean([o.strong_tokens for o in outcomes])),
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """The figures of every batch size, as text."""
    lines = [
        f"{'routed throughput':<42}{'batch':>6}{'problems/s':>12}{'ratio':>8}{'accuracy':>16}"
        f"{'regenerated':>13}{'strong tokens':>15}"
    ]
    for result in results:
        for name, entry in result["programs"].items():
            ratio = result["ratio"].get(name)
            accuracy = f"{entry['accuracy']:.3f} +- {entry['accuracy_standard_error']:.3f}"
            lines.append(
                f"{name:<42}{result['batch']:>6}{entry['problems_per_second']:>12.2f}"
                f"{'' if ratio is None else f'{ratio:.2f}x':>8}{accuracy:>16}"
                f"{entry['regenerated_share_of_steps']:>13.1%}"
                f"{entry['strong_tokens_per_problem']:>15.1f}"
            )
        for name, lead in result["lead"].items():
            lines.append(f"{name}: {lead:.2f}x {TORCH} as it was fastest")
    if not torch_baseline.has_torch():
        lines.append(f"{TORCH}: skipped. {torch_baseline.HOW_TO_GET_TORCH}")
    lines.append(
        f"compilations after warm-up: {sum(result['compilations'] for result in results)}"
    )
    return "\n".join(lines)
