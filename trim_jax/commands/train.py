"""`trim-jax train-lm` and `trim-jax train-prm`: train a model of the trio and export it.

Both leave in `config.out`: config.json and provenance.json, checkpoints/ (resumable), loss.json and
loss.png (the curve), and model/ (a Hugging Face folder, ready for `config.trio`). train-prm also
leaves what it has sampled, examples.npz, and the body's own checkpoints in body/.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from tqdm import tqdm

from trim_jax import provenance
from trim_jax.api import SHIPPED, Trio, load_trio, requests
from trim_jax.commands import setup
from trim_jax.engine.engine import Engine
from trim_jax.engine.sampling import Sampling
from trim_jax.errors import CheckpointError, DataError
from trim_jax.models.hf import load_model, save_model
from trim_jax.models.qwen2 import ModelConfig, init_params
from trim_jax.policies.simple import Always, Oracle
from trim_jax.results import ResultFolder
from trim_jax.tasks.data import Problem, load_problems
from trim_jax.tasks.tokenizer import load_tokenizer
from trim_jax.train.batches import Example, LengthBuckets
from trim_jax.train.fit import FitConfig, fit
from trim_jax.train.lm import lm_examples, lm_loss
from trim_jax.train.prm import (
    body_loss, judge_loss, prm_examples, prm_model, starting_body, starting_judge, whole,
)  # fmt: skip

EXAMPLES = "examples.npz"


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
    out, settings = Path(config.out), FitConfig(**config.train)
    with ResultFolder.open_or_create(out, config, provenance.collect({}, problems)):
        examples = lm_examples(tokenizer, problems, data.instruction)
        batches = LengthBuckets(examples, settings.rows, settings.seed)
        print(f"{len(examples)} examples, {settings.steps / batches.batches_per_epoch:.2f} epochs")
        params = fit(
            lm_loss(model), init_params(model, settings.seed), batches, settings, out, out.name
        )
        return _export(out, model, params, tokenizer_folder)


def train_prm(config: ConfigDict) -> Path:
    """Sample and label solutions, train the PRM on them; returns the exported folder.

    The PRM starts from the body of one of the two, as Qwen2.5-Math-PRM starts from Qwen2.5-Math.
    """
    trio = load_trio(config.trio.small, config.trio.large, without_prm=True)
    body_folder = trio.folders[config.body]
    body, params = load_model(body_folder, "float32")
    # The last problems of the split: the language models learned from the first ones.
    data = config.data
    problems = load_problems(data.source, data.split, data.limit)[-config.sample.problems :]
    if any(problem.source != "arith" for problem in problems):
        raise DataError("train-prm: only the problems of arith come with true step labels")
    out, settings = Path(config.out), FitConfig(**config.train)
    adapt = dataclasses.replace(settings, **config.adapt)
    weights = {name: trio.folders[name] for name in ("small", "large")}
    with ResultFolder.open_or_create(out, config, provenance.collect(weights, problems)) as folder:
        if not (out / EXAMPLES).exists():
            folder.write_file(EXAMPLES, _packed(_labelled_examples(config, trio, problems)))
        batches = LengthBuckets(_unpacked(out / EXAMPLES), settings.rows, settings.seed)
        params = fit(
            body_loss(body), starting_body(params, trio.tables), batches, adapt, out / "body",
            "body",
        )  # fmt: skip
        judge = starting_judge(body, params, batches.batch(0)["tokens"], settings.seed)
        judge = fit(judge_loss(body, params), judge, batches, settings, out, out.name)
        return _export(out, prm_model(body), whole(params, judge), body_folder)


def _labelled_examples(
    config: ConfigDict, trio: Trio, problems: Sequence[Problem]
) -> list[Example]:
    """Solutions with their labels, sampled as in routing and once more at a higher temperature."""
    data, sample, routing = config.data, config.sample, setup.sampling(config)
    known = {problem.id: problem for problem in problems}
    policies = [Oracle(), Always()]
    found: dict[bytes, Example] = {}
    for sampling in (routing, Sampling(sample.hot, top_p=1.0, top_k=0)):
        engine = Engine(
            trio.models, trio.params, trio.tables, policies, setup.engine_config(config), sampling,
            trio.mesh,
        )  # fmt: skip
        asked = requests(
            trio, policies, problems, (config.train.seed,), data.instruction, data.prm_system
        )
        total = len(problems) * len(policies)
        title = f"solutions at temperature {sampling.temperature}"
        for solution in tqdm(engine.run(asked), desc=title, total=total, unit=" solutions"):
            problem = known[solution.request.problem_id]
            found_here = prm_examples(
                solution, problem, trio.tables, trio.tokenizer, sample.label_noise,
                config.train.seed,
            )  # fmt: skip
            for example in found_here:
                found.setdefault(example.tokens.tobytes() + example.weight.tobytes(), example)
    examples = [found[name] for name in sorted(found)]  # solutions come in no fixed order
    steps = np.concatenate([e.target[e.weight == 1] for e in examples])
    print(f"{len(examples)} distinct texts, {len(steps)} labelled steps, "
          f"{100 * (1 - steps.mean()):.1f} % of them wrong")
    return examples


def _packed(examples: Sequence[Example]) -> bytes:
    """The examples end to end, and the length of each."""
    arrays = {name: np.concatenate([getattr(e, name) for e in examples])
              for name in ("tokens", "target", "weight")}  # fmt: skip
    file = io.BytesIO()
    np.savez_compressed(file, length=[len(e.tokens) for e in examples], **arrays)
    return file.getvalue()


def _unpacked(path: Path) -> list[Example]:
    """The examples that `_packed` packed.

    Raises:
      CheckpointError: the file is damaged.
    """
    try:
        with np.load(path) as file:
            ends = np.cumsum(file["length"])[:-1]
            columns = [np.split(file[name], ends) for name in ("tokens", "target", "weight")]
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); remove it, and it is sampled "
                              "again") from error  # fmt: skip
    return [Example(*arrays) for arrays in zip(*columns)]


def _export(out: Path, model: ModelConfig, params, tokenizer_folder: Path) -> Path:
    """Draw the curve and write the model folder."""
    _draw_curve(out)
    tokenizer = load_tokenizer(tokenizer_folder)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    save_model(out / "model", model, params, tokenizer_folder, extra=ids)
    size = sum(x.size for x in jax.tree.leaves(params))
    print(f"{size / 1e6:.2f} M parameters, exported to {out / 'model'}")
    return out / "model"


def _draw_curve(out: Path) -> None:
    steps, losses = zip(*json.loads((out / "loss.json").read_text()))
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(steps, losses, color="#0072b2")
    axes.set(xlabel="update", ylabel="training loss", title=out.name)
    axes.grid(alpha=0.3)
    figure.savefig(out / "loss.png", dpi=150, metadata={"Software": None})
