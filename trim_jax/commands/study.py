"""`trim-jax study`: every policy trained, chosen and measured, on the same problems and models.

    collected/   traces of policy_train; all training comes from them
    policies/    the trained policies, one folder each, with what its training took
    validation/  where settings are chosen
    .            the test problems: report.html, table.md, study.png; walltime.json has each policy
                 alone, at its chosen setting
    hard/        the same policies on harder problems, without retraining or choosing again

Every part resumes by itself, so the same command goes on wherever it was killed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from trim_jax import api
from trim_jax.commands import setup
from trim_jax.commands.collect import collecting_policies
from trim_jax.commands.sweep import VALIDATION_SEEDS, Runs, open_part, sweep_policies
from trim_jax.engine.engine import Cells
from trim_jax.engine.store import StepStore
from trim_jax.errors import ConfigError
from trim_jax.eval import figures, selected, sharing, study, walltime
from trim_jax.eval.choice import choose_setting
from trim_jax.eval.report import write_report
from trim_jax.eval.traces import Result, load_result, tables
from trim_jax.policies.base import Policy
from trim_jax.policies.judged import on_scores
from trim_jax.policies.learned import Priced, Q
from trim_jax.policies.neighbours import LogLik
from trim_jax.policies.saved import is_saved, load_policy, save_policy
from trim_jax.query import evaluate
from trim_jax.query.outcomes import from_result
from trim_jax.query.router import Fitted
from trim_jax.results import ResultFolder, atomic_write, dumps
from trim_jax.sim import compare
from trim_jax.sim.fit import resampled_fits
from trim_jax.sim.process import Process
from trim_jax.tasks.data import Problem, load_problems
from trim_jax.train.judged import resampled_judged
from trim_jax.train.policies import (
    LIKELIHOODS, RECIPES, Order, check_names, simulator, train_apart, tuned_from,
)  # fmt: skip
from trim_jax.train.rollouts import Player
from trim_jax.train.tuning import PPO_LEARNING, Q_LEARNING, TuneConfig, tune

COLLECTED_SEEDS = (0,)
TIMES = 3  # that each policy is timed


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
    check_names(size.policies)
    if size.refits == 1:
        raise ConfigError("study: study.refits is 0, or at least 2: one fit has no spread")
    out = Path(config.out)
    trio = setup.load_models(config)
    splits = {
        "collected": load_problems("arith", "policy_train", size.train),
        "validation": load_problems("arith", "validation", config.sweep.validation),
        "test": load_problems("arith", "test", data.limit),
        "hard": load_problems("arith", "hard", size.hard) if size.hard else [],
    }
    everything = [problem for problems in splits.values() for problem in problems]
    setup.check_prompts(config, trio, everything)
    work = _Study(config, trio, out)
    # The folder of the test problems is the study's own: made first, it refuses another config.
    with work.folder("test", splits["test"], config.seeds):
        # Nobody holds on to this engine: its caches are free again for the next one's.
        work.solve("collected", splits["collected"], COLLECTED_SEEDS,
                   work.runs(work.collecting()))  # fmt: skip
        runs = work.runs([*sweep_policies(config), *work.train()])
        work.solve("validation", splits["validation"], VALIDATION_SEEDS, runs)
        if size.hard:
            work.solve("hard", splits["hard"], config.seeds, runs)
    work.solve("test", splits["test"], config.seeds, runs)
    if size.timed:
        work.time_each(splits["test"][: size.timed], runs)
    parts = ["validation", "test"] + ["hard"] * bool(size.hard)
    if size.query:
        work.add_query_routers(parts)
    return work.report(parts[1:])


class _Study:
    """The parts of one study."""

    def __init__(self, config: ConfigDict, trio: api.Trio, out: Path):
        self.config, self.trio, self.out = config, trio, out

    @property
    def judges(self) -> bool:
        """Whether a policy learns from drafts that the large model judged."""
        return any(RECIPES[name].judges for name in self.config.study.policies)

    @functools.cached_property
    def store(self) -> StepStore | None:
        """The steps that are known from earlier; nobody needs them to draw a report again."""
        return setup.open_store(self.config, self.trio)

    def path(self, part: str) -> Path:
        return self.out if part == "test" else self.out / part

    def folder(self, part: str, problems: Sequence[Problem], seeds: Sequence[int]) -> ResultFolder:
        split = {"collected": "policy_train"}.get(part, part)
        return open_part(self.path(part), self.config, self.trio, split, problems, seeds)

    def runs(self, policies: Sequence[Policy]) -> Runs:
        engine = setup.make_engine(self.config, self.trio, policies, self.store)
        return Runs(self.config, self.trio, engine, policies)

    def solve(
        self, part: str, problems: Sequence[Problem], seeds: Sequence[int], runs: Runs
    ) -> None:
        """Route the problems of one part with all policies in one run."""
        with self.folder(part, problems, seeds) as folder:
            runs.solve(folder, problems, seeds, range(len(runs.policies)), part)

    def collecting(self) -> list[Policy]:
        """What writes the solutions that all training comes from."""
        return collecting_policies(self.config) + [LogLik(LIKELIHOODS)] * self.judges

    def train(self) -> list[Policy]:
        """Every learned policy; those that an earlier run has saved are only read back."""
        folder, config = self.out / "policies", self.config
        order = Order(
            worths=tuple(map(float, config.study.worths)),
            thresholds=tuple(sorted(config.sweep.thresholds)),
            max_steps=config.engine.max_steps, seed=config.study.seed,
        )  # fmt: skip
        train_apart(self.out / "collected", folder, config.study.policies, order)
        for name in config.study.policies:
            if tuned_from(name) and not is_saved(folder / name):
                variant = name.partition("-")[2]
                self.tune(load_policy(folder / tuned_from(name)), variant, folder / name)
        return [load_policy(folder / name) for name in config.study.policies]

    def tune(self, start: Priced, variant: str, folder: Path) -> None:
        """Train a policy on with solutions of the models, on problems that nothing else uses."""
        config, size = self.config, self.config.study
        sizes = TuneConfig(size.tune_rounds, size.tune_problems, size.tune_problems, size.seed)
        problems = load_problems("arith", "policy_train", None)[size.train :]
        if len(problems) <= sizes.held_out:
            raise ConfigError(
                f"study: of policy_train, study.train leaves {len(problems)} problems; tuning holds "
                f"out {sizes.held_out} (study.tune_problems) and learns from others"
            )
        players = functools.partial(
            Player, self.trio, engine=setup.engine_config(config), sampling=setup.sampling(config),
            instruction=config.data.instruction, prm_system=config.data.prm_system,
            store=self.store,
        )  # fmt: skip
        learning = Q_LEARNING if isinstance(start, Q) else PPO_LEARNING
        done = tune(start, learning, players, problems, folder, sizes)
        took = {"seconds": done.seconds, "environment_steps": done.steps,
                "solutions": done.solutions, "best_round": done.best_round,
                "held_out_gain": done.gain, "standard_error": done.error}  # fmt: skip
        atomic_write(folder / "training.json", [dumps(took, indent=2, sort_keys=True).encode()])
        save_policy(folder, dataclasses.replace(done.policy, variant=variant))

    def time_each(self, problems: Sequence[Problem], runs: Runs) -> None:
        """Time every policy alone at the setting that validation chose, in turns; walltime.json."""
        path = self.out / walltime.FILE
        if path.exists():
            return
        found = tables(load_result(self.out / "validation"))
        chosen = [choose_setting(found, policy.full_name) for policy in runs.policies]
        cells = [Cells(i, choice.index, choice.index + 1)
                 for i, choice in enumerate(chosen) if choice is not None]  # fmt: skip
        seconds: dict[Cells, list[float]] = {cell: [] for cell in cells}
        for cell in cells[:1]:  # compile, and warm up
            runs.seconds(problems, self.config.seeds[:1], cell)
        for cell in tqdm(TIMES * cells, desc="timed alone", unit=" runs"):
            seconds[cell].append(runs.seconds(problems, self.config.seeds[:1], cell))
        repeats = [[runs.policies[cell.policy].full_name, cell.lo,
                    [round(s / len(problems), 6) for s in each]]
                   for cell, each in seconds.items()]  # fmt: skip
        atomic_write(path, [dumps({"problems": len(problems), "repeats": repeats}).encode()])

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
        """Reports of test and hard, their tables, common figures, the simulator's predictions."""
        results: dict[str, Result] = {part: load_result(self.path(part)) for part in parts}
        validation = results["test"].validation
        summaries, tables = [], []
        for part, result in results.items():
            page = write_report([result], self.path(part), validation=validation)
            summary = json.loads((page.parent / "summary.json").read_text())
            summaries.append(summary | {"name": part})
            tables.append(f"## {part}: {summary['problems']} problems, seeds "
                          f"{', '.join(map(str, summary['seeds']))}\n\n{study.table(summary)}"
                          f"\n{sharing.sentence(result)}\n")
        drawn, apart = study.figure(summaries), study.difference_figure(summaries)
        predicted = self.predictions(results["test"])
        files = {
            "table.md": "\n".join(tables).encode(),
            "study.png": figures.to_png(drawn),
            "study.svg": figures.to_svg(drawn).encode(),
            "simulator.png": figures.to_png(compare.figure(predicted)),
            "simulator.txt": compare.table_of(predicted).encode() + b"\n",
        }
        if apart is not None:
            files["differences.png"] = figures.to_png(apart)
        for name, content in files.items():
            atomic_write(self.out / name, [content])
        return self.out / "report.html"

    def predictions(self, test: Result) -> list[compare.Comparison]:
        """What the simulator says of every policy whose signals it has, beside what was measured."""
        collected, steps = load_result(self.out / "collected"), self.config.engine.max_steps
        learned = {name: load_policy(self.out / "policies" / name)
                   for name in self.config.study.policies}  # fmt: skip
        scored = compare.known_policies(test) | {
            name: policy for name, policy in learned.items() if not (policy.peeks or policy.judges)
        }
        judging = {name: on_scores(policy) for name, policy in learned.items() if policy.judges}
        predicted = []
        for policies, judges in ((scored, False), (judging, True)):
            if policies:
                process = simulator(collected, self.out / "policies", steps, judges)
                refits = list(self.refits(collected, steps, judges))
                predicted += compare.compare(process, test, policies, 0, collected, refits)
        return predicted

    def refits(self, collected: Result, max_steps: int, judges: bool) -> Iterable[Process]:
        """The simulator fitted to resampled problems."""
        fits, again = self.config.study.refits, resampled_judged if judges else resampled_fits
        if not fits:
            return ()
        return tqdm(again(collected, fits, max_steps), "fitted again", fits, unit=" fits")
