"""The process as a jittable environment, vectorised over rows; every array has a leading axis B.

    state = reset(process, key, rows)              # rows problems, each with its first draft
    obs = observe(process, state)                  # the Observation that policies get in the engine
    state, result = step(process, state, action)   # base.ACCEPT, base.REGENERATE or base.DIRECT
    rollout(process, policy, key, rows)            # every setting of a policy on the same problems

A finished row stays as it is, earns and spends nothing more; `step(..., auto_reset=True)` gives it
a new problem. Random numbers are functions of (problem, step): see `sim.noise`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from trim_jax.policies import base
from trim_jax.sim import noise
from trim_jax.sim.process import LARGE, S0, S1, S2, SMALL, Process


@flax.struct.dataclass
class State:
    """Rows of problems in progress.

    Attributes:
      key: uint32 [B], the problem: all its random numbers come from it.
      plan: int32 [B], row of the process's table of plans. n_steps: int32 [B], of the plan.
      effects: float32 ([B], [B]), of the problem and its number of steps, on each logit.
      t: int32 [B], step in question, 0-based.
      kind: int32 [B], of that step.
      latent: int32 [B], S0, S1 or S2, with the draft.
      draft_score: float32 [B]. draft_tokens: int32 [B].
      large_tokens: int32 [B], spent so far.
      min_score, prod_score: float32 [B], over accepted steps; 1 at first.
      done: bool [B].
      scores, writers: float32 and int32 [B, M] of accepted steps; [B, 0] without history.
    """

    key: jax.Array
    plan: jax.Array
    n_steps: jax.Array
    effects: tuple[jax.Array, jax.Array]
    t: jax.Array
    kind: jax.Array
    latent: jax.Array
    draft_score: jax.Array
    draft_tokens: jax.Array
    large_tokens: jax.Array
    min_score: jax.Array
    prod_score: jax.Array
    done: jax.Array
    scores: jax.Array
    writers: jax.Array


@flax.struct.dataclass
class StepResult:
    """What an action led to.

    Attributes:
      strong_tokens: int32 [B], tokens the large model spent on this step.
      reward: float32 [B], 1 where the solution ended with the right answer.
      done: bool [B], the solution is over.
    """

    strong_tokens: jax.Array
    reward: jax.Array
    done: jax.Array


@flax.struct.dataclass
class Rollout:
    """Every setting (S) of a policy on the same problems (B).

    Attributes:
      accuracy: float32 [S]. strong_tokens, strong_steps, steps: float32 [S], means a problem.
      correct: bool [S, B]. tokens: int32 [S, B], strong tokens.
    """

    accuracy: jax.Array
    strong_tokens: jax.Array
    strong_steps: jax.Array
    steps: jax.Array
    correct: jax.Array
    tokens: jax.Array


def _read(table: jax.Array, *at: jax.Array) -> jax.Array:
    """table[at], one number a row, as a single flat gather."""
    flat = at[0]
    for size, index in zip(table.shape[1:], at[1:]):
        flat = flat * size + index
    return table.reshape(-1).at[flat].get(mode="promise_in_bounds")


def _bin(values: jax.Array, edges: jax.Array) -> jax.Array:
    """int32 [B], (values >= edges).sum() of each row."""
    return sum((values >= edges[i] for i in range(len(edges))), jnp.zeros_like(values, jnp.int32))


def _score(process: Process, writer: int, latent, state: State, u) -> jax.Array:
    """The score at quantile `u` [B] of its cell."""
    cell = _bin(state.n_steps, process.step_edges) * (len(process.min_edges) + 1)
    cell += _bin(state.min_score, process.min_edges)
    table = process.scores[writer]
    x = u * (table.shape[3] - 1)
    low = x.astype(jnp.int32)
    below, above = (_read(table, latent, state.kind, cell, low + i) for i in range(2))
    return below + (x - low) * (above - below)


def _right(process: Process, model: int, state: State) -> jax.Array:
    """Logit of a right step of `model` given a right prefix."""
    return _read(process.logit[model], state.kind, state.t) + state.effects[model]


def _happens(logit: jax.Array, u: jax.Array) -> jax.Array:
    """True with probability sigmoid(logit)."""
    return u * (1 + jnp.exp(-logit)) < 1


def _draft(process: Process, state: State, wrong: jax.Array) -> State:
    """Draw the draft of step t of prefixes that are `wrong` or right."""
    luck = noise.bits(state.key, state.t, noise.DRAFT)
    kind = _read(process.kinds, state.plan, state.t)
    state = state.replace(kind=kind)
    right = _happens(_right(process, SMALL, state), noise.uniform(luck))
    latent = jnp.where(wrong, S1, jnp.where(right, S0, S2))
    text = noise.bits(state.key, state.t, noise.DRAFT_TEXT)
    u = noise.high16(text)
    return state.replace(
        latent=latent,
        draft_score=_score(process, SMALL, latent, state, u),
        draft_tokens=_read(process.draft_tokens, kind, noise.low8(text)).astype(jnp.int32),
    )


def _problems(process: Process, keys: jax.Array) -> State:
    """New problems with the given keys, and their first drafts."""
    zero, one = jnp.zeros_like(keys, jnp.int32), jnp.ones_like(keys, jnp.float32)
    # Step -1 is the problem itself.
    draw = functools.partial(noise.bits, keys, zero - 1)
    count = process.n_steps.shape[0]
    plan = ((draw(noise.PROBLEM) >> 16).astype(jnp.int32) * count) >> 16
    n_steps = _read(process.n_steps, plan)
    z_small, z_large = (
        noise.normal(noise.uniform(draw(s))) for s in (noise.EFFECT_SMALL, noise.EFFECT_LARGE)
    )
    rho = process.effect_correlation
    z_large = rho * z_small + jnp.sqrt(1 - rho * rho) * z_large
    effects = tuple(
        process.effect_sd[m] * z + _read(process.by_length[m], n_steps)
        for m, z in enumerate((z_small, z_large))
    )
    width = process.max_steps if process.history else 0
    return State(
        key=keys, plan=plan, n_steps=n_steps, effects=effects, t=zero, kind=zero, latent=zero,
        draft_score=one, draft_tokens=zero, large_tokens=zero, min_score=one, prod_score=one,
        done=zero > 0,
        scores=jnp.full([len(keys), width], jnp.nan, jnp.float32),
        writers=jnp.zeros([len(keys), width], jnp.int32),
    )  # fmt: skip


def reset(process: Process, key: jax.Array, rows: int) -> State:
    """`rows` new problems of a jax.random key, each with the draft of its first step."""
    state = _problems(process, noise.problem_keys(key, rows))
    return _draft(process, state, state.done)


def observe(process: Process, state: State) -> base.Observation:
    """What policies see; the draft is always scored. `scores` and `writers` are [B, 0] unless
    `process.history`."""
    luck = noise.bits(state.key, state.t, noise.POLICY)
    return base.Observation(
        t=state.t,
        draft_tokens=state.draft_tokens,
        draft_score=state.draft_score,
        scores=state.scores,
        writers=state.writers,
        last=state.t == state.n_steps - 1,
        uniform=noise.uniform(luck),
        right=state.latent == S0,
        prefix_right=state.latent != S1,
        large_tokens=state.large_tokens,
        min_score=state.min_score,
        prod_score=state.prod_score,
    )


def _rewrite(process: Process, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The large model's step t: is it (and all before it) right, its score, its tokens."""
    luck = noise.bits(state.key, state.t, noise.STRONG)
    text = noise.bits(state.key, state.t, noise.STRONG_TEXT)
    harder = jnp.where(
        state.latent == S2, process.draft_wrong[0] + process.draft_wrong[1] * state.draft_score,
        process.draft_doubted * (1 - state.draft_score),
    )  # fmt: skip
    logit = _right(process, LARGE, state) - harder
    right = _happens(logit, noise.uniform(luck)) & (state.latent != S1)
    latent = jnp.where(state.latent == S1, S1, jnp.where(right, S0, S2))
    score = _score(process, LARGE, latent, state, noise.high16(text))
    repeats = _read(process.same, latent) * 256 > noise.low8(luck).astype(jnp.float32)
    score = jnp.where(repeats & (latent == state.latent), state.draft_score, score)
    rest = _read(process.strong_rest, state.kind, noise.low8(text))
    tokens = jnp.round(process.strong_slope * state.draft_tokens + rest)
    return right, score, jnp.maximum(tokens, 1.0).astype(jnp.int32)


