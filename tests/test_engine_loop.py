"""The routed loop against the slow path, and against itself in other batches."""

import collections
import dataclasses

import numpy as np
import pytest
from tiny import (
    NEVER, POLICIES, RANDOM, THR, assert_as_reference, assert_same, by_setting, of, requests,
    shared_engine, tiny_engine,
)  # fmt: skip

from trim_jax.engine import rows as R
from trim_jax.engine.engine import Cells
from trim_jax.policies import base
from trim_jax.policies.simple import Random

PROBLEMS = range(12)


@pytest.fixture(scope="module")
def solutions():
    """Every problem under every policy and setting, sharing rows until they part."""
    return list(shared_engine().run(requests(PROBLEMS)))


def test_the_tiny_trio_shows_everything_there_is(solutions):
    assert {s.finish for s in solutions} == set(R.FINISHES)
    steps = [step for s in solutions for step in s.steps]
    assert {step.action for step in steps} == {base.ACCEPT, base.REGENERATE, base.DIRECT}
    scores = np.array([s.draft_score for s in steps if s.draft_score is not None])
    assert (np.histogram(scores, bins=5, range=(0, 1))[0] > 0.03 * len(scores)).all()
    sizes = collections.Counter(len(step.tokens) for step in steps)
    assert len(sizes) > 8 and sum(len(s.steps) for s in solutions) > 2.5 * len(solutions)
    for policy in (THR, RANDOM):
        assert len(of(solutions, policy)) > 2 * len(PROBLEMS), "rows must fork"


@pytest.mark.parametrize("policy", range(len(POLICIES)), ids=lambda i: type(POLICIES[i]).__name__)
def test_fast_path_is_the_slow_path(solutions, policy):
    got = by_setting(of(solutions, policy))
    assert len(got) == len(PROBLEMS) * len(POLICIES[policy].settings)
    assert_as_reference(got)


SIZES = {
    "masks, but for a tail": dict(slots=4, rows=4, tail_rows=2),
    "few rows of many, whose short ends gather": dict(slots=12, rows=2, tail_rows=1),
    "tail tile, other chunks": dict(slots=9, rows=6, tail_rows=2, decode_chunk=7, extend_chunk=19),
    "one slot, every fork spills": dict(slots=1, rows=1, decode_chunk=1, extend_chunk=3),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_sizes_do_not_matter(solutions, sizes):
    got = tiny_engine(**sizes).run(reversed(requests(PROBLEMS)))
    assert_same(by_setting(got), by_setting(solutions))


def test_neighbours_do_not_matter(solutions):
    want = by_setting(solutions)
    alone = [s for request in requests([2, 3]) for s in shared_engine().run([request])]
    assert_same(by_setting(alone), {r: s for r, s in want.items() if r.problem_id in ("p2", "p3")})
    shuffled = requests(PROBLEMS)
    np.random.default_rng(0).shuffle(shuffled)
    assert_same(by_setting(shared_engine().run(shuffled)), want)


def test_policies_and_settings_that_share_steps_are_what_they_are_alone(solutions):
    want = by_setting(solutions)
    for share in ("settings", "nothing"):
        apart = list(shared_engine().run(requests(PROBLEMS, share=share)))
        assert len(apart) > 1.3 * len(solutions)
        assert_same(by_setting(apart), want)


def test_cells_that_cannot_share_a_row_are_refused():
    class Knowing(Random):
        state_knows_dial = True

    asked = requests([0], [NEVER])[0]
    engine = tiny_engine(policies=(Knowing((0.2, 0.5)),))
    for cells in ((), (Cells(0, 0, 2),)):
        with pytest.raises(ValueError, match="cannot share a row"):
            list(engine.run([dataclasses.replace(asked, cells=cells)]))


def test_a_run_that_another_one_has_overtaken_says_so():
    engine = shared_engine()
    first = engine.run(requests(range(6)))
    next(first)
    list(engine.run(requests(range(1))))
    with pytest.raises(RuntimeError, match="one run at a time"):
        list(first)
    assert_as_reference(by_setting(engine.run(requests(range(2)))))
