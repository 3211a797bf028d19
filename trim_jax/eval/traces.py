"""What a routed run leaves behind, and how it is read back.

A result folder holds, for this package (all JSON is UTF-8):

``policies.json``
    ``{"schema_version": 3, "seeds": [0, 1, 2], "policies": {"thr": {"parameter": "k",
    "settings": [0.0, 0.05, ...]}, "never": {"parameter": null, "settings": [null]}, ...}}``
``problems.json``
    ``{"schema_version": 3, "problems": [{"id", "problem", "answer", "level", "solution"}, ...]}``
``traces.jsonl``
    one history a line, and in ``cells`` the policies and settings that produced exactly this one:
    ``[["thr", 2, 7], ["q", 0, 3]]``, half-open ranges of indices into a policy's list of settings.
    Read back, it is one :class:`Trace` for each range.
``config.json``, ``provenance.json``
    the resolved configuration and the origin of the run, shown in the report.
``executed.json`` (optional)
    row-slots that were really executed, by kind of work:
    ``{"decode_small": {"slots": 900, "used": 850, "calls": 12}, ...}``; ``served`` counts the pieces
    of work that the steps of earlier runs have spared.
``validation/`` (optional)
    another result folder, of the same policies on the validation split. Settings are chosen
    there, never on the test problems.

Every policy must have exactly one trace for every (problem, seed, setting).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trim_jax.errors import ResultError

SCHEMA_VERSION = 3

MODELS = ("small", "large", "prm")
COUNTERS = ("kept", "discarded", "prefilled", "scored", "calls")
# Those that are tokens, which a model reads or writes: positions in COUNTERS.
TOKEN_COUNTERS = tuple(i for i, name in enumerate(COUNTERS) if name != "calls")
SERVED = "served"  # what no model executed: pieces of work that were known
FINISHES = ("boxed", "eos", "steps", "context")
# Who writes the accepted step under each action: only `direct` has no draft at all.
WRITER_OF_ACTION = {"accept": "small", "regenerate": "large", "direct": "large"}


class _Invalid(ValueError):
    """A value that breaks the schema; the reader adds the file and line."""


@dataclass(frozen=True, slots=True)
class ModelLedger:
    """Useful tokens of one model, charged as if the policy had run alone."""

    kept: int  # decoded and part of the solution
    discarded: int  # decoded and thrown away
    prefilled: int  # read into the cache without decoding
    scored: int  # read by the process reward model
    calls: int


@dataclass(frozen=True, slots=True)
class Ledger:
    small: ModelLedger
    large: ModelLedger
    prm: ModelLedger


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One accepted step.

    Attributes:
      text: the accepted text, without the delimiter.
      writer: "small" or "large".
      action: "accept" (the draft stands), "regenerate" (the large model rewrote it) or "direct"
        (the large model wrote without a draft).
      score_draft: process reward of the draft, in [0, 1]; None when it was never scored.
      score: process reward of the accepted step; None when it was never scored.
      n_tokens: tokens of the accepted step, counted as in ``Trace.strong_tokens``.
      draft, draft_tokens: the discarded draft; None unless the action is "regenerate".
      right: this step and everything before it is right; None when no true label exists.
      draft_right: the same for the discarded draft.
      kind: operation of the step, where the benchmark knows it.
      draft_likelihood: of the draft under the large model, the geometric mean over its tokens, in
        [0, 1]; None when the large model did not judge it.
    """

    text: str
    writer: str
    action: str
    score_draft: float | None
    score: float | None
    n_tokens: int
    draft: str | None
    draft_tokens: int | None
    right: bool | None
    draft_right: bool | None
    kind: str | None
    draft_likelihood: float | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """One routed solution, of the settings [first, end) of a policy.

    ``strong_tokens`` is the paper's cost (kept tokens of the large model, delimiter and
    end-of-sequence not counted).
    """

    problem_id: str
    seed: int
    policy: str
    settings: tuple[int, int]
    finish: str
    answer: str | None
    correct: bool
    strong_tokens: int
    steps: tuple[StepTrace, ...]
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy's parameter name and the values it was run at (None: it has no parameter)."""

    name: str
    parameter: str | None
    settings: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    id: str
    problem: str
    answer: str
    level: int | None
    solution: str | None


