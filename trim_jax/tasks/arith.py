"""The benchmark `arith`: multi-step arithmetic word problems with a checked written solution.

A problem is a chain: a start value, then operations on one running quantity (`arith_text` words
it).  Running values stay within 2..999.  Kinds of steps, by the work written out: `start` (copy),
`add` and `sub` of a number below 100, `times` 2..9 of a two-digit value, `product` of two two-digit
numbers and `divide` by 2..9, `answer` (copy).  A solution has 4..12 steps in the normal splits and
13 in `hard`; a product takes two of them (the product, and adding it).

**Level.**  points = add, sub: 1 each (the addition that follows a product too), times: 2,
product: 4, divide: 4; level = 1 + the number of `LEVEL_POINTS` that the points reach.

**Held-out numbers.**  `HELD_ADDENDS` (numbers added or taken), `HELD_FACTORS` (factors of a
product) and `HELD_VALUES` (running values, so also what `times` and `divide` act on) never occur
in a normal split; every problem of `hard` uses at least `MIN_HELD_USES` of them.

**Splits** have disjoint seeds.  A problem text that an earlier split holds is skipped (the order is
that of `SPLITS`, `train` last), so no text is in two splits.  Only `random.Random.random` is used,
whose sequence Python guarantees for a seed: the text of every split is fixed for ever.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import re
from dataclasses import dataclass
from typing import Callable, Iterator, Sequence

from trim_jax.errors import DataError
from trim_jax.tasks.arith_text import Operation, write_problem, write_solution
from trim_jax.tasks.data import Problem, unknown_name
from trim_jax.tasks.grading import extract_boxed

MIN_VALUE, MAX_VALUE = 2, 999
HELD_ADDENDS = range(44, 50)
HELD_FACTORS = range(23, 27)
HELD_VALUES = frozenset((*range(64, 68), *range(430, 470)))
MIN_HELD_USES = 3
STEP_POINTS = {"start": 0, "add": 1, "sub": 1, "times": 2, "product": 4, "divide": 4, "answer": 0}
LEVEL_POINTS = (6, 9, 12, 15)
DELIMITER = "\n\n"

_LABEL_KINDS = {
    "Start": "start", "Add": "add", "Take": "sub", "Times": "times", "Lots": "product",
    "Share": "divide", "The": "answer",
}


@dataclass(frozen=True)
class SplitSpec:
    """How one split is drawn: (steps, weight) pairs; weights of 0, 1, 2, ... hard, medium steps."""

    seed: int
    size: int
    step_weights: tuple[tuple[int, float], ...]
    hard_weights: tuple[float, ...]
    times_weights: tuple[float, ...]
    held_out: bool = False


_NORMAL = dict(
    step_weights=((4, 8), (5, 11), (6, 13), (7, 14), (8, 14), (9, 13), (10, 11), (11, 9), (12, 7)),
    hard_weights=(0.08, 0.37, 0.35, 0.20),
    times_weights=(0.40, 0.42, 0.18),
)
# Evaluation splits first: each skips the texts of those before it, and `train` those of all.
SPLITS: dict[str, SplitSpec] = {
    "test": SplitSpec(seed=1001, size=2_000, **_NORMAL),
    "validation": SplitSpec(seed=1002, size=1_000, **_NORMAL),
    "policy_train": SplitSpec(seed=1003, size=4_000, **_NORMAL),
    "hard": SplitSpec(
        seed=1004,
        size=1_000,
        step_weights=((13, 1),),
        hard_weights=(0.0, 0.1, 0.3, 0.4, 0.2),
        times_weights=(0.2, 0.4, 0.4),
        held_out=True,
    ),
    "train": SplitSpec(seed=1005, size=200_000, **_NORMAL),
}


def generate(split: str, n: int | None = None) -> list[Problem]:
    """The first `n` problems of a split (all of it by default; `train` gives any number)."""
    spec = _spec(split)
    if n is None:
        n = spec.size
    if split == "train":
        return list(itertools.islice(stream_train(), n))
    return list(_evaluation_split(split)[:n])


def stream_train() -> Iterator[Problem]:
    """Training problems without end, always the same sequence; none is in another split."""
    excluded = {p.problem for name in SPLITS if name != "train" for p in _evaluation_split(name)}
    return _stream("train", excluded)


@functools.lru_cache(maxsize=None)
def _evaluation_split(split: str) -> tuple[Problem, ...]:
    seen: set[str] = set()
    for name in itertools.takewhile(lambda other: other != split, SPLITS):
        seen.update(p.problem for p in _evaluation_split(name))
    problems = []
    for problem in _stream(split, seen):
        seen.add(problem.problem)  # `_stream` sees it: no text twice within the split either
        problems.append(problem)
        if len(problems) == SPLITS[split].size:
            break
    return tuple(problems)


def _stream(split: str, excluded: set[str]) -> Iterator[Problem]:
    spec = SPLITS[split]
    draw = random.Random(spec.seed).random
    index = 0
    while True:
        start, operations = _draw_chain(draw, spec)
        text = write_problem(draw, start, operations)
        if text in excluded:
            continue
        steps, answer = write_solution(start, operations)
        yield Problem(
            id=f"arith-{split}-{index:05d}",
            problem=text,
            solution=DELIMITER.join(steps),
            answer=str(answer),
            level=level(operations),
            source="arith",
        )
        index += 1


def _spec(split: str) -> SplitSpec:
    if split not in SPLITS:
        raise unknown_name("split of arith", split, SPLITS)
    return SPLITS[split]


def level(operations: list[Operation]) -> int:
    """Difficulty 1..5 of a chain (formula at the top of this module)."""
    points = sum(STEP_POINTS[op[0]] + (op[0] == "product") for op in operations)
    return 1 + sum(points >= bound for bound in LEVEL_POINTS)


# --- reading steps -------------------------------------------------------------------------------

_SIGNS = {"add": "+", "sub": "-", "times": "*", "product": "*", "divide": "/"}
# At most 12 digits: longer ones are wrong anyway, and int() refuses very long ones.
_OPERANDS = re.compile(r"(\d{1,12})([-+*/])(\d{1,12})")
_EXPRESSION = re.compile(r"\d{1,12}(?:[-+*]\d{1,12})*")
_DIVISION = re.compile(r"\d{1,12}r\d{1,12}(?:,\d{1,12}r\d{1,12})*")
_TERM = re.compile(r"([-+]?)(\d+(?:\*\d+)*)")


def step_kinds(problem: Problem) -> list[str]:
    """The kind of every step of the reference solution (the keys of `STEP_POINTS`)."""
    return [_LABEL_KINDS[step.split()[0]] for step in _reference_steps(problem)]


def step_labels(problem: Problem, steps: Sequence[str]) -> list[bool]:
    """For each step of an attempt: are it and all steps before it right?

    `steps` is the attempt split at blank lines.  Step i is right when it does what step i of the
    reference does: the same operation on the same numbers (the two operands of + and * may be
    swapped), every equality in it true, and the same result.  White space does not matter.  A step
    after the reference's last one is wrong.
    """
    reference = _reference_steps(problem)
    labels: list[bool] = []
    right = True
    for index, step in enumerate(steps):
        right = right and index < len(reference) and _is_right(reference[index], step)
        labels.append(right)
    return labels


def _reference_steps(problem: Problem) -> list[str]:
    if problem.source != "arith":
        raise DataError(
            f"problem {problem.id!r} comes from {problem.source!r}: true step labels and kinds "
            "exist for the benchmark arith only"
        )
    steps = problem.solution.split(DELIMITER)
    if not all(step.split()[:1] and step.split()[0] in _LABEL_KINDS for step in steps):
        raise DataError(
            f"problem {problem.id!r} says that it comes from arith, but its solution is none of "
            "arith's: give it another 'source' (without one it is the name of the file)"
        )
    return steps


def _is_right(reference: str, step: str) -> bool:
    """Whether a step does what the (right) reference step does."""
    step = step.strip()
    if step == reference:
        return True
    word = reference.split()[0]
    kind = _LABEL_KINDS[word]
    if kind == "answer":
        boxed = extract_boxed(step)
        return boxed is not None and boxed.strip() == extract_boxed(reference)
    if not step.startswith(word) or re.search(r"\d\s+\d", step):
        return False
    claims = _claims(step, word)
    if kind == "start":
        return len(claims) == 1 and _same_number(claims[0], int(_claims(reference, word)[0]))
    wanted = _claims(reference, word)
    result = int(wanted[-1])
    if len(claims) < 2 or not _same_operands(claims[0], wanted[0], kind):
        return False
    if not _same_number(claims[-1], result):
        return False
    if kind == "divide":
        return all(_is_division(claim, wanted[1]) for claim in claims[1:-1])
    return all(_value(claim) == result for claim in claims[1:-1])


def _claims(step: str, word: str) -> list[str]:
    """The sides of the chain of equalities in a step, without white space and the final stop."""
    return re.sub(r"\s+", "", step.removeprefix(word)).removesuffix(".").split("=")


def _same_number(text: str, number: int) -> bool:
    return re.fullmatch(r"\d{1,12}", text) is not None and int(text) == number


def _same_operands(text: str, wanted: str, kind: str) -> bool:
    match, reference = _OPERANDS.fullmatch(text), _OPERANDS.fullmatch(wanted)
    if match is None or match[2] != _SIGNS[kind]:
        return False
    operands = [int(match[1]), int(match[3])]
    expected = [int(reference[1]), int(reference[3])]
    return operands == expected or (match[2] in "+*" and operands[::-1] == expected)


def _is_division(text: str, wanted: str) -> bool:
    """The same quotient digits and remainders as the reference's short division."""
    if _DIVISION.fullmatch(text) is None:
        return False
    digits, expected = ([tuple(map(int, part.split("r"))) for part in side.split(",")]
                        for side in (text, wanted))
    return digits == expected


