"""The training loop shared by the language models and the PRM: AdamW, resumable, loss curve saved."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from tqdm import tqdm

from trim_jax.errors import CheckpointError
from trim_jax.results import atomic_write
from trim_jax.train.batches import LengthBuckets

Loss = Callable[[Any, dict[str, jax.Array]], jax.Array]


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How a model is trained.

    Attributes:
      steps: updates. rows: sequences a batch. seed: of initialisation and batch order.
      learning_rate: peak, reached after `warmup` steps, then a cosine down to a tenth of it at
        step `cosine_steps` (at least `steps`: training may stop before the cosine does).
      weight_decay: of AdamW, on matrices only. clip: global gradient norm.
      save_every: steps between checkpoints.
    """

    steps: int
    rows: int
    seed: int
    learning_rate: float
    warmup: int
    cosine_steps: int
    weight_decay: float
    clip: float
    save_every: int


def optimizer(config: FitConfig) -> optax.GradientTransformation:
    """AdamW with linear warm-up and cosine decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup, config.cosine_steps, config.learning_rate / 10
    )
    decay = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, mask=decay),
    )


def fit(
    loss: Loss, params: Any, batches: LengthBuckets, config: FitConfig, folder: Path, title: str
) -> Any:
    """Train `params` for `config.steps` updates; a run that was killed goes on where it was saved.

    Args:
      loss: (params, batch) -> scalar mean loss.
      params: initial parameters (ignored where `folder` holds a checkpoint).
      batches: `batch(step)` gives the arrays of one update.
      folder: checkpoints and `loss.json` (the curve: [step, loss]). That they are of the same
        training is the caller's to check.
      title: shown beside the progress bar.

    Returns:
      The trained parameters.

    Raises:
      CheckpointError: the loss is not finite.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tx = optimizer(config)

    @jax.jit
    def init(params):
        return {"params": params, "opt": tx.init(params), "step": jnp.zeros([], jnp.int32)}

    @jax.jit
    def update(state, batch):
        value, grads = jax.value_and_grad(loss)(state["params"], batch)
        updates, opt = tx.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt": opt, "step": state["step"] + 1}, value

    state = init(params)
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as manager:
        curve: list[list[float]] = []
        if (latest := manager.latest_step()) is not None:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = manager.restore(latest, args=ocp.args.StandardRestore(abstract))
            saved = json.loads((folder / "loss.json").read_text())
            curve = [point for point in saved if point[0] <= latest]
        start, recent = int(state["step"]), []
        bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc=title)
        tokens, begun = 0, time.perf_counter()
        for step in bar:
            batch = batches.batch(step)
            state, value = update(state, batch)
            recent.append(value)
            tokens += batch["tokens"].size
            saves = (step + 1) % config.save_every == 0 or step + 1 == config.steps
            # Before every save, too: the mean so begins anew with it, and no NaN is saved.
            if (step + 1) % 50 == 0 or saves:
                mean = float(np.mean(jax.device_get(recent)))
                if not np.isfinite(mean):
                    raise CheckpointError(
                        f"{title}: the loss is not finite at step {step + 1}; lower "
                        f"config.train.learning_rate ({config.learning_rate}), in another "
                        f"config.out; {folder} holds the last good checkpoint"
                    )
                curve.append([step + 1, round(mean, 6)])
                recent = []
                rate = tokens / (time.perf_counter() - begun)
                bar.set_postfix_str(f"loss {mean:.4f}, {rate / 1e3:.1f}k tok/s")
            if saves:
                atomic_write(folder / "loss.json", [json.dumps(curve).encode()])
                manager.save(step + 1, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
    return state["params"]
