"""Wording of the benchmark `arith`: varied problem text, one canonical solution text.

A problem is a chain of operations on one running quantity.  The story may say an operation in
several ways; the solution says it in exactly one, so that the solution is a function of the
problem.  Expressions contain no spaces: the tokenizer spends one token on every digit and sign.

The canonical steps (v = running value before the step):

    start    Start 46.
    add      Add 46+27=73.
    sub      Take 73-12=61.
    times    Times 61*3=180+3=183.                          tens*3 + ones*3
    product  Lots 12*34=300+40+60+8=340+68=408.             four digit products, two sums, total
    divide   Share 627/4=1r2,5r2,6r3=156.                   short division, one digit at a time
    answer   The answer is \\boxed{156}.

In the short division every digit of the dividend, after the remainder so far, gives a quotient
digit and a new remainder (``r``); the last remainder is left aside.  A `product` is an auxiliary
quantity ("12 boxes of 34"); the `add` step right after it adds it to the running value.
"""

from __future__ import annotations

from typing import Callable

# One operation as the story tells it: ("add", n), ("sub", n), ("times", d), ("divide", d) or
# ("product", a, b).  The `add` step that follows a product is implied.
Operation = tuple[str, int] | tuple[str, int, int]

HE_NAMES = (
    "Ben", "Tom", "Sam", "Max", "Leo", "Dan", "Jim", "Tim", "Bob", "Ray",
    "Ted", "Rob", "Ken", "Ian", "Jon", "Roy", "Sid", "Ron", "Lee", "Don",
)
SHE_NAMES = (
    "Ann", "Eva", "Mia", "Amy", "Zoe", "Kim", "Sue", "Liz", "Meg", "Ida",
    "Eve", "Ada", "Fay", "Lea", "Ivy", "Pam", "Kay", "Tia", "Ana", "Rita",
)
ITEMS = (
    "pens", "cups", "eggs", "nuts", "pins", "keys", "toys", "maps", "caps", "hats",
    "coins", "cards", "books", "shells", "stones", "beads", "pears", "plums", "figs", "seeds",
    "bolts", "nails", "tiles", "bulbs", "stamps", "ropes", "forks", "spoons", "plates", "socks",
    "balls", "kites", "drums", "lamps", "masks", "rings", "roses", "cakes", "buns", "pies",
)

# {name}: a name.  {s}: subject (name or pronoun).  {p}: pronoun.  {o}: object pronoun.
START_TEMPLATES = (
    "{name} has {n} {items}.",
    "{name} starts with {n} {items}.",
    "{name} owns {n} {items}.",
    "At first {name} has {n} {items}.",
    "There are {n} {items} in the shop of {name}.",
    "{name} packs {n} {items} in a bag.",
)
QUESTION_TEMPLATES = (
    "How many {items} does {name} have now?",
    "How many {items} are there now?",
    "How many does {p} have in the end?",
    "How many {items} are left?",
    "What is the number of {items} now?",
    "How many {items} does {p} end up with?",
)
# Every phrase starts in lower case; without a connector its first letter is raised.
OPERATION_TEMPLATES: dict[str, tuple[str, ...]] = {
    "add": (
        "{s} buys {n} more",
        "{s} finds {n} more",
        "{s} gets {n} more",
        "{n} more arrive",
        "a friend gives {o} {n} more",
        "{s} adds {n} to the pile",
    ),
    "sub": (
        "{s} sells {n}",
        "{s} loses {n}",
        "{s} gives {n} away",
        "{n} of them break",
        "{s} throws {n} out",
        "a thief takes {n}",
    ),
    "times": (
        "the pile grows to {n} times its size",
        "{s} makes it {n} times as many",
        "{s} cuts each one into {n}",
        "each one turns into {n}",
        "{s} swaps each one for {n}",
        "the number becomes {n} times as big",
    ),
    "product": (
        "{s} buys {a} boxes of {b}",
        "{s} gets {a} bags with {b} each",
        "{a} crates of {b} arrive",
        "{s} finds {a} packs with {b} in each",
        "a truck brings {a} sacks of {b}",
        "a friend gives {o} {a} trays of {b}",
    ),
    "divide": (
        "{s} makes {n} equal piles and keeps one",
        "{s} splits them into {n} equal parts and keeps one",
        "{s} keeps only one of {n} equal heaps",
        "one of {n} equal shares is kept",
        "{s} sorts them in {n} equal rows and keeps one row",
        "a fair split in {n} leaves {o} one part",
    ),
}
CONNECTORS = ("Then ", "Next ", "Later ")
CONNECTOR_RATE = 0.3
NAME_RATE = 0.15


