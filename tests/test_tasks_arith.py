"""The benchmark `arith`: fixed text, sound chains, disjoint splits, true step labels."""

import dataclasses
import hashlib
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trim_jax.errors import DataError
from trim_jax.tasks import arith, arith_text
from trim_jax.tasks.data import Problem, to_json

GOLDEN = {
    "test": "1e9ac814e09cd18b7545d9bac9843177705428bba3f4d6f9a75de19ffb3958fd",
    "validation": "679a7314322d1c5c31c477753a6eb42457d8d39091f05971006a9687053d186f",
    "policy_train": "89d7ed036e3383e7669856dd22794f80b822f143a656bfb0c775780cce6cdc4a",
    "hard": "84d05f99f3247c859c519e6868a352746ae2a643de755827e8d1fb1d0acbe1c4",
    "train": "997bfd115495b40d3aa908acb553a887b4d041f7a5451db97d0accddcc74f550",  # first 1,000
}
NORMAL = [name for name, spec in arith.SPLITS.items() if not spec.held_out]


def digest(problems):
    return hashlib.sha256("".join(to_json(p) + "\n" for p in problems).encode()).hexdigest()


def sample(split):
    return arith.generate(split, 1_000)


# An independent reading of a problem: every sentence against every template, by regular expression.
def _pattern(template):
    pattern = re.escape(template).replace(r"\{s\}", r"\w+").replace(r"\{o\}", r"\w+")
    pattern = pattern.replace(r"\{name\}", r"\w+").replace(r"\{items\}", r"\w+")
    pattern = re.sub(r"\\\{[nab]\\\}", r"(\\d+)", pattern)
    return re.compile(pattern, re.IGNORECASE)


READERS = [
    (kind, _pattern(template))
    for kind, templates in arith_text.OPERATION_TEMPLATES.items()
    for template in templates
]
START_READERS = [_pattern(t.removesuffix(".")) for t in arith_text.START_TEMPLATES]


def read_story(text):
    """(start, operations) of a problem; fails where a sentence has not exactly one reading."""
    first, *middle, question = re.split(r"(?<=[.?]) ", text)
    assert question.endswith("?") and not re.search(r"\d", question)
    starts = {m[1] for p in START_READERS if (m := p.fullmatch(first.removesuffix(".")))}
    assert len(starts) == 1, first
    operations = []
    for sentence in middle:
        body = re.sub(r"^(Then|Next|Later) ", "", sentence).removesuffix(".")
        readings = {
            (kind, *map(int, m.groups())) for kind, p in READERS if (m := p.fullmatch(body))
        }
        assert len(readings) == 1, (sentence, readings)
        operations += readings
    return int(starts.pop()), operations


