"""Steps that several sub-commands begin with: devices, models, engine, from one config."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from trim_jax import api
from trim_jax.api import Trio, load_trio, step_store
from trim_jax.engine import hosts
from trim_jax.engine.engine import Engine, EngineConfig
from trim_jax.engine.sampling import Sampling
from trim_jax.engine.store import StepStore
from trim_jax.errors import ConfigError
from trim_jax.policies.base import Policy
from trim_jax.sharding import make_mesh
from trim_jax.tasks.data import Problem


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs; $TRIM_JAX_CACHE says where, empty turns it off."""
    folder = os.environ.get("TRIM_JAX_CACHE", str(Path.home() / ".cache" / "trim_jax"))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def on_hosts(config: ConfigDict, command: Callable[[], None]) -> None:
    """Run a command on process 0 of `config.engine.hosts`; the others serve its engines meanwhile.

    Raises:
      ConfigError: JAX does not find as many processes, or their devices are not those of the mesh.
        Besides, on process 0 what `command` raises; the others do not fail with it.
    """
    if config.engine.hosts == 1:
        command()
        return
    _join(config.engine)
    if jax.process_index() == 0:
        with hosts.leading():
            command()
    else:

        def load() -> hosts.Loaded:
            trio = load_models(config)
            return trio.models, trio.params, trio.mesh

        hosts.serve(load)


def _join(engine: ConfigDict) -> None:
    """Make this process one of `engine.hosts`, before JAX touches a device."""
    # Its handler of SIGTERM would keep a process alive that is told to end.
    jax.config.update("jax_enable_preemption_service", False)
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    number = os.environ.get("JAX_PROCESS_ID")
    try:
        if address and number:  # which differs by process, and so is no field of a config
            # A scheduler is not asked: under Slurm JAX would give the process one device only.
            jax.distributed.initialize(
                address, engine.hosts, int(number), cluster_detection_method="deactivate"
            )
        else:
            jax.distributed.initialize()
    except ValueError as error:
        raise ConfigError(
            f"engine.hosts={engine.hosts}: JAX does not find the other hosts here ({error}); set "
            "JAX_COORDINATOR_ADDRESS to HOST:PORT of the first, the same for all, and "
            f"JAX_PROCESS_ID, from 0 to {engine.hosts - 1}"
        ) from None
    _check_processes(engine)
    devices = _mesh_data(engine) * engine.mesh_model
    if devices != jax.device_count():
        raise ConfigError(
            f"engine.hosts={engine.hosts}: engine.mesh_data times engine.mesh_model must be the "
            f"number of all their devices, {jax.device_count()}; it is {devices}"
        )


def _check_processes(engine: ConfigDict) -> None:
    if jax.process_count() != engine.hosts:
        raise ConfigError(
            f"engine.hosts is {engine.hosts}, and JAX finds {jax.process_count()}: set "
            f"--config.engine.hosts={jax.process_count()}"
        )


def _mesh_data(engine: ConfigDict) -> int:
    return engine.mesh_data or max(jax.device_count() // engine.mesh_model, 1)


def load_models(config: ConfigDict) -> Trio:
    """The trio of `config.trio`, placed on the mesh of `config.engine`.

    Raises:
      TrimError: a model cannot be used, the mesh has too many devices, or the hosts are others than
        `config.engine.hosts`.
    """
    engine = config.engine
    _check_processes(engine)
    mesh = None  # all devices
    if engine.mesh_data or engine.mesh_model > 1 or engine.hosts > 1:
        mesh = make_mesh(_mesh_data(engine), engine.mesh_model)
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


def check_prompts(config: ConfigDict, trio: Trio, problems: Iterable[Problem]) -> None:
    """`api.check_prompts` with the settings of a config."""
    data = config.data
    api.check_prompts(trio, problems, engine_config(config), data.instruction, data.prm_system)


def make_engine(
    config: ConfigDict, trio: Trio, policies: Sequence[Policy], store: StepStore | None = None
) -> Engine:
    """An engine for these policies, which asks the store before it asks the models."""
    return Engine(
        trio.models, trio.params, trio.tables, policies, engine_config(config), sampling(config),
        trio.mesh, store=store,
    )  # fmt: skip


def open_store(config: ConfigDict, trio: Trio) -> StepStore | None:
    """The steps that are known from earlier, of the folder `config.store`; None without one.

    Raises:
      CheckpointError: a file of the folder is damaged. ResultError: it cannot be made.
    """
    if not config.store:
        return None
    return step_store(config.store, trio, engine_config(config), sampling(config))
