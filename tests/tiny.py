"""A tiny random trio whose texts are varied, its engine and reference, and their comparison.

The vocabulary has words, digits, punctuation and every spelling of a blank line. The heads of the
language models lean towards the tokens that matter: steps end after a few tokens, and solutions
end in every way there is. The scores of the process-reward model spread over (0, 1).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from tiny_models import lively

from trim_jax.engine import rows as R
from trim_jax.engine.engine import Cells, Engine, EngineConfig, Request, Solution, Step
from trim_jax.engine.reference import Reference, full_pass
from trim_jax.engine.sampling import fold, row_key, uniform
from trim_jax.engine.tokens import TokenTables, token_tables
from trim_jax.models.qwen2 import ModelConfig
from trim_jax.policies import base
from trim_jax.policies.neighbours import Glimp, LogLik, Rsd
from trim_jax.policies.simple import Always, Never, Oracle, Random, Threshold

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>")
WORDS = [*"abcdefghijklmnopqrs", *"0123456789", ".", ",", "\\", "}", "=", "\\boxed{"]
BREAKS = ["\n", ".\n", "\n\n", ".\n\n"]
VOCABULARY = [*WORDS, *BREAKS, *SPECIAL]
# Mean logits of these tokens, of 0 for all others.
LEANINGS = {"\n\n": 2.0, ".\n\n": 1.5, "\n": 1.5, ".": 1.5, "\\boxed{": 0.5, "<|im_end|>": -0.8}

# Logits move by up to 1e-5 with the sizes of batch and chunk.
NEAR_TIE = 1e-4
SCORE_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Budget(base.Policy):
    """A user's policy with a state: regenerate below the threshold, at most twice a solution."""

    settings: tuple[float, ...] = (0.45, 0.95)

    def init(self, rows):
        return {"left": jnp.full([rows], 2, jnp.int32)}

    def decide(self, dial, obs, state):
        again = (obs.draft_score < dial) & (state["left"] > 0)
        action = jnp.where(again, base.REGENERATE, base.ACCEPT)
        return action, {"left": state["left"] - again}


@dataclasses.dataclass(frozen=True)
class Mixed(base.Policy):
    """A user's policy that makes every plan there is and looks at all that it is shown."""

    settings: tuple[float, ...] = (0.5,)

    def plan(self, dial, obs, state):
        plans = jnp.asarray([base.DRAFT, base.DRAFT_AND_SCORE, base.LARGE, base.DRAFT_AND_SCORE])
        return plans[(obs.t + (obs.uniform < 0.3) + obs.writers.sum(axis=1)) % 4]

    def decide(self, dial, obs, state):
        known = ~jnp.isnan(obs.scores)
        mean = jnp.where(known, obs.scores, 0.0).sum(axis=1) / jnp.maximum(known.sum(axis=1), 1)
        doubt = jnp.isnan(obs.draft_score) & (obs.draft_tokens > 4)
        worse = (obs.draft_score < mean) | (obs.last & (obs.large_tokens < 9)) | doubt
        return jnp.where(worse, base.REGENERATE, base.ACCEPT), state


@dataclasses.dataclass(frozen=True)
class Redo(base.Policy):
    """Throws every draft away, unscored."""

    def plan(self, dial, obs, state):
        return jnp.full_like(obs.t, base.DRAFT)

    def decide(self, dial, obs, state):
        return jnp.full_like(obs.t, base.REGENERATE), state


@dataclasses.dataclass(frozen=True)
class Curious(base.Policy):
    """A user's policy that peeks, judges, scores, and looks at the token that it peeked at."""

    settings: tuple[float, ...] = (2.2, 2.6)
    peeks = judges = True

    def init(self, rows):
        return {"judged": jnp.zeros([rows], jnp.int32)}

    def plan(self, dial, obs, state):
        after = jnp.where(obs.t % 3 == 1, base.DRAFT_AND_SCORE, base.DRAFT_AND_JUDGE)
        after = jnp.where(obs.first_entropy >= dial, base.LARGE, after)
        after = jnp.where(obs.last | (obs.uniform < 0.2), base.PEEK, after)
        first = jnp.where(obs.uniform > 0.8, base.DRAFT_AND_JUDGE, base.PEEK)
        return jnp.where(jnp.isnan(obs.first_entropy), first, after)

    def decide(self, dial, obs, state):
        judged = ~jnp.isnan(obs.draft_loglik)
        worse = (obs.draft_loglik < -dial - 1.3 - state["judged"] / 8) | (obs.draft_score < 0.3)
        action = jnp.where(worse, base.REGENERATE, base.ACCEPT)
        return action, {"judged": state["judged"] + judged}


