"""Training the process reward model on sampled solutions (`trim-jax train-prm`).

A step is labelled right while it and everything before it is right; the first wrong step is the
last one that is learned from, as what follows it has no clear label (method, section 2, states S0
and S2). The sequences are those that the PRM meets in routing, tokenized step by step by the
engine: solutions of the large model, solutions in which it rewrites wrong drafts of the small one,
and those drafts behind the text they were written for.

The PRM is the body of a language model with two more layers: the large one's, or for a smaller PRM
the small one's. To see a slip, a position must compare its token with what the body expected there,
and the body expects it one position earlier. So the first new layer starts out looking at the token
before, the second one over the last dozen tokens, to gather what was found; and every token is
labelled, not only the ends of steps. First, though, the body learns to predict in the PRM's stream,
where `<extra_0>` stands for the blank line that it knows; then it stays as it is, and the new
layers learn on top of it.

For an ablation the labels may be noisy: each step's flips with some probability, decided by the
problem and the text up to it, so that a step that is met again has the same label again. Which
steps are learned from stays the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trim_jax.engine.engine import Solution
from trim_jax.engine.tokens import TokenTables, bare_step
from trim_jax.models.qwen2 import ModelConfig, Qwen2, init_params
from trim_jax.tasks import arith
from trim_jax.tasks.data import Problem
from trim_jax.train.batches import Example

NEW_LAYERS = 2
# Weights of a step's tokens; its end, where the PRM is read in routing, counts 1. Slips are rare,
# and what follows one tells little more.
RIGHT, SLIP, AFTER = 0.7, 2.8, 1.05
SPREAD = 0.06  # of the new layers' initial matrices


def flipped(problem_id: str, texts: Sequence[str], noise: float, seed: int) -> bool:
    """Whether the label of the last of these steps is wrong, which has the probability `noise`."""
    known = "\0".join([str(seed), problem_id, *texts]).encode()
    draw = int.from_bytes(hashlib.blake2b(known, digest_size=8).digest(), "big")
    return draw < noise * 2**64


def prm_examples(
    solution: Solution, problem: Problem, tables: TokenTables, tokenizer, noise: float = 0.0,
    seed: int = 0,
) -> list[Example]:  # fmt: skip
    """Training sequences of a solution: its text, and each discarded draft behind its own text.

    Args:
      noise: probability that the label of a step flips. seed: of that.

    Raises:
      DataError: the problem is not one of arith, the others have no true step labels.
    """
    text = lambda tokens: tokenizer.decode(tokens).strip("\n")  # noqa: E731
    encode = lambda step: tokenizer.encode(step, add_special_tokens=False)  # noqa: E731
    wanted = [encode(step) for step in problem.solution.split(arith.DELIMITER)]
    prompt = solution.request.prm_prompt
    steps = [step.tokens for step in solution.steps]
    texts = [text(step) for step in steps]

    def labelled(texts: list[str], true: Sequence[bool]) -> list[bool]:
        """The labels of steps, each of which may be flipped."""
        upto = (texts[: i + 1] for i in range(len(texts)))
        return [good != flipped(problem.id, seen, noise, seed) for good, seen in zip(true, upto)]

    truth = arith.step_labels(problem, texts)
    learned = truth.index(False) + 1 if False in truth else len(truth)
    right = labelled(texts, truth)
    bare = [bare_step(step, tables) for step in steps[:learned]]
    examples = [_example(prompt, bare, right[:learned], wanted, tables.separator, 0)]
    for i, step in enumerate(solution.steps[:learned]):
        if step.draft is not None:
            tried = [*texts[:i], text(step.draft)]
            fits = labelled(tried, arith.step_labels(problem, tried))
            branch = [*bare[:i], bare_step(step.draft, tables)]
            examples.append(_example(prompt, branch, fits, wanted, tables.separator, i))
    return examples


def _example(
    prompt: Sequence[int], steps: Sequence[Sequence[int]], right: Sequence[bool],
    wanted: Sequence[Sequence[int]], separator: int, learned_from: int,
) -> Example:  # fmt: skip
    """The PRM's stream of `steps`, with labels for the steps from `learned_from` on.

    Args:
      steps: bare tokens. right: their labels. wanted: the tokens of the reference steps.
    """
    tokens, target, weight = list(prompt), [0] * len(prompt), [0.0] * len(prompt)
    for i, (step, good) in enumerate(zip(steps, right)):
        labels, weights = [1] * len(step), [RIGHT] * len(step)
        if not good:
            known = wanted[i] if i < len(wanted) else ()
            slip = next(
                (j for j, token in enumerate(step) if j >= len(known) or token != known[j]),
                len(step),
            )
            labels[slip:] = [0] * len(labels[slip:])
            weights[slip:] = ([SLIP] + [AFTER] * len(step))[: len(step) - slip]
        tokens += [*step, separator]
        target += [*labels, int(good)]
        weight += [*weights, 1.0] if i >= learned_from else [0.0] * (len(step) + 1)
    return Example(
        np.array(tokens, np.int32), np.array(target, np.int32), np.array(weight, np.float32)
    )


def prm_model(body: ModelConfig) -> ModelConfig:
    """The PRM on top of a language model."""
    return ModelConfig(**{**vars(body), "head": "prm", "layers": body.layers + NEW_LAYERS})


def starting_body(params: dict, tables: TokenTables) -> dict:
    """A language model's parameters, with `<extra_0>` read as its blank line."""
    embed = params["embed"].at[tables.separator].set(params["embed"][tables.delimiter])
    return {**params, "embed": embed}


