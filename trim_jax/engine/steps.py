"""What happens between the calls of the models: plan, decide, reject, accept, finish.

Pure functions on `Rows`, vectorised over rows; each acts on the rows of one phase and leaves the
others as they are. Section 1 of the method, in code.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.engine import rows as R
from trim_jax.engine.rows import Rows, where
from trim_jax.engine.sampling import fold, uniform
from trim_jax.engine.tokens import BOXED, OVER, START_STATE, TokenTables
from trim_jax.policies import base

# Key data of a token is (seed, problem) folded with the writer and the position; this stream, which
# no writer has, is the policy's own.
POLICY_STREAM = 7


def put_at(array: jax.Array, at: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """`array` [B, M] with `value` [B] at column `at` [B] in the rows of `mask` [B]."""
    here = (jnp.arange(array.shape[1]) == at[:, None]) & mask[:, None]
    return jnp.where(here, value[:, None], array)


def _note_stop(rows: Rows, writer: int, mask: jax.Array) -> jax.Array:
    """`rows.stopped`, with whether the step in progress of the rows of `mask` [B] did."""
    own = put_at(rows.stopped[:, :, writer], rows.t, rows.ended, mask)
    return rows.stopped.at[:, :, writer].set(own)


def take_at(array: jax.Array, at: jax.Array) -> jax.Array:
    """Column `at` [B] of `array` [B, M]."""
    return jnp.take_along_axis(array, at[:, None], axis=1, mode="clip")[:, 0]


def observe(rows: Rows) -> base.Observation:
    """What the policies see of every row."""
    steps = jnp.arange(rows.score.shape[1])
    S = rows.tokens.shape[1]
    if rows.reference.shape[1]:
        same = rows.tokens == rows.reference
        agree = jnp.where(same.all(axis=1), S, jnp.argmin(same, axis=1))
        prefix_right = agree >= rows.n_tokens
        # A draft that stops must stop where the reference does, which -1 marks.
        over = take_at(rows.reference, jnp.minimum(rows.n_text, S - 1)) < 0
        right = (agree >= rows.n_text) & (over | ~rows.ended)
    else:
        right = prefix_right = jnp.zeros_like(rows.ended)
    scores = jnp.where(steps < rows.t[:, None], rows.score, jnp.nan)
    by_large = (steps < rows.t[:, None]) & (rows.writer == R.LARGE)
    known = jnp.where(jnp.isnan(scores), 1.0, scores)
    now = lambda x: take_at(x, rows.t) if x.shape[1] else jnp.full(rows.t.shape, jnp.nan)  # noqa: E731
    last = rows.ended | (rows.boxed_state == len(BOXED)) | (rows.t + 1 == len(steps))
    return base.Observation(
        t=rows.t,
        draft_tokens=rows.draft_n - rows.newlines,
        draft_score=take_at(rows.draft_score, rows.t),
        scores=scores,
        writers=rows.writer,
        last=last | (rows.n_text >= S),
        uniform=uniform(fold(fold(rows.key, jnp.uint32(POLICY_STREAM)), rows.t)),
        right=right,
        prefix_right=prefix_right,
        large_tokens=jnp.where(by_large, rows.cost, 0).sum(axis=1),
        min_score=known.min(axis=1),
        prod_score=known.prod(axis=1),
        first_entropy=now(rows.first_entropy),
        draft_loglik=now(rows.draft_loglik),
    )


def _new_step(rows: Rows, mask: jax.Array) -> Rows:
    """Forget the step in progress."""
    zero = lambda x: jnp.where(mask, 0, x)  # noqa: E731
    return rows.replace(
        draft_n=zero(rows.draft_n),
        step_state=jnp.where(mask, START_STATE, rows.step_state),
        boxed_state=zero(rows.boxed_state),
        newlines=zero(rows.newlines),
        decoded=zero(rows.decoded),
        ended=rows.ended & ~mask,
    )


def _append_to_prm(rows: Rows, mask: jax.Array, tables: TokenTables) -> Rows:
    """Append the step in progress and `<extra_0>` to the PRM's stream, without its delimiter."""
    n = rows.draft_n - rows.newlines
    at = jnp.arange(rows.prm_tokens.shape[1]) - rows.n_prm[:, None]
    step = jnp.take_along_axis(rows.tokens, rows.n_tokens[:, None] + at, axis=1, mode="clip")
    bare = jnp.asarray(tables.stripped)[take_at(rows.tokens, rows.n_tokens + n - 1)]
    step = jnp.where(at == n[:, None] - 1, bare[:, None], step)
    step = jnp.where(at == n[:, None], tables.separator, step)
    inside = mask[:, None] & (at >= 0) & (at <= n[:, None])
    return rows.replace(
        prm_tokens=jnp.where(inside, step, rows.prm_tokens),
        n_prm=rows.n_prm + jnp.where(mask, n + 1, 0),
    )


