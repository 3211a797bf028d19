"""Problems: the record that every data set is read into, and its JSONL form.

One JSON object per line with the fields {id, problem, solution, answer, level, source}; the same
reader loads the files that `write_jsonl` writes and a user's own.  In a user's file only `problem`
and an answer are needed: `id` defaults to file name and line number, `answer` to what the solution
boxes, `source` to the file name, and fields of other names are ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import tempfile
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Iterable

from trim_jax.errors import DataError

MAX_REPORTED_ROWS = 100


@dataclass(frozen=True)
class Problem:
    """One problem with its written solution (steps separated by a blank line) and final answer."""

    id: str
    problem: str
    solution: str
    answer: str
    level: int | None
    source: str


FIELDS = tuple(field.name for field in dataclasses.fields(Problem))


def load_problems(source: str, split: str = "test", limit: int | None = None) -> list[Problem]:
    """Problems of the embedded benchmark ("arith") or of a .jsonl file, in their fixed order.

    `split` chooses a part of `arith`; a file is one split by itself.  `limit` keeps the first so
    many.  Raises DataError for an unknown source or split, and for bad rows of a file.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, not {limit}")
    if source == "arith":
        from trim_jax.tasks import arith

        return arith.generate(split, limit)
    if source.endswith(".jsonl"):
        return read_jsonl(source)[:limit]
    raise unknown_name("source of problems", source, ["arith"], "or the path of a .jsonl file")


def unknown_name(what: str, name: str, known: Iterable[str], otherwise: str = "") -> DataError:
    """The error for a name that is none of `known`; it names the nearest one and all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    choices = " ".join(filter(None, [", ".join(known), otherwise]))
    return DataError(f"unknown {what} {name!r}{hint} (known: {choices})")


def read_jsonl(path: str | Path) -> list[Problem]:
    """Every problem of a JSONL file; all bad rows are reported together in one DataError."""
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    problems: list[Problem] = []
    bad: list[str] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            problem = _parse_row(line, path.stem, number)
        except ValueError as error:
            bad.append(f"  line {number}: {error}")
            continue
        if problem.id in first_line:
            first = first_line[problem.id]
            bad.append(f"  line {number}: id {problem.id!r} was already used in line {first}")
            continue
        first_line[problem.id] = number
        problems.append(problem)
    if bad:
        shown = bad[:MAX_REPORTED_ROWS]
        if len(bad) > len(shown):
            shown.append(f"  and {len(bad) - len(shown)} more")
        raise DataError(f"{path}: {len(bad)} bad row(s):\n" + "\n".join(shown))
    if not problems:
        raise DataError(f"{path}: holds no problems")
    return problems


def write_jsonl(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write problems, one line each; the file appears complete or not at all."""
    path = Path(path)
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
        try:
            with open(handle, "w", encoding="utf-8", newline="\n") as file:
                for problem in problems:
                    file.write(to_json(problem) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)  # mkstemp makes files that only their owner can read
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def to_json(problem: Problem) -> str:
    """The line of one problem, without the newline."""
    return json.dumps(dataclasses.asdict(problem), ensure_ascii=False)


def _parse_row(line: bytes, stem: str, number: int) -> Problem:
    """One line as a Problem; ValueError says what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is wanted, not {_type_name(row)}")
    solution = _text(row, "solution") or ""
    problem = _text(row, "problem")
    if not problem or not problem.strip():
        similar = difflib.get_close_matches("problem", [key for key in row if key not in FIELDS])
        hint = f" (but {similar[0]!r})" if similar else ""
        raise ValueError(f"no 'problem'{hint}")
    level = row.get("level")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        raise ValueError(f"'level' must be a whole number, not {_type_name(level)}")
    return Problem(
        id=_text(row, "id", numbers=True) or f"{stem}-{number:05d}",
        problem=problem,
        solution=solution,
        answer=_answer(row, solution),
        level=level,
        source=_text(row, "source") or stem,
    )


def _answer(row: dict[str, Any], solution: str) -> str:
    from trim_jax.tasks.grading import extract_boxed

    answer = _text(row, "answer", numbers=True)
    if answer is None:
        answer = extract_boxed(solution)
    if answer is None or not answer.strip():
        raise ValueError("no 'answer', and no \\boxed{} in a 'solution'")
    return answer


def _text(row: dict[str, Any], field: str, numbers: bool = False) -> str | None:
    value = row.get(field)
    if value is None:
        return None
    if numbers and isinstance(value, (int, float)) and not isinstance(value, bool):
        return format(Decimal(str(value)), "f")  # 0.00005, not 5e-05
    if not isinstance(value, str):
        raise ValueError(f"{field!r} must be text, not {_type_name(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{field!r} has a broken \\u escape (half of a pair)") from None
    return value


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number")
