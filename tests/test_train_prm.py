"""Noise on the labels that the PRM learns from."""

import numpy as np
import pytest
from test_train import _solution

from trim_jax.engine.tokens import token_tables
from trim_jax.tasks.data import load_problems
from trim_jax.tasks.tokenizer import ARITH_TOKENIZER, load_tokenizer
from trim_jax.train.prm import flipped, prm_examples


@pytest.fixture(scope="module")
def solved():
    """A solution whose third step is wrong, with a discarded draft of the same text before it."""
    tokenizer = load_tokenizer(ARITH_TOKENIZER)
    problem = load_problems("arith", "test", 1)[0]
    texts = problem.solution.split("\n\n")
    slip = texts[2][:-2] + str((int(texts[2][-2]) + 1) % 10) + "."
    written = [*texts[:2], slip, *texts[3:]]
    return tokenizer, problem, written, slip, _solution(tokenizer, problem, written, {1: slip})


def ends(example, tables):
    """Labels of the steps that are learned, where the PRM is read."""
    at = (example.tokens == tables.separator) & (example.weight == 1)
    return example.target[at].tolist()


def test_a_label_flips_as_often_as_asked_and_always_the_same_way():
    texts = [("p", [str(i), str(j)]) for i in range(60) for j in range(60)]
    for noise in (0.0, 0.2, 0.5):
        share = np.mean([flipped(*text, noise, 0) for text in texts])
        assert abs(share - noise) < 0.03
    one = [flipped(*text, 0.2, 0) for text in texts]
    assert one == [flipped(*text, 0.2, 0) for text in texts]
    other = [flipped(*text, 0.2, 1) for text in texts]
    assert abs(np.mean(np.array(one) & np.array(other)) - 0.04) < 0.02
    # More noise flips what less noise has flipped.
    assert all(flipped(*text, 0.3, 0) for text, flip in zip(texts, one) if flip)


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.5])
def test_the_labels_that_are_learned_are_the_flipped_ones(solved, noise):
    tokenizer, problem, written, slip, solution = solved
    tables = token_tables(tokenizer, 512)
    seen = set()
    for seed in range(40):
        want = [good != flipped(problem.id, written[: i + 1], noise, seed)
                for i, good in enumerate((True, True, False))]
        main, branch = prm_examples(solution, problem, tables, tokenizer, noise, seed)
        # Always the steps up to the first one that is wrong in truth, and the discarded draft.
        assert ends(main, tables) == want
        assert ends(branch, tables) == [flipped(problem.id, [written[0], slip], noise, seed)]
        at = np.flatnonzero(main.tokens == tables.separator)
        last = main.target[at[1] + 1 : at[2]]  # its slip is not marked where it is taken for right
        assert last.all() == want[2] and last[0] == 1
        seen.add(tuple(want))
    assert len(seen) == (1 if noise == 0 else 8)