POLICIES = (
    Never(), Always(), Threshold((0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)), Random((0.2, 0.5, 0.8)),
    Oracle(), Budget(), Mixed(), Redo(), Rsd((0.0, 0.5, 0.7)), Glimp((0.0, 1.95, 2.2, 2.5, 9.0)),
    LogLik((-9.0, -4.2, -3.75, -3.2, 0.0)), Curious(),
)  # fmt: skip
(
    NEVER, ALWAYS, THR, RANDOM, ORACLE, BUDGET, MIXED, REDO, RSD, GLIMP, LOGLIK, CURIOUS,
) = range(len(POLICIES))  # fmt: skip
CONTEXT, STEPS, STEP_TOKENS, PRM_EXTRA = 96, 8, 10, 40


def tiny_tokenizer():
    """A real fast tokenizer with one token for each entry of `VOCABULARY`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="a"))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )


@dataclasses.dataclass(frozen=True)
class Trio:
    """Configurations and parameters of small, large and PRM, and the tables of their vocabulary."""

    models: tuple[ModelConfig, ModelConfig, ModelConfig]
    params: tuple[Any, Any, Any]
    tables: TokenTables


@functools.cache
def tiny_trio() -> Trio:
    """One or two layers of width 32; vocabularies are padded, the large model's more, as in Qwen2.5."""
    vocab = len(VOCABULARY) + 5
    small = ModelConfig(vocab, 32, 1, 4, 2, 8, 48, tied=False)
    large = ModelConfig(vocab, 32, 2, 4, 4, 8, 48, tied=False)
    prm = ModelConfig(vocab, 32, 1, 4, 2, 8, 48, head="prm")
    params = (_writer(small, 0), padded(_writer(large, 1), 3), _judge(prm, 2))
    large = dataclasses.replace(large, vocab=vocab + 3)
    return Trio((small, large, prm), params, token_tables(tiny_tokenizer(), large.vocab))


def padded(params: dict, tokens: int) -> dict:
    """A language model with more tokens, which would be its favourites if they were not masked."""
    sizes = {"embed": [(0, tokens), (0, 0)], "lm_head": [(0, 0), (0, tokens)]}
    return params | {name: jnp.pad(params[name], pads, constant_values=9.0)
                     for name, pads in sizes.items() if name in params}  # fmt: skip


def _writer(config: ModelConfig, seed: int) -> dict:
    """A language model whose logits have mean `LEANINGS` and spread 1.2.

    A constant channel of the residual stream carries the means.
    """
    params = lively(config, seed, scale=0.3)
    params["embed"] = params["embed"].at[:, 0].set(2.0)
    for i in range(config.layers):
        layer = params[f"layer_{i}"]
        layer["wo"] = layer["wo"].at[..., 0].set(0.0)
        layer["w_down"] = layer["w_down"].at[..., 0].set(0.0)
    params["norm_out"] = params["norm_out"].at[0].set(1.0)
    # With the identity for a head, the logits are what the head sees.
    seen = _over_random_texts(config, params | {"lm_head": jnp.eye(config.width, config.vocab)})
    seen = seen[:, : config.width]
    lean = np.array([LEANINGS.get(token, 0.0) for token in VOCABULARY] + 5 * [0.0])
    head = np.array(params["lm_head"])
    head[1:] *= 1.2 / (seen[:, 1:] @ head[1:]).std(axis=0).mean()
    head[0] = (lean - (seen[:, 1:] @ head[1:]).mean(axis=0)) / seen[:, 0].mean()
    params["lm_head"] = jnp.asarray(head, jnp.float32)
    return params


