"""Token ids of prompts: the language models' turn and the process-reward model's own stream.

Both language models read: user turn = instruction, newline, problem; assistant turn, continued
step by step (no new turn).  The PRM reads, as Qwen2.5-Math-PRM does, system, user and assistant
turns, and `<extra_0>` after every step of the assistant turn.  Text of a user never becomes a
special token: a problem that spells one is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trim_jax.errors import DataError
from trim_jax.tasks.data import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def lm_prompt_ids(
    tokenizer: PreTrainedTokenizerFast,
    problem_text: str,
    instruction: str | None = None,
    problem_id: str | None = None,
) -> list[int]:
    """Everything before the first step: the user turn, and the head of the assistant turn."""
    refuse_special_text(tokenizer, problem_text, problem_id)
    content = f"{instruction}\n{problem_text}" if instruction else problem_text
    return _chat_ids(tokenizer, [{"role": "user", "content": content}])


def lm_example_ids(
    tokenizer: PreTrainedTokenizerFast, problem: Problem, instruction: str | None = None
) -> tuple[list[int], int]:
    """A training sequence, prompt + solution + end of sequence, and the length of its prompt."""
    prompt = lm_prompt_ids(tokenizer, problem.problem, instruction, problem.id)
    refuse_special_text(tokenizer, problem.solution, problem.id)
    solution = tokenizer.encode(problem.solution, add_special_tokens=False)
    return prompt + solution + [tokenizer.eos_token_id], len(prompt)


def prm_prompt_ids(
    tokenizer: PreTrainedTokenizerFast,
    problem_text: str,
    system: str | None = None,
    problem_id: str | None = None,
) -> list[int]:
    """Everything before the first step in the PRM's stream (where it is empty, the system turn of the chat template, if any).

    The steps follow as ``step <extra_0> step <extra_0> ...``, without their delimiter.
    """
    refuse_special_text(tokenizer, problem_text, problem_id)
    messages = [{"role": "system", "content": system}] if system else []
    return _chat_ids(tokenizer, [*messages, {"role": "user", "content": problem_text}])


def refuse_special_text(
    tokenizer: PreTrainedTokenizerFast, text: str, problem_id: str | None = None
) -> None:
    """Raise DataError where `text` spells a token that the tokenizer would not read as text."""
    for token in tokenizer.get_added_vocab():
        if token in text:
            where = f"problem {problem_id!r}" if problem_id is not None else "the problem"
            raise DataError(
                f"{where} contains {token!r}, which the models would read as a control token; "
                "remove it from the text"
            )


def _chat_ids(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)
