"""Steps that the models have written and judged before, on disk, for the runs that follow.

What a model writes depends on its weights, the sampling and the limits of a step, on (seed,
problem), and on the text it has read; what it makes of a draft on weights and text alone. So each
such piece of work has a name, a hash of what it depends on besides the model, and each model has a
folder, named after the hash of everything else. Whoever comes to the same text with the same model
finds the piece under its name; what was made otherwise is just not found.

    FOLDER/large-1f0c.../7d2e....npz    pieces of one model, of one chunk of work; never changed
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

# To be raised when the engine writes or judges otherwise than before: older pieces are not found.
VERSION = 1
_NAME_BYTES = 16  # two of 10^12 names are the same with a probability of 10^-15
_WRITE, _PEEK, _ENTROPY, _SCORE, _LOGLIK = b"write", b"peek", b"entropy", b"score", b"loglik"
_ARRAYS = ("text_names", "tokens", "ends", "stopped", "number_names", "numbers")


class Text(NamedTuple):
    """What a model wrote in one go; `stopped` if it ended at end-of-sequence, which is left out."""

    tokens: np.ndarray
    stopped: bool


class StepStore:
    """Steps, first tokens, scores and likelihoods by what they depend on.

    All pieces of its three models are in memory, about 220 bytes a step and 130 a judgement; a
    folder keeps them between runs.
    """

    def __init__(self, origins: Sequence[str], folder: str | Path | None = None):
        """
        Args:
          origins: of small, large and PRM, what decides their work besides what they read and who
            asks: weights, arithmetic, and for the two that write the sampling and the limits.
          folder: of the pieces that earlier runs have kept, and of those that `keep` will.

        Raises:
          CheckpointError: a file of the folder is damaged. ResultError: it cannot be made.
        """
        self._pieces = []
        for model, origin in zip(R.MODELS, origins, strict=True):
            digest = hashlib.sha256(f"{VERSION} {origin}".encode()).hexdigest()[:16]
            self._pieces.append(_Pieces(Path(folder) / f"{model}-{digest}" if folder else None))

    def __len__(self) -> int:
        return sum(len(pieces.texts) + len(pieces.numbers) for pieces in self._pieces)

    def step(self, writer: int, key: np.ndarray, prefix: np.ndarray) -> Text | None:
        """What a language model writes behind `prefix` [n] with the key data [2] of a row."""
        return self._pieces[writer].text(_name(_WRITE, key, prefix))

    def peek(self, key: np.ndarray, prefix: np.ndarray) -> tuple[int, float] | None:
        """The first token that the small model draws there, and the entropy of that draw."""
        small = self._pieces[R.SMALL]
        token, entropy = small.text(_name(_PEEK, key, prefix)), _name(_ENTROPY, prefix)
        if token is None or entropy not in small.numbers:
            return None
        return int(token.tokens[0]), small.numbers[entropy]

    def score(self, stream: np.ndarray) -> float | None:
        """PRM score at the last separator of `stream` [n], which ends with it."""
        return self._pieces[R.PRM].numbers.get(_name(_SCORE, stream))

    def loglik(self, prefix: np.ndarray, draft: Text) -> float | None:
        """Mean log-likelihood of a draft under the large model."""
        return self._pieces[R.LARGE].numbers.get(_judgement(prefix, draft))

    def learn(self, record: Rows, prompt: int, tables: TokenTables) -> None:
        """Take in the record of one finished solution, whose prompt has `prompt` tokens."""
        text, stream = record.tokens, record.prm_tokens[: int(record.n_prm)]
        read = np.flatnonzero(stream == tables.separator) + 1
        read = [int(record.prm_prompt), *read[read > record.prm_prompt]]  # before each step
        ends, thrown = record.step_end[: int(record.t)].tolist(), 0
        for t, (begin, end) in enumerate(zip([prompt, *ends], ends)):
            prefix, writer = text[:begin], int(record.writer[t])
            kept = Text(text[begin:end], bool(record.stopped[t, writer]))
            self._pieces[writer].put_text(_name(_WRITE, record.key, prefix), kept)
            self._learn_score(stream[: read[t + 1]], record.score[t])
            if len(record.first_entropy) and not np.isnan(record.first_entropy[t]):
                first = Text(record.first_token[t : t + 1], False)
                self._pieces[R.SMALL].put_text(_name(_PEEK, record.key, prefix), first)
                entropy = record.first_entropy[t]
                self._pieces[R.SMALL].put_number(_name(_ENTROPY, prefix), entropy)
            draft = kept if writer == R.SMALL else None
            if record.draft_cost[t] >= 0:
                last, room = int(record.discarded_end[t]), len(record.discarded)
                tokens, thrown = record.discarded[thrown:last], last
                if last < room:  # else it may be cut short
                    draft = Text(tokens, bool(record.stopped[t, R.SMALL]))
                    self._pieces[R.SMALL].put_text(_name(_WRITE, record.key, prefix), draft)
                    tried = [*stream[: read[t]], *bare_step(tokens, tables), tables.separator]
                    self._learn_score(np.array(tried, stream.dtype), record.draft_score[t])
            if draft is not None and len(record.draft_loglik):
                if not np.isnan(record.draft_loglik[t]):
                    name = _judgement(prefix, draft)
                    self._pieces[R.LARGE].put_number(name, record.draft_loglik[t])

    def keep(self) -> None:
        """Write what is new to the folder, if there is one, as one more file a model.

        Raises:
          ResultError: the folder cannot be written or is full; what it holds is as it was.
        """
        for pieces in self._pieces:
            pieces.keep()

    def _learn_score(self, stream: np.ndarray, score: np.ndarray) -> None:
        if not np.isnan(score):
            self._pieces[R.PRM].put_number(_name(_SCORE, stream), score)


class _Pieces:
    """What one model has done.

    Attributes:
      texts, numbers: by name. folder: where they are kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None):
        self.texts: dict[bytes, bytes] = {}
        self.numbers: dict[bytes, float] = {}
        self.folder = folder
        self._new_texts: list[bytes] = []  # names of what no file holds yet
        self._new_numbers: list[bytes] = []
        if folder is not None:
            make_folder(folder, field="store")
            for path in sorted(folder.glob("*.npz")):
                self._read(path)

    def text(self, name: bytes) -> Text | None:
        found = self.texts.get(name)
        if found is None:
            return None
        return Text(np.frombuffer(found, np.int32, offset=1), bool(found[0]))

    def put_text(self, name: bytes, text: Text) -> None:
        if name not in self.texts:
            self.texts[name] = bytes([text.stopped]) + np.asarray(text.tokens, np.int32).tobytes()
            self._new_texts.append(name)

    def put_number(self, name: bytes, value: np.ndarray) -> None:
        if name not in self.numbers:
            self.numbers[name] = float(value)
            self._new_numbers.append(name)

    def keep(self) -> None:
        if self.folder is None or not (self._new_texts or self._new_numbers):
            return
        texts = [self.text(name) for name in self._new_texts]
        names = lambda found: np.frombuffer(b"".join(found), np.uint8)  # noqa: E731
        values = (
            names(self._new_texts),
            np.concatenate([np.zeros(0, np.int32), *(text.tokens for text in texts)]),
            np.cumsum([len(text.tokens) for text in texts], dtype=np.int64),
            np.array([text.stopped for text in texts], bool),
            names(self._new_numbers),
            np.array([self.numbers[name] for name in self._new_numbers], np.float32),
        )
        file = io.BytesIO()
        np.savez(file, **dict(zip(_ARRAYS, values)))
        # Runs side by side may share a folder: a name that no other will choose.
        atomic_write(self.folder / f"{os.urandom(8).hex()}.npz", [file.getvalue()], field="store")
        self._new_texts, self._new_numbers = [], []

    def _read(self, path: Path) -> None:
        try:
            with np.load(path) as file:
                names, tokens, ends, stopped, number_names, numbers = (
                    file[array] for array in _ARRAYS
                )
            texts = np.split(tokens, ends[:-1]) if len(ends) else []
            self.texts |= {
                name: bytes([flag]) + text.tobytes()
                for name, text, flag in zip(_split(names), texts, stopped.tolist(), strict=True)
            }
            self.numbers |= zip(_split(number_names), numbers.tolist(), strict=True)
        except (
            OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError,
            zipfile.BadZipFile,
        ) as error:  # fmt: skip
            raise CheckpointError(
                f"{path}: not steps of an earlier run, or damaged ({error}); remove it, and what it "
                "held is computed again"
            ) from error


def _name(kind: bytes, *parts: np.ndarray) -> bytes:
    name = hashlib.blake2b(digest_size=_NAME_BYTES, person=kind)
    for part in parts:
        name.update(np.ascontiguousarray(part))
    return name.digest()


def _judgement(prefix: np.ndarray, draft: Text) -> bytes:
    begin = np.array([len(prefix), draft.stopped], np.int32)
    return _name(_LOGLIK, begin, prefix, draft.tokens)


def _split(names: np.ndarray) -> list[bytes]:
    """Names that lie end to end."""
    data = names.tobytes()
    return [data[i : i + _NAME_BYTES] for i in range(0, len(data), _NAME_BYTES)]
