"""Gradient descent with early stopping on held-out questions, for the routers that train a net."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

Data = Mapping[str, np.ndarray]  # arrays with one leading axis of questions
# (params, batch, key of the noise of training, or None at evaluation) -> mean loss, a scalar
Loss = Callable[[Any, Data, jax.Array | None], jax.Array]

HELD_OUT_PARTS = 5  # one fifth of the training questions stops the descent


@dataclasses.dataclass(frozen=True)
class Descent:
    """How a net is trained.

    Attributes:
      learning_rate, weight_decay: of AdamW.
      epochs: at most so many passes over the questions.
      patience: stops after so many epochs without a better held-out loss.
      rows: questions a batch.
    """

    learning_rate: float
    weight_decay: float
    epochs: int
    patience: int
    rows: int


def minimise(loss: Loss, params: Any, data: Data, held: Data, key: jax.Array, how: Descent,
             title: str) -> tuple[Any, float, int]:
    """Trains on `data` and keeps the parameters with the lowest loss on `held`.

    A progress bar named `title` appears when it takes longer than 5 s.

    Returns:
      The parameters, their held-out loss, and the epoch they are from (0: the initial ones).
    """
    data, held = ({k: jnp.asarray(v) for k, v in d.items()} for d in (data, held))
    n = len(next(iter(data.values())))
    rows = min(how.rows, n)
    tx = optax.chain(optax.clip_by_global_norm(1.0),
                     optax.adamw(how.learning_rate, weight_decay=how.weight_decay))

    @jax.jit
    def epoch(params, state, data, key):
        order = jax.random.permutation(key, n)[:n // rows * rows].reshape(-1, rows)

        def update(carry, batch_key):
            params, state = carry
            at, key = batch_key
            grads = jax.grad(loss)(params, {k: v[at] for k, v in data.items()}, key)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(
            update, (params, state), (order, jax.random.split(jax.random.fold_in(key, 1),
                                                              len(order))))
        return params, state

    held_loss = jax.jit(lambda params, held: loss(params, held, None))
    state, best, lowest, best_epoch = tx.init(params), params, float(held_loss(params, held)), 0
    with tqdm(total=how.epochs, desc=title, delay=5, leave=False) as bar:
        for number in range(1, how.epochs + 1):
            params, state = epoch(params, state, data, jax.random.fold_in(key, number))
            value = float(held_loss(params, held))
            bar.update()
            bar.set_postfix_str(f"held-out loss {value:.4f}", refresh=False)
            if value < lowest:
                best, lowest, best_epoch = params, value, number
            elif number - best_epoch >= how.patience:
                break
    return best, lowest, best_epoch
