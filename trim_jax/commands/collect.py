"""`trim-jax collect`: traces of training problems, from which policies and the simulator learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from trim_jax.commands import setup
from trim_jax.commands.sweep import Runs, open_part, sweep_policies
from trim_jax.eval.report import write_report
from trim_jax.policies.base import Policy
from trim_jax.policies.simple import Detour
from trim_jax.tasks.data import load_problems


def collecting_policies(config: ConfigDict) -> list[Policy]:
    """TRIM-Thr at every threshold, random routing, and the detours that are asked for.

    Between them they visit right and wrong texts of every length, with drafts and rewrites of both.
    """
    policies = [policy for policy in sweep_policies(config) if policy.name != "oracle"]
    steps = config.get("collect", {}).get("detours", 0)
    return [*policies, Detour(tuple(map(float, range(steps))))] if steps else policies


def run(config: ConfigDict) -> Path:
    """Run or resume a collection; returns the path of its report.

    Raises:
      TrimError: a problem cannot be asked, a model or the folder cannot be used, or the folder
        belongs to another config.
    """
    data, out = config.data, Path(config.out)
    problems = load_problems(data.source, data.split, data.limit)
    trio = setup.load_models(config)
    setup.check_prompts(config, trio, problems)
    policies: Sequence[Policy] = collecting_policies(config)
    engine = setup.make_engine(config, trio, policies, setup.open_store(config, trio))
    with open_part(out, config, trio, data.split, problems, config.seeds) as folder:
        work = Runs(config, trio, engine, policies)
        work.solve(folder, problems, config.seeds, range(len(policies)), data.split)
    return write_report([out], out)
