"""Synthetic outcomes of two models for the tests of query-level routers."""

from __future__ import annotations

import dataclasses

import numpy as np

from trim_jax.query.outcomes import Outcomes, pad_scores

EASY = ("add", "plus", "sum", "more")
HARD = ("multiply", "product", "times", "crates")


def make(small, large, questions=None, tokens=None, scores=None, small_texts=None,
         large_texts=None, mixed_texts=None, answered=None) -> Outcomes:
    """Outcomes from nested lists [N][S]; what is not given is filled in."""
    small, large = np.array(small, bool), np.array(large, bool)
    n, s = small.shape
    same = lambda text: tuple((f"{text} {i}",) * s for i in range(n))  # noqa: E731
    return Outcomes(
        ids=tuple(f"q{i}" for i in range(n)), seeds=tuple(range(s)),
        questions=tuple(questions or [f"question {i}" for i in range(n)]),
        small_correct=small, large_correct=large,
        strong_tokens=np.array(np.full((n, s), 10) if tokens is None else tokens, np.int64),
        small_texts=small_texts or same("small"), large_texts=large_texts or same("large"),
        mixed_texts=mixed_texts,
        small_answered=np.ones((n, s), bool) if answered is None else np.array(answered),
        scores=None if scores is None else pad_scores(scores))


def separable(n: int, seed: int = 0, seeds: int = 1) -> Outcomes:
    """Questions of easy or hard words: the small model solves the easy ones, the large one all.

    Its process rewards, and the word "oops" in its solutions, give its errors away.
    """
    rng = np.random.default_rng(seed)
    hard = rng.random(n) < 0.5
    pick = lambda words: " ".join(rng.choice(words, 4))  # noqa: E731
    questions = [f"{pick(HARD if h else EASY)} with {rng.integers(10, 99)}" for h in hard]
    right = np.repeat(~hard[:, None], seeds, 1)
    solution = lambda ok: f"{'so' if ok else 'oops'} it is {rng.integers(9)}"  # noqa: E731
    texts = tuple(tuple(solution(ok) for ok in row) for row in right)
    correct = tuple(tuple("so it is" for _ in row) for row in right)
    outcomes = make(right, np.ones_like(right), questions, small_texts=texts, large_texts=correct,
                    mixed_texts=correct, tokens=rng.integers(5, 20, right.shape),
                    scores=[[[0.9, 0.8 if ok else 0.1] for ok in row] for row in right])
    return dataclasses.replace(outcomes, ids=tuple(f"{seed}-{i}" for i in outcomes.ids))