def values_of(start, operations):
    """Running values of a chain, computed apart from the writer of solutions."""
    values = [start]
    for kind, *n in operations:
        v = values[-1]
        values.append(
            {"add": lambda: v + n[0], "sub": lambda: v - n[0], "times": lambda: v * n[0],
             "divide": lambda: v // n[0], "product": lambda: v + n[0] * n[1]}[kind]()
        )
    return values


@pytest.mark.parametrize("split", arith.SPLITS)
def test_the_text_of_every_split_is_fixed(split):
    problems = arith.generate(split, 1_000 if split == "train" else None)
    assert len(problems) == {"test": 2_000, "policy_train": 4_000}.get(split, 1_000)
    assert digest(problems) == GOLDEN[split]
    assert [p.id for p in problems[:2]] == [f"arith-{split}-00000", f"arith-{split}-00001"]


def test_another_interpreter_generates_the_same_text():
    code = (
        "from trim_jax.tasks import arith;"
        "print([p.problem for p in arith.generate('train', 3)])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    ).stdout.strip()
    assert output == str([p.problem for p in arith.generate("train", 3)])


def test_a_shorter_request_is_a_prefix_of_a_longer_one():
    assert arith.generate("train", 50) == arith.generate("train", 80)[:50]
    assert arith.generate("hard", 7) == arith.generate("hard")[:7]


def test_no_text_is_in_two_splits_or_twice_in_an_evaluation_split():
    evaluation = [p.problem for s in arith.SPLITS if s != "train" for p in arith.generate(s)]
    assert len(set(evaluation)) == len(evaluation) == 8_000
    train = {p.problem for p in arith.generate("train", 20_000)}
    assert not train & set(evaluation)


def test_training_text_skips_a_text_of_another_split():
    first, second, third = arith.generate("train", 3)
    stream = arith._stream("train", {second.problem})
    assert [next(stream).problem for _ in range(2)] == [first.problem, third.problem]


def test_an_evaluation_split_skips_the_texts_of_those_before_it(monkeypatch):
    """Two splits of one seed, which would otherwise be the same problems."""
    small = dataclasses.replace(arith.SPLITS["test"], size=20)
    for name in arith.SPLITS:
        monkeypatch.setitem(arith.SPLITS, name, small)
    arith._evaluation_split.cache_clear()
    try:
        test, validation = ([p.problem for p in arith.generate(s)] for s in ("test", "validation"))
        train = [p.problem for p in arith.generate("train", 20)]
    finally:
        arith._evaluation_split.cache_clear()
    assert len({*test, *validation, *train}) == 60


def test_seeds_differ():
    assert len({spec.seed for spec in arith.SPLITS.values()}) == len(arith.SPLITS)


@pytest.mark.parametrize("split", arith.SPLITS)
def test_every_problem_has_one_reading_and_its_answer_follows(split):
    for problem in sample(split)[:400]:
        start, operations = read_story(problem.problem)
        values = values_of(start, operations)
        assert problem.answer == str(values[-1])
        assert all(2 <= v <= 999 for v in values)
        steps, _ = arith_text.write_solution(start, operations)
        assert problem.solution == "\n\n".join(steps)  # the wording follows from the problem
        assert problem.level == arith.level(operations)


@pytest.mark.parametrize("split", arith.SPLITS)
def test_lengths_and_kinds(split):
    low, high = (13, 13) if split == "hard" else (4, 12)
    counts = Counter()
    for problem in sample(split):
        kinds = arith.step_kinds(problem)
        assert low <= len(kinds) <= high
        assert kinds[0] == "start" and kinds[-1] == "answer"
        for here, after in zip(kinds, kinds[1:]):
            assert here != "product" or after == "add"
        counts.update(kinds)
    assert set(counts) == set(arith.STEP_POINTS)
    routine = counts["start"] + counts["add"] + counts["sub"] + counts["answer"]
    assert routine > 0.6 * counts.total()


def test_numbers_of_hard_are_never_seen_in_a_normal_split():
    def held_uses(problem):
        start, operations = read_story(problem.problem)
        uses = sum(v in arith.HELD_VALUES for v in values_of(start, operations))
        for kind, *numbers in operations:
            held = {"add": arith.HELD_ADDENDS, "sub": arith.HELD_ADDENDS,
                    "product": arith.HELD_FACTORS}.get(kind, ())
            uses += sum(n in held for n in numbers)
        return uses

    for split in NORMAL:
        assert all(held_uses(p) == 0 for p in sample(split))
    assert all(held_uses(p) >= arith.MIN_HELD_USES for p in sample("hard"))


def test_levels_cover_one_to_five_and_follow_the_formula():
    levels = Counter(p.level for p in arith.generate("test"))
    assert set(levels) == {1, 2, 3, 4, 5} and min(levels.values()) > 100
    assert arith.level([("add", 3), ("sub", 2)]) == 1
    assert arith.level([("product", 12, 13), ("add", 3)]) == 2  # 4 + 1 for adding it + 1
    assert arith.level([("divide", 3), ("times", 2), ("divide", 2), ("product", 11, 11)]) == 5


def test_enough_wordings():
    for templates in arith_text.OPERATION_TEMPLATES.values():
        assert len(set(templates)) >= 5
    assert len({*arith_text.HE_NAMES, *arith_text.SHE_NAMES}) == 40
    assert len(set(arith_text.ITEMS)) == 40


def test_pronouns_fit_the_name():
    for problem in sample("train"):
        words = set(re.findall(r"\w+", problem.problem))
        he = bool(words & set(arith_text.HE_NAMES))
        assert he != bool(words & set(arith_text.SHE_NAMES))
        wrong = {"she", "She", "her"} if he else {"he", "He", "him"}
        assert not words & wrong


def test_short_division_and_canonical_wording():
    assert arith_text.short_division(627, 4) == [(1, 2), (5, 2), (6, 3)]
    steps, answer = arith_text.write_solution(
        46, [("add", 27), ("times", 3), ("product", 12, 34), ("divide", 4), ("sub", 7)]
    )
    assert answer == 149
    assert steps == [
        "Start 46.",
        "Add 46+27=73.",
        "Times 73*3=210+9=219.",
        "Lots 12*34=300+40+60+8=340+68=408.",
        "Add 219+408=627.",
        "Share 627/4=1r2,5r2,6r3=156.",
        "Take 156-7=149.",
        "The answer is \\boxed{149}.",
    ]


# --- true step labels ----------------------------------------------------------------------------

CHAIN = Problem(
    id="x",
    problem="(not read)",
    solution="\n\n".join(
        arith_text.write_solution(46, [("times", 9), ("product", 12, 34), ("divide", 4)])[0]
    ),
    answer="205",
    level=None,
    source="arith",
)
# Start 46 | Times 46*9=360+54=414 | Lots 12*34=... =408 | Add 414+408=822
# | Share 822/4=2r0,0r2,5r2=205 | The answer is \boxed{205}


def replaced(index, text):
    steps = CHAIN.solution.split("\n\n")
    steps[index] = text
    return arith.step_labels(CHAIN, steps)


@pytest.mark.parametrize("split", arith.SPLITS)
def test_reference_steps_are_right(split):
    for problem in sample(split)[:200]:
        labels = arith.step_labels(problem, problem.solution.split("\n\n"))
        assert labels == [True] * len(arith.step_kinds(problem))


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (0, " Start  46 . "),
        (1, "Times 9*46=414."),
        (1, "Times 46 * 9 = 360 + 54 = 414"),
        (1, "Times 46*9=200+214=414."),
        (1, "Times 46*9=40*9+6*9=360+54=414."),
        (2, "Lots 34*12=408."),
        (3, "Add 408+414=822."),
        (4, "Share 822/4=205."),
        (4, "Share 822/4=2r0, 0r2, 5r2 = 205."),
        (5, "So it is \\boxed{ 205 }"),
    ],
)
def test_other_wordings_of_a_right_step(index, text):
    assert replaced(index, text) == [True] * 6


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (0, "Start 47."),
        (0, "Start 46=46."),
        (1, "Times 46*9=360+56=414."),  # a false equality on the way to the right result
        (1, "Times 46*9=360+54=415."),
        (1, "Times 46*8=368."),  # another operand
        (1, "Times 46+9=55."),
        (1, "Times 414."),
        (1, "Times 46*9=."),
        (1, "Times 46*9=360+54=414=."),
        (1, "Times 4 6*9=360+54=414."),
        (1, "Add 46*9=360+54=414."),
        (1, ""),
        (2, "Lots 12*34=300+40+60+8=340+78=408."),
        (3, "Take 414+408=822."),
        (4, "Share 822/4=2r0,0r2,5r1=205."),
        (4, "Share 822/4=2r0,5r2=205."),
        (4, "Share 4/822=205."),
        (4, "Share 822/4=205r2=205."),
        (5, "The answer is \\boxed{206}."),
        (5, "The answer is 205."),
        (1, "Times 46*9=" + "9" * 5000 + "."),
    ],
)
def test_a_wrong_step_and_all_after_it_are_wrong(index, text):
    assert replaced(index, text) == [True] * index + [False] * (6 - index)