def step(
    process: Process, state: State, action: jax.Array, auto_reset: bool = False
) -> tuple[State, StepResult]:
    """Accept the draft, or let the large model write the step; then the next draft is drawn.

    Args:
      action: int32 [B], base.ACCEPT, base.REGENERATE or base.DIRECT.
      auto_reset: static; a row that ends starts a new problem at once.
    """
    large = action != base.ACCEPT
    strong_right, strong_score, strong_tokens = _rewrite(process, state)
    right = jnp.where(large, strong_right, state.latent == S0)
    score = jnp.where(large, strong_score, state.draft_score)
    spent = jnp.where(large & ~state.done, strong_tokens, 0)
    ends = ~state.done & (state.t == state.n_steps - 1)
    # The luck of a wrong solution is the problem's, whoever wrote it.
    u = noise.uniform(noise.bits(state.key, jnp.full_like(state.t, -1), noise.NEXT))
    reward = (ends & (right | (u < process.lucky))).astype(jnp.float32)

    done = state.done | ends
    here = (jnp.arange(state.scores.shape[1]) == state.t[:, None]) & ~state.done[:, None]
    after = state.replace(
        t=state.t + 1,
        large_tokens=state.large_tokens + spent,
        min_score=jnp.minimum(state.min_score, score),
        prod_score=state.prod_score * score,
        scores=jnp.where(here, score[:, None], state.scores),
        writers=jnp.where(here, large[:, None], state.writers).astype(jnp.int32),
        done=done,
    )
    if auto_reset:
        fresh = _problems(process, noise.bits(state.key, jnp.full_like(state.t, -2), noise.NEXT))
        after = _select(ends, fresh, after)
        after = _draft(process, after, ~right & ~ends)
    else:
        after = _select(done, state.replace(
            large_tokens=after.large_tokens, scores=after.scores, writers=after.writers, done=done,
        ), after)  # fmt: skip
        after = _select(done, after, _draft(process, after, ~right))
    return after, StepResult(strong_tokens=spent, reward=reward, done=done)


