"""`trim-jax sweep`: every threshold of TRIM-Thr against its anchors, in one streamed run.

Problems are solved in chunks, in the order of the data set; a chunk that is written is never
computed again. A chunk starts from an idle engine, so its results, bit for bit, do not depend on
when the run was killed and resumed. Known steps (`config.store`) are those of earlier chunks and
runs; their scores may differ from those of a run without them in the last digits, as between
batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from trim_jax import api, provenance
from trim_jax.commands import setup
from trim_jax.engine.engine import Cells, Engine, Request, Solution
from trim_jax.engine.loop import initial_carry
from trim_jax.engine.rows import CALLS
from trim_jax.eval.report import write_report
from trim_jax.eval.traces import SERVED, PolicySpec, histories, index_files
from trim_jax.policies.base import Policy
from trim_jax.policies.simple import Always, Never, Oracle, Random, Threshold
from trim_jax.results import ResultFolder
from trim_jax.tasks.data import Problem, load_problems

VALIDATION_SEEDS = (0,)


def sweep_policies(config: ConfigDict) -> list[Policy]:
    """What a sweep compares; k = 0 and k = 1 are the anchors, which are added where they lack."""
    thresholds = tuple(sorted(config.sweep.thresholds))
    policies: list[Policy] = [Threshold(thresholds), Random(tuple(sorted(config.sweep.random)))]
    if 0 not in thresholds:
        policies.append(Never())
    if 1 not in thresholds:
        policies.append(Always())
    if config.sweep.get("oracle") and config.data.source == "arith":
        policies.append(Oracle())
    return policies


def run(config: ConfigDict, dry_run: bool = False) -> Path | None:
    """Run or resume a sweep; returns the report's path, or None after a dry run."""
    policies = sweep_policies(config)
    data = config.data
    problems = load_problems(data.source, data.split, data.limit)
    # Settings are chosen on problems that are not the reported ones.
    held_out: list[Problem] = []
    if config.sweep.validation and data.source == "arith" and data.split != "validation":
        held_out = load_problems("arith", "validation", config.sweep.validation)
    trio = setup.load_models(config)
    setup.check_prompts(config, trio, [*problems, *held_out])
    store = None if dry_run else setup.open_store(config, trio)
    engine = setup.make_engine(config, trio, policies, store)
    work = Runs(config, trio, engine, policies)
    if dry_run:
        work.predict(problems, held_out)
        return None
    out = Path(config.out)
    with ResultFolder.open_or_create(out, config, origin_of(trio, problems)) as folder:
        if held_out:
            part = open_part(out / "validation", config, trio, "validation", held_out, VALIDATION_SEEDS)
            with part as validation:
                # The oracle needs no choice of a setting.
                chosen = [i for i, policy in enumerate(policies) if policy.name != "oracle"]
                work.solve(validation, held_out, VALIDATION_SEEDS, chosen, "validation")
        work.solve(folder, problems, config.seeds, list(range(len(policies))), data.split)
    return write_report([out], out)


def origin_of(trio: api.Trio, problems: Sequence[Problem]) -> dict[str, Any]:
    """Provenance of a run of these models on these problems."""
    return {**provenance.collect(trio.folders, problems), "parameters": api.parameters(trio)}


def open_part(
    path: Path, config: ConfigDict, trio: api.Trio, split: str, problems: Sequence[Problem],
    seeds: Sequence[int],
) -> ResultFolder:  # fmt: skip
    """The result folder of one part of a larger run, with a config of its own."""
    own = config.copy_and_resolve_references()
    own.data.split, own.data.limit, own.seeds = split, len(problems), tuple(seeds)
    return ResultFolder.open_or_create(path, own, origin_of(trio, problems))