def goes_on(rows: Rows) -> jax.Array:
    """bool [B], the rows that `move_on` takes further."""
    phases = jnp.array([R.PLANNING, R.DRAFTED, R.ACCEPTED, R.REJECTED, R.WRITTEN])
    return (rows.phase[:, None] == phases).any(axis=1)


def move_on(
    rows: Rows, policies: Sequence[base.Policy], tables: TokenTables, max_step_tokens: int,
    width: int,
) -> Rows:  # fmt: skip
    """Up to `width` of the rows that go on do so, until a model, a decision or a fork is next."""
    B = len(rows.phase)
    index = jnp.nonzero(goes_on(rows), size=min(width, B), fill_value=B)[0]
    some = jax.tree.map(lambda x: x.at[index].get(mode="clip"), rows)
    some = finish_drafts(some, tables)
    some = commit(reject(some), tables)
    some = plan(some, policies, max_step_tokens)
    put = lambda full, new: full.at[index].set(new, mode="drop")  # noqa: E731
    # Only decisions change the policies' states, which may be large.
    moved = jax.tree.map(put, rows.replace(states=()), some.replace(states=()))
    return moved.replace(states=rows.states)


def finish_drafts(rows: Rows, tables: TokenTables) -> Rows:
    """DRAFTED rows go on to the PRM, to the large model, or straight to the decision."""
    drafted = rows.phase == R.DRAFTED
    to_score = drafted & (rows.plan == base.DRAFT_AND_SCORE)
    rows = _append_to_prm(rows, to_score, tables)
    phase = jnp.where(rows.plan == base.DRAFT_AND_JUDGE, R.JUDGING, R.DECIDING)
    phase = jnp.where(to_score, R.SCORING, jnp.where(drafted, phase, rows.phase))
    return rows.replace(phase=phase)


def decide(rows: Rows, policies: Sequence[base.Policy], width: int) -> Rows:
    """DECIDING rows become ACCEPTED, REJECTED, or PARTING where their cells disagree.

    They are taken out `width` at a time: a learned policy's network is not free, and is asked for
    all its settings. A policy that none of these rows stands for is not asked.
    """

    def some(rows):
        B = len(rows.phase)
        index = jnp.nonzero(rows.phase == R.DECIDING, size=min(width, B), fill_value=B)[0]
        mine = jax.tree.map(lambda x: x.at[index].get(mode="clip"), rows)
        obs = observe(mine)
        answers = [
            jax.lax.cond(
                own.any(),
                functools.partial(_ask, policy, own, obs),
                lambda state, own=own: (jnp.zeros(own.shape, jnp.int32), state),
                state,
            )
            for policy, own, state in zip(policies, _own(policies, mine.cells), mine.states)
        ]
        codes = jnp.concatenate([code for code, _ in answers], axis=1)
        action, leaving = _common(mine.cells, codes)
        agreed = ~leaving.any(axis=1)
        phase = jnp.where(action == base.ACCEPT, R.ACCEPTED, R.REJECTED)
        phase = jnp.where(agreed, phase, R.PARTING)
        put = lambda full, new: full.at[index].set(new, mode="drop")  # noqa: E731
        after = where(agreed, tuple(state for _, state in answers), mine.states)
        return rows.replace(
            phase=put(rows.phase, phase), leaving=put(rows.leaving, leaving),
            states=jax.tree.map(put, rows.states, after),
        )  # fmt: skip

    return jax.lax.while_loop(lambda rows: (rows.phase == R.DECIDING).any(), some, rows)


