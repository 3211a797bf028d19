"""Grading of final answers: is the boxed answer of a solution the answer wanted?

Plain numbers and equal texts are decided at once.  Everything else goes to math-verify, which may
take for ever on a strange expression and whose own time limits rest on signals (main thread only):
it runs in worker processes, and a worker that misses its wall-clock limit is killed.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Sequence

DEFAULT_TIMEOUT_S = 10.0
START_TIMEOUT_S = 120.0  # a first import of sympy from a cold disk

_NUMBER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)?(?:\.\d+)?(?:[eE][+-]?\d{1,4})?")
_POWER_OF_TEN = re.compile(
    r"(?:(?P<factor>[^\s\\*×]*)\s*(?:\\times|\\cdot|\*|×)\s*)?"
    r"10\s*\^\s*(?:\{\s*)?(?P<power>[+-]?\d{1,4})(?:\s*\})?"
)
# What math-verify would read as a multiple of Euler's number.
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.])")
# The end of a line of a matrix with the space behind it, such as \\\\[4pt].
_SPACING = re.compile(r"\\\\\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]")
# Marks of LaTeX inside a text; not a printed dollar, nor the space behind a line of a matrix.
_INSIDE = re.compile(r"(?<!\\)\$|\\boxed|(?<!\\)\\[(\[]")
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))


def extract_boxed(text: str) -> str | None:
    """Content of the last ``\\boxed{...}`` with balanced braces, or None where there is none."""
    end = len(text)
    while (start := text.rfind("\\boxed{", 0, end)) >= 0:
        depth = 0
        for position in range(start + len("\\boxed"), len(text)):
            if text[position - 1] == "\\":  # \{ and \} are printed braces
                continue
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start + len("\\boxed{"):position]
        end = start  # never closed: an earlier box may be whole
    return None


def grade(pred: str | None, gold: str) -> bool:
    """Whether one answer is right (see `grade_many`, which is far faster for many)."""
    return grade_many([(pred, gold)], processes=1)[0]


def grade_many(
    pairs: Sequence[tuple[str | None, str]],
    processes: int | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> list[bool]:
    """Grade (predicted, wanted) answers, in order.

    No answer (None) is wrong.  A pair that takes longer than `timeout_s` seconds, or that kills
    its worker, is graded wrong.  `processes` defaults to the number of CPUs, at most 8.
    """
    verdicts = {pair: _grade_fast(*pair) for pair in dict.fromkeys(pairs)}
    undecided = [pair for pair, verdict in verdicts.items() if verdict is None]
    if undecided:
        count = min(len(undecided), processes or min(8, os.cpu_count() or 1))
        verdicts.update(_grade_in_workers(undecided, count, timeout_s))
    return [bool(verdicts[pair]) for pair in pairs]


def _grade_fast(pred: str | None, gold: str) -> bool | None:
    """The verdict where it is plain, None where math-verify has to look."""
    if pred is None or not pred.strip():
        return False
    if pred == gold:
        return True
    number_a, number_b = _number(pred), _number(gold)
    if number_a is not None and number_b is not None:
        return number_a == number_b
    return True if _normal_text(pred) == _normal_text(gold) else None


def _number(text: str) -> Decimal | None:
    text = _unwrap(text).replace("\\!", "").replace("{,}", ",").removeprefix("\\$").rstrip(".")
    text = text.strip()
    if power := _POWER_OF_TEN.fullmatch(text):
        text = f"{power['factor'] or 1}e{power['power']}"
    if not re.match(r"[+-]?[\d,]*\.?\d", text) or not _NUMBER.fullmatch(text) or not text.isascii():
        return None
    return Decimal(text.replace(",", ""))


def _normal_text(text: str) -> str:
    """A text with the marks removed that change its look but never its meaning."""
    text = _unwrap(text)
    text = re.sub(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])|\^\{?\\circ\}?", "", text)
    text = re.sub(r"\\[!,;: ]", " ", text)
    # A space between digits means nothing before a group of three only: 12 345, but not 2 1/3.
    text = re.sub(r"(?<=\d)\s+(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)\s+(?=\d)", "~", text)
    text = re.sub(r"\s+", "", text).removeprefix("\\$").rstrip(".")
    choice = re.fullmatch(r"\(([A-Za-z])\)", text)
    return choice[1] if choice else text


def _unwrap(text: str) -> str:
    text = text.strip()
    for left, right in _WRAPPERS:
        inner = text[len(left):-len(right)]
        if text.startswith(left) and text.endswith(right) and inner and "$" not in inner:
            return inner.strip()
    return text


# --- math-verify in worker processes -------------------------------------------------------------


def _grade_in_workers(
    pairs: list[tuple[str, str]], count: int, timeout_s: float
) -> dict[tuple[str, str], bool]:
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for pair in pairs:
        waiting.put(pair)
    verdicts: dict[tuple[str, str], bool] = {}
    failures: list[BaseException] = []

    def serve() -> None:
        worker = None
        try:
            while not failures:
                try:
                    pair = waiting.get_nowait()
                except queue.Empty:
                    break
                worker = worker or _Worker(timeout_s)
                verdict = worker.ask(pair)
                verdicts[pair] = bool(verdict)
                if verdict is None:  # killed at its limit, or crashed
                    worker.stop()
                    worker = None
        except BaseException as error:  # raised again in the caller's thread
            failures.append(error)
        finally:
            if worker is not None:
                worker.stop()

    threads = [threading.Thread(target=serve) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return verdicts


class _Worker:
    """A Python process that grades one pair per line of JSON, under a wall-clock limit."""

    def __init__(self, timeout_s: float) -> None:
        # A fresh interpreter, not a fork: forking a process that runs JAX threads can deadlock,
        # and multiprocessing's spawn would run an unguarded script of the user again.
        root = str(Path(__file__).resolve().parents[2])
        paths = filter(None, [root, os.environ.get("PYTHONPATH")])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self._timeout_s = timeout_s
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trim_jax.tasks.grading"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        if self._read(START_TIMEOUT_S) != "ready":
            self.stop()
            raise RuntimeError("a grading process did not start; is math-verify installed?")

    def ask(self, pair: tuple[str, str]) -> bool | None:
        """The verdict, or None where the process missed its limit or died."""
        try:
            self._process.stdin.write(json.dumps(pair).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        return self._read(self._timeout_s)

    def _read(self, timeout_s: float) -> bool | str | None:
        timer = threading.Timer(timeout_s, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        return json.loads(line) if line.endswith(b"\n") else None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def _verify(pred: str, gold: str) -> bool:
    from math_verify import parse, verify

    # No limits by signals: the wall clock of `_Worker` is the only one.
    wanted = parse(_delimited(gold), parsing_timeout=None)
    found = parse(_delimited(pred), parsing_timeout=None)
    return bool(verify(wanted, found, timeout_seconds=None))


def _delimited(text: str) -> str:
    """As math-verify wants it: LaTeX between dollars on one line, unless it has marks inside."""
    text = _SPACING.sub(r"\\\\", " ".join(_unwrap(text).split()))
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    return text if _INSIDE.search(text) else f"${text}$"


def _serve() -> None:
    """Main loop of a worker: pairs on standard input, verdicts on standard output."""
    logging.disable(logging.CRITICAL)  # math-verify logs every expression that it cannot read
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the verdicts
    _verify("x", "y")  # load everything now: start-up is not part of a pair's time
    print(json.dumps("ready"), file=output, flush=True)
    for line in sys.stdin.buffer:
        pred, gold = json.loads(line)
        try:
            verdict = _verify(pred, gold)
        except Exception:  # an answer that math-verify cannot read is a wrong answer
            verdict = False
        print(json.dumps(verdict), file=output, flush=True)


if __name__ == "__main__":
    _serve()
