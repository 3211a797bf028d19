"""The tokenizer of the `arith` trio, and loading and comparing tokenizers.

The tokenizer is a small Qwen2 tokenizer: byte-level BPE behind Qwen2's own splitting rule (one
token per digit; newlines join the punctuation before them, so that ".\\n\\n" is one token), NFC
normalised, with Qwen's chat markers and the step token `<extra_0>` of Qwen2.5-Math-PRM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Iterable

from trim_jax.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 512
END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
STEP_TOKEN = "<extra_0>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, STEP_TOKEN)
ARITH_TOKENIZER = Path(__file__).resolve().parent.parent / "assets" / "tokenizer"
TRAINING_PROBLEMS = 5_000

# Qwen2's splitting rule, as published in the `tokenizer.json` of its checkpoints.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As Qwen2.5's, but without its default system turn: a system turn only where one is given.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def build_arith_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train the byte-level BPE on `texts`; the special tokens get the last ids, as in Qwen2."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def arith_training_texts() -> Iterable[str]:
    """What the shipped tokenizer was trained on: `arith` chats, special tokens left out."""
    from trim_jax.tasks.arith import generate

    for problem in generate("train", TRAINING_PROBLEMS):
        # In pieces, as the chat markers split them, so that no merge crosses a marker.
        yield from ("system\n", "user\n", "assistant\n", problem.problem, problem.solution)


def save_arith_tokenizer(folder: Path) -> None:
    """Build the tokenizer of `arith` and write it as an ordinary Hugging Face tokenizer folder."""
    folder.mkdir(parents=True, exist_ok=True)
    build_arith_tokenizer(arith_training_texts()).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [TURN_START, STEP_TOKEN],
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a local checkpoint folder; CheckpointError where there is none."""
    folder = Path(path)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder}: no tokenizer.json in this checkpoint folder")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder}: only fast tokenizers (tokenizer.json) are supported")
    return tokenizer


def check_same_tokenizer(
    a: PreTrainedTokenizerFast, b: PreTrainedTokenizerFast, name_a: str, name_b: str,
    control: bool = True,
) -> None:  # fmt: skip
    """Refuse two models whose tokens differ: they read and continue each other's token ids.

    Without `control` only those of text are compared: a PRM reads steps, in a chat of its own, and
    Qwen2.5-Math-PRM has `<extra_0>` where Qwen2.5 has another control token.
    """

    def by_id(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
        left_out = {} if control else tokenizer.get_added_vocab()
        return {i: token for token, i in tokenizer.get_vocab().items() if token not in left_out}

    by_id_a, by_id_b = by_id(a), by_id(b)
    for index in sorted(by_id_a.keys() | by_id_b.keys()):
        token_a, token_b = by_id_a.get(index), by_id_b.get(index)
        if token_a != token_b:
            raise CheckpointError(
                f"the tokenizers of {name_a} and {name_b} differ: token {index} is {token_a!r} "
                f"in {name_a} and {token_b!r} in {name_b}"
            )
    parts_a, parts_b = (json.loads(t.backend_tokenizer.to_str()) for t in (a, b))
    for part in ("normalizer", "pre_tokenizer", "model"):
        if parts_a[part] != parts_b[part]:
            raise CheckpointError(
                f"the tokenizers of {name_a} and {name_b} have the same tokens, but differ in "
                f"{part} of tokenizer.json"
            )
