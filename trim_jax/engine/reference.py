"""The slow path: the routed process of the method, section 1, as plainly as it can be written.

One request with one setting at a time, in lock step: draft, score, decide, regenerate, commit. The
whole text goes through a model for every token, without a cache; the ledger counts what models with
a cache would have to read. Tests hold the fast path against it; it is far too slow to use.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.engine import rows as R
from trim_jax.engine.engine import EngineConfig, Request, Solution, Step
from trim_jax.engine.sampling import Sampling, fold, row_key, sample, uniform
from trim_jax.engine.steps import POLICY_STREAM
from trim_jax.engine.tokens import BOXED, OVER, START_STATE, TokenTables, bare_step
from trim_jax.engine.work import PEEK_WIDTH
from trim_jax.models.qwen2 import ModelConfig, Qwen2
from trim_jax.policies import base


@functools.partial(jax.jit, static_argnames="config")
def full_pass(params: Any, tokens: jax.Array, at: jax.Array, *, config: ModelConfig) -> jax.Array:
    """Logits [N, V] (a PRM: [N, 2]) of `tokens` [S] at the positions `at` [N], without a cache."""
    return Qwen2(config).apply({"params": params}, tokens[None], read_at=at[None])[0][0]


@functools.partial(jax.jit, static_argnames="sampling")
def _draw(logits, key, writer, n, allowed, *, sampling: Sampling) -> jax.Array:
    """Token n of a text, from `logits` [1, V] and the key data [2] of (seed, problem)."""
    return sample(logits, fold(fold(key, writer), n)[None], allowed, sampling)[0]


@dataclasses.dataclass(frozen=True)
class _Text:
    """What a model wrote in one go.

    Attributes:
      tokens: end-of-sequence not included. decoded: their number, end-of-sequence included.
      ended: it stopped at end-of-sequence. boxed: it holds a boxed answer.
      cost: number of tokens without the newlines at the end. bare: as the PRM reads it.
    """

    tokens: list[int]
    decoded: int
    ended: bool
    boxed: bool
    cost: int
    bare: list[int]


@dataclasses.dataclass
class _Progress:
    """A solution in the making.

    Attributes:
      key: uint32 [2], random key data of (seed, problem).
      text: prompt and accepted steps. prm_text: the PRM's prompt and accepted steps.
      steps: the accepted steps. state: the policy's own.
      read: how much of its text each model has read. ledger: int [3, 5].
    """

    key: jax.Array
    text: list[int]
    prm_text: list[int]
    state: Any
    steps: list[Step] = dataclasses.field(default_factory=list)
    read: list[int] = dataclasses.field(default_factory=lambda: [0, 0, 0])
    ledger: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros([len(R.MODELS), len(R.LEDGER)], np.int32)
    )


class Reference:
    """What `Engine` computes, one request and one setting at a time. Arguments as there."""

    def __init__(
        self,
        models: tuple[ModelConfig, ModelConfig, ModelConfig],
        params: tuple[Any, Any, Any],
        tables: TokenTables,
        policies: Sequence[base.Policy],
        config: EngineConfig = EngineConfig(),
        sampling: Sampling = Sampling(),
        prm_extra: int = 64,
    ):
        self.models, self.params, self.tables = models, params, tables
        self.policies, self.config, self.sampling = policies, config, sampling
        self.prm_context = config.max_context + config.max_steps + prm_extra

    def solve(self, request: Request) -> Solution:
        """The solution of a request for one setting.

        Raises:
          ValueError: the request is for several settings.
        """
        ((index, lo, hi),) = request.cells
        if hi != lo + 1:
            raise ValueError("the reference takes one setting at a time")
        policy = self.policies[index]
        dial = jnp.asarray(policy.settings[lo:hi], jnp.float32)  # [1]
        work = _Progress(
            row_key(request.seed, request.problem_id),
            list(request.prompt), list(request.prm_prompt), policy.init(1),
        )  # fmt: skip
        finish = None
        while finish is None:
            draft, signals = None, {}
            plan = policy.plan(dial, self._observe(request, work, None, {}), work.state)[0]
            if plan == base.PEEK:
                signals["first_entropy"] = self._entropy(work)
                token = self._write(work, R.SMALL, peek=True)
                seen = self._observe(request, work, token, signals)
                plan = policy.plan(dial, seen, work.state)[0]
                if plan == base.LARGE:
                    work.ledger[R.SMALL, R.DISCARDED] += token.decoded
            writer, action = R.LARGE, base.DIRECT
            if plan != base.LARGE:
                draft = self._write(work, R.SMALL)
                if plan == base.DRAFT_AND_SCORE:
                    signals["draft_score"] = self._score(work, draft, request)
                if plan == base.DRAFT_AND_JUDGE:
                    signals["draft_loglik"] = self._judge(work, draft)
                seen = self._observe(request, work, draft, signals)
                decision, work.state = policy.decide(dial, seen, work.state)
                action = int(decision[0])
                writer = R.SMALL if action == base.ACCEPT else R.LARGE
            if action == base.REGENERATE:
                work.ledger[R.SMALL, R.DISCARDED] += draft.decoded
                work.read[R.SMALL] = min(work.read[R.SMALL], len(work.text))
                work.read[R.LARGE] = min(work.read[R.LARGE], len(work.text) - 1)
                work.read[R.PRM] = min(work.read[R.PRM], len(work.prm_text))
            kept = draft if writer == R.SMALL else self._write(work, R.LARGE)
            finish = self._commit(work, kept, writer, action, draft, signals)
        return Solution(request, request.cells, tuple(work.steps), finish, work.ledger)

    def logits(self, text: Sequence[int], writer: int) -> jax.Array:
        """float32 [1, V], what a language model gives for the token behind `text`."""
        padded = np.zeros(self.config.max_context, np.int32)
        padded[: len(text)] = text
        at = np.array([len(text) - 1])
        return full_pass(self.params[writer], padded, at, config=self.models[writer])

    def _write(self, work: _Progress, writer: int, peek: bool = False) -> _Text:
        """One step of a language model behind the accepted text, or its first token."""
        limit = self.config.max_step_tokens
        begin = len(work.text)
        allowed, is_eos = self.tables.of_model(self.models[writer].vocab)
        tokens, decoded, state, boxed, ended = [], 0, START_STATE, 0, False
        while not ended and state != OVER and len(tokens) < limit:
            if begin + len(tokens) == self.config.max_context or (peek and decoded):
                break
            text = work.text + tokens
            logits = self.logits(text, writer)
            token = int(_draw(
                logits, work.key, np.uint32(writer), np.uint32(len(text)), allowed,
                sampling=self.sampling,
            ))  # fmt: skip
            decoded += 1
            if len(tokens) + 1 == limit:
                token = self.tables.delimiter
            ended = bool(is_eos[token])
            if not ended:
                tokens.append(token)
                state = self.tables.step_next[token, state]
                boxed = self.tables.boxed_next[token, boxed]
        # All but the last token of the text was read before the first one was decoded.
        unread = begin - 1 - work.read[writer]
        work.ledger[writer, R.PREFILLED] += max(unread, 0)
        work.ledger[writer, R.CALLS] += not peek
        work.read[writer] = begin - 1 + decoded
        bare = bare_step(tokens, self.tables)
        return _Text(tokens, decoded, ended, boxed == len(BOXED), len(bare), bare)

    def _score(self, work: _Progress, draft: _Text, request: Request) -> float:
        """Score of the draft; accepted steps that have none yet get theirs."""
        text = work.prm_text + draft.bare + [self.tables.separator]
        ends = [
            i for i, token in enumerate(text)
            if token == self.tables.separator and i >= len(request.prm_prompt)
        ]  # fmt: skip
        padded = np.zeros(self.prm_context, np.int32)
        padded[: len(text)] = text
        at = np.zeros(self.config.max_steps, np.int32)
        at[: len(ends)] = ends
        logits = full_pass(self.params[R.PRM], padded, at, config=self.models[R.PRM])
        scores = np.asarray(jax.nn.softmax(logits, axis=-1))[: len(ends), 1]
        work.steps = [
            step if step.score is not None else dataclasses.replace(step, score=float(score))
            for step, score in zip(work.steps, scores)
        ]
        begin, prompt = work.read[R.PRM], len(request.prm_prompt)
        work.ledger[R.PRM, R.PREFILLED] += max(prompt - begin, 0)
        work.ledger[R.PRM, R.SCORED] += len(text) - max(begin, prompt)
        work.ledger[R.PRM, R.CALLS] += 1
        work.read[R.PRM] = len(text)
        return float(scores[-1])

    def _entropy(self, work: _Progress) -> float:
        """Entropy of the small model's next token, over its likeliest ones, renormalised."""
        logits = np.asarray(self.logits(work.text, R.SMALL), np.float64)[0]
        allowed, _ = self.tables.of_model(len(logits))
        best = np.sort(logits[allowed])[::-1][:PEEK_WIDTH]
        chance = np.exp(best - best[0])
        chance /= chance.sum()
        return float(-(chance * np.log(chance)).sum())

    def _judge(self, work: _Progress, draft: _Text) -> float:
        """Mean log-likelihood of what the small model drew, under the large one."""
        begin, text = len(work.text), work.text + draft.tokens
        padded = np.zeros(self.config.max_context, np.int32)
        padded[: len(text)] = text
        at = np.minimum(begin - 1 + np.arange(self.config.max_step_tokens), len(text) - 1)
        logits = full_pass(self.params[R.LARGE], padded, at, config=self.models[R.LARGE])
        allowed, is_eos = self.tables.of_model(logits.shape[-1])
        logits = np.where(allowed, np.asarray(logits, np.float64), -np.inf)
        total = 0.0
        for i in range(draft.decoded):
            chance = np.exp(logits[i] - logits[i].max())
            chance /= chance.sum()
            over = i == len(draft.tokens)
            total += np.log(chance[is_eos].sum() if over else chance[draft.tokens[i]])
        work.ledger[R.LARGE, R.PREFILLED] += max(begin - 1 - work.read[R.LARGE], 0)
        work.ledger[R.LARGE, R.SCORED] += draft.decoded
        work.read[R.LARGE] = begin - 1 + draft.decoded
        return float(total / draft.decoded)

    def _commit(self, work: _Progress, kept: _Text, writer, action, draft, signals) -> str | None:
        """Append a step; the reason to stop there, if there is one."""
        discarded = draft is not None and action == base.REGENERATE
        work.steps.append(
            Step(
                tokens=tuple(kept.tokens),
                writer=writer,
                action=action,
                cost=kept.cost,
                score=signals.get("draft_score") if writer == R.SMALL else None,
                draft_score=signals.get("draft_score"),
                draft=tuple(draft.tokens) if discarded else None,
                draft_cost=draft.cost if discarded else None,
                first_entropy=signals.get("first_entropy"),
                draft_loglik=signals.get("draft_loglik"),
            )
        )
        work.ledger[writer, R.KEPT] += kept.decoded
        work.text += kept.tokens
        work.prm_text += kept.bare + [self.tables.separator]
        if kept.boxed:
            return R.FINISHES[R.BOXED]
        if kept.ended:
            return R.FINISHES[R.EOS]
        if len(work.steps) == self.config.max_steps:
            return R.FINISHES[R.STEPS]
        if len(work.text) == self.config.max_context:
            return R.FINISHES[R.CONTEXT]
        return None

    def _observe(
        self,
        request: Request,
        work: _Progress,
        draft: _Text | None,
        signals: dict[str, float],
    ) -> base.Observation:
        """What the policy sees before the draft of the next step, with its first token, with it."""
        t, M = len(work.steps), self.config.max_steps
        text = work.text + (draft.tokens if draft else [])
        scores = np.full(M, np.nan, np.float32)
        writers = np.zeros(M, np.int32)
        for i, step in enumerate(work.steps):
            writers[i] = step.writer
            if step.score is not None:
                scores[i] = step.score
        key = fold(work.key, jnp.uint32(POLICY_STREAM))
        reference = list(request.reference)
        last = t + 1 == M or len(text) == self.config.max_context
        if draft:
            last = last or draft.ended or draft.boxed
        stops_short = bool(draft and draft.ended and len(text) < len(reference))
        one = lambda value, dtype: jnp.asarray([value], dtype)  # noqa: E731
        return base.Observation(
            t=one(t, jnp.int32),
            draft_tokens=one(draft.cost if draft else 0, jnp.int32),
            draft_score=one(signals.get("draft_score", np.nan), jnp.float32),
            scores=jnp.asarray(scores[None]),
            writers=jnp.asarray(writers[None]),
            last=one(last, bool),
            uniform=uniform(fold(key, jnp.uint32(t)))[None],
            right=one(text == reference[: len(text)] and not stops_short, bool),
            prefix_right=one(work.text == reference[: len(work.text)], bool),
            large_tokens=one(
                sum(s.cost for s in work.steps if s.writer == R.LARGE), jnp.int32
            ),
            min_score=one(np.nanmin([1.0, *scores]), jnp.float32),
            prod_score=one(np.nanprod(scores), jnp.float32),
            first_entropy=one(signals.get("first_entropy", np.nan), jnp.float32),
            draft_loglik=one(signals.get("draft_loglik", np.nan), jnp.float32),
        )
