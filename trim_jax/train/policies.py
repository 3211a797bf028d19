"""Recipes of the policies that `trim-jax study` trains, from one folder of collected traces.

The simulator is fitted to the traces; TRIM-Agg, TRIM-Seq and TRIM-Q learn in it, without any call
of a language model. TRIM-POMDP is solved for parameters estimated from the same traces. A name with
a dash is a variant for the ablation, trained or solved under its own rule:

  -no_last    does not see which step is the last
  -product    one feature more, the product of past scores
  -paper      the paper's four features, scores as they are instead of their logits
  -release    the release's five, likewise
  -priced     one network for all prices, where Agg has one for each as in the paper
  -separate   one network for each price, where Seq has one for all
  -takeover   the first intervention hands the rest of the solution to the large model
  -judged     sees how likely the large model finds the draft, where others see the PRM's score

The neighbours rsd, glimp and loglik have nothing to learn and stand here to be named like the rest.
What ends in -tuned goes on from a policy made here with the models' own solutions (`train.tuning`).

All this happens in a process of its own (`train_apart`). On a CPU with two cores XLA's threads can
wait for each other for ever in loops as deep as PPO's (jaxlib 0.10.2, seen about once in ten runs
even with `loop_options`); a process that has finished nothing for a while is started again. It
works on the CPU: the accelerator may serve one process only, and that one holds the models.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trim_jax.errors import ConfigError, TrimError
from trim_jax.eval.traces import Result, Trace, load_result
from trim_jax.policies.base import Policy
from trim_jax.policies.features import Features
from trim_jax.policies.judged import judged
from trim_jax.policies.learned import Agg, Priced, Q
from trim_jax.policies.neighbours import Glimp, LogLik, Rsd
from trim_jax.policies.pomdp import FilteredPomdp, Pomdp
from trim_jax.policies.saved import is_saved, load_policy, save_policy
from trim_jax.policies.sequence import Seq
from trim_jax.policies.simple import Threshold
from trim_jax.policies.takeover import takeover
from trim_jax.pomdp.estimate import estimate
from trim_jax.results import atomic_write
from trim_jax.sim import env
from trim_jax.sim.fit import fit_result
from trim_jax.sim.process import Process
from trim_jax.sim.saved import load_process, save_process
from trim_jax.train import ppo, q
from trim_jax.train.episodes import Environment
from trim_jax.train.judged import fit_judged
from trim_jax.train.takeover import handing_over

PATIENCE = 600  # seconds without a finished policy after which the process is started again
ATTEMPTS = 3  # each with twice the patience of the one before: it may have been slow, not stalled

Wrap = Callable[[Policy], Policy]  # takeover or judged

# The paper's learning rate left PPO far from converged in as many updates.
PPO = ppo.PpoConfig(updates=600, learning_rate=2e-3)
# The sequence network is an order of magnitude dearer and serves all prices at once.
PPO_SEQ = ppo.PpoConfig(updates=300, problems=16, learning_rate=1e-3, validation_problems=128)
# A takeover ends what can be explored, so that most solutions teach nothing, and older ones ended
# under another rule: with the settings of TRIM-Q alone it came out below TRIM-Thr's takeover.
Q_TAKEOVER = q.QConfig(problems=4096, memory=30, rows=512)

# Settings of the neighbours whose dial is neither a score nor a price.
ENTROPIES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
LIKELIHOODS = (-3.0, -2.0, -1.5, -1.0, -0.7, -0.5, -0.35, -0.25, -0.15, -0.1, -0.05, -0.02)


@dataclasses.dataclass(frozen=True)
class Order:
    """What a study wants of every policy.

    Attributes:
      worths: settings of those with a price, ascending. thresholds: of those on TRIM-Thr.
      max_steps: step limit of a solution.
      seed: of the initial weights and all that is drawn.
    """

    worths: tuple[float, ...]
    thresholds: tuple[float, ...]
    max_steps: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Training:
    """A trained policy and what it took: seconds, compilation included, and environment steps
    (0 where nothing was played)."""

    policy: Policy
    seconds: float
    steps: int


@dataclasses.dataclass(frozen=True)
class Material:
    """What recipes work with.

    Attributes:
      order: what is wanted. collected: the run whose traces they learn from.
      out: folder of the trained policies, for recipes that begin with one of them, and of the
        simulators that they are trained in.
    """

    order: Order
    collected: Result
    out: Path

    @property
    def traces(self) -> Sequence[Trace]:
        return self.collected.traces

    @functools.cached_property
    def process(self) -> Process:
        """The simulator, with the histories that TRIM-Seq reads."""
        return simulator(self.collected, self.out, self.order.max_steps)

    @functools.cached_property
    def judged_process(self) -> Process:
        """The simulator with the large model's opinions for scores."""
        return simulator(self.collected, self.out, self.order.max_steps, judges=True)

    def saved(self, name: str) -> Policy:
        """A policy that the recipe's `after` names."""
        return load_policy(self.out / name)

    def features(self, **fields: Any) -> Features:
        """Features in units of the traces; scores as logits unless `fields` say otherwise."""
        unit = scales(self.traces)
        units = {"token_scale": unit["token_scale"], "step_scale": unit["step_scale"]}
        return Features(**({"logit": True} | units | fields))

    def agg(self, **fields: Any) -> Agg:
        """Untrained, with these `features`."""
        return Agg(self.order.worths, features=self.features(**fields))

    def seq(self, **fields: Any) -> Seq:
        """Untrained, in units of the traces."""
        unit = scales(self.traces)
        return Seq(self.order.worths, max_steps=self.order.max_steps,
                   token_scale=unit["token_scale"], step_scale=unit["step_scale"], **fields)

    def q(self, hands_over: bool = False) -> Q:
        """Untrained, in units of the traces; where it hands over, it explores early steps only."""
        unit = scales(self.traces)
        steps = int(unit["step_scale"])
        return Q(self.order.worths, features=self.features(price=True),
                 token_unit=unit["token_unit"],
                 excursions=(steps + 1) // 2 if hands_over else steps)

    def by_ppo(self, policy: Priced, config: ppo.PpoConfig, wrap: Wrap | None = None) -> Training:
        """`policy`, trained with PPO in the simulator; one to be wrapped, in what it will meet."""
        return self._learned(policy, ppo.make_train, config, wrap)

    def by_outcomes(self, policy: Q, config: q.QConfig, wrap: Wrap | None = None) -> Training:
        """`policy`, trained on how solutions end, likewise."""
        return self._learned(policy, q.make_train, config, wrap)

    def _learned(self, policy, make: Callable, config, wrap: Wrap | None) -> Training:
        process = (self.judged_process if wrap is judged else self.process).trimmed()
        begun = time.perf_counter()
        world = Environment(process, env.reset, env.observe, env.step, process.max_steps)
        world = handing_over(world) if wrap is takeover else world
        done = make(config, policy, world)(jax.random.key(self.order.seed))
        weights = jax.tree.map(np.asarray, done.weights)
        policy = dataclasses.replace(policy, weights=weights)
        seconds = time.perf_counter() - begun
        return Training(wrap(policy) if wrap else policy, seconds, int(done.steps.sum()))

    def solved(self, family: type[Policy], **fields: Any) -> Training:
        """A TRIM-POMDP for the parameters of the traces."""
        begun = time.perf_counter()
        parameters = estimate(self.traces, self.order.max_steps)
        policy = family.of(parameters, self.order.worths, **fields)
        weights = jax.tree.map(np.asarray, policy.weights)
        policy = dataclasses.replace(policy, weights=weights)
        return Training(policy, time.perf_counter() - begun, 0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a policy comes about.

    Attributes:
      train: makes it; None where that takes the models, for whoever has them.
      after: names of the recipes whose policies it begins with; they are trained before.
      judges: it learns from solutions whose drafts the large model judged.
    """

    train: Callable[[Material], Training] | None
    after: tuple[str, ...] = ()
    judges: bool = False


def given(policy: Policy) -> Training:
    """A policy with nothing to learn."""
    return Training(policy, seconds=0.0, steps=0)


RECIPES = {
    "pomdp": Recipe(lambda m: m.solved(Pomdp)),
    "pomdp-no_last": Recipe(lambda m: m.solved(Pomdp, sees_last=False)),
    "pomdp_filtered": Recipe(lambda m: m.solved(FilteredPomdp)),
    "pomdp_filtered-no_last": Recipe(lambda m: m.solved(FilteredPomdp, sees_last=False)),
    "agg": Recipe(lambda m: m.by_ppo(m.agg(), PPO)),
    "agg-product": Recipe(lambda m: m.by_ppo(m.agg(product=True), PPO)),
    "agg-paper": Recipe(lambda m: m.by_ppo(m.agg(logit=False), PPO)),
    "agg-release": Recipe(lambda m: m.by_ppo(m.agg(logit=False, product=True), PPO)),
    "agg-priced": Recipe(lambda m: m.by_ppo(m.agg(price=True), PPO)),
    "agg-takeover": Recipe(lambda m: m.by_ppo(m.agg(), PPO, takeover)),
    "agg-judged": Recipe(lambda m: m.by_ppo(m.agg(), PPO, judged), judges=True),
    "agg-tuned": Recipe(None, after=("agg",)),
    "q": Recipe(lambda m: m.by_outcomes(m.q(), q.QConfig())),
    "q-judged": Recipe(lambda m: m.by_outcomes(m.q(), q.QConfig(), judged), judges=True),
    "q-takeover": Recipe(lambda m: m.by_outcomes(m.q(True), Q_TAKEOVER, takeover)),
    "seq": Recipe(lambda m: m.by_ppo(m.seq(), PPO_SEQ)),
    "q-tuned": Recipe(None, after=("q",)),
    "seq-tuned": Recipe(None, after=("seq",)),
    "seq-separate": Recipe(lambda m: m.by_ppo(m.seq(price=False), PPO_SEQ)),
    "thr-takeover": Recipe(lambda m: given(takeover(Threshold(m.order.thresholds)))),
    "rsd": Recipe(lambda m: given(Rsd(m.order.thresholds))),
    "glimp": Recipe(lambda m: given(Glimp(ENTROPIES))),
    "loglik": Recipe(lambda m: given(LogLik(LIKELIHOODS))),
}  # fmt: skip


def tuned_from(name: str) -> str | None:
    """The recipe whose policy this one goes on from with the models; None for one made without."""
    recipe = RECIPES[name]
    return recipe.after[0] if recipe.train is None else None


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no recipe.

    Raises:
      ConfigError: naming the nearest recipe, or the name that is there twice.
    """
    for name in names:
        if name not in RECIPES:
            nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
            raise ConfigError(f"study.policies: no recipe {name!r}; did you mean {nearest!r}? "
                              f"(known: {', '.join(RECIPES)})")
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ConfigError(f"study.policies: {twice[0]!r} is named twice")


def in_order(names: Sequence[str]) -> list[str]:
    """The recipes to train here for these names, each behind those that it begins with."""
    found: list[str] = []
    for name in names:
        wanted = in_order(RECIPES[name].after) + ([name] if RECIPES[name].train else [])
        found += [n for n in wanted if n not in found]
    return found


def simulator(result: Result, out: Path, max_steps: int, judges: bool = False) -> Process:
    """The simulator of a run's traces, fitted once for a folder `out` and kept there.

    Args:
      judges: with the large model's opinions for scores; else it has the histories that TRIM-Seq
        reads.

    Raises:
      ResultError: the run has not what the fit needs. CheckpointError: the kept one is damaged.
    """
    path = out / f"simulator{'-judged' * judges}.safetensors"
    if not path.exists():
        process, report = (fit_judged if judges else fit_result)(result, max_steps)
        effects = {name: list(value) for name, value in report.parameters.items()}
        counts = {"drafts": report.drafts, "rewrites": report.rewrites}
        _write(path.with_suffix(".json"), {"effects": effects, **counts})
        save_process(path, process)
    return load_process(path).replace(history=not judges)


def scales(traces: Sequence[Trace]) -> dict[str, float]:
    """Units of the features, from traces: tokens of a long step, steps and tokens of a solution."""
    steps = [s.n_tokens for t in traces for s in t.steps]
    return {
        "token_scale": float(np.quantile(steps, 0.9)),
        "step_scale": float(np.quantile([len(t.steps) for t in traces], 0.9)),
        "token_unit": float(np.mean([sum(s.n_tokens for s in t.steps) for t in traces]) / 3),
    }


def train(name: str, material: Material) -> Training:
    """The policy of one recipe; its `full_name` is the recipe's."""
    done = RECIPES[name].train(material)
    policy = dataclasses.replace(done.policy, variant=name.partition("-")[2])
    return dataclasses.replace(done, policy=policy)


def train_apart(
    folder: str | Path, out: str | Path, names: Sequence[str], order: Order
) -> None:
    """Train the named policies that `out` lacks in another process, each into a folder of its name.

    Args:
      folder: collected traces. out: where the policies go.
      names: of recipes; those that they begin with are trained too. Tuned ones are not, but those
        that they go on from.

    Raises:
      ConfigError: a name is no recipe's.
      TrimError: the process failed, or stalled again and again.
    """
    check_names(names)
    names = in_order(names)
    context = multiprocessing.get_context("spawn")
    for attempt in range(ATTEMPTS):
        child = context.Process(target=_train_on_cpu, args=(folder, out, names, order))
        child.start()
        progress, since = _finished(out, names), time.monotonic()
        while child.is_alive():
            child.join(timeout=1)
            if _finished(out, names) != progress:
                progress, since = _finished(out, names), time.monotonic()
            elif time.monotonic() - since > PATIENCE * 2**attempt:
                child.kill()
                child.join()
        if len(_finished(out, names)) == len(names):
            return
        if child.exitcode not in (0, -9):
            raise TrimError(f"study: the training of policies failed, status {child.exitcode}")
    raise TrimError(f"study: the training of policies stalled {ATTEMPTS} times; run it again")


def _finished(out: str | Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if is_saved(Path(out) / name)]


def _train_on_cpu(*arguments: Any) -> None:
    jax.config.update("jax_platforms", "cpu")
    train_missing(*arguments)


def train_missing(
    folder: str | Path, out: str | Path, names: Sequence[str], order: Order
) -> None:
    """`train_apart` in this process, without its protection from stalls."""
    out, names = Path(out), in_order(names)
    if len(_finished(out, names)) == len(names):
        return
    # More threads than cores: the more there are, the rarer is it that all of them wait.
    os.environ.setdefault("NPROC", str(max(4, os.cpu_count() or 1)))
    material = Material(order, load_result(folder), out)
    for name in names:
        if not is_saved(out / name):
            done = train(name, material)
            took = {"seconds": done.seconds, "environment_steps": done.steps}
            _write(out / name / "training.json", took)
            save_policy(out / name, done.policy)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, [json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"])
