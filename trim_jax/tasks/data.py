"""Problems: the record that every data set of the project is read into."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One problem with its written solution (steps separated by a blank line) and final answer."""

    id: str
    problem: str
    solution: str
    answer: str
    level: int | None
    source: str