def _judge(config: ModelConfig, seed: int) -> dict:
    """A process-reward model whose scores have mean logit 0 and spread 1.5."""
    params = lively(config, seed, scale=0.3)
    logits = _over_random_texts(config, params)[::5]
    gap = logits[:, 1] - logits[:, 0]
    params["score_w2"] = params["score_w2"] * (1.5 / gap.std())
    centre = (gap.mean() - (params["score_b2"][1] - params["score_b2"][0])) * 1.5 / gap.std()
    params["score_b2"] = jnp.asarray([centre, 0.0], jnp.float32)
    return params


def _over_random_texts(config: ModelConfig, params: dict) -> np.ndarray:
    """Logits [8 * 60, V] of eight texts with a separator at every fifth place."""
    texts = np.random.default_rng(0).integers(0, len(WORDS) + len(BREAKS), (8, 60), np.int32)
    texts[:, ::5] = VOCABULARY.index("<extra_0>")
    logits = [full_pass(params, text, np.arange(60), config=config) for text in texts]
    return np.concatenate(logits).astype(np.float64)


def tiny_engine(
    mesh=None, params=None, policies=POLICIES, store=None, tables=None, **sizes
) -> Engine:
    """A new engine; `sizes` are fields of `EngineConfig`."""
    trio = tiny_trio()
    defaults = dict(slots=8, rows=4, tail_rows=4, decode_chunk=4, extend_chunk=8)
    limits = dict(max_context=CONTEXT, max_steps=STEPS, max_step_tokens=STEP_TOKENS)
    config = EngineConfig(**(limits | defaults | sizes))
    return Engine(
        trio.models, params or trio.params, tables or trio.tables, policies, config, mesh=mesh,
        prm_extra=PRM_EXTRA, store=store,
    )  # fmt: skip


@functools.cache
def shared_engine() -> Engine:
    """The engine with the default sizes, compiled once a test session."""
    return tiny_engine()


@functools.cache
def tiny_reference() -> Reference:
    trio = tiny_trio()
    config = EngineConfig(max_context=CONTEXT, max_steps=STEPS, max_step_tokens=STEP_TOKENS)
    return Reference(
        trio.models, trio.params, trio.tables, POLICIES, config, prm_extra=PRM_EXTRA
    )


@functools.cache
def expected(request: Request) -> Solution:
    """What the reference makes of a request for one setting."""
    return tiny_reference().solve(request)


@functools.cache
def _problem(problem: int) -> dict[str, Any]:
    """Prompts of a problem. Every fourth prompt leaves little room.

    The reference solution is what the large model writes alone, the small one, or both in turns.
    """
    rng = np.random.default_rng(problem)
    sizes = rng.integers(2, 30) + 55 * (problem % 4 == 3), rng.integers(2, 40)
    prompts = [tuple(rng.integers(0, len(WORDS) + len(BREAKS), n).tolist()) for n in sizes]
    fields = dict(problem_id=f"p{problem}", prompt=prompts[0], prm_prompt=prompts[1])
    writer = (ALWAYS, NEVER, MIXED)[problem % 3]
    return fields | dict(
        reference=prompts[0] + tuple(text_of(expected(Request(seed=0, cells=(Cells(writer),), **fields))))
    )


def requests(
    problems: Iterable[int], which: Sequence[int] = range(len(POLICIES)), seed: int = 0,
    share: str = "all",
) -> list[Request]:
    """Requests of problems for policies.

    What may share a row: "all" policies and settings, the "settings" of each policy, or "nothing".
    """
    whole = [Cells(i, 0, len(POLICIES[i].settings)) for i in which]
    groups = {
        "all": [tuple(whole)],
        "settings": [(cells,) for cells in whole],
        "nothing": [(Cells(i, k, k + 1),) for i, _, n in whole for k in range(n)],
    }[share]
    return [Request(seed=seed, cells=g, **_problem(p)) for p in problems for g in groups]


