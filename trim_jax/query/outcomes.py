"""What a query-level router is trained and judged on: both models' own outcomes on each question.

A query-level router sends whole questions to the large model. It pays the full large solution for
those and no large token for the others, so that everything it can achieve follows from two recorded
solutions of every (question, seed): the small model's and the large model's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from trim_jax.errors import DataError
from trim_jax.eval import summary
from trim_jax.eval.traces import COUNTERS, MODELS, Result, Table, Trace, tables

_SCORED, _KEPT, _PREFILLED, _CALLS = (COUNTERS.index(c)
                                      for c in ("scored", "kept", "prefilled", "calls"))
_PRM = MODELS.index("prm")
# Smoothie compares the outputs of three writers: its third is a solution of mixed authorship.
_MIXED_POLICY, _MIXED_SETTING = "random", 0.5


@dataclasses.dataclass(frozen=True)
class Ledgers:
    """What the parts of a query-level run cost, each int64 [N, S, models, counters].

    Attributes:
      small, large: the solution of either model, written alone.
      prm: the process reward model reads the whole small solution; None where it never did.
    """

    small: np.ndarray
    large: np.ndarray
    prm: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Recorded outcomes of N questions with S seeds.

    Attributes:
      ids, questions: [N]. seeds: [S].
      small_correct, large_correct: bool [N, S].
      strong_tokens: int64 [N, S], tokens of the large model's solution (delimiters not counted).
      small_texts, large_texts: [N][S], the solutions.
      mixed_texts: [N][S], solutions in which both models wrote steps; None where not recorded.
      small_answered: bool [N, S], the small solution ends in a boxed answer.
      scores: float32 [N, S, M], process rewards of the steps of the small solution; NaN beyond its
        end, and beyond the first score under the lowest recorded threshold (there the recorded run
        went on with the large model). None where not recorded.
      ledgers: None where no ledger was recorded.
      trace_index: int64 [2, N, S], traces of the small and the large solution in their result;
        None where there is no result folder.
    """

    ids: tuple[str, ...]
    seeds: tuple[int, ...]
    questions: tuple[str, ...]
    small_correct: np.ndarray
    large_correct: np.ndarray
    strong_tokens: np.ndarray
    small_texts: tuple[tuple[str, ...], ...]
    large_texts: tuple[tuple[str, ...], ...]
    mixed_texts: tuple[tuple[str, ...], ...] | None
    small_answered: np.ndarray
    scores: np.ndarray | None
    ledgers: Ledgers | None = None
    trace_index: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def gain(self) -> np.ndarray:
        """Mean accuracy of the large model minus that of the small one, float32 [N] in [-1, 1]."""
        return (self.large_correct.mean(1) - self.small_correct.mean(1)).astype(np.float32)

    @property
    def win(self) -> np.ndarray:
        """Share of comparisons that the large model wins, a tie being half a win, float32 [N]."""
        return (1.0 + self.gain) / 2.0

    def take(self, rows: np.ndarray) -> Outcomes:
        """The outcomes of the questions at `rows` (int [n]), in that order."""

        def pick(value):
            if isinstance(value, np.ndarray):
                return value[:, rows] if value is self.trace_index else value[rows]
            if isinstance(value, Ledgers):
                return Ledgers(*(None if v is None else v[rows]
                                 for v in (value.small, value.large, value.prm)))
            return None if value is None else tuple(value[i] for i in rows)

        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Outcomes(**{name: value if name == "seeds" else pick(value)
                           for name, value in fields.items()})


