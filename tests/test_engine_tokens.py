"""Token tables against plain string logic: where steps end, boxed answers, what the PRM reads."""

import dataclasses

import numpy as np
import pytest
from tiny import BREAKS, VOCABULARY, tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from trim_jax.engine.tokens import BOXED, OVER, START_STATE, TokenTables, token_tables
from trim_jax.errors import CheckpointError
from trim_jax.tasks.tokenizer import ARITH_TOKENIZER, build_arith_tokenizer, load_tokenizer

# Enough of these, and byte-pair merges like Qwen2's appear: ")\n\n", "!\n\n\n", " \n\n", "\n\n".
MERGES = ["a)\n\nb!\n\n\nc. \n\nd\n\ne.\n\n", "x \n\ny\n\n\\boxed{12}.\n\n", "...\n\n$\\boxed{$$\n"]


def qwen_like():
    backend = build_arith_tokenizer(20 * MERGES)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


TOKENIZERS = {
    "arith": lambda: load_tokenizer(ARITH_TOKENIZER),
    "qwen-like": qwen_like,
    "tiny": tiny_tokenizer,
}


@dataclasses.dataclass(frozen=True)
class Case:
    tokenizer: PreTrainedTokenizerFast
    tables: TokenTables
    texts: list[str]  # of every token

    def sequences(self, count):
        """Random token sequences, most of them of the tokens that matter, special ones apart."""
        rng = np.random.default_rng(0)
        plain = [i for i, text in enumerate(self.texts) if i not in self.special]
        letters = set("\n.,!)$\\{ boxed")
        vital = [i for i in plain if "\n" in self.texts[i] or set(self.texts[i]) <= letters]
        for _ in range(count):
            mixed = rng.random(12) < 0.75
            yield np.where(mixed, rng.choice(vital, 12), rng.choice(plain, 12)).tolist()

    @property
    def special(self):
        return set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())


@pytest.fixture(scope="module", params=TOKENIZERS)
def case(request):
    tokenizer = TOKENIZERS[request.param]()
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    return Case(tokenizer, token_tables(tokenizer, len(tokenizer) + 3), texts)


def is_over(text):
    """A step is over at a blank line behind a letter or digit."""
    at = text.find("\n\n")
    while at >= 0:
        if any(char.isalnum() for char in text[:at]):
            return True
        at = text.find("\n\n", at + 1)
    return False


def test_steps_are_over_where_their_text_says(case):
    overs = 0
    for tokens in case.sequences(3000):
        state, text = START_STATE, ""
        for token in tokens:
            state = case.tables.step_next[token, state]
            text += case.texts[token]
            assert (state == OVER) == is_over(text), repr(text)
        overs += state == OVER
    assert 300 < overs < 2900


@pytest.mark.parametrize("text, over", [
    ("a\n\n", True), ("a", False), ("a\n", False), ("\n\n", False), (".\n\n", False),
    ("\n\na\n", False), (".\n\n.\n\na\n\n", True), ("\n\n\n", False), ("1\nb\n", False),
    ("5.\n\n", True),
])  # fmt: skip
def test_blank_lines_spelled_by_single_characters(case, text, over):
    """Whatever the merges: the tokens of single characters carry over from one to the next."""
    state = START_STATE
    for char in text:
        state = case.tables.step_next[case.texts.index(char), state]
    assert (state == OVER) == over


def test_boxed_is_found_across_tokens(case):
    found = 0
    for tokens in case.sequences(3000):
        for prefix in ([], case.tokenizer.encode("\\box", add_special_tokens=False)):
            state, text = 0, ""
            for token in prefix + tokens:
                state = case.tables.boxed_next[token, state]
                text += case.texts[token]
                assert (state == len(BOXED)) == (BOXED in text), repr(text)
            found += state == len(BOXED)
    assert found or "qwen" not in str(case)


@pytest.mark.parametrize("text, boxed", [
    ("\\boxed{1}", True), ("\\boxed", False), ("\\\\boxed{", True), ("\\bo\\boxed{", True),
    ("boxed{", False), ("\\boxe d{", False),
])  # fmt: skip
def test_boxed_in_encoded_text(text, boxed):
    tokenizer = TOKENIZERS["arith"]()
    tables = token_tables(tokenizer, len(tokenizer))
    state = 0
    for token in tokenizer.encode(text):
        state = tables.boxed_next[token, state]
    assert (state == len(BOXED)) == boxed


def test_the_prm_reads_a_step_without_its_newlines(case):
    """Drop tokens that are nothing but newlines, strip the last one: the text without newlines."""
    for tokens in case.sequences(2000):
        text = "".join(case.texts[i] for i in tokens)
        while tokens and case.tables.stripped[tokens[-1]] < 0:
            tokens = tokens[:-1]
        bare = tokens[:-1] + [int(case.tables.stripped[i]) for i in tokens[-1:]]
        read = "".join(case.texts[i] for i in bare)
        if bare[-1:] == tokens[-1:] and read.endswith("\n"):
            continue  # a vocabulary without a token for the rest: read as it is
        # Newlines before one that is stripped stay: "\n" + ".\n" reads "\n.".
        assert read == text.rstrip("\n"), repr(text)


def test_special_tokens_leave_the_automata_alone(case):
    for token in case.special:
        np.testing.assert_array_equal(case.tables.step_next[token], range(OVER + 1))
        np.testing.assert_array_equal(case.tables.boxed_next[token], range(len(BOXED) + 1))
        assert case.tables.stripped[token] == token


def test_what_may_be_sampled(case):
    tables, tokenizer = case.tables, case.tokenizer
    eos = {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    assert set(np.flatnonzero(tables.is_eos)) == eos
    size = len(tokenizer)
    assert set(np.flatnonzero(tables.allowed)) == set(range(size)) - case.special | eos
    assert len(tables.allowed) == size + 3  # padding of the embedding is there, and never drawn
    assert tables.separator == tokenizer.convert_tokens_to_ids("<extra_0>")
    assert case.texts[tables.delimiter] in ("\n\n", ".\n\n")


def small_tokenizer(tokens, special=("<extra_0>",)):
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=tokens[0]))
    backend.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokens[0])


def test_a_vocabulary_larger_than_the_models_is_refused():
    with pytest.raises(CheckpointError, match=f"{len(VOCABULARY)} tokens, the model only 20"):
        token_tables(tiny_tokenizer(), 20)


def test_a_tokenizer_without_the_step_token_is_refused():
    with pytest.raises(CheckpointError, match="<extra_0>"):
        token_tables(small_tokenizer(["a", *BREAKS], special=()), 20)


def test_a_tokenizer_without_a_blank_line_is_refused():
    with pytest.raises(CheckpointError, match="blank line"):
        token_tables(small_tokenizer(["a", "b"]), 20)
