"""The result folder: written so that a process killed at any moment loses at most one chunk.

    config.json provenance.json     what was asked, and by which code, weights and data
    chunks/00003.jsonl              the traces of one chunk of problems
    chunks/00003.json               what a resumed run needs to know about that chunk, if anything
    traces.jsonl                    all chunks, once the run is complete
    timings.json                    the only file with times: two equal runs differ here only
    .lock                           empty; held by the process that writes

Every file appears by renaming a finished copy of it, so a file that exists is complete. A chunk
counts as done when its .jsonl exists.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from trim_jax.config import diff_configs, flatten, to_json
from trim_jax.errors import ResultError

SIGNIFICANT_DIGITS = 6
# Parts of the provenance that a resumed run must share; the rest may differ and is recorded.
_SAME_ON_RESUME = ("schema_version", "weights", "data")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a run killed before its config.json was written may have left in a folder.
_BEFORE_CONFIG = {".lock", "chunks", "provenance.json", "validation"}
_held_by_this_process: set[Path] = set()


def dumps(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON text with floats rounded to 6 significant digits; NumPy scalars and arrays are allowed.

    Raises:
        ResultError: The value holds NaN or an infinity, which JSON cannot say.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(_plain(value), ensure_ascii=False, indent=indent, sort_keys=sort_keys,
                      separators=separators, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ResultError(f"a result is {value}: look for NaN or infinity in the weights")
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0  # adding 0 turns -0.0 into 0.0
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def atomic_write(path: Path, pieces: Iterable[bytes], field: str = "out") -> None:
    """Writes a file so that at any moment `path` holds all of its old or all of its new content.

    Args:
        field: of the config, which names the folder; for the error message.

    Raises:
        ResultError: The folder cannot be written or is full; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _explained(path, field):
            with open(temporary, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()  # gives the room back
        raise


def make_folder(path: Path, field: str = "out") -> None:
    """Makes a folder with its parents, if it does not exist.

    Raises:
        ResultError: It cannot be made; the message names `field` of the config.
    """
    with _explained(path, field):
        path.mkdir(parents=True, exist_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path, field: str = "out") -> Iterator[None]:
    """Turns an `OSError` on `path` into one `ResultError` that says what to do."""
    try:
        yield
    except OSError as error:
        advice = ("make room" if error.errno in _NO_ROOM
                  else f"make it writable, or choose another folder with --config.{field}=FOLDER")
        raise ResultError(f"cannot write {path}: {error.strerror}. What is already there is safe: "
                          f"{advice}, and run the same command again") from error


class ResultFolder:
    """A result folder that this process writes. Use as a context manager, or call `close`."""

    def __init__(self, path: Path, lock: IO[bytes]) -> None:
        """Use `open_or_create`."""
        self.path = path
        self._lock = lock

    @classmethod
    def open_or_create(cls, path: str | Path, config: Mapping[str, Any],
                       provenance: Mapping[str, Any]) -> "ResultFolder":
        """Starts a result folder, or resumes the one that the same config has started.

        Args:
            path: The folder; made with its parents if it does not exist.
            config: The resolved config. Its fields `out` and `store` are not saved: a folder may be
                moved, and steps that are known from earlier change no result.
            provenance: From `trim_jax.provenance.collect`. Resumed with other code, versions or
                devices, the folder lists those under "resumed_with".

        Raises:
            ResultError: The folder belongs to another config, other weights or other data (the
                message names what differs), holds something else, is being written by another
                process, or cannot be written.
        """
        path = Path(path)
        make_folder(path)
        folder = cls(path, _acquire(path))
        try:
            folder._start(config, dict(provenance))
        except BaseException:
            folder.close()
            raise
        return folder

    def _start(self, config: Mapping[str, Any], provenance: dict[str, Any]) -> None:
        saved = json.loads(to_json(config))
        for place in ("out", "store"):
            saved.pop(place, None)
        config_path = self.path / "config.json"
        if config_path.exists():
            self._check_same(saved, _read_json(config_path))
            self._check_provenance(provenance)
        else:
            alien = {p.name for p in self.path.iterdir()} - _BEFORE_CONFIG
            alien = sorted(name for name in alien if not name.endswith(".tmp"))
            if alien:
                raise ResultError(f"{self.path} is not a result folder (it holds {alien[0]!r} but "
                                  "no config.json): choose another with --config.out=FOLDER")
        with _explained(self.path):
            for folder in (self.path, self.path / "chunks"):
                for half_written in folder.glob(".*.tmp"):
                    half_written.unlink()
        if not config_path.exists():
            self.write_json("provenance.json", provenance)
            # Last and at full precision: once config.json is there, the folder is ours to resume.
            self.write_file("config.json", json.dumps(saved, sort_keys=True, indent=2) + "\n")

    def _check_same(self, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
        differing = diff_configs(here, there)
        if differing:
            raise ResultError(f"{self.path} belongs to another config:\n  " + "\n  ".join(differing)
                              + "\nChoose another folder with --config.out=FOLDER, or delete it")

    def _check_provenance(self, here: dict[str, Any]) -> None:
        path = self.path / "provenance.json"
        there = _read_json(path)
        same = [{key: p.get(key) for key in _SAME_ON_RESUME} for p in (here, there)]
        if same[0] != same[1]:
            differing = "\n  ".join(diff_configs(_shortened(same[0]), _shortened(same[1])))
            raise ResultError(f"{self.path} was made from other weights or data:\n  {differing}\n"
                              "Choose another folder with --config.out=FOLDER, or delete it")
        rest = {k: v for k, v in json.loads(dumps(here)).items() if k not in _SAME_ON_RESUME}
        others = there.get("resumed_with", [])
        if any(there.get(key) != value for key, value in rest.items()) and rest not in others:
            self.write_json("provenance.json", {**there, "resumed_with": [*others, rest]})

    # ---- Chunks ----

    def done_chunks(self) -> list[int]:
        """The indices of the chunks that are complete, ascending."""
        return sorted(int(p.stem) for p in (self.path / "chunks").glob("[0-9]*.jsonl"))

    def write_chunk(self, index: int, traces: Iterable[Mapping[str, Any]],
                    extra: Mapping[str, Any] | None = None) -> None:
        """Writes the traces of one chunk of problems, one JSON object a line.

        Args:
            index: Position of the chunk, from 0.
            traces: JSON-able traces in their final order.
            extra: What a resumed run must know about this chunk (counts of executed row-slots,
                the state of an adaptive policy); read back with `chunk_extra`.
        """
        chunk = self.path / "chunks" / f"{index:05d}.jsonl"
        with _explained(chunk):
            chunk.parent.mkdir(exist_ok=True)
        if extra is not None:  # first, because the .jsonl marks the chunk as done
            atomic_write(chunk.with_suffix(".json"),
                         [dumps(extra, indent=2, sort_keys=True).encode() + b"\n"])
        atomic_write(chunk, (dumps(trace).encode() + b"\n" for trace in traces))

    def chunk_extra(self, index: int) -> dict[str, Any] | None:
        """What `write_chunk` was given as `extra` for a chunk that is done."""
        path = self.path / "chunks" / f"{index:05d}.json"
        return _read_json(path) if path.exists() else None

    def finish(self, n_chunks: int) -> None:
        """Writes traces.jsonl from the chunks 0 to `n_chunks` - 1, without holding them in memory.

        Raises:
            ResultError: A chunk is missing.
        """
        missing = sorted(set(range(n_chunks)) - set(self.done_chunks()))
        if missing:
            raise ResultError(f"{self.path} is not complete: chunk {missing[0]} of {n_chunks} is "
                              "missing; run the same command again")
        chunks = (self.path / "chunks" / f"{index:05d}.jsonl" for index in range(n_chunks))
        atomic_write(self.path / "traces.jsonl", _pieces(chunks))

    # ---- Other files ----

    def write_json(self, name: str, value: Any) -> None:
        """Writes one JSON file with sorted keys and rounded floats."""
        self.write_file(name, dumps(value, indent=2, sort_keys=True) + "\n")

    def write_file(self, name: str, content: str | bytes) -> None:
        """Writes one file of any kind, such as a figure."""
        atomic_write(self.path / name, [content.encode() if isinstance(content, str) else content])

    def update_timings(self, timings: Mapping[str, Any]) -> None:
        """Merges `timings` (nested dicts; the newer value wins) into timings.json.

        The times of a chunk go here before its `write_chunk`: then every done chunk has its times.
        """
        path = self.path / "timings.json"
        self.write_json(path.name, _merged(_read_json(path) if path.exists() else {}, timings))

    def close(self) -> None:
        """Lets other processes write the folder."""
        self._lock.close()
        _held_by_this_process.discard(self.path.resolve())

    def __enter__(self) -> "ResultFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _acquire(path: Path) -> IO[bytes]:
    """Opens and locks `path`/.lock.

    A POSIX record lock, because it dies with the process that took it: a `flock` would live on in
    the forked workers of a killed run. It does not exclude its own process, hence the set.
    """
    in_use = ResultError(f"{path} is being written by another process: wait for it, or choose "
                         "another folder with --config.out=FOLDER")
    resolved = path.resolve()
    if resolved in _held_by_this_process:
        raise in_use
    with _explained(path):
        lock = open(path / ".lock", "wb")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise in_use from None
            raise
    _held_by_this_process.add(resolved)
    return lock


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"cannot read {path}: {error}") from error


def _pieces(files: Iterable[Path]) -> Iterator[bytes]:
    for path in files:
        with open(path, "rb") as file:
            while piece := file.read(shutil.COPY_BUFSIZE):
                yield piece


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _shortened(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Flat, with hashes cut to what tells them apart."""
    return {key: value[:12] if isinstance(value, str) else value
            for key, value in flatten(provenance).items()}
