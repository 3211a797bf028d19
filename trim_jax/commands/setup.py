"""Steps that several sub-commands begin with: devices, models, engine, from one config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from trim_jax.api import Trio, load_trio
from trim_jax.engine.engine import Engine, EngineConfig
from trim_jax.engine.sampling import Sampling
from trim_jax.policies.base import Policy
from trim_jax.sharding import make_mesh


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs; $TRIM_JAX_CACHE says where, empty turns it off."""
    folder = os.environ.get("TRIM_JAX_CACHE", str(Path.home() / ".cache" / "trim_jax"))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def load_models(config: ConfigDict) -> Trio:
    """The trio of `config.trio`, placed on the mesh of `config.engine`."""
    engine = config.engine
    mesh = None
    if engine.mesh_data * engine.mesh_model > 1:
        mesh = make_mesh(engine.mesh_data, engine.mesh_model)
    trio = config.trio
    return load_trio(trio.small, trio.large, trio.prm, engine.dtype, mesh)


def engine_config(config: ConfigDict) -> EngineConfig:
    """The engine's part of a config."""
    e = config.engine
    return EngineConfig(
        slots=e.slots, rows=e.rows, max_context=e.max_context, max_steps=e.max_steps,
        max_step_tokens=e.max_step_tokens,
    )  # fmt: skip


def sampling(config: ConfigDict) -> Sampling:
    """The sampling part of a config."""
    s = config.sampling
    return Sampling(s.temperature, s.top_p, s.top_k)


def make_engine(config: ConfigDict, trio: Trio, policies: Sequence[Policy]) -> Engine:
    """An engine for these policies."""
    return Engine(
        trio.models, trio.params, trio.tables, policies, engine_config(config), sampling(config),
        trio.mesh,
    )  # fmt: skip
