"""Engines on a mesh of several hosts: one process leads, the others follow.

The leader, process 0, runs the program as if it were alone. Whatever an engine of its does on the
devices it first tells the followers, who do the same on theirs: a computation on a mesh takes all
processes of the mesh. So nothing but an engine need know of other hosts.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from trim_jax.engine.loop import LoopConfig
from trim_jax.engine.machine import Machine, Seen
from trim_jax.engine.rows import Rows
from trim_jax.errors import ConfigError, TrimError
from trim_jax.models.qwen2 import ModelConfig

MAKE, STOP = "make", "stop"  # what a message asks for, besides the methods of `Machine`
LETTER = 2**16  # bytes of a message that goes at once; of a longer one, the rest follows
SIZE = 8  # bytes of its size, which comes first
ANSWER = 1000  # bytes of an answer, at most


def machine(config: LoopConfig, params: tuple[Any, Any, Any], mesh: Mesh | None) -> Machine | Led:
    """The device side of an engine of this process; of the leader, if the mesh spans processes.

    Raises:
      ConfigError: another host cannot make it too; the message says which, and why.
    """
    kind = Led if mesh is not None and mesh.is_multi_process else Machine
    return kind(config, params, mesh)


class Led:
    """A `Machine` of the leader, and those of the followers that do the same.

    Attributes:
      numbers: names for machines. dropped: those that are gone, which the next message says:
        garbage may be collected in the middle of another.
      torn: a message was cut short, or the devices failed; nothing can be said any more.
    """

    numbers: ClassVar[Iterator[int]] = itertools.count()
    dropped: ClassVar[collections.deque[int]] = collections.deque()
    torn: ClassVar[bool] = False

    def __init__(self, config: LoopConfig, params: tuple[Any, Any, Any], mesh: Mesh):
        for policy in config.policies:
            try:
                pickle.dumps(policy)
            except Exception as error:
                raise ConfigError(
                    f"policy {policy.full_name} cannot be sent to the other hosts: {error}; "
                    "define its class at the top of a module, and give it no functions as fields"
                ) from error
        self._number = next(Led.numbers)
        with _message():
            _tell(self._number, MAKE, pickle.dumps(config))
            said = _answers("")
        refusals = [f"host {i}: {words}" for i, words in enumerate(said) if words]
        if refusals:
            Led.dropped.append(self._number)  # by those that did make it
            raise ConfigError("; ".join(refusals))
        self._machine = Machine(config, params, mesh)
        weakref.finalize(self, Led.dropped.append, self._number)

    def begin(self, fresh: bool) -> None:
        """See `Machine`, as for the rest."""
        self._do("begin", fresh)

    def call(self, rows: Rows, index: np.ndarray, tail: np.ndarray, more: bool) -> Seen:
        return self._do("call", rows, index, tail, more)

    def out(self) -> Rows:
        return self._do("out")

    def load_weights(self, policy: int, weights: Any) -> None:
        self._do("load_weights", policy, weights)

    def _do(self, method: str, *arguments: Any) -> Any:
        with _message():
            _tell(self._number, method, *arguments)
            return getattr(self._machine, method)(*arguments)


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """Around all that the leader does: the followers are dismissed at its end, whatever happens.

    But for a failure of the devices, which may be the death of a follower: JAX then ends
    the others.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError:
        Led.torn = True
        raise
    finally:
        if not Led.torn:
            with _message():
                _tell(-1, STOP)
                jax.distributed.shutdown()


Loaded = tuple[tuple[ModelConfig, ModelConfig, ModelConfig], tuple[Any, Any, Any], Mesh]


def serve(load: Callable[[], Loaded]) -> None:
    """Follow the leader until it stops; Ctrl-C is for the leader to heed.

    Args:
      load: returns configurations and parameters of the three models, and their mesh. If it raises
        a `TrimError`, the leader is told so, and raises it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all its processes
    refusal, loaded = "", None
    try:
        loaded = load()
    except TrimError as error:
        refusal = str(error)
    machines: dict[int, Machine] = {}
    while True:
        dropped, number, method, arguments = _heard()
        for gone in dropped:
            machines.pop(gone, None)  # it may be one that this host could not make
        if method == STOP:
            break
        if method == MAKE:
            answer = refusal
            if loaded is not None:
                try:
                    machines[number] = _made(*arguments, *loaded)
                except TrimError as error:
                    answer = str(error)
            _answers(answer)
        else:
            getattr(machines[number], method)(*arguments)
    jax.distributed.shutdown()


def _made(pickled: bytes, models: tuple, params: tuple, mesh: Mesh) -> Machine:
    sys.path.insert(0, os.getcwd())  # where a policy of the user's own is looked for, too
    try:
        config = pickle.loads(pickled)
    except Exception as error:  # whatever a module of the user's raises
        raise ConfigError(f"cannot read the policies: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if config.models != models:
        raise ConfigError("the models here are not those of host 0")
    return Machine(config, params, mesh)


# ---- Messages ----


@contextlib.contextmanager
def _message() -> Iterator[None]:
    """Around a message and all that the followers do for it: Ctrl-C waits for its end."""
    came: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()  # where alone signals are heard
    before = signal.signal(signal.SIGINT, lambda *_: came.append(1)) if in_main else None
    Led.torn = True
    try:
        yield
        Led.torn = False
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def _tell(number: int, method: str, *arguments: Any) -> None:
    """Ask the followers for a method of a machine; tell them which machines are gone."""
    dropped = [Led.dropped.popleft() for _ in range(len(Led.dropped))]
    content = pickle.dumps((dropped, number, method, arguments))
    content = np.frombuffer(len(content).to_bytes(SIZE) + content, np.uint8)
    multihost_utils.broadcast_one_to_all(_padded(content[:LETTER], LETTER))
    if len(content) > LETTER:
        rest = content[LETTER:]
        multihost_utils.broadcast_one_to_all(_padded(rest, _room(len(rest))))


def _heard() -> tuple[list[int], int, str, tuple]:
    """What the leader tells."""
    content = multihost_utils.broadcast_one_to_all(np.zeros(LETTER, np.uint8))
    size = SIZE + int.from_bytes(content[:SIZE].tobytes())
    if size > LETTER:
        rest = np.zeros(_room(size - LETTER), np.uint8)
        content = np.concatenate([content, multihost_utils.broadcast_one_to_all(rest)])
    return pickle.loads(content[SIZE:size].tobytes())


def _answers(words: str) -> list[str]:
    """What every process has to say; "" from this and from each that has nothing to."""
    own = _padded(np.frombuffer(words.encode()[:ANSWER], np.uint8), ANSWER)
    every = multihost_utils.process_allgather(own)
    return [bytes(one).rstrip(b"\0").decode(errors="ignore") for one in every]


def _room(size: int) -> int:
    """Bytes that are sent instead of `size`: each length is compiled once, so there are few."""
    return max(LETTER, 1 << (size - 1).bit_length())


def _padded(content: np.ndarray, size: int) -> np.ndarray:
    return np.pad(content, (0, size - len(content)))
