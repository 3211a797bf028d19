"""The routed loop against the slow path, and against itself in other batches."""

import collections

import numpy as np
import pytest
from tiny import (
    POLICIES, RANDOM, THR, assert_as_reference, assert_same, by_setting, requests, shared_engine,
    tiny_engine,
)  # fmt: skip

from trim_jax.engine import rows as R
from trim_jax.policies import base

PROBLEMS = range(12)


@pytest.fixture(scope="module")
def solutions():
    """Every problem under every policy and setting, forked where settings can share a row."""
    return list(shared_engine().run(requests(PROBLEMS)))


def of(solutions, policy):
    return [s for s in solutions if s.request.policy == policy]


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
    "masks": dict(slots=4, rows=4),
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


def test_forked_settings_are_what_they_are_alone(solutions):
    alone = by_setting(shared_engine().run(requests(PROBLEMS, [THR, RANDOM], fork=False)))
    assert_same(by_setting(of(solutions, THR) + of(solutions, RANDOM)), alone)
