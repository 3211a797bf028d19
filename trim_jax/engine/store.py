"""Steps that the models have written and judged before, on disk, for the runs that follow.

What a model writes depends on its weights, the sampling and the limits of a step, on (seed,
problem), and on the text it has read; what it makes of a draft on that alone. So each such piece of
work has a name, a hash of all it depends on, and whoever asks for it again finds it under that name:
another policy, another command, or a run with another process reward model, which finds the steps
but not their scores. Nothing has to be refused, what was made otherwise is just not found.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trim_jax.engine import rows as R
from trim_jax.engine.rows import Rows
from trim_jax.engine.tokens import TokenTables, bare_step
from trim_jax.errors import CheckpointError
from trim_jax.results import atomic_write, make_folder

_NAME_BYTES = 16  # two of 10^12 names are the same with a probability of 10^-15
_WRITE, _PEEK, _ENTROPY, _SCORE, _LOGLIK = b"write", b"peek", b"entropy", b"score", b"loglik"
_ARRAYS = ("text_names", "tokens", "ends", "stopped", "number_names", "numbers")


class Text(NamedTuple):
    """What a model wrote in one go; `stopped` if it ended at end-of-sequence, which is left out."""

    tokens: np.ndarray
    stopped: bool


class StepStore:
    """Steps, first tokens, scores and likelihoods by what they depend on.

    All of it is in memory, about 200 bytes a step and 100 a score; a folder keeps it between runs.
    """

    def __init__(self, origins: Sequence[str], folder: str | Path | None = None):
        """
        Args:
          origins: of small, large and PRM, what decides their work besides what they read: hashes
            of the weights, the arithmetic, and for the two that write the sampling and the limits.
          folder: of the pieces that earlier runs have kept, and of those that `keep` will.

        Raises:
          CheckpointError: a file of the folder is damaged. ResultError: it cannot be made.
        """
        self._keys = [hashlib.sha256(origin.encode()).digest() for origin in origins]
        self._texts: dict[bytes, bytes] = {}
        self._numbers: dict[bytes, float] = {}
        self._new_texts: list[bytes] = []  # names of what no file holds yet
        self._new_numbers: list[bytes] = []
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            make_folder(self._folder, field="store")
            for part in sorted(self._folder.glob("*.npz")):
                self._read(part)

    def __len__(self) -> int:
        return len(self._texts) + len(self._numbers)

    # ---------------------------------------------------------------------------------- to find

    def step(self, writer: int, key: np.ndarray, prefix: np.ndarray) -> Text | None:
        """What a language model writes behind `prefix` [n] with the key data [2] of a row."""
        return _unpacked(self._texts.get(self._name(writer, _WRITE, key, prefix)))

    def peek(self, key: np.ndarray, prefix: np.ndarray) -> tuple[int, float] | None:
        """The first token that the small model draws there, and the entropy of that draw."""
        token = _unpacked(self._texts.get(self._name(R.SMALL, _PEEK, key, prefix)))
        entropy = self._numbers.get(self._name(R.SMALL, _ENTROPY, prefix))
        return None if token is None or entropy is None else (int(token.tokens[0]), entropy)

    def score(self, stream: np.ndarray) -> float | None:
        """PRM score at the last separator of `stream` [n], which ends with it."""
        return self._numbers.get(self._name(R.PRM, _SCORE, stream))

    def loglik(self, prefix: np.ndarray, draft: Text) -> float | None:
        """Mean log-likelihood of a draft under the large model."""
        return self._numbers.get(self._judgement(prefix, draft))

    # ----------------------------------------------------------------------------------- to keep

    def learn(self, record: Rows, prompt: int, tables: TokenTables) -> None:
        """Take in the record of one finished solution, whose prompt has `prompt` tokens."""
        text, stream = record.tokens, record.prm_tokens[: int(record.n_prm)]
        ends = np.flatnonzero(stream == tables.separator)
        ends = ends[ends >= record.prm_prompt] + 1  # of each step in the stream
        begin, thrown = prompt, 0
        for t in range(int(record.t)):
            writer, prefix = int(record.writer[t]), text[:begin]
            written = Text(text[begin : record.step_end[t]], bool(record.stopped[t, writer]))
            self._put_text(self._name(writer, _WRITE, record.key, prefix), written)
            draft = written if writer == R.SMALL else None
            if record.draft_cost[t] >= 0:
                tokens = record.discarded[thrown : record.discarded_end[t]]
                thrown = int(record.discarded_end[t])
                draft = Text(tokens, bool(record.stopped[t, R.SMALL]))
                self._put_text(self._name(R.SMALL, _WRITE, record.key, prefix), draft)
                if not np.isnan(record.draft_score[t]):
                    before = stream[: ends[t - 1] if t else int(record.prm_prompt)]
                    bare = [*bare_step(tokens, tables), tables.separator]
                    tried = np.concatenate([before, np.array(bare, stream.dtype)])
                    self._put_number(self._name(R.PRM, _SCORE, tried), record.draft_score[t])
            if not np.isnan(record.score[t]):
                self._put_number(self._name(R.PRM, _SCORE, stream[: ends[t]]), record.score[t])
            if len(record.first_entropy) and not np.isnan(record.first_entropy[t]):
                first = Text(record.first_token[t : t + 1], False)
                self._put_text(self._name(R.SMALL, _PEEK, record.key, prefix), first)
                entropy = self._name(R.SMALL, _ENTROPY, prefix)
                self._put_number(entropy, record.first_entropy[t])
            if draft is not None and len(record.draft_loglik):
                if not np.isnan(record.draft_loglik[t]):
                    self._put_number(self._judgement(prefix, draft), record.draft_loglik[t])
            begin = int(record.step_end[t])

    def keep(self) -> None:
        """Write what is new to the folder, if there is one, as one more file.

        Raises:
          ResultError: the folder cannot be written or is full; what it holds is as it was.
        """
        if self._folder is None or not (self._new_texts or self._new_numbers):
            return
        texts = [_unpacked(self._texts[name]) for name in self._new_texts]
        names = lambda found: np.frombuffer(b"".join(found), np.uint8)  # noqa: E731
        values = (
            names(self._new_texts),
            np.concatenate([np.zeros(0, np.int32), *(text.tokens for text in texts)]),
            np.cumsum([len(text.tokens) for text in texts], dtype=np.int64),
            np.array([text.stopped for text in texts], bool),
            names(self._new_numbers),
            np.array([self._numbers[name] for name in self._new_numbers], np.float32),
        )  # fmt: skip
        file = io.BytesIO()
        np.savez(file, **dict(zip(_ARRAYS, values)))
        # Runs side by side may share a folder: names that no other will choose.
        path = self._folder / f"{os.urandom(8).hex()}.npz"
        atomic_write(path, [file.getvalue()], field="store")
        self._new_texts, self._new_numbers = [], []

    # -----------------------------------------------------------------------------------------

    def _name(self, model: int, kind: bytes, *parts: np.ndarray) -> bytes:
        name = hashlib.blake2b(digest_size=_NAME_BYTES, key=self._keys[model], person=kind)
        for part in parts:
            name.update(np.ascontiguousarray(part))
        return name.digest()

    def _judgement(self, prefix: np.ndarray, draft: Text) -> bytes:
        begin = np.array([len(prefix), draft.stopped], np.int32)
        return self._name(R.LARGE, _LOGLIK, begin, prefix, draft.tokens)

    def _put_text(self, name: bytes, text: Text) -> None:
        if name not in self._texts:
            self._texts[name] = bytes([text.stopped]) + np.asarray(text.tokens, np.int32).tobytes()
            self._new_texts.append(name)

    def _put_number(self, name: bytes, value: np.ndarray) -> None:
        if name not in self._numbers:
            self._numbers[name] = float(value)
            self._new_numbers.append(name)

    def _read(self, path: Path) -> None:
        try:
            with np.load(path) as file:
                names, tokens, ends, stopped, number_names, numbers = (
                    file[array] for array in _ARRAYS
                )
            texts = np.split(tokens, ends[:-1]) if len(ends) else []
            self._texts |= {
                name: bytes([flag]) + text.tobytes()
                for name, text, flag in zip(_split(names), texts, stopped.tolist(), strict=True)
            }
            self._numbers |= zip(_split(number_names), numbers.tolist(), strict=True)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{path}: not steps of an earlier run, or damaged ({error}); remove it, and what it "
                "held is computed again"
            ) from error


def _split(names: np.ndarray) -> list[bytes]:
    """Names that lie end to end."""
    data = names.tobytes()
    return [data[i : i + _NAME_BYTES] for i in range(0, len(data), _NAME_BYTES)]


def _unpacked(found: bytes | None) -> Text | None:
    return None if found is None else Text(np.frombuffer(found, np.int32, offset=1), bool(found[0]))