def _ask(
    policy: base.Policy, own: jax.Array, obs: base.Observation, state: Any
) -> tuple[jax.Array, Any]:
    """Actions int32 [B, n] of all settings of a policy, and its state after the decision.

    The state is that of the first setting in `own`, bool [B, n]; the others that stay agree with it.
    """
    dials = jnp.asarray(policy.settings, jnp.float32)
    full = jnp.broadcast_to(dials[:, None], own.T.shape)
    actions = jax.vmap(lambda dial: policy.decide(dial, obs, state)[0])(full)
    _, after = policy.decide(dials[jnp.argmax(own, axis=1)], obs, state)
    return actions.T.astype(jnp.int32), after


def plan(rows: Rows, policies: Sequence[base.Policy], max_step_tokens: int) -> Rows:
    """PLANNING rows become DRAFTING, PEEKING, WRITING, or PARTING_PLANS where cells disagree."""
    planning = rows.phase == R.PLANNING
    obs = observe(rows)

    codes = []
    for policy, state in zip(policies, rows.states):
        dials = jnp.asarray(policy.settings, jnp.float32)
        full = jnp.broadcast_to(dials[:, None], (len(dials), len(planning)))
        code = jax.vmap(lambda dial, p=policy, state=state: p.plan(dial, obs, state))(full)
        if policy.peeks:
            again = (code == base.PEEK) & ~jnp.isnan(obs.first_entropy)
            code = jnp.where(again, base.DRAFT, code)
        codes.append(code.T.astype(jnp.int32))
    code, leaving = _common(rows.cells, jnp.concatenate(codes, axis=1))
    phase = jnp.where(code == base.LARGE, R.WRITING, R.DRAFTING)
    if any(policy.peeks for policy in policies):
        phase = jnp.where(code == base.PEEK, R.PEEKING, phase)
    phase = jnp.where(leaving.any(axis=1), R.PARTING_PLANS, phase)
    rows = rows.replace(
        phase=jnp.where(planning, phase, rows.phase),
        leaving=jnp.where(planning[:, None], leaving, rows.leaving),
        plan=jnp.where(planning, code, rows.plan),
    )
    if any(policy.peeks for policy in policies):
        rows = _after_peek(rows, planning & (rows.decoded > 0), max_step_tokens)
    return rows


