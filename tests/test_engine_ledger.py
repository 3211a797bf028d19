"""The ledger: what each model was asked for, what was executed, and what each policy pays."""

import numpy as np
import pytest
from tiny import (
    ALWAYS, GLIMP, LOGLIK, NEVER, ORACLE, POLICIES, RANDOM, RSD, THR,
    requests, shared_engine,
)  # fmt: skip

from trim_jax.engine import loop
from trim_jax.engine import rows as R
from trim_jax.policies import base

PROBLEMS = range(16)
USED = {R.SMALL: loop.CATCH_UP_SMALL, R.LARGE: loop.CATCH_UP_LARGE}
ASKED_FOR = {R.SMALL: loop.PEEK, R.LARGE: loop.JUDGE}
WROTE = {R.SMALL: loop.DECODE_SMALL, R.LARGE: loop.DECODE_LARGE}


def run(which, share="all"):
    """Solutions of some policies, their summed ledger, and what was executed for them."""
    engine = shared_engine()
    before = engine.executed.copy()
    solutions = list(engine.run(requests(PROBLEMS, which, share=share)))
    return solutions, sum(s.ledger for s in solutions), engine.executed - before


@pytest.mark.parametrize("policy, idle", [
    (NEVER, {R.LARGE, R.PRM}), (ALWAYS, {R.SMALL, R.PRM}), (RANDOM, {R.PRM}), (ORACLE, {R.PRM}),
    (GLIMP, {R.PRM}), (LOGLIK, {R.PRM}),
])  # fmt: skip
def test_nobody_pays_for_or_runs_a_model_that_is_not_needed(policy, idle):
    _, ledger, executed = run([policy])
    for model in (R.SMALL, R.LARGE, R.PRM):
        kinds = [loop.SCORE] if model == R.PRM else [USED[model], WROTE[model], ASKED_FOR[model]]
        assert ledger[model].any() == (model not in idle)
        assert executed[kinds].any() == (model not in idle)


def test_random_throws_nothing_away():
    solutions, ledger, _ = run([RANDOM])
    assert not ledger[:, R.DISCARDED].any()
    assert {a.action for s in solutions for a in s.steps} == {base.ACCEPT, base.DIRECT}


@pytest.mark.parametrize("policy", range(len(POLICIES)), ids=lambda i: type(POLICIES[i]).__name__)
def test_without_forks_what_is_charged_is_what_was_executed(policy):
    _, ledger, executed = run([policy], share="nothing")
    slots, used, calls = executed.T
    for model in (R.SMALL, R.LARGE):
        assert used[USED[model]] == ledger[model, R.PREFILLED]
        wrote = ledger[model, R.KEPT] + ledger[model, R.DISCARDED]
        peeked = used[loop.PEEK] if model == R.SMALL else 0
        assert used[WROTE[model]] + peeked == wrote
    assert used[loop.JUDGE] == ledger[R.LARGE, R.SCORED]
    assert used[loop.SCORE] == ledger[R.PRM, R.PREFILLED] + ledger[R.PRM, R.SCORED]
    assert (slots >= used).all() and ((slots > 0) == (calls > 0)).all()


def test_short_ends_of_the_prms_stream_take_half_of_a_call():
    slots, used, calls = run([THR], share="nothing")[2][loop.SCORE]
    size = shared_engine().loop
    call = size.rows * size.extend_chunk
    assert calls * call // 2 < slots < calls * call and slots % (call // 2) == 0
    assert used <= slots


def test_forks_share_work_that_each_of_them_pays_for():
    apart, charged, executed_apart = run([THR, RANDOM], share="nothing")
    forked, ledger, executed = run([THR, RANDOM])
    assert len(forked) < len(apart)
    by_model = ledger.sum(axis=1) - ledger[:, R.CALLS]
    small = executed[[USED[R.SMALL], WROTE[R.SMALL]], 1].sum()
    assert small < by_model[R.SMALL], "a shared step is paid for by all who share it"
    assert executed[loop.SCORE, 1] < by_model[R.PRM]
    assert executed[:, 1].sum() < 0.8 * executed_apart[:, 1].sum()
    weights = [sum(hi - lo for _, lo, hi in s.cells) for s in forked]
    np.testing.assert_array_equal(sum(w * s.ledger for w, s in zip(weights, forked)), charged)