def _value(text: str) -> int | None:
    """Value of an expression of +, - and *, or None where it is not one."""
    if _EXPRESSION.fullmatch(text) is None:
        return None
    total = 0
    for sign, product in _TERM.findall(text):
        value = math.prod(map(int, product.split("*")))
        total += -value if sign == "-" else value
    return total


# --- drawing a chain -----------------------------------------------------------------------------


def _pick(draw: Callable[[], float], weights: tuple[float, ...]) -> int:
    point = draw() * sum(weights)
    for index, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return index
    return len(weights) - 1


def _draw_chain(draw: Callable[[], float], spec: SplitSpec) -> tuple[int, list[Operation]]:
    steps = spec.step_weights[_pick(draw, tuple(w for _, w in spec.step_weights))][0]
    while True:
        # A new mix of kinds after some orders that ran out of the range of values; the number of
        # steps stays, so that its distribution is the one the split asks for.
        kinds = _draw_kinds(draw, spec, steps - 2)
        for _ in range(12):
            chain = _draw_numbers(draw, kinds, spec.held_out)
            if chain is not None:
                return chain


def _draw_kinds(draw: Callable[[], float], spec: SplitSpec, room: int) -> list[str]:
    """Kinds of operations that fill exactly `room` steps."""
    kinds: list[str] = []
    for _ in range(_pick(draw, spec.hard_weights)):
        kind = "product" if draw() < 0.5 else "divide"
        size = 2 if kind == "product" else 1
        if room >= size:
            kinds.append(kind)
            room -= size
    for _ in range(min(room, _pick(draw, spec.times_weights))):
        kinds.append("times")
        room -= 1
    kinds += ["add" if draw() < 0.5 else "sub" for _ in range(room)]
    return kinds


