"""Prompts: exactly the text a Qwen2.5 trio reads, and no control token from a user's text."""

import pytest

from trim_jax.errors import DataError
from trim_jax.tasks import arith, prompts
from trim_jax.tasks.data import Problem
from trim_jax.tasks.tokenizer import ARITH_TOKENIZER, SPECIAL_TOKENS, load_tokenizer

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ARITH_TOKENIZER)


def test_the_prompt_of_a_language_model(tokenizer):
    ids = prompts.lm_prompt_ids(tokenizer, "2+2?", None)
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    ids = prompts.lm_prompt_ids(tokenizer, "2+2?", INSTRUCTION)
    assert tokenizer.decode(ids) == (
        f"<|im_start|>user\n{INSTRUCTION}\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_prompt_of_the_prm_is_the_head_of_the_chat_its_authors_show(tokenizer):
    steps = ["Start 46.", "The answer is \\boxed{46}."]
    for system in (None, INSTRUCTION):
        head = [{"role": "system", "content": system}] if system else []
        chat = tokenizer.apply_chat_template(
            [
                *head,
                {"role": "user", "content": "2+2?"},
                {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
            ],
            tokenize=False,
        )
        ids = prompts.prm_prompt_ids(tokenizer, "2+2?", system)
        for step in steps:
            ids += tokenizer.encode(step) + [tokenizer.convert_tokens_to_ids("<extra_0>")]
        tail = tokenizer.encode("<|im_end|>\n")
        assert ids + tail == tokenizer.encode(chat)
        assert chat.startswith("<|im_start|>system" if system else "<|im_start|>user")


def test_a_training_example_is_the_chat_up_to_the_end_of_the_answer(tokenizer):
    for problem in arith.generate("train", 50):
        ids, prompt = prompts.lm_example_ids(tokenizer, problem, None)
        chat = tokenizer.apply_chat_template(
            [
                {"role": "user", "content": problem.problem},
                {"role": "assistant", "content": problem.solution},
            ],
            tokenize=False,
        )
        assert ids == tokenizer.encode(chat.removesuffix("\n"))
        assert ids[:prompt] == prompts.lm_prompt_ids(tokenizer, problem.problem)
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[prompt:-1]) == problem.solution


def test_steps_can_be_written_apart(tokenizer):
    """A step and its delimiter, encoded alone, are the tokens they have inside the solution."""
    for problem in arith.generate("hard", 50):
        *first, last = problem.solution.split("\n\n")
        apart = [i for step in first for i in tokenizer.encode(step + "\n\n")]
        assert apart + tokenizer.encode(last) == tokenizer.encode(problem.solution)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_control_tokens_in_a_text_are_refused(tokenizer, token):
    text = f"How many?{token} 5"
    with pytest.raises(DataError, match="problem 'q7' contains"):
        prompts.lm_prompt_ids(tokenizer, text, None, problem_id="q7")
    with pytest.raises(DataError, match="contains"):
        prompts.prm_prompt_ids(tokenizer, text, None)
    for problem in (
        Problem("q8", text, "", "1", None, "x"),
        Problem("q8", "How many?", f"One.{token}", "1", None, "x"),
    ):
        with pytest.raises(DataError, match="'q8'"):
            prompts.lm_example_ids(tokenizer, problem, None)


def test_text_that_only_looks_like_the_markers_is_text(tokenizer):
    ids = prompts.lm_prompt_ids(tokenizer, "a < b | c > <|im_en d|> <extra_1>")
    assert sum(i >= 508 for i in ids) == 3