def write_problem(random: Callable[[], float], start: int, operations: list[Operation]) -> str:
    """Tell the chain as a story; `random` yields floats in [0, 1)."""
    if random() < 0.5:
        names, pronoun, object_pronoun = HE_NAMES, "he", "him"
    else:
        names, pronoun, object_pronoun = SHE_NAMES, "she", "her"
    name = names[int(random() * len(names))]
    items = ITEMS[int(random() * len(ITEMS))]
    template = START_TEMPLATES[int(random() * len(START_TEMPLATES))]
    sentences = [template.format(name=name, n=start, items=items)]
    for operation in operations:
        choices = OPERATION_TEMPLATES[operation[0]]
        template = choices[int(random() * len(choices))]
        subject = name if random() < NAME_RATE else pronoun
        numbers = operation[1:]
        if len(numbers) == 2:
            phrase = template.format(s=subject, o=object_pronoun, a=numbers[0], b=numbers[1])
        else:
            phrase = template.format(s=subject, o=object_pronoun, n=numbers[0])
        connector = random() / CONNECTOR_RATE
        if connector < 1.0:
            sentences.append(CONNECTORS[int(connector * len(CONNECTORS))] + phrase + ".")
        else:
            sentences.append(phrase[0].upper() + phrase[1:] + ".")
    template = QUESTION_TEMPLATES[int(random() * len(QUESTION_TEMPLATES))]
    sentences.append(template.format(items=items, name=name, p=pronoun))
    return " ".join(sentences)


def short_division(dividend: int, divisor: int) -> list[tuple[int, int]]:
    """Quotient digit and remainder after each digit of the dividend, leading zeros included."""
    remainder, parts = 0, []
    for digit in str(dividend):
        quotient, remainder = divmod(10 * remainder + int(digit), divisor)
        parts.append((quotient, remainder))
    return parts


def write_solution(start: int, operations: list[Operation]) -> tuple[list[str], int]:
    """The canonical steps of a chain, without the delimiter, and its final value."""
    value = start
    steps = [f"Start {start}."]
    for operation in operations:
        kind, n = operation[0], operation[1]
        if kind == "add":
            steps.append(f"Add {value}+{n}={value + n}.")
            value += n
        elif kind == "sub":
            steps.append(f"Take {value}-{n}={value - n}.")
            value -= n
        elif kind == "times":
            tens, ones = value // 10 * 10, value % 10
            steps.append(f"Times {value}*{n}={tens * n}+{ones * n}={value * n}.")
            value *= n
        elif kind == "product":
            b = operation[2]
            tens, ones = n // 10 * 10, n % 10
            b_tens, b_ones = b // 10 * 10, b % 10
            steps.append(
                f"Lots {n}*{b}={tens * b_tens}+{tens * b_ones}+{ones * b_tens}+{ones * b_ones}"
                f"={tens * b}+{ones * b}={n * b}."
            )
            steps.append(f"Add {value}+{n * b}={value + n * b}.")
            value += n * b
        elif kind == "divide":
            parts = ",".join(f"{q}r{r}" for q, r in short_division(value, n))
            steps.append(f"Share {value}/{n}={parts}={value // n}.")
            value //= n
        else:
            raise ValueError(f"unknown operation {kind!r}")
    steps.append(f"The answer is \\boxed{{{value}}}.")
    return steps, value
