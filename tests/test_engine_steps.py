"""Where steps and solutions end, and what a text depends on, read off the solutions themselves."""

import collections
import dataclasses

import numpy as np
import pytest
from tiny import (
    ALWAYS, BUDGET, CONTEXT, MIXED, NEVER, ORACLE, REDO, STEPS, STEP_TOKENS, THR, VOCABULARY,
    by_setting, of, requests, shared_engine, text_of, tiny_trio,
)  # fmt: skip

from trim_jax.engine import rows as R
from trim_jax.policies import base

PROBLEMS = range(24)


@pytest.fixture(scope="module")
def solutions():
    """Every policy for itself, so that what they have in common was computed for each."""
    return list(shared_engine().run(requests(PROBLEMS, share="settings")))


def string(tokens):
    return "".join(VOCABULARY[token] for token in tokens)


def delimited(text):
    """A blank line behind a letter or digit."""
    return any(
        text[i : i + 2] == "\n\n" and any(map(str.isalnum, text[:i])) for i in range(len(text))
    )


def test_steps_end_at_their_first_blank_line_and_nowhere_else(solutions):
    reasons = collections.Counter()
    for solution in solutions:
        n = len(solution.request.prompt)
        for i, step in enumerate(solution.steps):
            text, last = string(step.tokens), i + 1 == len(solution.steps)
            n += len(step.tokens)
            assert not delimited(string(step.tokens[:-1])), "ran on behind a blank line"
            if delimited(text):
                reasons["blank line"] += 1
            elif len(step.tokens) == STEP_TOKENS:
                reasons["limit"] += 1
                assert VOCABULARY[step.tokens[-1]] == "\n\n", "a step cut short lacks its delimiter"
            elif n == CONTEXT:
                reasons["context"] += 1
                assert last
            else:
                reasons["eos"] += 1
                assert last, "ran on behind end-of-sequence"
                assert solution.finish in ("eos", "boxed")
            assert len(step.tokens) <= STEP_TOKENS
    assert len(reasons) == 4, reasons
    drafts = [step.draft for s in solutions for step in s.steps if step.draft is not None]
    assert all(not delimited(string(draft[:-1])) for draft in drafts)


def test_solutions_end_at_the_first_reason_to_end(solutions):
    for solution in solutions:
        boxed = ["\\boxed{" in string(step.tokens) for step in solution.steps]
        n = len(solution.request.prompt) + len(text_of(solution))
        assert not any(boxed[:-1]), "ran on behind a boxed answer"
        assert (solution.finish == "boxed") == boxed[-1]
        assert len(solution.steps) <= STEPS and n <= CONTEXT
        if solution.finish == "steps":
            assert len(solution.steps) == STEPS
        if solution.finish == "context":
            assert n == CONTEXT and len(solution.steps) < STEPS


def test_texts_hold_no_end_of_sequence_and_no_token_without_a_text(solutions):
    tables = tiny_trio().tables
    tokens = np.array([t for s in solutions for t in text_of(s)])
    assert tables.allowed[tokens].all() and not tables.is_eos[tokens].any()


def test_the_cost_of_a_step_is_its_tokens_without_the_delimiter(solutions):
    for solution in solutions:
        for step in solution.steps:
            bare = list(step.tokens)
            while bare and set(VOCABULARY[bare[-1]]) == {"\n"}:
                bare.pop()
            assert step.cost == len(bare)
        strong = [step.cost for step in solution.steps if step.writer == R.LARGE]
        assert solution.strong_tokens == sum(strong)


def test_who_wrote_a_step_and_what_is_known_of_it(solutions):
    for solution in solutions:
        for step in solution.steps:
            assert step.writer == (R.SMALL if step.action == base.ACCEPT else R.LARGE)
            assert (step.draft is not None) == (step.action == base.REGENERATE)
            assert (step.draft_cost is not None) == (step.draft is not None)
            if step.action == base.ACCEPT and step.draft_score is not None:
                assert step.score == pytest.approx(step.draft_score, abs=1e-5)
            if step.action == base.DIRECT:
                assert step.draft_score is None
        # The PRM reads a step of the large model when it scores a later draft, not before.
        scored = [i for i, step in enumerate(solution.steps) if step.draft_score is not None]
        for i, step in enumerate(solution.steps):
            known = any(j > i for j in scored) or (step.action == base.ACCEPT and i in scored)
            assert (step.score is not None) == known


