"""Training the process reward model on sampled solutions (`trim-jax train-prm`).

A step is labelled right while it and everything before it is right; the first wrong step is the
last one that is learned from, as what follows it has no clear label (method, section 2, states S0
and S2). The sequences are those that the PRM meets in routing: solutions of the small model, of the
large one, and of both in turns, tokenized step by step by the engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax

from trim_jax.engine.engine import Solution
from trim_jax.engine.tokens import TokenTables
from trim_jax.models.qwen2 import ModelConfig, Qwen2
from trim_jax.train.batches import Example


def prm_stream(solution: Solution, tables: TokenTables) -> tuple[np.ndarray, np.ndarray]:
    """The PRM's tokens of a solution, int32 [T], and where its steps end in them, int [steps]."""
    stream, ends = list(solution.request.prm_prompt), []
    for step in solution.steps:
        tokens = list(step.tokens)
        while tokens and tables.stripped[tokens[-1]] < 0:
            tokens.pop()
        if tokens:
            tokens[-1] = int(tables.stripped[tokens[-1]])
        stream += [*tokens, tables.separator]
        ends.append(len(stream) - 1)
    return np.array(stream, np.int32), np.array(ends, np.int64)


def prm_example(solution: Solution, right: Sequence[bool], tables: TokenTables) -> Example:
    """A training sequence; `right` holds the true label of every step of the solution."""
    tokens, ends = prm_stream(solution, tables)
    target = np.zeros(len(tokens), np.int32)
    weight = np.zeros(len(tokens), np.float32)
    learned = right.index(False) + 1 if False in right else len(right)
    target[ends[:learned]] = right[:learned]
    weight[ends[:learned]] = 1
    return Example(tokens, target, weight)


def prm_loss(config: ModelConfig):
    """Mean cross-entropy of (wrong, right) over the labelled steps of a batch."""
    model = Qwen2(config)

    def loss(params, batch):
        logits, _ = model.apply({"params": params}, batch["tokens"])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"])
        return (each * batch["weight"]).sum() / jnp.maximum(batch["weight"].sum(), 1.0)

    return loss
