"""Every step-level policy from one folder of collected traces, as `trim-jax study` trains them.

The simulator is fitted to the traces; TRIM-Agg, TRIM-Seq and TRIM-Q learn in it, without any call
of a language model. TRIM-POMDP is solved for parameters estimated from the same traces.

All this happens in a process of its own (`train_apart`). On a CPU with two cores XLA's threads can
wait for each other for ever in loops as deep as PPO's (jaxlib 0.10.2, seen about once in ten runs
even with `loop_options`); a process that has finished nothing for a while is started again.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trim_jax.errors import TrimError
from trim_jax.eval.traces import Trace, load_result
from trim_jax.policies.base import Policy
from trim_jax.policies.features import Features
from trim_jax.policies.learned import Agg, Q
from trim_jax.policies.pomdp import FilteredPomdp, Pomdp
from trim_jax.policies.saved import is_saved, save_policy
from trim_jax.policies.sequence import Seq
from trim_jax.pomdp.estimate import estimate
from trim_jax.results import atomic_write
from trim_jax.sim import env
from trim_jax.sim.fit import Report, fit_traces
from trim_jax.sim.process import Process
from trim_jax.train import ppo, q
from trim_jax.train.episodes import Environment

NAMES = ("pomdp", "pomdp_filtered", "q", "agg", "seq")
PATIENCE = 600  # seconds without a finished policy after which the process is started again
ATTEMPTS = 3

# The paper's learning rate left PPO far from converged in as many updates.
PPO = ppo.PpoConfig(updates=600, learning_rate=2e-3)
# The sequence network is an order of magnitude dearer and serves all prices at once.
PPO_SEQ = ppo.PpoConfig(updates=300, problems=16, learning_rate=1e-3, validation_problems=128)


@dataclasses.dataclass(frozen=True)
class Training:
    """A trained policy and what it took: seconds, compilation included, and environment steps
    (0 where nothing was played)."""

    policy: Policy
    seconds: float
    steps: int


def fitted_environment(folder: str | Path, max_steps: int) -> tuple[Process, Report]:
    """The simulator of the traces in a result folder, with the histories that TRIM-Seq reads."""
    process, report = fit_traces(folder, max_steps)
    return process.replace(history=True), report


def scales(traces: Sequence[Trace]) -> dict[str, float]:
    """Units of the features, of the traces: tokens of a long step, steps and tokens of a solution."""
    steps = [s.n_tokens for t in traces for s in t.steps]
    return {
        "token_scale": float(np.quantile(steps, 0.9)),
        "step_scale": float(np.quantile([len(t.steps) for t in traces], 0.9)),
        "token_unit": float(np.mean([sum(s.n_tokens for s in t.steps) for t in traces]) / 3),
    }


def train_policies(
    folder: str | Path, process: Process, worths: Sequence[float], max_steps: int, seed: int
) -> Iterator[tuple[str, Callable[[], Training]]]:
    """Name and training of each policy, in turn; the training runs when it is called.

    Args:
      folder: collected traces. process: the simulator fitted to them.
      worths: settings of every policy, ascending. seed: of the initial weights and all that is drawn.
    """
    worths = tuple(float(w) for w in worths)
    traces = load_result(folder).traces
    unit = scales(traces)
    sizes = dict(token_scale=unit["token_scale"], step_scale=unit["step_scale"])
    plain = Features(logit=True, **sizes)
    priced = dataclasses.replace(plain, price=True)
    world = Environment(process, env.reset, env.observe, env.step, process.max_steps)
    steps = int(unit["step_scale"])

    def learned(policy: Any, make: Callable, config: Any) -> Training:
        begun = time.perf_counter()
        done = jax.block_until_ready(make(config, policy, world)(jax.random.key(seed)))
        weights = jax.tree.map(np.asarray, done.weights)
        taken = int(np.sum(done.steps))
        seconds = time.perf_counter() - begun
        return Training(dataclasses.replace(policy, weights=weights), seconds, taken)

    def solved(family: type[Policy]) -> Training:
        begun = time.perf_counter()
        parameters = estimate(traces, max_steps)
        policy = jax.block_until_ready(family.of(parameters, worths))
        weights = jax.tree.map(np.asarray, policy.weights)
        return Training(
            dataclasses.replace(policy, weights=weights), time.perf_counter() - begun, 0
        )

    agg, seq = Agg(worths, features=plain), Seq(worths, max_steps=max_steps, **sizes)
    value = Q(worths, features=priced, token_unit=unit["token_unit"], excursions=steps)
    yield "pomdp", lambda: solved(Pomdp)
    yield "pomdp_filtered", lambda: solved(FilteredPomdp)
    yield "agg", lambda: learned(agg, ppo.make_train, PPO)
    yield "q", lambda: learned(value, q.make_train, q.QConfig())
    yield "seq", lambda: learned(seq, ppo.make_train, PPO_SEQ)


def train_apart(
    folder: str | Path, out: str | Path, worths: Sequence[float], max_steps: int, seed: int
) -> None:
    """Train every policy that `out` lacks, into a folder of its name each, in another process.

    Raises:
      TrimError: the process failed, or stalled again and again.
    """
    context = multiprocessing.get_context("spawn")
    for _ in range(ATTEMPTS):
        child = context.Process(target=_train_missing, args=(folder, out, worths, max_steps, seed))
        child.start()
        progress, since = _finished(out), time.monotonic()
        while child.is_alive():
            child.join(timeout=1)
            if _finished(out) != progress:
                progress, since = _finished(out), time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                child.kill()
                child.join()
        if len(_finished(out)) == len(NAMES):
            return
        if child.exitcode not in (0, -9):
            raise TrimError(f"study: the training of policies failed, status {child.exitcode}")
    raise TrimError(f"study: the training of policies stalled {ATTEMPTS} times; run it again")


def _finished(out: str | Path) -> list[str]:
    return [name for name in NAMES if is_saved(Path(out) / name)]


def _train_missing(folder, out, worths, max_steps, seed) -> None:
    # More threads than cores: the more there are, the rarer is it that all of them wait.
    os.environ.setdefault("NPROC", str(max(4, os.cpu_count() or 1)))
    process, report = fitted_environment(folder, max_steps)
    described = {"drafts": report.drafts, "rewrites": report.rewrites,
                 "effects": {name: list(value) for name, value in report.parameters.items()}}  # fmt: skip
    _write(Path(out) / "simulator.json", described)
    for name, train in train_policies(folder, process, worths, max_steps, seed):
        if not is_saved(Path(out) / name):
            done = train()
            took = {"seconds": done.seconds, "environment_steps": done.steps}
            _write(Path(out) / name / "training.json", took)
            save_policy(Path(out) / name, done.policy)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, [json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"])