def of(solutions: Iterable[Solution], policy: int) -> list[Solution]:
    """Those of a policy, for its cells only."""
    mine = ((s, tuple(c for c in s.cells if c.policy == policy)) for s in solutions)
    return [dataclasses.replace(s, cells=cells) for s, cells in mine if cells]


def by_setting(solutions: Iterable[Solution]) -> dict[Request, Solution]:
    """Each solution under the requests for its single settings; none may come twice."""
    found = {}
    for solution in solutions:
        for policy, lo, hi in solution.cells:
            for k in range(lo, hi):
                request = dataclasses.replace(solution.request, cells=(Cells(policy, k, k + 1),))
                assert request not in found, f"two solutions for {request}"
                found[request] = solution
    return found


def text_of(solution: Solution) -> list[int]:
    return [token for step in solution.steps for token in step.tokens]


def assert_same(got: dict[Request, Solution], want: dict[Request, Solution]) -> None:
    """The same solutions for the same requests, but for rare ones that part at a near tie."""
    assert got.keys() == want.keys()
    ties = sum(not _same(got[request], want[request], request) for request in want)
    assert ties <= len(want) // 50, f"{ties} near ties in {len(want)} solutions"


def assert_as_reference(got: dict[Request, Solution]) -> None:
    assert_same(got, {request: expected(request) for request in got})


def _same(got: Solution, want: Solution, request: Request) -> bool:
    """Whether two solutions are the same; False where they part at a near tie.

    Raises:
      AssertionError: they part anywhere else.
    """
    text = list(request.prompt)
    for i, (a, b) in enumerate(zip(got.steps, want.steps)):
        place = f"{request}\nstep {i}: {a}\ninstead of {b}"
        for writer in (R.SMALL, R.LARGE):
            x, y = _written(a, writer), _written(b, writer)
            if x is not None and y is not None and x != y:
                at = next((j for j, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
                gap = margin(tiny_reference(), [*text, *x[:at]], request, writer)
                assert gap < NEAR_TIE, f"{place}: token {at} won by {gap}"
                return False
        signals = [x for x in (b.draft_score, b.first_entropy, b.draft_loglik) if x is not None]
        if a.action != b.action and signals:
            ((policy, setting, _),) = request.cells
            dial = POLICIES[policy].settings[setting]
            assert min(abs(x - dial) for x in signals) < SCORE_TOLERANCE, place
            return False
        for field in dataclasses.fields(Step):
            x, y = getattr(a, field.name), getattr(b, field.name)
            near = isinstance(x, float) and isinstance(y, float) and abs(x - y) < SCORE_TOLERANCE
            assert x == y or near, f"{field.name} of {place}"
        text += a.tokens
    assert len(got.steps) == len(want.steps), f"{request}\n{got}\ninstead of {want}"
    assert got.finish == want.finish, f"{request}: {got.finish}, not {want.finish}"
    np.testing.assert_array_equal(got.ledger, want.ledger, err_msg=str(request))
    return True


def _written(step: Step, writer: int) -> tuple[int, ...] | None:
    """What `writer` wrote for a step, kept or not; None where it wrote nothing."""
    if step.writer == writer:
        return step.tokens
    return step.draft if writer == R.SMALL else None


def margin(reference: Reference, text: Sequence[int], request: Request, writer: int) -> float:
    """By how much the best perturbed logit behind `text` beats the second best."""
    sampling = reference.sampling
    logits = np.asarray(reference.logits(text, writer))[0]
    logits = np.where(reference.tables.allowed, logits, -np.inf)
    order = np.argsort(-logits, kind="stable")[: sampling.top_k or None]
    values = logits[order] / sampling.temperature
    chance = np.exp(values - values[0])
    chance /= chance.sum()
    order = order[np.cumsum(chance) - chance < sampling.top_p]
    key = fold(row_key(request.seed, request.problem_id), np.uint32(writer))
    key = fold(key, np.uint32(len(text)))
    noise = -np.log(-np.log(np.asarray(uniform(fold(key, jnp.asarray(order, jnp.uint32))))))
    best = np.sort(logits[order] / sampling.temperature + noise)[::-1]
    return float(best[0] - best[1]) if len(best) > 1 else float("inf")