def generator(key: jax.Array) -> np.random.Generator:
    """A numpy generator of a JAX key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def folds(n: int, parts: int, key: jax.Array) -> list[tuple[np.ndarray, np.ndarray]]:
    """`parts` splits of range(n) into (training rows, test rows); every row is tested once.

    Raises:
      DataError: fewer rows than parts.
    """
    if n < parts:
        raise DataError(f"{n} questions cannot be split into {parts} folds")
    order = generator(key).permutation(n)
    pieces = np.array_split(order, parts)
    return [(np.sort(np.concatenate(pieces[:i] + pieces[i + 1:])), np.sort(pieces[i]))
            for i in range(parts)]


def from_result(result: Result) -> Outcomes:
    """The outcomes recorded in a result folder of step-level traces.

    The solutions are those of the anchors (never and always, or thr with k = 0 and k = 1). The
    process rewards of the small solution are those that thr saw at its lowest threshold above 0.

    Raises:
      ResultError: the result lacks an anchor or a trace.
    """
    found = tables(result)
    weak_name, weak = summary.find_anchor(found, "never")
    strong_name, strong = summary.find_anchor(found, "always")
    index = np.stack([found[weak_name].trace_index[weak], found[strong_name].trace_index[strong]])
    small = _traces(result, index[0])
    scored = _scored(result, found)
    mixed = None
    if _MIXED_POLICY in found and _MIXED_SETTING in found[_MIXED_POLICY].policy.settings:
        at = found[_MIXED_POLICY].policy.settings.index(_MIXED_SETTING)
        mixed = _texts(_traces(result, found[_MIXED_POLICY].trace_index[at]))
    return Outcomes(
        ids=tuple(p.id for p in result.problems),
        seeds=result.seeds,
        questions=tuple(p.problem for p in result.problems),
        small_correct=found[weak_name].correct[weak],
        large_correct=found[strong_name].correct[strong],
        strong_tokens=found[strong_name].strong_tokens[strong],
        small_texts=_texts(small),
        large_texts=_texts(_traces(result, index[1])),
        mixed_texts=mixed,
        small_answered=np.array([[t.answer is not None for t in row] for row in small]),
        scores=None if scored is None else pad_scores(
            [[_seen_scores(t) for t in row] for row in scored]),
        ledgers=Ledgers(
            small=found[weak_name].ledger[weak],
            large=found[strong_name].ledger[strong],
            prm=None if scored is None else _reading_ledger(small, scored)),
        trace_index=index,
    )


def _traces(result: Result, index: np.ndarray) -> list[list[Trace]]:
    return [[result.traces[i] for i in row] for row in index]


def _texts(traces: list[list[Trace]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple("\n\n".join(s.text for s in t.steps) for t in row) for row in traces)


def _scored(result: Result, found: dict[str, Table]) -> list[list[Trace]] | None:
    """Traces of thr at its lowest threshold between 0 and 1, or None without one."""
    settings = found["thr"].policy.settings if "thr" in found else ()
    inner = [i for i, k in enumerate(settings) if 0 < k < 1]
    return _traces(result, found["thr"].trace_index[inner[0]]) if inner else None


def _seen_scores(trace: Trace) -> list[float]:
    """Scores of the small model's own steps, up to and including the first rejected draft."""
    scores = []
    for step in trace.steps:
        scores.append(step.score_draft)
        if step.writer == "large":
            break
    return scores


def pad_scores(scores: Sequence[Sequence[Sequence[float]]]) -> np.ndarray:
    """[N][S] lists of scores as one array float32 [N, S, M], NaN beyond the end of a list."""
    longest = max((len(s) for row in scores for s in row), default=0)
    out = np.full((len(scores), len(scores[0]), max(longest, 1)), np.nan, np.float32)
    for i, row in enumerate(scores):
        for j, values in enumerate(row):
            out[i, j, :len(values)] = values
    return out


def _reading_ledger(small: list[list[Trace]], scored: list[list[Trace]]) -> np.ndarray:
    """Ledger of the process reward model reading each whole small solution once.

    Its prompt is that of the recorded run; of every step it reads the tokens and one step token.
    """
    out = np.zeros((len(small), len(small[0]), len(MODELS), len(COUNTERS)), np.int64)
    for i, row in enumerate(small):
        for j, trace in enumerate(row):
            out[i, j, _PRM, _PREFILLED] = scored[i][j].ledger.prm.prefilled
            out[i, j, _PRM, _SCORED] = sum(s.n_tokens + 1 for s in trace.steps)
            out[i, j, _PRM, _CALLS] = 1
    return out