class Runs:
    """One engine, and what it is asked to do with chunks of problems."""

    def __init__(self, config: ConfigDict, trio: api.Trio, engine: Engine, policies: Sequence[Policy]):
        self.config, self.trio, self.engine, self.policies = config, trio, engine, policies

    def solve(
        self, folder: ResultFolder, problems: Sequence[Problem], seeds: Sequence[int],
        chosen: Sequence[int], title: str,
    ) -> None:  # fmt: skip
        """Solve `problems` with the `chosen` policies into a result folder, chunk by chunk."""
        size = self.config.engine.chunk_problems
        chunks = [problems[i : i + size] for i in range(0, len(problems), size)]
        done = set(folder.done_chunks())
        with self._progress(problems, seeds, chosen, title) as bar:
            for index, chunk in enumerate(chunks):
                if index in done:
                    bar.skip(chunk)
                    continue
                begun = time.perf_counter()
                before, served = self.engine.executed.copy(), self.engine.served
                solutions = list(bar.watch(self.engine.run(self._requests(chunk, seeds, chosen))))
                traces = api.traces(solutions, chunk, self.trio, self.policies)
                seconds = time.perf_counter() - begun
                folder.update_timings({"seconds_by_chunk": {f"{index:05d}": round(seconds, 3)}})
                work = {"executed": (self.engine.executed - before).tolist(),
                        "served": self.engine.served - served}  # fmt: skip
                folder.write_chunk(index, histories(traces), work)
                # Only now: a chunk that is solved again then finds what it found the first time.
                self.engine.keep_steps()
        folder.finish(len(chunks))
        extras = [folder.chunk_extra(i) for i in range(len(chunks))]
        total = np.sum([extra["executed"] for extra in extras], axis=0)
        names = ("slots", "used", "calls")
        kinds = self.engine.loop.kinds.values()
        executed = {kind: dict(zip(names, map(int, row))) for kind, row in zip(kinds, total)}
        if served := sum(extra.get("served", 0) for extra in extras):
            executed[SERVED] = dict(zip(names, (0, 0, served)))
        folder.write_json("executed.json", executed)
        specs = {}
        for policy in (self.policies[i] for i in chosen):
            dials = policy.settings if policy.parameter else (None,)
            specs[policy.full_name] = PolicySpec(policy.full_name, policy.parameter or None, tuple(dials))
        for name, text in index_files(specs, problems, seeds).items():
            folder.write_file(name, text)

    def seconds(self, problems: Sequence[Problem], seeds: Sequence[int], cells: Cells) -> float:
        """Wall time of these problems with one setting of one policy alone."""
        asked = self._requests(problems, seeds, [cells.policy])
        each = {(request.problem_id, request.seed): request for request in asked}
        alone = [dataclasses.replace(request, cells=(cells,)) for request in each.values()]
        begun = time.perf_counter()
        for _ in self.engine.run(alone, anew=True):
            pass
        return time.perf_counter() - begun

    def _requests(self, problems, seeds, chosen: Sequence[int]) -> Iterator[Request]:
        data = self.config.data
        return api.requests(
            self.trio, self.policies, problems, seeds, data.instruction, data.prm_system, chosen
        )

    @contextlib.contextmanager
    def _progress(self, problems, seeds, chosen, title: str) -> Iterator[_Progress]:
        settings = sum(len(self.policies[i].settings) for i in chosen)
        each = len(seeds) * settings
        with tqdm(total=len(problems) * each, unit="run", desc=title, smoothing=0.05) as bar:
            yield _Progress(bar, each)

    def predict(self, problems: Sequence[Problem], held_out: Sequence[Problem]) -> None:
        """Print rows, memory and time of the run; the time from solving a few of its problems."""
        settings = sum(len(policy.settings) for policy in self.policies)
        tasks = len(problems) * len(self.config.seeds) + len(held_out) * len(VALIDATION_SEEDS)
        carry = jax.eval_shape(lambda: initial_carry(self.engine.loop))
        size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
        sample = list(problems[: min(len(problems), 24)])
        chosen = range(len(self.policies))
        list(self.engine.run(self._requests(sample[:1], self.config.seeds[:1], chosen)))  # compile
        begun = time.perf_counter()
        solved = list(self.engine.run(self._requests(sample, self.config.seeds[:1], chosen)))
        seconds = (time.perf_counter() - begun) / len(sample) * tasks
        print(f"rows      {tasks} to start with, forking to about "
              f"{round(len(solved) / len(sample) * tasks)}; they stand for {tasks * settings} runs")
        weights, caches = (self.engine.shards * size(x) for x in (self.trio.params, carry))
        print(f"memory    {weights / 1e6:.0f} MB of weights, {caches / 1e6:.0f} MB of caches and rows")
        print(f"time      about {seconds / 60:.1f} minutes (from {len(sample)} problems; a long run "
              "keeps its batches fuller)")


class _Progress:
    """Counts (problem, seed, setting) runs, rows and tokens."""

    def __init__(self, bar: tqdm, runs_per_problem: int):
        self.bar, self.each = bar, runs_per_problem
        self.rows = self.tokens = 0
        self.begun = time.perf_counter()

    def skip(self, chunk: Sequence[Problem]) -> None:
        """A chunk that an earlier run has written."""
        self.bar.initial += len(chunk) * self.each
        self.bar.update(len(chunk) * self.each)

    def watch(self, solutions: Iterator[Solution]) -> Iterator[Solution]:
        """Pass solutions on, and show how far we are."""
        for solution in solutions:
            self.rows += 1
            self.tokens += int(solution.ledger[:, :CALLS].sum())
            rate = self.tokens / (time.perf_counter() - self.begun)
            self.bar.set_postfix_str(f"{self.rows} rows, {rate / 1e3:.1f}k tok/s", refresh=False)
            self.bar.update(sum(hi - lo for _, lo, hi in solution.cells))
            yield solution