def _select(mask: jax.Array, yes: Any, no: Any) -> Any:
    pick = lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(pick, yes, no)


def act(
    process: Process, policy: base.Policy, dial: jax.Array, state: State, memory: Any
) -> tuple[jax.Array, Any]:
    """A policy's action on every row, and its own state after it, as in the engine's loop.

    Before the draft the policy sees no draft; where its plan is not to score, no score.
    """
    obs = observe(process, state)
    none, nan = jnp.zeros_like(obs.last), jnp.full_like(obs.draft_score, jnp.nan)
    before = obs.replace(
        draft_tokens=jnp.zeros_like(obs.draft_tokens), draft_score=nan, last=none,
        right=obs.prefix_right,
    )  # fmt: skip
    plan = policy.plan(dial, before, memory)
    direct, scored = plan == base.LARGE, plan == base.DRAFT_AND_SCORE
    obs = obs.replace(draft_score=jnp.where(scored, obs.draft_score, nan))
    action, decided = policy.decide(dial, obs, memory)
    # Who writes without a draft is not asked to decide.
    memory = _select(direct | state.done, memory, decided)
    return jnp.where(direct, base.DIRECT, action), memory


def rollout(
    process: Process, policy: base.Policy, key: jax.Array, rows: int, settings: Any = None
) -> Rollout:
    """Every setting of `policy` on the same `rows` problems, in one jitted loop.

    Args:
      key: jax.random key of the problems.
      settings: float [S], values of the policy's dial; its own by default. Other values, other
        weights and other process parameters of the same shapes do not recompile.
    """
    values = policy.settings if settings is None else settings
    # Policies that differ in their weights only are equal: one compilation serves them.
    return _rollout(process, policy, policy.weights, key, rows, jnp.asarray(values, jnp.float32))


@functools.partial(jax.jit, static_argnames=("policy", "rows"))
def _rollout(process, policy, weights, key, rows, settings) -> Rollout:
    policy = dataclasses.replace(policy, weights=weights)
    n = settings.shape[0]
    state = reset(process, key, rows)
    state = jax.tree.map(lambda x: jnp.tile(x, (n,) + (1,) * (x.ndim - 1)), state)
    dial = jnp.repeat(settings, rows)
    zero = jnp.zeros([n * rows], jnp.int32)

    def advance(carry):
        state, memory, correct, calls = carry
        action, memory = act(process, policy, dial, state, memory)
        state, result = step(process, state, action)
        correct |= result.reward > 0
        return state, memory, correct, calls + (result.strong_tokens > 0)

    start = (state, policy.init(n * rows), zero > 0, zero)
    state, _, correct, calls = jax.lax.while_loop(lambda c: ~c[0].done.all(), advance, start)
    mean = lambda x: x.reshape(n, rows).astype(jnp.float32).mean(axis=1)  # noqa: E731
    return Rollout(
        accuracy=mean(correct),
        strong_tokens=mean(state.large_tokens),
        strong_steps=mean(calls),
        steps=mean(state.n_steps),
        correct=correct.reshape(n, rows),
        tokens=state.large_tokens.reshape(n, rows),
    )
