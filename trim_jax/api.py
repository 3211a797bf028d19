"""The Python face of trim_jax: load three models, route problems through them.

    import trim_jax
    trim_jax.use_cores()                             # of a CPU, all of them
    trio = trim_jax.load_trio()                      # the shipped arith trio
    problems = trim_jax.load_problems("arith", "test", limit=20)
    traces = trim_jax.route(problems, trim_jax.Threshold((0.5,)), trio)
    print(sum(trace.correct for trace in traces) / len(traces))
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from trim_jax.engine.engine import Cells, Engine, EngineConfig, Request, Solution, too_long
from trim_jax.engine.rows import LEDGER, MODELS
from trim_jax.engine.sampling import Sampling
from trim_jax.engine.store import StepStore
from trim_jax.engine.tokens import TokenTables, token_tables
from trim_jax.errors import CheckpointError, DataError, ResultError
from trim_jax.eval.traces import Ledger, ModelLedger, StepTrace, Trace
from trim_jax.models.hf import load_config, load_model
from trim_jax.models.qwen2 import ModelConfig
from trim_jax.policies.base import Policy
from trim_jax.policies.registry import make_policy
from trim_jax.provenance import arithmetic, hash_checkpoint
from trim_jax.sharding import all_devices, by_path, param_shardings
from trim_jax.tasks import arith, prompts
from trim_jax.tasks.data import Problem
from trim_jax.tasks.grading import extract_boxed, grade_many
from trim_jax.tasks.tokenizer import check_same_tokenizer, load_tokenizer

SHIPPED = Path(__file__).resolve().parent / "assets"
_WRITERS = ("small", "large")
_ACTIONS = ("accept", "regenerate", "direct")


@dataclasses.dataclass(frozen=True)
class Trio:
    """Small model, large model and PRM, loaded and placed, with their tokenizers.

    Attributes:
      folders: checkpoint folder of each model, by "small", "large", "prm".
      models, params: in that order. tokenizer: of the language models. tables: its token tables.
      prm_tokenizer: the same but for control tokens and the chat template.
      mesh: the devices that hold them; None is the default device.
    """

    folders: dict[str, Path]
    models: tuple[ModelConfig, ModelConfig, ModelConfig]
    params: tuple[Any, Any, Any]
    tokenizer: Any
    tables: TokenTables
    prm_tokenizer: Any
    mesh: Mesh | None = None


def load_trio(
    small: str | Path | None = None,
    large: str | Path | None = None,
    prm: str | Path | None = None,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    without_prm: bool = False,
) -> Trio:
    """Load three Hugging Face folders; what is not given is the shipped arith model.

    Args:
      small, large: Qwen2 language models with one tokenizer. prm: a Qwen2.5-Math-PRM.
      dtype: "float32" or "bfloat16".
      mesh: from `trim_jax.sharding.make_mesh`; None for all devices, see `sharding.all_devices`.
      without_prm: the small model takes the place of the PRM; for policies that never ask it.

    Raises:
      CheckpointError: a folder is missing, incomplete or of another architecture, weights are not
        finite, or the tokenizers differ.
    """
    given = zip(MODELS, (small, large, prm))
    folders = {name: Path(folder) if folder else SHIPPED / name for name, folder in given}
    if without_prm:
        folders["prm"] = folders["small"]
    # All headers first: a mistake in the third folder should not cost the loading of the first two.
    configs = [load_config(folder, dtype) for folder in folders.values()]
    for name, config in zip(MODELS, configs):
        if (config.head == "prm") != (name == "prm") and not without_prm:
            raise CheckpointError(
                f"{folders[name]}: has a {config.head} head; trio.{name} must be a "
                + ("process reward model" if name == "prm" else "language model")
            )
    tokenizers = [load_tokenizer(folder) for folder in folders.values()]
    for name, config, tokenizer in zip(MODELS, configs, tokenizers):
        check_same_tokenizer(tokenizers[0], tokenizer, "small", name, control=name != "prm")
        if len(tokenizer) > config.vocab:
            raise CheckpointError(f"{folders[name]}: its tokenizer has {len(tokenizer)} tokens, "
                                  f"the model only {config.vocab}")  # fmt: skip
    # Qwen2.5 pads its vocabulary differently by size; the tables cover the largest.
    vocab = max(config.vocab for config in configs)
    tables = token_tables(tokenizers[0], vocab, tokenizers[2])
    if mesh is None:
        mesh = all_devices(sum(c.matmul_params() * jnp.dtype(c.dtype).itemsize for c in configs))
    params = []
    for config, folder in zip(configs, folders.values()):
        place = by_path(param_shardings(config, mesh)) if mesh is not None else None
        params.append(load_model(folder, dtype, place)[1])
    return Trio(
        folders, tuple(configs), tuple(params), tokenizers[0], tables, tokenizers[2], mesh
    )


def prompt_ids(
    trio: Trio, problem: Problem, instruction: str = "", prm_system: str = ""
) -> tuple[list[int], list[int]]:
    """What the language models and the PRM read before the first step.

    Raises:
      DataError: the problem spells a control token.
    """
    text, name = problem.problem, problem.id
    return (prompts.lm_prompt_ids(trio.tokenizer, text, instruction, name),
            prompts.prm_prompt_ids(trio.prm_tokenizer, text, prm_system, name))  # fmt: skip


def check_prompts(
    trio: Trio,
    problems: Iterable[Problem],
    engine: EngineConfig,
    instruction: str = "",
    prm_system: str = "",
) -> None:
    """Refuse problems before any is solved.

    Raises:
      DataError: names every problem that spells a control token, leaves no room for a solution, or
        says that it is of `arith` and is not.
    """
    bad = []
    for problem in problems:
        try:
            prompt, prm_prompt = prompt_ids(trio, problem, instruction, prm_system)
            if problem.source == "arith":
                arith.step_kinds(problem)  # the labels of its steps will be asked for
        except DataError as error:
            bad.append(f"  {error}")
            continue
        if reason := too_long(len(prompt), len(prm_prompt), engine.max_context):
            bad.append(f"  problem {problem.id!r}: {reason}")
    if bad:
        raise DataError(f"{len(bad)} problem(s) cannot be asked:\n" + "\n".join(bad))


def requests(
    trio: Trio,
    policies: Sequence[Policy],
    problems: Iterable[Problem],
    seeds: Sequence[int],
    instruction: str = "",
    prm_system: str = "",
    chosen: Sequence[int] | None = None,
) -> Iterator[Request]:
    """Requests by problem and seed: one for all settings of all policies that can share steps.

    `chosen` are the indices of the policies that are asked; None for all of them.
    """
    chosen = range(len(policies)) if chosen is None else chosen
    wanted = any(policies[i].needs_reference for i in chosen)
    every = [(i, len(policies[i].settings), policies[i].state_knows_dial) for i in chosen]
    together = tuple(Cells(i, 0, n) for i, n, alone in every if not alone)
    apart = [(Cells(i, k, k + 1),) for i, n, alone in every if alone for k in range(n)]
    groups = [together, *apart] if together else apart
    for problem in problems:
        prompt, prm_prompt = prompt_ids(trio, problem, instruction, prm_system)
        reference: list[int] = []
        if wanted:
            if not problem.solution:
                raise DataError(f"problem {problem.id!r} has no solution, which the oracle needs")
            reference = prompts.lm_example_ids(trio.tokenizer, problem, instruction)[0][:-1]
        for seed in seeds:
            for cells in groups:
                yield Request(problem.id, seed, prompt, prm_prompt, cells, reference)


def traces(
    solutions: Sequence[Solution],
    problems: Sequence[Problem],
    trio: Trio,
    policies: Sequence[Policy],
) -> list[Trace]:
    """Decode and grade solutions; sorted by problem, seed, policy and setting."""
    order = {problem.id: i for i, problem in enumerate(problems)}
    # Forked rows share most of their steps: decode each distinct one once.
    texts: dict[tuple[int, ...], str] = {}

    def text(tokens: tuple[int, ...]) -> str:
        if tokens not in texts:
            texts[tokens] = trio.tokenizer.decode(tokens).strip("\n")
        return texts[tokens]

    answers = [extract_boxed("\n\n".join(text(step.tokens) for step in s.steps)) for s in solutions]
    golds = [problems[order[s.request.problem_id]].answer for s in solutions]
    correct = grade_many(list(zip(answers, golds)))
    found = []
    for solution, answer, right in zip(solutions, answers, correct):
        at, seed = order[solution.request.problem_id], solution.request.seed
        history = _history(solution, problems[at], text, answer, right)
        for policy, lo, hi in solution.cells:
            trace = Trace(policy=policies[policy].full_name, settings=(lo, hi), **history)
            found.append(((at, seed, policy, lo), trace))
    return [trace for _, trace in sorted(found, key=lambda entry: entry[0])]


def _history(solution, problem, text, answer, correct) -> dict[str, Any]:
    """The fields of `Trace` that all cells of a solution share."""
    written = [text(step.tokens) for step in solution.steps]
    labels: list[bool | None] = [None] * len(written)
    draft_labels, kinds = list(labels), list(labels)
    if problem.source == "arith" and problem.solution:
        labels = arith.step_labels(problem, written)
        known = arith.step_kinds(problem)
        kinds = [known[i] if i < len(known) else None for i in range(len(written))]
        for i, step in enumerate(solution.steps):
            if step.draft is not None:
                tried = [*written[:i], text(step.draft)]
                draft_labels[i] = arith.step_labels(problem, tried)[-1]
    steps = tuple(
        StepTrace(
            text=written[i],
            writer=_WRITERS[step.writer],
            action=_ACTIONS[step.action],
            score_draft=step.draft_score,
            score=step.score,
            n_tokens=step.cost,
            draft=text(step.draft) if step.draft is not None else None,
            draft_tokens=step.draft_cost,
            right=labels[i],
            draft_right=draft_labels[i],
            kind=kinds[i],
            draft_likelihood=None if step.draft_loglik is None else math.exp(step.draft_loglik),
        )
        for i, step in enumerate(solution.steps)
    )
    counts = [dict(zip(LEDGER, map(int, row))) for row in solution.ledger]
    return dict(
        problem_id=problem.id,
        seed=solution.request.seed,
        finish=solution.finish,
        answer=answer,
        correct=bool(correct),
        strong_tokens=solution.strong_tokens,
        steps=steps,
        ledger=Ledger(*(ModelLedger(**count) for count in counts)),
    )


def step_store(
    folder: str | Path, trio: Trio, engine: EngineConfig, sampling: Sampling
) -> StepStore:
    """The steps in `folder` that these models wrote and judged under these settings.

    Raises:
      CheckpointError: a file of the folder is damaged. ResultError: it cannot be made.
    """
    tables = hashlib.sha256(b"".join(trio.tables.content()))
    common = (tables.hexdigest(), arithmetic())
    limits = (engine.max_context, engine.max_step_tokens)
    origins = []
    for name, model in zip(MODELS, trio.models):
        writes = (sampling, limits) if name != "prm" else ()
        origins.append(repr((hash_checkpoint(trio.folders[name]), model, common, *writes)))
    return StepStore(origins, folder)


def route(
    problems: Sequence[Problem],
    policy: Policy | str,
    trio: Trio | None = None,
    *,
    seeds: Sequence[int] = (0,),
    instruction: str = "",
    prm_system: str = "",
    sampling: Sampling = Sampling(),
    engine: EngineConfig = EngineConfig(),
    store: str | Path | None = None,
) -> list[Trace]:
    """Solve problems with a routing policy.

    Args:
      problems: see `load_problems`. policy: an object, or a name or "module:function" for
        `trim_jax.policies.registry.make_policy`.
      trio: from `load_trio`; None loads the shipped one.
      seeds: every problem is solved once per seed.
      instruction: put before each problem. prm_system: system turn of the PRM.
      sampling, engine: settings of the language models and of the loop.
      store: folder of steps that earlier runs have computed. A solution goes as far as they take it
        before a model is asked, and what this run computes is added.

    Returns:
      One trace per (problem, seed, distinct history), sorted; `trace.settings` tells for which of
      the policy's settings it holds.

    Raises:
      DataError: a prompt that cannot be asked; all of them are named before anything runs.
      CheckpointError, ResultError: a file of the store is damaged, or its folder cannot be made.
    """
    trio = trio if trio is not None else load_trio()
    if isinstance(policy, str):
        policy = make_policy(policy)
    check_prompts(trio, problems, engine, instruction, prm_system)
    machine = Engine(
        trio.models, trio.params, trio.tables, [policy], engine, sampling, trio.mesh,
        store=step_store(store, trio, engine, sampling) if store else None,
    )  # fmt: skip
    asked = requests(trio, [policy], problems, seeds, instruction, prm_system)
    found = traces(list(machine.run(asked)), problems, trio, [policy])
    try:
        machine.keep_steps()
    except ResultError as error:
        warnings.warn(f"{error}. The traces are complete, their steps are not kept", stacklevel=2)
    return found


def parameters(trio: Trio) -> dict[str, int]:
    """Weights that each token multiplies, by model: FLOPs a token are twice this."""
    return {name: config.matmul_params() for name, config in zip(MODELS, trio.models)}

