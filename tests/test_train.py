"""Training: batches that depend on seed and step alone, resumed runs, what is learned from."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trim_jax.engine.engine import Request, Solution, Step
from trim_jax.engine.tokens import token_tables
from trim_jax.errors import CheckpointError
from trim_jax.models.qwen2 import ModelConfig, init_params, rope_tables, rotate
from trim_jax.tasks import prompts
from trim_jax.tasks.data import load_problems
from trim_jax.tasks.tokenizer import ARITH_TOKENIZER, load_tokenizer
from trim_jax.train.batches import LengthBuckets
from trim_jax.train.fit import FitConfig, fit
from trim_jax.train.lm import lm_examples, lm_loss
from trim_jax.train.prm import (
    SLIP, _look_back, body_loss, judge_loss, prm_examples, prm_model, starting_body,
    starting_judge, whole,
)  # fmt: skip

MODEL = ModelConfig(vocab=512, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=32)
SETTINGS = FitConfig(
    steps=6, rows=4, seed=3, learning_rate=1e-2, warmup=2, cosine_steps=6, weight_decay=0.1,
    clip=1.0, save_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ARITH_TOKENIZER)


@pytest.fixture(scope="module")
def examples(tokenizer):
    return lm_examples(tokenizer, load_problems("arith", "train", 40))


def test_only_the_solution_is_learned(tokenizer, examples):
    problem = load_problems("arith", "train", 1)[0]
    example = examples[0]
    learned = example.target[example.weight > 0].tolist()
    assert tokenizer.decode(learned) == problem.solution + "<|im_end|>"
    np.testing.assert_array_equal(example.tokens[1:], example.target[:-1])


def test_batches_depend_on_seed_and_step_alone(examples):
    first, again = LengthBuckets(examples, 4, seed=1), LengthBuckets(examples, 4, seed=1)
    order = [7, 0, 3]
    for step in order:
        for name, array in first.batch(step).items():
            np.testing.assert_array_equal(array, again.batch(step)[name])
    other = LengthBuckets(examples, 4, seed=2)
    assert any(
        other.batch(s)["tokens"].shape != first.batch(s)["tokens"].shape
        or (other.batch(s)["tokens"] != first.batch(s)["tokens"]).any()
        for s in range(4)
    )


def test_an_epoch_holds_no_example_twice(examples):
    batches = LengthBuckets(examples, 4, seed=1)
    rows = [tuple(row) for s in range(batches.batches_per_epoch) for row in batches.batch(s)["tokens"]]
    assert len(set(rows)) == len(rows)
    assert all(len(row) % 32 == 0 for row in rows)


def test_a_resumed_run_ends_with_the_same_weights(examples, tmp_path):
    batches = LengthBuckets(examples, SETTINGS.rows, SETTINGS.seed, multiple=352)
    params = init_params(MODEL, 0)
    whole = fit(lm_loss(MODEL), params, batches, SETTINGS, tmp_path / "whole", "whole")

    class Killed(Exception):
        pass

    class DyingBatches:
        def batch(self, step):
            if step == 5:
                raise Killed
            return batches.batch(step)

    with pytest.raises(Killed):
        fit(lm_loss(MODEL), params, DyingBatches(), SETTINGS, tmp_path / "killed", "killed")
    resumed = fit(lm_loss(MODEL), params, batches, SETTINGS, tmp_path / "killed", "killed")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed)):
        np.testing.assert_array_equal(a, b)
    found, expected = (
        json.loads((tmp_path / name / "loss.json").read_text()) for name in ("killed", "whole")
    )
    assert found == expected and [step for step, _ in found] == [2, 4, 6]


def test_a_loss_that_is_not_finite_stops_the_run(examples, tmp_path):
    batches = LengthBuckets(examples, SETTINGS.rows, SETTINGS.seed, multiple=352)
    params = init_params(MODEL, 0)
    params["norm_out"] = params["norm_out"] * np.nan
    with pytest.raises(CheckpointError, match="not finite"):
        fit(lm_loss(MODEL), params, batches, SETTINGS, tmp_path, "run")


def _solution(tokenizer, problem, texts, drafts):
    """A solution of the given steps; `drafts` holds those that were thrown away, by step."""
    encode = lambda text: tuple(tokenizer.encode(text, add_special_tokens=False))  # noqa: E731
    steps = []
    for i, text in enumerate(texts):
        ending = "" if i == len(texts) - 1 else "\n\n"
        draft = encode(drafts[i] + "\n\n") if i in drafts else None
        steps.append(Step(encode(text + ending), 0, 0, 1, None, None, draft, None))
    prompt = prompts.prm_prompt_ids(tokenizer, problem.problem)
    request = Request(problem.id, 0, prompt, prompt)
    return Solution(request, request.cells, tuple(steps), "boxed", np.zeros([3, 5], np.int32))


def test_the_prm_learns_up_to_the_first_wrong_step(tokenizer):
    problem = load_problems("arith", "test", 1)[0]
    texts = problem.solution.split("\n\n")
    tables = token_tables(tokenizer, 512)
    slip = texts[2][:-2] + str((int(texts[2][-2]) + 1) % 10) + "."  # another last digit
    solution = _solution(tokenizer, problem, [*texts[:2], slip, *texts[3:]], {1: slip})
    main, branch = prm_examples(solution, problem, tables, tokenizer)
    prompt = len(solution.request.prm_prompt)
    # The stream is the one of Qwen2.5-Math-PRM: steps without their delimiter, each followed by
    # the separator.
    assert tokenizer.decode(main.tokens[prompt:]) == f"{texts[0]}<extra_0>{texts[1]}<extra_0>{slip}<extra_0>"
    assert tokenizer.decode(branch.tokens[prompt:]) == f"{texts[0]}<extra_0>{slip}<extra_0>"
    assert not main.weight[:prompt].any()
    ends = np.flatnonzero(main.tokens == tables.separator)
    np.testing.assert_array_equal(np.flatnonzero(main.weight == 1), ends)
    np.testing.assert_array_equal(main.target[ends], [1, 1, 0])
    # Within the wrong step, the tokens before the slip are right: the slip and the stop are not.
    np.testing.assert_array_equal(np.flatnonzero(main.target[prompt:] == 0) + prompt, ends[2] - [2, 1, 0])
    np.testing.assert_allclose(main.weight[ends[2] - 2], SLIP)
    # Of a discarded draft, only the draft itself is learned: the text before it is in the main one.
    first = np.flatnonzero(branch.tokens == tables.separator)[0]
    assert not branch.weight[: first + 1].any()
    assert (branch.weight[first + 1 :] > 0).all() and branch.target[-1] == 0


def test_the_prm_is_new_layers_on_a_body_that_has_learned_to_predict(tokenizer):
    problem = load_problems("arith", "test", 1)[0]
    tables = token_tables(tokenizer, 512)
    solution = _solution(tokenizer, problem, problem.solution.split("\n\n"), {0: "Start 7."})
    examples = prm_examples(solution, problem, tables, tokenizer)
    batch = jax.device_put(LengthBuckets(examples, 2, seed=0, multiple=512).batch(0))
    body = starting_body(init_params(MODEL, 0), tables)
    np.testing.assert_array_equal(body["embed"][tables.separator], body["embed"][tables.delimiter])
    # Only right tokens are learned from: without one there is nothing to predict.
    size = lambda tree: float(sum(np.abs(x).sum() for x in jax.tree.leaves(tree)))  # noqa: E731
    wrong = batch | {"target": 0 * batch["target"]}
    assert size(jax.grad(body_loss(MODEL))(body, wrong)) == 0
    assert size(jax.grad(body_loss(MODEL))(body, batch)) > 0

    judge = starting_judge(MODEL, body, batch["tokens"], seed=0)
    grads = jax.grad(judge_loss(MODEL, body))(judge, batch)
    assert all(np.abs(x).sum() > 0 for x in jax.tree.leaves(grads))
    exported, fresh = whole(body, judge), init_params(prm_model(MODEL), 0)
    assert jax.tree.map(np.shape, exported) == jax.tree.map(np.shape, fresh)
    np.testing.assert_array_equal(exported["layer_0"]["wq"], body["layer_0"]["wq"])


def test_the_first_new_layer_looks_at_the_token_before():
    """Whatever the position, most of the attention of its biases goes one token back."""
    bias = _look_back(dataclasses.replace(MODEL, head_dim=32), range(4), distance=1, sharpness=8.7)
    config = dataclasses.replace(MODEL, head_dim=32)
    cos, sin = rope_tables(jnp.arange(40)[None], config)
    spread = lambda x, heads: jnp.broadcast_to(x[None, None], (1, 40, heads, 32))  # noqa: E731
    q = rotate(spread(bias["bq"], config.heads), cos, sin)[0, :, 0]
    k = rotate(spread(bias["bk"], config.kv_heads), cos, sin)[0, :, 0]
    scores = np.array(q @ k.T * 32**-0.5)
    for position in (5, 20, 39):
        seen = np.exp(scores[position, : position + 1])
        assert seen.argmax() == position - 1
        assert seen[position - 1] > 0.8 * seen.sum()
