"""Recorded solutions of two real models, with a process reward per step, as `Outcomes`.

The files are JSON lines with `id`, `steps`, `prm_scores`, `pred` and `correct`, one row a question.
They carry no token counts: the step texts are counted with one tokenizer, which the caller names.
It stands in for the models' own (a proxy): costs are then comparable with one another, not with
costs counted elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trim_jax.errors import DataError
from trim_jax.query.outcomes import Outcomes, pad_scores
from trim_jax.tasks.grading import extract_boxed
from trim_jax.tasks.tokenizer import ARITH_TOKENIZER, load_tokenizer

# The tokenizer of the shipped trio, which every installation has.
PROXY_TOKENIZER = "trim_jax/assets/tokenizer"


def proxy_count() -> Callable[[str], int]:
    """Counts tokens with `PROXY_TOKENIZER`."""
    tokenizer = load_tokenizer(ARITH_TOKENIZER)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _rows(path: Path, fields: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Rows of a file by id, in its order, each with `fields`."""
    out = {}
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                missing = [f for f in ("id", *fields) if f not in row]
                if missing:
                    raise DataError(f"{path}, line {number}: lacks {', '.join(missing)}")
                if row["id"] in out:
                    raise DataError(f"{path}, line {number}: a second row of {row['id']}")
                out[row["id"]] = row
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not out:
        raise DataError(f"{path}: no rows")
    return out


def _right(row: Mapping[str, Any]) -> bool:
    """The recorded verdict; a solution without a boxed answer is wrong whatever was recorded."""
    return bool(row["correct"]) and extract_boxed("\n\n".join(row["steps"])) is not None


def load_pair(small: str | Path, large: str | Path, questions: str | Path,
              count: Callable[[str], int] | None = None) -> Outcomes:
    """Outcomes of a small and a large model on the questions that both files answer.

    Args:
      small, large: files of solutions.
      questions: a file with `id` and `problem`.
      count: tokens of a text; by default the proxy of this module.

    Raises:
      DataError: a file cannot be read, or the three do not hold the same questions.
    """
    fields = ("steps", "prm_scores", "correct")
    weak, strong = _rows(Path(small), fields), _rows(Path(large), fields)
    asked = _rows(Path(questions), ("problem",))
    for path, rows in ((large, strong), (questions, asked)):
        if missing := weak.keys() - rows.keys():
            raise DataError(f"{path}: no row for question {min(missing)} of {small}")
    for id, row in weak.items():
        if not row["steps"] or len(row["steps"]) != len(row["prm_scores"]):
            raise DataError(f"{small}: question {id} needs one process reward per step")
    count = count or proxy_count()
    ids = tuple(weak)
    text = lambda row: ("\n\n".join(row["steps"]),)  # noqa: E731
    return Outcomes(
        ids=ids, seeds=(0,), questions=tuple(asked[i]["problem"] for i in ids),
        small_correct=np.array([[_right(weak[i])] for i in ids]),
        large_correct=np.array([[_right(strong[i])] for i in ids]),
        strong_tokens=np.array([[sum(map(count, strong[i]["steps"]))] for i in ids], np.int64),
        small_texts=tuple(text(weak[i]) for i in ids),
        large_texts=tuple(text(strong[i]) for i in ids),
        mixed_texts=None,
        small_answered=np.array([[extract_boxed(text(weak[i])[0]) is not None] for i in ids]),
        scores=pad_scores([[weak[i]["prm_scores"]] for i in ids]))