def starting_judge(body: ModelConfig, params: dict, tokens: np.ndarray, seed: int) -> dict:
    """The parameters of the new layers and the head, before they have learned.

    Args:
      params: of the body. tokens: int [B, T], a sample of the PRM's streams.
    """
    fresh = init_params(prm_model(body), seed)
    first, second = (f"layer_{body.layers + i}" for i in range(NEW_LAYERS))
    # The new layers must speak as loudly as the body does to be heard beside it.
    last = f"layer_{body.layers - 1}"
    _, seen = Qwen2(body).apply(
        {"params": params}, tokens, mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name == last,
    )  # fmt: skip
    residual = seen["intermediates"][last]["__call__"][0]
    loudness = float(jnp.sqrt(jnp.mean(residual**2)))
    key = jax.random.key(seed)
    for number, name in enumerate((first, second)):
        layer = dict(fresh[name])
        for i, matrix in enumerate(("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")):
            own = jax.random.fold_in(key, 10 * number + i)
            scale = SPREAD * (loudness if matrix in ("wo", "w_down") else 1.0)
            layer[matrix] = scale * jax.random.normal(own, layer[matrix].shape)
        fresh[name] = layer
    fresh[first] |= _look_back(body, pairs=range(4), distance=1, sharpness=8.7)
    fresh[second] |= _look_back(body, pairs=range(3, 5), distance=0, sharpness=4.4)
    scores = {name: fresh[name] * 3 for name in ("score_w1", "score_w2")}
    names = (first, second, "norm_out", "score_b1", "score_b2")
    return {name: fresh[name] for name in names} | scores


def _look_back(config: ModelConfig, pairs: range, distance: int, sharpness: float) -> dict:
    """Biases with which every head looks `distance` tokens back.

    A query and a key that are constant but for their rotation have a score that depends on their
    distance d alone: sharpness * sum over the chosen rotary pairs of cos(rate * (d - distance)).
    """
    half = config.head_dim // 2
    pair = np.arange(half)[[p for p in pairs if p < half]]
    angle = config.rope_theta ** (-pair / half) * distance
    size = np.sqrt(sharpness * np.sqrt(config.head_dim))
    query, keys = np.zeros([2, half]), np.zeros([2, half])
    query[:, pair] = size * np.stack([np.cos(angle), -np.sin(angle)])
    keys[0, pair] = size
    repeat = lambda x, heads: jnp.tile(jnp.asarray(x.reshape(-1), jnp.float32), (heads, 1))  # noqa: E731
    return {"bq": repeat(query, config.heads), "bk": repeat(keys, config.kv_heads)}


def _mean(logits: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    each = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    return (each * weight).sum() / jnp.maximum(weight.sum(), 1.0)


def body_loss(body: ModelConfig):
    """Mean cross-entropy of the next token in the PRM's stream, where that token is right."""
    model = Qwen2(body)

    def loss(params, batch):
        right = ((batch["target"] == 1) & (batch["weight"] > 0)).astype(jnp.float32)
        logits, _ = model.apply({"params": params}, batch["tokens"][:, :-1])
        return _mean(logits, batch["tokens"][:, 1:], right[:, 1:])

    return loss


def judge_loss(body: ModelConfig, body_params: dict):
    """Mean cross-entropy of (wrong, right) over the labelled tokens, for the new layers' parameters."""
    model = Qwen2(prm_model(body))

    def loss(params, batch):
        logits, _ = model.apply({"params": whole(body_params, params)}, batch["tokens"])
        return _mean(logits, batch["target"], batch["weight"])

    return loss


def whole(body: dict, judge: dict) -> dict:
    """The parameters of the PRM: the body's layers below the new ones."""
    shared = {k: v for k, v in body.items() if k == "embed" or k.startswith("layer_")}
    return shared | judge
