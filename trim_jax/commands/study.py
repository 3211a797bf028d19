"""`trim-jax study`: every policy trained, chosen and measured, on the same problems and models.

    collected/   traces of policy_train; all training comes from them
    policies/    the trained policies, one folder each, with what its training took
    validation/  where settings are chosen
    .            the test problems: report.html, table.md, study.png
    hard/        the same policies on harder problems, without retraining or choosing again

Every part resumes by itself, so the same command goes on wherever it was killed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from trim_jax import api
from trim_jax.commands import setup
from trim_jax.commands.sweep import VALIDATION_SEEDS, Runs, open_part, sweep_policies
from trim_jax.errors import ConfigError
from trim_jax.eval import figures, selected, study
from trim_jax.eval.report import write_report
from trim_jax.eval.traces import Result, load_result
from trim_jax.policies.base import Policy
from trim_jax.policies.saved import load_policy
from trim_jax.query import evaluate
from trim_jax.query.outcomes import from_result
from trim_jax.query.router import Fitted
from trim_jax.results import ResultFolder, atomic_write
from trim_jax.sim import compare
from trim_jax.sim.fit import fit_traces
from trim_jax.tasks import prompts
from trim_jax.tasks.data import Problem, load_problems
from trim_jax.train.policies import NAMES, train_apart

COLLECTED_SEEDS = (0,)


def run(config: ConfigDict) -> Path:
    """Run or resume a study; returns the path of the report.

    Raises:
      TrimError: the data are not `arith`, a model or the folder cannot be used, or the folder
        belongs to another config.
    """
    data, size = config.data, config.study
    if data.source != "arith" or data.split != "test":
        raise ConfigError(
            "study: data.source and data.split are arith and test; on data without labelled steps "
            "and a training split, run trim-jax sweep and --config.policy.name=FOLDER of a policy"
        )
    if not config.sweep.validation:
        raise ConfigError("study: sweep.validation must be above 0, settings are chosen there")
    out = Path(config.out)
    trio = setup.load_models(config)
    splits = {
        "collected": load_problems("arith", "policy_train", size.train),
        "validation": load_problems("arith", "validation", config.sweep.validation),
        "test": load_problems("arith", "test", data.limit),
        "hard": load_problems("arith", "hard", size.hard) if size.hard else [],
    }
    everything = [problem for problems in splits.values() for problem in problems]
    prompts.check_prompts(
        trio.tokenizer, everything, data.instruction, config.engine.max_context
    )
    work = _Study(config, trio, out)
    # The folder of the test problems is the study's own: made first, it refuses another config.
    with work.folder("test", splits["test"], config.seeds):
        simple = [p for p in sweep_policies(config) if p.name != "oracle"]
        work.solve("collected", splits["collected"], COLLECTED_SEEDS, work.runs(simple))
        runs = work.runs([*sweep_policies(config), *work.train()])
        work.solve("validation", splits["validation"], VALIDATION_SEEDS, runs)
        if size.hard:
            work.solve("hard", splits["hard"], config.seeds, runs)
    work.solve("test", splits["test"], config.seeds, runs)
    parts = ["validation", "test"] + ["hard"] * bool(size.hard)
    if size.query:
        work.add_query_routers(parts)
    return work.report(parts[1:])


class _Study:
    """The parts of one study."""

    def __init__(self, config: ConfigDict, trio: api.Trio, out: Path):
        self.config, self.trio, self.out = config, trio, out

    def path(self, part: str) -> Path:
        return self.out if part == "test" else self.out / part

    def folder(self, part: str, problems: Sequence[Problem], seeds: Sequence[int]) -> ResultFolder:
        split = {"collected": "policy_train"}.get(part, part)
        return open_part(self.path(part), self.config, self.trio, split, problems, seeds)

    def runs(self, policies: Sequence[Policy]) -> Runs:
        engine = setup.make_engine(self.config, self.trio, policies)
        return Runs(self.config, self.trio, engine, policies)

    def solve(
        self, part: str, problems: Sequence[Problem], seeds: Sequence[int], runs: Runs
    ) -> None:
        """Route the problems of one part with all policies in one run."""
        with self.folder(part, problems, seeds) as folder:
            runs.solve(folder, problems, seeds, range(len(runs.policies)), part)

    def train(self) -> list[Policy]:
        """Every learned policy; those that an earlier run has saved are only read back."""
        folder, study = self.out / "policies", self.config.study
        train_apart(
            self.out / "collected", folder, tuple(study.worths), self.config.engine.max_steps,
            study.seed,
        )  # fmt: skip
        return [load_policy(folder / name) for name in NAMES]

    def add_query_routers(self, parts: Sequence[str]) -> None:
        """Train the query-level routers on the collected traces and store what they choose."""
        train = from_result(load_result(self.out / "collected"))
        fitted: list[Fitted] = evaluate.fit_all(train, jax.random.key(self.config.study.seed))
        for part in parts:
            outcomes = from_result(load_result(self.path(part)))
            found = {f.name: evaluate.to_table(evaluate.sweep(f, outcomes), outcomes)
                     for f in fitted}  # fmt: skip
            atomic_write(self.path(part) / selected.FILE, [selected.pack(found)])

    def report(self, parts: Sequence[str]) -> Path:
        """Reports of test and hard, their tables, the common figure, the simulator's predictions."""
        results: dict[str, Result] = {part: load_result(self.path(part)) for part in parts}
        validation = results["test"].validation
        summaries, tables = [], []
        for part, result in results.items():
            page = write_report([self.path(part)], self.path(part), validation=validation)
            summary = json.loads((page.parent / "summary.json").read_text())
            summaries.append(summary | {"name": part})
            tables.append(f"## {part}: {summary['problems']} problems, seeds "
                          f"{', '.join(map(str, summary['seeds']))}\n\n{study.table(summary)}")
        drawn = study.figure(summaries)
        process, _ = fit_traces(self.out / "collected", self.config.engine.max_steps)
        predicted = compare.compare(process, results["test"])
        files = {
            "table.md": "\n".join(tables).encode(),
            "study.png": figures.to_png(drawn),
            "study.svg": figures.to_svg(drawn).encode(),
            "simulator.png": figures.to_png(compare.figure(predicted)),
            "simulator.txt": compare.table_of(predicted).encode() + b"\n",
        }
        for name, content in files.items():
            atomic_write(self.out / name, [content])
        return self.out / "report.html"
