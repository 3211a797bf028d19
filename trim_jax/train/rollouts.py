"""Problems played through the routed engine, as training data.

The same `Episodes` as from the simulator, written by the models themselves. Solutions of all prices
come from one run, in which they share the steps that they have in common, and other weights need
neither another engine nor a recompile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax import api
from trim_jax.engine.engine import Engine, EngineConfig
from trim_jax.engine.sampling import Sampling, fold, row_key, uniform
from trim_jax.engine.steps import POLICY_STREAM
from trim_jax.engine.store import StepStore
from trim_jax.policies.learned import Priced
from trim_jax.tasks.data import Problem
from trim_jax.train.episodes import Episodes, from_traces


def first_uniform(seed: int, problem_ids: Sequence[str]) -> jax.Array:
    """float32 [N]: `Observation.uniform` of each problem's first step, as the engine draws it."""
    keys = jnp.stack([row_key(seed, problem_id) for problem_id in problem_ids])
    return uniform(fold(fold(keys, jnp.uint32(POLICY_STREAM)), jnp.uint32(0)))


class Player:
    """An engine for policies with the same settings, which are given the same weights to play with.

    Attributes:
      max_steps: of the episodes. origin: says which models play, and how.
      solutions: that the models have written so far; prices that never parted count once.
    """

    def __init__(
        self,
        trio: api.Trio,
        policies: Sequence[Priced],
        engine: EngineConfig = EngineConfig(),
        sampling: Sampling = Sampling(),
        instruction: str = "",
        prm_system: str = "",
        store: StepStore | None = None,
    ):
        # Ways to explore are of one class: their traces are told apart by a variant.
        self.policies = [dataclasses.replace(p, variant=f"{i}") for i, p in enumerate(policies)]
        self.trio, self.instruction, self.prm_system = trio, instruction, prm_system
        self.max_steps, self.size = engine.max_steps, engine
        self.engine = Engine(
            trio.models, trio.params, trio.tables, self.policies, engine, sampling, trio.mesh,
            store=store,
        )  # fmt: skip
        folders = {name: str(path) for name, path in trio.folders.items()}
        self.origin = repr((folders, engine, sampling, instruction, prm_system))
        self.solutions = 0

    def play(
        self, weights: Any, problems: Sequence[Problem], seed: int, which: Sequence[int]
    ) -> Episodes:
        """Episodes [policies, settings, N problems, M steps] of some policies, at all their prices.

        `which` are their indices; two of the same variant are not to be played together.

        Raises:
          DataError: a prompt that cannot be asked; all of them are named before anything runs.
        """
        asks = self.instruction, self.prm_system
        api.check_prompts(self.trio, problems, self.size, *asks)
        for i in which:
            self.engine.load_weights(i, weights)
        asked = api.requests(
            self.trio, self.policies, problems, (seed,), *asks, which
        )
        written = list(self.engine.run(asked))
        self.solutions += len(written)
        traces = api.traces(written, problems, self.trio, self.policies)
        names = [self.policies[i].full_name for i in which]
        return self._episodes(traces, names, problems, seed)

    def keep_steps(self) -> None:
        """As `Engine.keep_steps`."""
        self.engine.keep_steps()

    def _episodes(
        self, traces: Sequence, names: Sequence[str], problems: Sequence[Problem], seed: int
    ) -> Episodes:
        settings = self.policies[0].settings
        policy_at = {name: i for i, name in enumerate(names)}
        problem_at = {problem.id: i for i, problem in enumerate(problems)}
        own = np.empty([len(policy_at), len(settings), len(problems)], np.int32)
        for number, trace in enumerate(traces):
            first, end = trace.settings
            own[policy_at[trace.policy], first:end, problem_at[trace.problem_id]] = number
        drawn = np.asarray(first_uniform(seed, list(problem_at)))
        each = [drawn[problem_at[trace.problem_id]] for trace in traces]
        episodes = from_traces(traces, np.ones(len(traces)), each, self.max_steps)
        episodes = jax.tree.map(lambda x: x[own], episodes)
        worth = jnp.asarray(settings, jnp.float32)[:, None]
        return episodes.replace(worth=jnp.broadcast_to(worth, own.shape))