@dataclass(frozen=True)
class Result:
    """A finished run, as read from its folder."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    executed: Mapping[str, Any] | None
    policies: Mapping[str, PolicySpec]
    problems: tuple[ProblemRecord, ...]
    seeds: tuple[int, ...]
    traces: tuple[Trace, ...]
    validation: Result | None


@dataclass(frozen=True)
class Table:
    """The traces of one policy, expanded to one cell per setting, problem and seed.

    Attributes:
      correct: bool [settings, problems, seeds].
      strong_tokens: int64 [settings, problems, seeds].
      ledger: int64 [settings, problems, seeds, models, counters], in the order of ``MODELS`` and
        ``COUNTERS``.
      trace_index: int64 [settings, problems, seeds], positions in ``Result.traces``.
    """

    policy: PolicySpec
    problem_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    correct: np.ndarray
    strong_tokens: np.ndarray
    ledger: np.ndarray
    trace_index: np.ndarray


# ------------------------------------------------------------------------------ JSON to objects


_HISTORY_KEYS = frozenset(Trace.__slots__) - {"policy", "settings"} | {"cells"}
_STEP_KEYS = frozenset(StepTrace.__slots__)
_LEDGER_KEYS = frozenset(MODELS)
_COUNTER_KEYS = frozenset(COUNTERS)


def _check_keys(value: Any, keys: frozenset[str], what: str) -> None:
    if not isinstance(value, dict):
        raise _Invalid(f"{what} must be an object, got {value!r}")
    if value.keys() != keys:
        missing = sorted(keys - value.keys())
        unknown = sorted(value.keys() - keys)
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has unknown {', '.join(unknown)}"] if unknown else []
        raise _Invalid(f"{what} {' and '.join(parts)}")


def _count(value: Any, what: str) -> int:
    if type(value) is not int or value < 0:
        raise _Invalid(f"{what} must be a whole number >= 0, got {value!r}")
    return value


def _text(value: Any, what: str, optional: bool = False) -> str | None:
    if type(value) is str or (optional and value is None):
        return value
    raise _Invalid(f"{what} must be a string{' or null' if optional else ''}, got {value!r}")


def _flag(value: Any, what: str, optional: bool = False) -> bool | None:
    if type(value) is bool or (optional and value is None):
        return value
    raise _Invalid(f"{what} must be true or false{' or null' if optional else ''}, got {value!r}")


def _score(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if type(value) not in (float, int) or not 0.0 <= value <= 1.0:
        raise _Invalid(f"{what} must be a number in [0, 1] or null, got {value!r}")
    return float(value)


def _step_from_json(value: Any, what: str) -> StepTrace:
    _check_keys(value, _STEP_KEYS, what)
    action = value["action"]
    if action not in WRITER_OF_ACTION:
        raise _Invalid(f"{what}: action must be one of {', '.join(WRITER_OF_ACTION)}, "
                       f"got {action!r}")
    if value["writer"] != WRITER_OF_ACTION[action]:
        raise _Invalid(f"{what}: action {action!r} means writer {WRITER_OF_ACTION[action]!r}, "
                       f"got {value['writer']!r}")
    draft, draft_tokens = value["draft"], value["draft_tokens"]
    if action == "regenerate":
        _text(draft, f"{what}: draft")
        _count(draft_tokens, f"{what}: draft_tokens")
    elif draft is not None or draft_tokens is not None or value["draft_right"] is not None:
        raise _Invalid(f"{what}: draft, draft_tokens and draft_right describe a discarded draft "
                       f"and must be null when the action is {action!r}")
    return StepTrace(
        text=_text(value["text"], f"{what}: text"),
        writer=value["writer"],
        action=action,
        score_draft=_score(value["score_draft"], f"{what}: score_draft"),
        score=_score(value["score"], f"{what}: score"),
        n_tokens=_count(value["n_tokens"], f"{what}: n_tokens"),
        draft=draft,
        draft_tokens=draft_tokens,
        right=_flag(value["right"], f"{what}: right", optional=True),
        draft_right=_flag(value["draft_right"], f"{what}: draft_right", optional=True),
        kind=_text(value["kind"], f"{what}: kind", optional=True),
        draft_likelihood=_score(value["draft_likelihood"], f"{what}: draft_likelihood"),
    )


def _ledger_from_json(value: Any) -> Ledger:
    _check_keys(value, _LEDGER_KEYS, "ledger")
    models = {}
    for model in MODELS:
        _check_keys(value[model], _COUNTER_KEYS, f"ledger of {model}")
        models[model] = ModelLedger(
            *(_count(value[model][name], f"ledger: {model}.{name}") for name in COUNTERS))
    return Ledger(**models)


def traces_from_json(value: Any) -> list[Trace]:
    """The traces of one history, after a check against the schema.

    Raises:
      ResultError: naming the field that is missing, unknown, ill-typed or inconsistent.
    """
    try:
        return _traces_from_json(value)
    except _Invalid as error:
        raise ResultError(f"invalid trace: {error}") from None


def _cells_from_json(value: Any) -> list[tuple[str, tuple[int, int]]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise _Invalid(f"cells must be a list of [policy, first, end], got {value!r}")
    for cell in value:
        if not (isinstance(cell, (list, tuple)) and len(cell) == 3 and type(cell[0]) is str
                and all(type(i) is int for i in cell[1:]) and 0 <= cell[1] < cell[2]):
            raise _Invalid("cells must be policies with half-open ranges of settings, "
                           f"[policy, first, end], got {cell!r}")
    return [(policy, (first, end)) for policy, first, end in value]


def _traces_from_json(value: Any) -> list[Trace]:
    _check_keys(value, _HISTORY_KEYS, "trace")
    cells = _cells_from_json(value["cells"])
    if value["finish"] not in FINISHES:
        raise _Invalid(f"finish must be one of {', '.join(FINISHES)}, got {value['finish']!r}")
    if not isinstance(value["steps"], (list, tuple)):
        raise _Invalid(f"steps must be a list, got {value['steps']!r}")
    if type(value["seed"]) is not int:
        raise _Invalid(f"seed must be a whole number, got {value['seed']!r}")
    steps = tuple(_step_from_json(s, f"step {i + 1}") for i, s in enumerate(value["steps"]))
    strong = _count(value["strong_tokens"], "strong_tokens")
    written = sum(s.n_tokens for s in steps if s.writer == "large")
    if strong != written:
        raise _Invalid(f"strong_tokens is {strong}, but the large model's steps have {written}")
    history = dict(
        problem_id=_text(value["problem_id"], "problem_id"),
        seed=value["seed"],
        finish=value["finish"],
        answer=_text(value["answer"], "answer", optional=True),
        correct=_flag(value["correct"], "correct"),
        strong_tokens=strong,
        steps=steps,
        ledger=_ledger_from_json(value["ledger"]),
    )
    return [Trace(policy=policy, settings=settings, **history) for policy, settings in cells]


def histories(traces: Iterable[Trace]) -> Iterator[dict[str, Any]]:
    """The JSON objects of ``traces.jsonl``, each distinct history once, in order of appearance."""
    same: dict[tuple, list[Trace]] = {}
    for trace in traces:
        key = (trace.problem_id, trace.seed, trace.finish, trace.ledger, trace.steps)
        same.setdefault(key, []).append(trace)
    return (_history_to_json(group) for group in same.values())


def _history_to_json(traces: Sequence[Trace]) -> dict[str, Any]:
    trace = traces[0]
    out = {name: getattr(trace, name) for name in Trace.__slots__ if name in _HISTORY_KEYS}
    out["cells"] = [[t.policy, *t.settings] for t in traces]
    out["steps"] = [{name: getattr(s, name) for name in StepTrace.__slots__}
                    for s in trace.steps]
    out["ledger"] = {m: {c: getattr(getattr(trace.ledger, m), c) for c in COUNTERS}
                     for m in MODELS}
    return out


def dump_traces(traces: Iterable[Trace]) -> str:
    """The text of ``traces.jsonl``; the same traces give the same text."""
    return "".join(json.dumps(history, ensure_ascii=False, separators=(",", ":")) + "\n"
                   for history in histories(traces))


# ---------------------------------------------------------------------------------- the folder


def index_files(policies: Mapping[str, PolicySpec], problems: Iterable[Any],
                seeds: Sequence[int]) -> dict[str, str]:
    """Contents of ``policies.json`` and ``problems.json``, by file name.

    ``problems`` are any objects with the attributes of :class:`ProblemRecord`.
    """
    index = {
        "schema_version": SCHEMA_VERSION,
        "seeds": [int(s) for s in seeds],
        "policies": {name: {"parameter": spec.parameter, "settings": list(spec.settings)}
                     for name, spec in policies.items()},
    }
    rows = [{name: getattr(p, name) for name in ProblemRecord.__slots__} for p in problems]
    problem_file = {"schema_version": SCHEMA_VERSION, "problems": rows}
    return {"policies.json": json.dumps(index, ensure_ascii=False, indent=1) + "\n",
            "problems.json": json.dumps(problem_file, ensure_ascii=False, indent=1) + "\n"}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{path}: not found; is {path.parent} a result folder?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from None


def _check_version(path: Path, value: Any) -> None:
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise ResultError(f"{path}: schema version {version!r}, this program reads version "
                          f"{SCHEMA_VERSION}")


def _read_policies(path: Path) -> tuple[dict[str, PolicySpec], tuple[int, ...]]:
    index = _read_json(path)
    _check_version(path, index)
    try:
        policies = {name: PolicySpec(name, spec["parameter"], tuple(spec["settings"]))
                    for name, spec in index["policies"].items()}
        seeds = tuple(index["seeds"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path}: needs seeds and, for each policy, parameter and settings "
                          f"({type(error).__name__}: {error})") from None
    if not seeds or not policies:
        raise ResultError(f"{path}: no {'policies' if seeds else 'seeds'}")
    for name, spec in policies.items():
        if not spec.settings:
            raise ResultError(f"{path}: policy {name} has no settings")
    return policies, seeds


def _read_problems(path: Path) -> tuple[ProblemRecord, ...]:
    value = _read_json(path)
    _check_version(path, value)
    problems = []
    for row, entry in enumerate(value.get("problems") or []):
        try:
            problems.append(ProblemRecord(**{k: entry[k] for k in ProblemRecord.__slots__}))
        except (KeyError, TypeError) as error:
            raise ResultError(f"{path}: problem {row + 1} lacks {error}") from None
    if not problems:
        raise ResultError(f"{path}: no problems")
    if len({p.id for p in problems}) != len(problems):
        raise ResultError(f"{path}: a problem id occurs twice")
    return tuple(problems)


def read_traces(path: Path) -> Iterator[Trace]:
    """Traces of a ``.jsonl`` file, one at a time.

    Raises:
      ResultError: naming the file, the line and the field.
    """
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield from _traces_from_json(json.loads(line))
                except (_Invalid, json.JSONDecodeError) as error:
                    raise ResultError(f"{path}, line {number}: {error}") from None
    except FileNotFoundError:
        raise ResultError(f"{path}: not found; the run is not finished: start the same command "
                          "again and it resumes") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from None


def load_result(folder: str | Path) -> Result:
    """Reads and checks a finished result folder (its ``validation/`` too, when there is one).

    Raises:
      ResultError: a file is missing, from another schema version or broken. Cells without a
        trace are found by :func:`tables`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ResultError(f"{folder}: no such result folder")
    policies, seeds = _read_policies(folder / "policies.json")
    executed = folder / "executed.json"
    config = _read_json(folder / "config.json")
    # The harder problems of a study have their settings from the study's own validation.
    transferred = folder.resolve().name == "hard" and "study" in config
    validation = (folder.resolve().parent if transferred else folder) / "validation"
    return Result(
        folder=folder,
        name=folder.resolve().name,
        config=config,
        provenance=_read_json(folder / "provenance.json"),
        executed=_read_json(executed) if executed.exists() else None,
        policies=policies,
        problems=_read_problems(folder / "problems.json"),
        seeds=seeds,
        traces=tuple(read_traces(folder / "traces.jsonl")),
        validation=load_result(validation) if (validation / "policies.json").exists() else None,
    )