def test_a_peek_costs_nothing_if_the_draft_follows_and_one_token_if_not():
    never = {s.request.problem_id: s for s in run([NEVER])[0]}
    solutions, _, executed = run([GLIMP])
    assert executed[loop.PEEK, 1]
    lowest, highest = POLICIES[GLIMP].settings[0], POLICIES[GLIMP].settings[-1]
    assert (lowest, highest) == (0.0, 9.0)
    for solution in solutions:
        peeks = [step.first_entropy for step in solution.steps]
        assert None not in peeks
        in_vain = sum(step.writer == R.LARGE for step in solution.steps)
        assert solution.ledger[R.SMALL, R.DISCARDED] == in_vain
        ((_, lo, hi),) = solution.cells
        if hi == len(POLICIES[GLIMP].settings):  # nothing is as uncertain as that
            want = never[solution.request.problem_id]
            np.testing.assert_array_equal(solution.ledger, want.ledger)
        if lo == 0:  # everything is as uncertain as that
            assert in_vain == len(peeks) and not solution.ledger[R.SMALL, R.KEPT]


def test_a_judge_reads_every_accepted_text_once_and_takes_rejected_drafts_back():
    apart = run([LOGLIK], share="nothing")[0]
    always = {s.request.problem_id: s for s in run([ALWAYS])[0]}
    for solution in apart:
        ledger, prompt = solution.ledger[R.LARGE], len(solution.request.prompt)
        dial = POLICIES[LOGLIK].settings[solution.cells[0].lo]
        drafts = [s.tokens if s.draft is None else s.draft for s in solution.steps]
        judged = sum(map(len, drafts))
        assert None not in [step.draft_loglik for step in solution.steps]
        # The prompt before the first draft, and never a token of an accepted or rewritten step again.
        assert ledger[R.PREFILLED] == prompt - 1
        assert 0 <= ledger[R.SCORED] - judged <= len(drafts)
        if dial == -9.0:
            assert {step.action for step in solution.steps} == {base.ACCEPT}
            assert not ledger[[R.KEPT, R.DISCARDED, R.CALLS]].any()
        if dial == 0.0:  # rejects all: what it then writes shows that its cache was as before
            want = always[solution.request.problem_id]
            assert [s.tokens for s in solution.steps] == [s.tokens for s in want.steps]
            np.testing.assert_array_equal(ledger[R.KEPT], want.ledger[R.LARGE, R.KEPT])


def test_rsd_is_the_threshold_rule_without_its_ends():
    dials = POLICIES[RSD].settings
    assert dials == (0.0, 0.5, 0.7)
    for solution in run([RSD], share="nothing")[0]:
        for step in solution.steps:
            rejected = step.draft_score < dials[solution.cells[0].lo]
            assert step.action == (base.REGENERATE if rejected else base.ACCEPT)


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
        drawn = [
            step.tokens if step.draft is None else step.draft
            for step in steps if step.draft_loglik is not None
        ]  # fmt: skip
        assert ledger[R.SMALL, R.SCORED] == 0
        assert 0 <= ledger[R.LARGE, R.SCORED] - sum(map(len, drawn)) <= len(drawn)
        discarded = [step.draft for step in steps if step.draft is not None]
        in_vain = sum(s.action == base.DIRECT and s.first_entropy is not None for s in steps)
        extra = ledger[R.SMALL, R.DISCARDED] - sum(map(len, discarded)) - in_vain
        assert 0 <= extra <= len(discarded)
        assert ledger[R.LARGE, R.DISCARDED] == 0 and not ledger[R.PRM, :2].any()
        scored = sum(step.draft_score is not None for step in steps)
        drafts = sum(step.action != base.DIRECT for step in steps)
        strong = sum(step.writer == R.LARGE for step in steps)
        np.testing.assert_array_equal(ledger[:, R.CALLS], [drafts, strong, scored])
        if scored:
            assert ledger[R.PRM, R.PREFILLED] == len(solution.request.prm_prompt)
        if drafts or in_vain:
            assert ledger[R.SMALL, R.PREFILLED] >= len(solution.request.prompt) - 1
