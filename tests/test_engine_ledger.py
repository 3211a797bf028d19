"""The ledger: what each model was asked for, what was executed, and what each policy pays."""

import numpy as np
import pytest
from tiny import (
    ALWAYS, NEVER, ORACLE, POLICIES, RANDOM, THR,
    requests, shared_engine,
)  # fmt: skip

from trim_jax.engine import loop
from trim_jax.engine import rows as R
from trim_jax.policies import base

PROBLEMS = range(16)
USED = {R.SMALL: loop.CATCH_UP_SMALL, R.LARGE: loop.CATCH_UP_LARGE}
WROTE = {R.SMALL: loop.DECODE_SMALL, R.LARGE: loop.DECODE_LARGE}


def run(which, fork=True):
    """Solutions of some policies, their summed ledger, and what was executed for them."""
    engine = shared_engine()
    before = engine.executed.copy()
    solutions = list(engine.run(requests(PROBLEMS, which, fork=fork)))
    return solutions, sum(s.ledger for s in solutions), engine.executed - before


@pytest.mark.parametrize("policy, idle", [
    (NEVER, {R.LARGE, R.PRM}), (ALWAYS, {R.SMALL, R.PRM}), (RANDOM, {R.PRM}), (ORACLE, {R.PRM}),
])  # fmt: skip
def test_nobody_pays_for_or_runs_a_model_that_is_not_needed(policy, idle):
    _, ledger, executed = run([policy])
    for model in (R.SMALL, R.LARGE, R.PRM):
        kinds = [loop.SCORE] if model == R.PRM else [USED[model], WROTE[model]]
        assert ledger[model].any() == (model not in idle)
        assert executed[kinds].any() == (model not in idle)


def test_random_throws_nothing_away():
    solutions, ledger, _ = run([RANDOM])
    assert not ledger[:, R.DISCARDED].any()
    assert {a.action for s in solutions for a in s.steps} == {base.ACCEPT, base.DIRECT}


@pytest.mark.parametrize("policy", range(len(POLICIES)), ids=lambda i: type(POLICIES[i]).__name__)
def test_without_forks_what_is_charged_is_what_was_executed(policy):
    _, ledger, executed = run([policy], fork=False)
    slots, used, calls = executed.T
    for model in (R.SMALL, R.LARGE):
        assert used[USED[model]] == ledger[model, R.PREFILLED]
        assert used[WROTE[model]] == ledger[model, R.KEPT] + ledger[model, R.DISCARDED]
    assert used[loop.SCORE] == ledger[R.PRM, R.PREFILLED] + ledger[R.PRM, R.SCORED]
    assert (slots >= used).all() and ((slots > 0) == (calls > 0)).all()


def test_forks_share_work_that_each_of_them_pays_for():
    apart, charged, executed_apart = run([THR, RANDOM], fork=False)
    forked, ledger, executed = run([THR, RANDOM])
    assert len(forked) < len(apart)
    by_model = ledger.sum(axis=1) - ledger[:, R.CALLS]
    small = executed[[USED[R.SMALL], WROTE[R.SMALL]], 1].sum()
    assert small < by_model[R.SMALL], "a shared step is paid for by all who share it"
    assert executed[loop.SCORE, 1] < by_model[R.PRM]
    assert executed[:, 1].sum() < 0.8 * executed_apart[:, 1].sum()
    weights = [s.hi - s.lo for s in forked]
    np.testing.assert_array_equal(sum(w * s.ledger for w, s in zip(weights, forked)), charged)


def test_the_ledger_counts_what_the_steps_show():
    solutions, _, _ = run(range(len(POLICIES)))
    for solution in solutions:
        ledger, steps = solution.ledger, solution.steps
        for model in (R.SMALL, R.LARGE):
            mine = [step for step in steps if step.writer == model]
            extra = ledger[model, R.KEPT] - sum(len(step.tokens) for step in mine)
            # End-of-sequence is decoded too; a boxed step may or may not end with it.
            at_end = bool(mine) and mine[-1] is steps[-1]
            assert extra in {"eos": {int(at_end)}, "boxed": {0, int(at_end)}}.get(
                solution.finish, {0}
            )
            assert ledger[model, R.SCORED] == 0
        discarded = [step.draft for step in steps if step.draft is not None]
        extra = ledger[R.SMALL, R.DISCARDED] - sum(map(len, discarded))
        assert 0 <= extra <= len(discarded)
        assert ledger[R.LARGE, R.DISCARDED] == 0 and not ledger[R.PRM, :2].any()
        scored = sum(step.draft_score is not None for step in steps)
        drafts = sum(step.action != base.DIRECT for step in steps)
        strong = sum(step.writer == R.LARGE for step in steps)
        np.testing.assert_array_equal(ledger[:, R.CALLS], [drafts, strong, scored])
        if scored:
            assert ledger[R.PRM, R.PREFILLED] == len(solution.request.prm_prompt)
        if drafts:
            assert ledger[R.SMALL, R.PREFILLED] >= len(solution.request.prompt) - 1
