"""The tokenizer of `arith`: Qwen2's rules, 512 tokens, and the comparison of two tokenizers."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_jax.errors import CheckpointError
from trim_jax.tasks import arith, arith_text
from trim_jax.tasks.tokenizer import (
    ARITH_TOKENIZER,
    SPECIAL_TOKENS,
    check_same_tokenizer,
    load_tokenizer,
    save_arith_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ARITH_TOKENIZER)


def pieces(tokenizer, text):
    return [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False)]


def test_vocabulary(tokenizer):
    assert len(tokenizer) == 512 and sorted(tokenizer.get_vocab().values()) == list(range(512))
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [508, 509, 510, 511]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.all_special_ids and set(tokenizer.all_special_ids) == {508, 509, 510, 511}


def test_digits_stand_alone_and_newlines_join_their_punctuation(tokenizer):
    assert pieces(tokenizer, "Add 46+27=73.\n\nAdd") == [
        "Add", " ", "4", "6", "+", "2", "7", "=", "7", "3", ".\n\n", "Add",
    ]
    assert pieces(tokenizer, "\\boxed{156}.")[-2:] == ["6", "}."]
    assert len(pieces(tokenizer, ".")) == 1  # the step as the PRM reads it, without the delimiter


def test_the_splitting_rule_is_qwen2s(tokenizer):
    from transformers.models.qwen2 import tokenization_qwen2

    ours = json.loads((ARITH_TOKENIZER / "tokenizer.json").read_text())
    split = ours["pre_tokenizer"]["pretokenizers"][0]
    assert split["pattern"]["Regex"] == tokenization_qwen2.PRETOKENIZE_REGEX
    assert split["behavior"] == "Isolated" and ours["normalizer"] == {"type": "NFC"}


def test_the_words_of_the_templates_are_single_tokens(tokenizer):
    """All but names, items and the rarest words (containers): there are 252 merges to spend."""
    counts = {}
    for problem in arith.generate("train", 500):
        for word in problem.problem.split():
            word = " " + word.strip(".?")
            if word.strip() not in arith_text.ITEMS and not word.strip().isdigit():
                counts[word] = counts.get(word, 0) + 1
    names = {*arith_text.HE_NAMES, *arith_text.SHE_NAMES}
    words = {w: n for w, n in counts.items() if w.strip() not in names}
    single = sum(n for w, n in words.items() if len(pieces(tokenizer, w)) == 1)
    assert single / sum(words.values()) > 0.93
    assert all(len(pieces(tokenizer, w)) == 1 for w, n in words.items() if n > 100)


def test_lengths(tokenizer):
    """The sizes that the shipped contexts and caches were chosen for."""
    for split, prompt, solution in [("test", 125, 205), ("hard", 165, 285)]:
        problems = arith.generate(split, 1_000)
        assert max(len(tokenizer.encode(p.problem)) for p in problems) <= prompt
        assert max(len(tokenizer.encode(p.solution)) for p in problems) <= solution
        longest = max(
            len(tokenizer.encode(step)) for p in problems for step in p.solution.split("\n\n")
        )
        assert longest <= 36


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_decodes_to_itself_up_to_nfc(text):
    import unicodedata

    tokenizer = load_tokenizer(ARITH_TOKENIZER)
    if any(token in text for token in SPECIAL_TOKENS):
        return
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert not set(ids) & {508, 509, 510, 511}


def test_the_shipped_files_are_what_the_code_builds(tmp_path):
    save_arith_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (ARITH_TOKENIZER / name).read_bytes()


def edited(tmp_path, name, edit):
    folder = tmp_path / name
    shutil.copytree(ARITH_TOKENIZER, folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    edit(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return load_tokenizer(folder)


def test_equal_tokenizers_pass(tokenizer, tmp_path):
    check_same_tokenizer(tokenizer, edited(tmp_path, "same", lambda data: None), "small", "large")


def test_another_token_is_named(tokenizer, tmp_path):
    def rename(data):
        data["model"]["vocab"]["qqq"] = data["model"]["vocab"].pop("\u0120trays")
        data["model"]["merges"] = data["model"]["merges"][:-3]

    other = edited(tmp_path, "renamed", rename)
    with pytest.raises(CheckpointError, match="large and PRM differ: token 506 is .*trays.*'qqq'"):
        check_same_tokenizer(tokenizer, other, "large", "PRM")


def test_another_splitting_rule_is_named(tokenizer, tmp_path):
    def split(data):
        data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}+|\D+"

    with pytest.raises(CheckpointError, match="pre_tokenizer"):
        check_same_tokenizer(tokenizer, edited(tmp_path, "split", split), "small", "large")


def test_a_missing_and_a_broken_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer.json"):
        load_tokenizer(tmp_path)
    shutil.copytree(ARITH_TOKENIZER, tmp_path / "half")
    broken = tmp_path / "half" / "tokenizer.json"
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="half: the tokenizer cannot be read"):
        load_tokenizer(tmp_path / "half")
