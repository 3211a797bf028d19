"""`trim-jax budget`: a data set routed under a budget of the large model's tokens.

The dial of an average budget is a function of what the chunks before have spent, and those are in
the folder: a run that was killed reads them back and goes on with the same dial.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from trim_jax.commands import setup
from trim_jax.commands.sweep import Runs, origin_of
from trim_jax.engine.engine import Engine, Request, Solution
from trim_jax.errors import ConfigError
from trim_jax.eval import bootstrap, figures, style
from trim_jax.eval.traces import load_result, read_traces, tables
from trim_jax.policies.base import Policy, fingerprint
from trim_jax.policies.budget import DualPrice, capped, follow, steered
from trim_jax.policies.registry import make_policy
from trim_jax.results import ResultFolder
from trim_jax.tasks.data import load_problems

ENOUGH_CHUNKS = 50  # to meet an average within 2 %
_FRACTIONS = ("k", "p", "delta")  # dials in [0, 1] that spend more the higher they are
_LEAST = 0.01  # of such a dial: it moves in its logarithm


def run(config: ConfigDict) -> Path:
    """Route the problems, or go on with it; prints what was reached and returns the folder.

    Raises:
      ConfigError: neither budget is given, the cap has no room for a step, or an average is asked
        of a policy whose dial cannot be moved.
      TrimError: a model, the problems or the folder cannot be used.
    """
    average, cap = config.budget.average, config.budget.cap
    if average == 0 or average is None and cap is None:
        raise ConfigError(
            "budget: give --config.budget.average above 0, --config.budget.cap, or both"
        )
    policy = make_policy(config.policy.name, config.policy.threshold, config.policy.p)
    known = fingerprint(policy)
    price = start(policy, average) if average else None
    if cap is not None:
        policy = capped(policy, cap, config.engine.max_step_tokens)
    if price is not None:
        policy = steered(policy, price.dial)
    data = config.data
    problems = load_problems(data.source, data.split, data.limit)
    trio = setup.load_models(config)
    setup.check_prompts(config, trio, problems)
    engine = setup.make_engine(config, trio, [policy], setup.open_store(config, trio))
    origin = origin_of(trio, problems)
    origin["weights"]["policy"] = {"content": known}  # a name or a folder may come to mean another
    with ResultFolder.open_or_create(config.out, config, origin) as folder:
        if price is not None:
            price = price._replace(problems=len(problems) * len(config.seeds))
            engine = Steering(engine, policy, price, folder)
        Runs(config, trio, engine, [policy]).solve(folder, problems, config.seeds, [0], "budget")
        path = engine.path() if price is not None else []
        found = {"average": average, "cap": cap, **measure(folder.path, average, path)}
        folder.write_json("budget.json", found)
        text = table(found)
        folder.write_file("table.md", text)
        if path:
            drawn = figure(found)
            folder.write_file("path.png", figures.to_png(drawn))
            folder.write_file("path.svg", figures.to_svg(drawn))
    print(text)
    return folder.path


# ---------------------------------------------------------------------------------------- the dial


def start(policy: Policy, average: float) -> DualPrice:
    """Where the dial of a policy begins, and between what it may move; `problems` is still 0.

    Raises:
      ConfigError: the policy has no dial that could be moved.
    """
    if not policy.rising:
        raise ConfigError(
            f"budget.average: policy {policy.name} spends less the higher its dial, and cannot be "
            "steered; use thr, random, rsd or a trained policy with several prices"
        )
    low, high = policy.settings[0], policy.settings[-1]
    if policy.parameter in _FRACTIONS and low == high:
        return DualPrice(max(low, _LEAST), _LEAST, 1.0, average, 0)
    if not 0 < low < high:
        raise ConfigError(
            f"budget.average: policy {policy.name} has no dial between two positive settings that "
            "could be moved; use thr, random, rsd or a trained policy with several prices"
        )
    return DualPrice(math.sqrt(low * high), low, high, average, 0)


class Steering:
    """An engine that sets its only policy's dial before each chunk of a result folder."""

    def __init__(self, engine: Engine, policy: Policy, price: DualPrice, folder: ResultFolder):
        """
        Args:
          policy: from `policies.budget.steered`. price: of the first chunk.
          folder: whose finished chunks say what was spent.
        """
        self._engine, self._policy, self._folder = engine, policy, folder
        self._prices = [price]  # before chunk 0, 1, ..., as far as the chunks go

    @property
    def executed(self) -> np.ndarray:
        return self._engine.executed

    @property
    def loop(self) -> Any:
        return self._engine.loop

    @property
    def served(self) -> int:
        return self._engine.served

    def run(self, requests: Iterable[Request]) -> Iterator[Solution]:
        """As `Engine.run`, at the dial of the first chunk that is not finished."""
        dial = np.float32(self._upto_date()[-1].dial)
        self._engine.load_weights(0, self._policy.weights | {"dial": dial})
        return self._engine.run(requests)

    def keep_steps(self) -> None:
        """As `Engine.keep_steps`."""
        self._engine.keep_steps()

    def path(self) -> list[dict[str, float]]:
        """Of each finished chunk: its dial, the solutions, and what they spent in all."""
        prices = self._upto_date()
        return [{"dial": old.dial, "solutions": new.done - old.done, "spent": new.spent - old.spent}
                for old, new in zip(prices, prices[1:])]  # fmt: skip

    def _upto_date(self) -> list[DualPrice]:
        done = set(self._folder.done_chunks())
        while (index := len(self._prices) - 1) in done:
            traces = list(read_traces(self._folder.path / "chunks" / f"{index:05d}.jsonl"))
            spent = sum(trace.strong_tokens for trace in traces)
            self._prices.append(follow(self._prices[-1], len(traces), spent))
        return self._prices