def test_the_history_determines_the_text(solutions):
    """Whatever the policy: same seed, problem and writers so far, same tokens so far."""
    known, used = {}, 0
    for solution in solutions:
        history = ()
        for step in solution.steps:
            if step.action != base.DIRECT:
                draft = step.draft if step.draft is not None else step.tokens
                used += (place := (solution.request.problem_id, history, R.SMALL)) in known
                assert known.setdefault(place, draft) == draft
            if step.writer == R.LARGE:
                used += (place := (solution.request.problem_id, history, R.LARGE)) in known
                assert known.setdefault(place, step.tokens) == step.tokens
            history += (step.writer,)
    assert used > len(solutions)


def by_problem(solutions, policy):
    """The solution of each problem under a policy of one setting."""
    return {s.request.problem_id: s for s in of(solutions, policy)}


def test_rejecting_every_draft_writes_what_the_large_model_writes_alone(solutions):
    redone, alone = by_problem(solutions, REDO), by_problem(solutions, ALWAYS)
    for problem, solution in redone.items():
        assert text_of(solution) == text_of(alone[problem])
        assert {step.action for step in solution.steps} == {base.REGENERATE}
        assert solution.finish == alone[problem].finish


def test_thresholds_0_and_1_are_never_and_always(solutions):
    got = by_setting(of(solutions, THR))
    for anchor, setting in ((NEVER, 0), (ALWAYS, 6)):
        want = by_problem(solutions, anchor)
        found = {r.problem_id: s for r, s in got.items() if r.cells[0].lo == setting}
        assert found.keys() == want.keys()
        for problem, solution in found.items():
            assert solution.steps == want[problem].steps
            np.testing.assert_array_equal(solution.ledger, want[problem].ledger)


def test_a_threshold_that_accepts_all_writes_what_the_small_model_writes_alone(solutions):
    never, compared = by_problem(solutions, NEVER), 0
    for solution in of(solutions, THR):
        if solution.steps[0].draft_score is not None:
            if all(step.action == base.ACCEPT for step in solution.steps):
                assert text_of(solution) == text_of(never[solution.request.problem_id])
                compared += 1
    assert compared > 5


def test_the_oracle_writes_the_reference_where_a_model_can(solutions):
    """References are texts of the large model, the small one, or both in turns."""
    wrote, mixed = [by_problem(solutions, policy) for policy in (ALWAYS, NEVER, MIXED)], 0
    for problem, solution in by_problem(solutions, ORACLE).items():
        kind = int(problem[1:]) % 3
        assert text_of(solution) == text_of(wrote[kind][problem])
        if kind == 1:
            assert {step.action for step in solution.steps} == {base.ACCEPT}
        mixed += len({step.writer for step in solution.steps}) == 2
    assert mixed


def test_a_budget_is_kept_row_by_row(solutions):
    spent = [
        sum(step.action == base.REGENERATE for step in s.steps)
        for s in of(solutions, BUDGET)
    ]  # fmt: skip
    assert set(spent) == {0, 1, 2}


def test_another_seed_and_another_name_write_other_texts(solutions):
    asked = requests(PROBLEMS, [NEVER])
    want = by_problem(solutions, NEVER)
    again, renamed = (
        list(shared_engine().run(dataclasses.replace(r, **change(r)) for r in asked))
        for change in (lambda r: {"seed": 1}, lambda r: {"problem_id": r.problem_id + "x"})
    )
    for other in (again, renamed):
        texts = {s.request.prompt: text_of(s) for s in other}
        differ = sum(texts[s.request.prompt] != text_of(s) for s in want.values())
        assert differ > 0.8 * len(want)