def test_a_skipped_an_early_and_a_surplus_step_are_wrong():
    steps = CHAIN.solution.split("\n\n")
    assert arith.step_labels(CHAIN, steps[1:]) == [False] * 5
    assert arith.step_labels(CHAIN, [*steps[:2], steps[5]]) == [True, True, False]
    assert arith.step_labels(CHAIN, [*steps, "Start 46."]) == [True] * 6 + [False]
    assert arith.step_labels(CHAIN, []) == []


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_change_of_one_digit_makes_the_step_wrong(data):
    problem = sample("test")[data.draw(st.integers(0, 199))]
    steps = problem.solution.split("\n\n")
    index = data.draw(st.integers(0, len(steps) - 1))
    digits = [i for i, c in enumerate(steps[index]) if c.isdigit()]
    place = data.draw(st.sampled_from(digits))
    digit = data.draw(st.sampled_from("0123456789").filter(lambda d: d != steps[index][place]))
    steps[index] = steps[index][:place] + digit + steps[index][place + 1:]
    labels = arith.step_labels(problem, steps)
    assert labels == [True] * index + [False] * (len(steps) - index)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="StarAdTkeimsLoh0123456789+-*/=r,. \\boxed{}", max_size=40))
def test_any_text_can_be_labelled(text):
    assert replaced(3, text) == [True] * 3 + [False] * 3


def test_labels_exist_for_arith_only():
    other = Problem("q", "2+2?", "4", "4", None, "mine")
    with pytest.raises(DataError, match="mine"):
        arith.step_labels(other, ["4"])


def test_an_unknown_split_names_the_nearest():
    with pytest.raises(DataError, match="'validation'"):
        arith.generate("validaton")