# -------------------------------------------------------------------------------- what was reached


def measure(path: Path, average: float | None, steps: list[dict[str, float]]) -> dict[str, Any]:
    """Figures of a finished folder, with 95 % intervals over problems and their seeds.

    Returns:
      `policy`, `parameter`, `path` (`Steering.path`), `error` (relative, of the average spend; None
      without a target) and by setting `value`, `accuracy`, `strong_tokens` and the `most` of one
      solution.
    """
    (found,) = tables(load_result(path)).values()
    drawn = bootstrap.resample(*found.correct.shape[1:])
    rows = []
    for i, value in enumerate(found.policy.settings):
        correct, tokens = found.correct[i : i + 1], found.strong_tokens[i : i + 1]
        both = [bootstrap.estimate(x.mean(), drawn.means(x)[:, 0]) for x in (correct, tokens)]
        rows.append({"value": value, "accuracy": both[0], "strong_tokens": both[1],
                     "most": int(tokens.max())})  # fmt: skip
    error = rows[0]["strong_tokens"]["value"] / average - 1 if average else None
    return {"policy": found.policy.name, "parameter": found.policy.parameter, "settings": rows,
            "error": error, "path": steps}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The figures in a few lines of Markdown."""
    lines = [f"| {found['parameter'] or 'policy'} | solved, % | strong tokens a problem | most |",
             "|---|---|---|---|"]  # fmt: skip
    for row in found["settings"]:
        name = found["policy"] if row["value"] is None else f"{row['value']:g}"
        solved, spent = row["accuracy"], row["strong_tokens"]
        lines.append(f"| {name} | {100 * solved['value']:.1f} [{100 * solved['low']:.1f}, "
                     f"{100 * solved['high']:.1f}] | {spent['value']:.1f} [{spent['low']:.1f}, "
                     f"{spent['high']:.1f}] | {row['most']} |")  # fmt: skip
    if found["error"] is not None:
        chunks = len(found["path"])
        lines += ["", f"Budget {found['average']:g} tokens a problem on average: missed by "
                  f"{100 * found['error']:+.1f} %, in {chunks} chunks."]  # fmt: skip
        if chunks < ENOUGH_CHUNKS:
            lines.append(f"About {ENOUGH_CHUNKS} chunks are wanted to meet an average within 2 %: "
                         "lower engine.chunk_problems or take more problems.")  # fmt: skip
    return "\n".join(lines) + "\n"


def figure(found: dict[str, Any]) -> Figure:
    """What each chunk spent, the average so far and the target; below, the dial."""
    solutions, spent, dial = (
        np.array([step[name] for step in found["path"]], float)
        for name in ("solutions", "spent", "dial")
    )
    done = np.cumsum(solutions)
    with rc_context(style.RC):
        fig, (above, below) = figures.new_figure(7.5, 5.0, nrows=2, sharex=True)
        above.plot(done, spent / solutions, color=style.SKY, linestyle="none", marker="o",
                   label="each chunk")  # fmt: skip
        above.plot(done, np.cumsum(spent) / done, color=style.BLUE, label="average so far")
        above.axhline(found["average"], color=style.MUTED, linewidth=1, linestyle=(0, (4, 2)),
                      label="budget")  # fmt: skip
        above.set_ylabel("strong tokens a problem")
        above.set_ylim(bottom=0)
        fig.legend(loc="outside upper center", ncols=3)
        below.plot(done - solutions / 2, dial, color=style.BRICK, marker="o", markersize=3)
        below.set_yscale("log")
        below.yaxis.set_major_formatter("{x:g}")
        # Between powers of ten 2 and 5 are enough, unless the dial hardly moves.
        digits = "25" if dial.max() > 3 * dial.min() else "23456789"
        below.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in digits else "")
        below.set_ylabel("dial")
        below.set_xlabel("solutions so far")
        return figures.laid_out(fig)