def _common(cells: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of `codes` [B, C]: that of each row's first cell [B], and the cells [B, C] with another."""
    first = take_at(codes, jnp.argmax(cells, axis=1))
    return first, cells & (codes != first[:, None])


def _own(policies: Sequence[base.Policy], cells: jax.Array) -> list[jax.Array]:
    """The cells [B, n] of each policy."""
    ends = np.cumsum([len(policy.settings) for policy in policies])
    return jnp.split(cells, ends[:-1], axis=1)


def _after_peek(rows: Rows, mask: jax.Array, max_step_tokens: int) -> Rows:
    """The token that a peek drew begins the draft, or is the whole of it, or is thrown away.

    Its forward pass read the last accepted token, so the small model's cache is right either way.
    """
    over = rows.ended | (rows.step_state == OVER) | (rows.draft_n >= max_step_tokens)
    over |= rows.n_text >= rows.tokens.shape[1]
    complete = mask & (rows.phase == R.DRAFTING) & over
    thrown = mask & (rows.phase == R.WRITING)
    ledger = rows.ledger.at[:, R.SMALL, R.DISCARDED].add(jnp.where(thrown, rows.decoded, 0))
    rows = rows.replace(phase=jnp.where(complete, R.DRAFTED, rows.phase), ledger=ledger)
    return _new_step(rows, thrown)


def reject(rows: Rows) -> Rows:
    """REJECTED drafts are set aside and charged, the caches rolled back; the large model is next."""
    mask = rows.phase == R.REJECTED
    n = jnp.where(mask, rows.draft_n, 0)
    at = jnp.arange(rows.discarded.shape[1]) - rows.n_discarded[:, None]
    draft = jnp.take_along_axis(rows.tokens, rows.n_tokens[:, None] + at, axis=1, mode="clip")
    inside = (at >= 0) & (at < n[:, None])
    end = jnp.minimum(rows.n_discarded + n, rows.discarded.shape[1])

    scored = mask & (rows.plan == base.DRAFT_AND_SCORE)
    n_prm = rows.n_prm - jnp.where(scored, rows.draft_n - rows.newlines + 1, 0)
    # The large model is about to write: it reads the last accepted token when it begins.
    keep = jnp.stack([rows.n_tokens, rows.n_tokens - 1, n_prm], axis=1)  # [B, 3]
    roll = lambda x: jnp.where(mask[:, None], jnp.minimum(x, keep), x)  # noqa: E731
    ledger = rows.ledger.at[:, R.SMALL, R.DISCARDED].add(jnp.where(mask, rows.decoded, 0))
    ledger = ledger.at[:, R.SMALL, R.CALLS].add(mask)
    rows = rows.replace(
        discarded=jnp.where(inside, draft, rows.discarded),
        discarded_end=put_at(rows.discarded_end, rows.t, end, mask),
        n_discarded=end,
        draft_cost=put_at(rows.draft_cost, rows.t, rows.draft_n - rows.newlines, mask),
        stopped=_note_stop(rows, R.SMALL, mask),
        n_prm=n_prm,
        hits=jnp.where(mask, jnp.minimum(rows.hits, rows.t), rows.hits),
        length=roll(rows.length),
        covered=roll(rows.covered),
        ledger=ledger,
        phase=jnp.where(mask, R.WRITING, rows.phase),
    )
    return _new_step(rows, mask)


def commit(rows: Rows, tables: TokenTables) -> Rows:
    """ACCEPTED and WRITTEN steps join the text; the row plans its next step or is DONE."""
    accepted, written = rows.phase == R.ACCEPTED, rows.phase == R.WRITTEN
    mask = accepted | written
    unscored = accepted & (rows.plan != base.DRAFT_AND_SCORE)
    rows = _append_to_prm(rows, written | unscored, tables)

    redone = take_at(rows.draft_cost, rows.t) >= 0
    action = jnp.where(accepted, base.ACCEPT, jnp.where(redone, base.REGENERATE, base.DIRECT))
    score = jnp.where(accepted, take_at(rows.draft_score, rows.t), jnp.nan)
    ledger = rows.ledger
    for model, here in ((R.SMALL, accepted), (R.LARGE, written)):
        rows = rows.replace(stopped=_note_stop(rows, model, here))
        ledger = ledger.at[:, model, R.KEPT].add(jnp.where(here, rows.decoded, 0))
        ledger = ledger.at[:, model, R.CALLS].add(here)

    n_tokens, t = rows.n_text, rows.t + 1
    checks = [
        (rows.boxed_state == len(BOXED), R.BOXED),
        (rows.ended, R.EOS),
        (t == rows.score.shape[1], R.STEPS),
        (n_tokens >= rows.tokens.shape[1], R.CONTEXT),
    ]
    done = jnp.zeros_like(mask)
    finish = rows.finish
    for holds, reason in checks:
        finish = jnp.where(mask & holds & ~done, reason, finish)
        done |= mask & holds
    phase = jnp.where(mask, R.PLANNING, rows.phase)
    rows = rows.replace(
        step_end=put_at(rows.step_end, rows.t, n_tokens, mask),
        writer=put_at(rows.writer, rows.t, jnp.where(accepted, R.SMALL, R.LARGE), mask),
        action=put_at(rows.action, rows.t, action, mask),
        cost=put_at(rows.cost, rows.t, rows.draft_n - rows.newlines, mask),
        score=put_at(rows.score, rows.t, score, mask),
        ledger=ledger,
        finish=finish,
        n_tokens=jnp.where(mask, n_tokens, rows.n_tokens),
        t=jnp.where(mask, t, rows.t),
        phase=jnp.where(done, R.DONE, phase),
    )
    return _new_step(rows, mask)


def initial_states(policies: Sequence[base.Policy], rows: int) -> tuple:
    """The policies' own state for `rows` fresh rows, as NumPy arrays."""
    with jax.ensure_compile_time_eval():  # the caller may be traced, a policy may use jax.numpy
        return tuple(jax.tree.map(np.asarray, policy.init(rows)) for policy in policies)