# ----------------------------------------------------------------------------------- expansion


def tables(result: Result) -> dict[str, Table]:
    """Expands traces to one cell per (setting, problem, seed), for every policy.

    Raises:
      ResultError: a cell has no trace or two, or a trace names an unknown policy, problem, seed
        or setting; the message names it.
    """
    problem_at = {p.id: i for i, p in enumerate(result.problems)}
    seed_at = {s: i for i, s in enumerate(result.seeds)}
    where = f"{result.folder / 'traces.jsonl'}"
    index = {name: np.full((len(spec.settings), len(problem_at), len(seed_at)), -1, np.int64)
             for name, spec in result.policies.items()}
    for number, trace in enumerate(result.traces):
        what = f"{where}, trace {number + 1}"
        if trace.policy not in index:
            raise ResultError(f"{what}: policy {trace.policy!r} is not in policies.json")
        if trace.problem_id not in problem_at:
            raise ResultError(f"{what}: problem {trace.problem_id!r} is not in problems.json")
        if trace.seed not in seed_at:
            raise ResultError(f"{what}: seed {trace.seed} is not in policies.json")
        first, end = trace.settings
        cells = index[trace.policy][first:end, problem_at[trace.problem_id], seed_at[trace.seed]]
        if len(cells) != end - first:
            raise ResultError(f"{what}: settings {first}..{end - 1}, but {trace.policy} has only "
                              f"{len(index[trace.policy])} settings")
        if (cells >= 0).any():
            raise ResultError(f"{what}: a second trace of {trace.policy} for problem "
                              f"{trace.problem_id}, seed {trace.seed}, settings {first}..{end - 1}")
        cells[:] = number
    missing = [_cell_name(result, name, cell)
               for name, at in index.items() for cell in np.argwhere(at < 0)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ResultError(f"{where}: no trace for {'; '.join(missing[:3])}{more}")

    correct = np.array([t.correct for t in result.traces], bool)
    strong = np.array([t.strong_tokens for t in result.traces], np.int64)
    ledger = np.array([[[getattr(getattr(t.ledger, m), c) for c in COUNTERS] for m in MODELS]
                       for t in result.traces], np.int64)
    return {name: Table(policy=result.policies[name], problem_ids=tuple(problem_at),
                        seeds=result.seeds, correct=correct[at], strong_tokens=strong[at],
                        ledger=ledger[at], trace_index=at)
            for name, at in index.items()}


def _cell_name(result: Result, policy: str, cell: np.ndarray) -> str:
    spec = result.policies[policy]
    setting, problem, seed = (int(i) for i in cell)
    at = f" {spec.parameter}={spec.settings[setting]:g}" if spec.parameter else ""
    return (f"policy {policy}{at}, problem {result.problems[problem].id}, "
            f"seed {result.seeds[seed]}")