def _draw_numbers(
    draw: Callable[[], float], kinds: list[str], held_out: bool
) -> tuple[int, list[Operation]] | None:
    """Shuffle the kinds and choose operands, or None where a value would leave its range."""
    for i in range(len(kinds) - 1, 0, -1):
        j = int(draw() * (i + 1))
        kinds[i], kinds[j] = kinds[j], kinds[i]
    start = value = 10 + int(draw() * 90)
    held = value in HELD_VALUES
    if held and not held_out:
        return None
    operations: list[Operation] = []
    for kind in kinds:
        operation: Operation
        if kind == "add" or kind == "sub":
            n = _draw_addend(draw, value, kind, held_out)
            held += n in HELD_ADDENDS
            value += n if kind == "add" else -n
            operation = (kind, n)
        elif kind == "times":
            if not 10 <= value <= 99:
                return None
            n = 2 + int(draw() * 8)
            value *= n
            operation = (kind, n)
        elif kind == "divide":
            n = 2 + int(draw() * 8)
            if value < 20:
                return None
            value //= n
            operation = (kind, n)
        else:
            a = _draw_factor(draw, 35, held_out)
            largest = min(60, (MAX_VALUE - value) // a)
            if largest < 11:
                return None
            b = _draw_factor(draw, largest, held_out)
            if b > largest:
                return None
            held += (a in HELD_FACTORS) + (b in HELD_FACTORS)
            value += a * b
            operation = (kind, a, b)
        if not MIN_VALUE <= value <= MAX_VALUE:
            return None
        held += value in HELD_VALUES
        if held and not held_out:
            return None
        operations.append(operation)
    if held_out and held < MIN_HELD_USES:
        return None
    return start, operations


def _draw_addend(draw: Callable[[], float], value: int, kind: str, held_out: bool) -> int:
    """A number to add or take: half of them below 20; in `hard` often a held-out one."""
    if held_out:
        choice = draw()
        if choice < 0.3:
            return HELD_ADDENDS[int(draw() * len(HELD_ADDENDS))]
        if choice < 0.5:  # land on a held-out running value where one is near
            sign = 1 if kind == "add" else -1
            near = [n for n in range(2, 100) if value + sign * n in HELD_VALUES]
            if near:
                return near[int(draw() * len(near))]
    while True:
        n = 2 + int(draw() * 18) if draw() < 0.5 else 20 + int(draw() * 80)
        if held_out or n not in HELD_ADDENDS:
            return n


def _draw_factor(draw: Callable[[], float], largest: int, held_out: bool) -> int:
    """A factor 11..largest of a product."""
    if held_out and draw() < 0.4:
        return HELD_FACTORS[int(draw() * len(HELD_FACTORS))]
    return 11 + int(draw() * (largest - 10))
