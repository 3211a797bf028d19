"""Training a language model on written solutions (`trim-jax train-lm`)."""

from __future__ import annotations

from typing import Sequence

import jax.numpy as jnp
import numpy as np
import optax

from trim_jax.models.qwen2 import ModelConfig, Qwen2
from trim_jax.tasks import prompts
from trim_jax.tasks.data import Problem
from trim_jax.train.batches import Example


def lm_examples(tokenizer, problems: Sequence[Problem], instruction: str = "") -> list[Example]:
    """Prompt, solution and end of sequence; only the tokens after the prompt are learned."""
    out = []
    for problem in problems:
        ids, prompt = prompts.lm_example_ids(tokenizer, problem, instruction)
        ids = np.array(ids, np.int32)
        weight = (np.arange(1, len(ids)) >= prompt).astype(np.float32)
        out.append(Example(ids[:-1], ids[1:], weight))
    return out


def lm_loss(config: ModelConfig):
    """Mean cross-entropy of the next token over the weighted positions of a batch."""
    model = Qwen2(config)

    def loss(params, batch):
        logits, _ = model.apply({"params": params}, batch["tokens"])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"])
        return (each * batch["weight"]).sum() / jnp.maximum(batch["weight"].sum(), 1.0)

    return loss
