"""What the loop must know of a vocabulary, as arrays: where steps end, what the PRM reads.

Byte-pair vocabularies merge newlines with punctuation (".\\n\\n" is one token of Qwen2.5), and a
blank line can also be spelled by two tokens ("\\n" + "\\n"). So both questions the loop asks of a
growing text, "is this step over?" and "has the answer been boxed?", are answered by small automata
over bytes, tabulated once per token: `next_state[token, state]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from trim_jax.errors import CheckpointError

BOXED = "\\boxed{"
STEP_SEPARATOR = "<extra_0>"

# States of the step automaton. A step that holds no letter or digit yet is not over at a blank
# line: it is continued, and its tokens count.
EMPTY, EMPTY_NEWLINE, TEXT, TEXT_NEWLINE, OVER = range(5)
START_STATE = EMPTY


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTables:
    """Arrays indexed by token id; equal if they hold the same, so that programs can be shared.

    V is the largest vocabulary of the models; whoever has fewer tokens reads the first so many.

    Attributes:
      step_next: int8 [V, 5], the step automaton after this token; `OVER` absorbs.
      boxed_next: int8 [V, 8], letters of "\\\\boxed{" matched so far; 7 (all) absorbs.
      stripped: int32 [V], the token with its newlines at the end taken off, as the PRM reads it;
        -1 where nothing is left.
      allowed: bool [V], may be sampled (text and end-of-sequence).
      is_eos: bool [V].
      delimiter: a token that ends a step, for steps that are cut at their limit.
      separator: id of `<extra_0>` for the PRM.
    """

    step_next: np.ndarray
    boxed_next: np.ndarray
    stripped: np.ndarray
    allowed: np.ndarray
    is_eos: np.ndarray
    delimiter: int
    separator: int

    def of_model(self, vocab: int) -> tuple[np.ndarray, np.ndarray]:
        """`allowed` and `is_eos`, bool [vocab], of a model with that many logits.

        Vocabularies are padded differently by size: the tables may know more than a model.
        """
        if vocab > len(self.allowed):
            raise ValueError("the model has more tokens than the token tables")
        return self.allowed[:vocab], self.is_eos[:vocab]

    def content(self) -> tuple[bytes, ...]:
        """The bytes of every field, in order."""
        fields = dataclasses.fields(self)
        return tuple(np.asarray(getattr(self, field.name)).tobytes() for field in fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenTables) and self.content() == other.content()

    def __hash__(self) -> int:
        return hash(self.content())


def _step_automaton(text: str, state: int) -> int:
    for char in text:
        if state == OVER:
            return OVER
        if char == "\n":
            after = {EMPTY: EMPTY_NEWLINE, EMPTY_NEWLINE: EMPTY_NEWLINE}
            state = after.get(state, TEXT_NEWLINE if state == TEXT else OVER)
        elif state in (TEXT, TEXT_NEWLINE) or char.isalnum():
            state = TEXT
        else:
            state = EMPTY
    return state


def _boxed_automaton(text: str, state: int) -> int:
    for char in text:
        if state == len(BOXED):
            return state
        # "\" occurs only at the start of the pattern, so a mismatch can only restart it.
        state = state + 1 if char == BOXED[state] else int(char == BOXED[0])
    return state


def token_tables(tokenizer, vocab: int, prm_tokenizer=None) -> TokenTables:
    """Tabulate a Hugging Face tokenizer for models with up to `vocab` embedding rows.

    `prm_tokenizer` is that of the PRM, where it has control tokens of its own: Qwen2.5-Math-PRM
    gives `<extra_0>` the id of a token that Qwen2.5 has for something else.

    Raises:
      CheckpointError: the PRM's tokenizer lacks `<extra_0>`, the other a token that ends in a blank
        line, or it knows more tokens than the models.
    """
    prm_tokenizer = prm_tokenizer or tokenizer
    size = len(tokenizer)
    if size > vocab:
        raise CheckpointError(f"the tokenizer has {size} tokens, the model only {vocab}")
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    separator = prm_tokenizer.convert_tokens_to_ids(STEP_SEPARATOR)
    if separator is None or separator == prm_tokenizer.unk_token_id:
        raise CheckpointError(f"the tokenizer of the PRM has no token {STEP_SEPARATOR}")
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    breaks = [(text, encode(text)) for text in ("\n\n", ".\n\n")]
    # An unknown token may stand for anything, so what it decodes to counts.
    single = [ids for text, ids in breaks if len(ids) == 1 and tokenizer.decode(ids) == text]
    if not single:
        raise CheckpointError("the tokenizer has no single token that ends in a blank line")

    step_next = np.tile(np.arange(OVER + 1, dtype=np.int8), (vocab, 1))
    boxed_next = np.tile(np.arange(len(BOXED) + 1, dtype=np.int8), (vocab, 1))
    stripped = np.arange(vocab, dtype=np.int32)
    texts = tokenizer.batch_decode([[i] for i in range(size)], skip_special_tokens=False)
    for token, text in enumerate(texts):
        if token in special:
            continue
        step_next[token] = [_step_automaton(text, s) for s in range(OVER + 1)]
        boxed_next[token] = [_boxed_automaton(text, s) for s in range(len(BOXED) + 1)]
        bare = text.rstrip("\n")
        if bare != text:
            ids = encode(bare) if bare else [-1]
            # Merges of newlines build on a shorter token; where a vocabulary has none, the PRM
            # reads the token as it is.
            stripped[token] = ids[0] if len(ids) == 1 else token
    is_eos = np.zeros(vocab, bool)
    eos = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")}
    is_eos[[i for i in eos if i is not None and 0 <= i < size]] = True
    allowed = np.zeros(vocab, bool)
    allowed[:size] = True
    allowed[sorted(special)] = False
    allowed |= is_eos
    return TokenTables(
        step_next, boxed_next, stripped, allowed, is_eos, int(single[0][0]), int(separator)
    )


def bare_step(tokens: Sequence[int], tables: TokenTables) -> list[int]:
    """A step as the PRM reads it: without its delimiter."""
    tokens = list(tokens)
    while tokens and tables.stripped[tokens[-1]] < 0:
        tokens.pop()
    if tokens:
        tokens[-1] = int(tables.stripped[tokens[-1]])
    return tokens
