"""`trim-jax train-lm` and `trim-jax train-prm`: train a model of the trio and export it.

Both leave in `config.out`: checkpoints/ (resumable), loss.json and loss.png (the curve), and
model/ (a Hugging Face folder, ready for `config.trio`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from tqdm import tqdm

from trim_jax.api import SHIPPED, load_trio, requests
from trim_jax.commands import setup
from trim_jax.engine.engine import Engine
from trim_jax.errors import DataError
from trim_jax.models.hf import load_model, save_model
from trim_jax.models.qwen2 import ModelConfig, init_params
from trim_jax.policies.simple import Always, Never, Random
from trim_jax.tasks import arith
from trim_jax.tasks.data import load_problems
from trim_jax.tasks.tokenizer import load_tokenizer
from trim_jax.train.batches import Example, LengthBuckets
from trim_jax.train.fit import FitConfig, fit
from trim_jax.train.lm import lm_examples, lm_loss
from trim_jax.train.prm import prm_example, prm_loss


def train_lm(config: ConfigDict) -> Path:
    """Train a language model on the solutions of a data set; returns the exported folder."""
    data = config.data
    problems = load_problems(data.source, data.split, data.limit)
    unsolved = [problem.id for problem in problems if not problem.solution]
    if unsolved:
        raise DataError(f"{data.source}: {len(unsolved)} problems have no solution to learn from, "
                        f"the first is {unsolved[0]!r}")
    tokenizer_folder = Path(config.tokenizer or SHIPPED / "tokenizer")
    tokenizer = load_tokenizer(tokenizer_folder)
    model = ModelConfig(vocab=len(tokenizer), **config.model)
    examples = lm_examples(tokenizer, problems, data.instruction)
    params = init_params(model, config.train.seed)
    return _fit_and_export(config, model, params, lm_loss(model), examples, tokenizer_folder)


def train_prm(config: ConfigDict) -> Path:
    """Sample and label solutions, train the PRM on them; returns the exported folder.

    The PRM starts from the large model's body, as Qwen2.5-Math-PRM starts from Qwen2.5-Math.
    """
    large = Path(config.trio.large or SHIPPED / "large")
    body, params = load_model(large, "float32")
    model = dataclasses.replace(body, head="prm")
    head = init_params(model, config.train.seed)
    params = {name: params.get(name, head[name]) for name in head}
    examples = _labelled_examples(config)
    return _fit_and_export(config, model, params, prm_loss(model), examples, large)


def _labelled_examples(config: ConfigDict) -> list[Example]:
    """Solutions of the small model, the large one, and both in turns, with their true labels."""
    data, sample = config.data, config.sample
    # The last `problems` of the split: the language models learned from the first ones.
    problems = load_problems(data.source, data.split, data.limit)[-sample.problems :]
    if any(problem.source != "arith" for problem in problems):
        raise DataError("train-prm: only the problems of arith come with true step labels")
    trio = load_trio(config.trio.small, config.trio.large, without_prm=True)
    policies = [Never(), Always(), Random(tuple(sample.mixtures))]
    engine = Engine(
        trio.models, trio.params, trio.tables, policies, setup.engine_config(config),
        setup.sampling(config),
    )  # fmt: skip
    known = {problem.id: problem for problem in problems}
    asked = requests(trio, policies, problems, (config.train.seed,), data.instruction, data.prm_system)
    found = {}
    for solution in tqdm(engine.run(asked), desc="sampling solutions", unit=" solutions"):
        tokens = tuple(step.tokens for step in solution.steps)
        found.setdefault((solution.request.problem_id, tokens), solution)
    examples = []
    for (name, tokens), solution in sorted(found.items(), key=lambda item: item[0]):
        texts = [trio.tokenizer.decode(step).strip("\n") for step in tokens]
        right = arith.step_labels(known[name], texts)
        examples.append(prm_example(solution, right, trio.tables))
    steps = np.concatenate([e.target[e.weight > 0] for e in examples])
    print(f"{len(examples)} distinct solutions, {len(steps)} labelled steps, "
          f"{100 * (1 - steps.mean()):.1f} % of them wrong")
    return examples


def _fit_and_export(config, model, params, loss, examples, tokenizer_folder: Path) -> Path:
    settings = FitConfig(**config.train)
    out = Path(config.out)
    batches = LengthBuckets(examples, settings.rows, settings.seed)
    size = sum(x.size for x in jax.tree.leaves(params))
    print(f"{size / 1e6:.2f} M parameters, {len(examples)} examples, "
          f"{settings.steps / batches.batches_per_epoch:.2f} epochs")
    params = fit(loss, params, batches, settings, out, out.name)
    _draw_curve(out)
    tokenizer = load_tokenizer(tokenizer_folder)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    save_model(out / "model", model, params, tokenizer_folder, extra=ids)
    print(f"exported to {out / 'model'}")
    return out / "model"


def _draw_curve(out: Path) -> None:
    steps, losses = zip(*json.loads((out / "loss.json").read_text()))
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(steps, losses, color="#0072b2")
    axes.set(xlabel="update", ylabel="training loss", title=out.name)
    axes.grid(alpha=0.3)
    figure.savefig(out / "loss.png", dpi=150, metadata={"Software": None})
