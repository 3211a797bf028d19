"""Complete solutions as training data, and how to play them in an environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.policies import base
from trim_jax.policies.features import Features
from trim_jax.xla import loop_options


class Environment(NamedTuple):
    """The stepwise process of the method (section 1), as three pure functions of its parameters.

    Attributes:
      process: parameters, a pytree; the first argument of the three functions.
      reset: (process, key, rows) -> state of that many new problems.
      observe: (process, state) -> `base.Observation`, with a draft for every row.
      step: (process, state, action int32 [rows]) -> (state, result); `result` has strong_tokens
        (int32 [rows], what the large model wrote), reward (float32 [rows], 1 where the solution
        ends now and is right) and done (bool [rows]). Rows that were done before are ignored.
    """

    process: Any
    reset: Callable[[Any, jax.Array, int], Any]
    observe: Callable[[Any, Any], base.Observation]
    step: Callable[[Any, Any, jax.Array], tuple[Any, Any]]
    max_steps: int


@flax.struct.dataclass
class Episodes:
    """N complete solutions of at most M steps; steps after the end have `mask` False.

    Attributes:
      worth: float32 [N], the price each was played at, in tokens per right answer.
      draft_score, draft_tokens: float32, int32 [N, M], of the draft that was decided on.
      min_score, prod_score: float32 [N, M], of the steps before.
      score, tokens: float32, int32 [N, M], of the step that stood in the end; the last step's score
        is never used. Scores are [N, 0] where the environment keeps no history: TRIM-Seq needs it.
      action: int32 [N, M], ACCEPT or REGENERATE.
      strong_tokens: int32 [N, M], written by the large model.
      reward: float32 [N, M], 1 at the last step of a right solution.
      mask: bool [N, M].
      uniform: float32 [N], `Observation.uniform` of the first step: tells where TRIM-Q explored.
    """

    worth: jax.Array
    draft_score: jax.Array
    draft_tokens: jax.Array
    min_score: jax.Array
    prod_score: jax.Array
    score: jax.Array
    tokens: jax.Array
    action: jax.Array
    strong_tokens: jax.Array
    reward: jax.Array
    mask: jax.Array
    uniform: jax.Array

    def features(self, features: Features) -> jax.Array:
        """float32 [..., N, M, F]: what the policy saw at each step."""
        return features.vector(
            jnp.arange(self.mask.shape[-1]), self.draft_tokens, self.draft_score, self.min_score,
            self.prod_score, self.worth[..., None],
        )  # fmt: skip

    def rewards(self) -> jax.Array:
        """float32 [..., N, M]: right answer minus the price of the step's tokens."""
        return jnp.where(self.mask, self.reward - self.strong_tokens / self.worth[..., None], 0.0)

    def outcome(self) -> tuple[jax.Array, jax.Array]:
        """For each step [..., N, M]: 1 if the answer was right in the end, tokens from here on."""
        right = jnp.where(self.mask, self.reward, 0.0).sum(axis=-1, keepdims=True)
        tokens = jnp.where(self.mask, self.strong_tokens, 0).astype(jnp.float32)
        to_come = jnp.cumsum(tokens[..., ::-1], axis=-1)[..., ::-1]
        return jnp.broadcast_to(right, self.mask.shape), to_come


def jit(function: Callable) -> Callable:
    """`jax.jit` for a whole training."""
    return jax.jit(function, compiler_options=loop_options())


class Summary(NamedTuple):
    """Means over episodes: accuracy, large-model tokens, right minus tokens / worth; and steps."""

    accuracy: jax.Array
    strong_tokens: jax.Array
    objective: jax.Array
    steps: jax.Array


def summarize(episodes: Episodes) -> Summary:
    """Means over N of episodes [..., N, M]; `steps` is the sum of steps taken."""
    right, tokens = (x[..., 0] for x in episodes.outcome())
    return Summary(
        right.mean(axis=-1),
        tokens.mean(axis=-1),
        (right - tokens / episodes.worth).mean(axis=-1),
        episodes.mask.sum(axis=(-2, -1)),
    )


def play(env: Environment, policy: base.Policy, key: jax.Array, worth: jax.Array) -> Episodes:
    """One solution for each price in `worth` [N], by `policy`, until all are done.

    The policy scores every draft: its `plan` is not asked.
    """
    rows = len(worth)
    state = env.reset(env.process, key, rows)
    first = env.observe(env.process, state)
    empty = lambda kind: jnp.zeros([rows, env.max_steps], kind)  # noqa: E731
    record = {
        "draft_score": empty(jnp.float32), "draft_tokens": empty(jnp.int32),
        "min_score": empty(jnp.float32), "prod_score": empty(jnp.float32),
        "action": empty(jnp.int32), "strong_tokens": empty(jnp.int32),
        "reward": empty(jnp.float32), "mask": empty(bool),
    }  # fmt: skip

    def one_step(carry):
        t, state, policy_state, alive, record = carry
        obs = env.observe(env.process, state)
        action, policy_state = policy.decide(worth, obs, policy_state)
        state, result = env.step(env.process, state, action)
        now = {
            "draft_score": obs.draft_score, "draft_tokens": obs.draft_tokens,
            "min_score": obs.min_score, "prod_score": obs.prod_score, "action": action,
            "strong_tokens": result.strong_tokens, "reward": result.reward, "mask": alive,
        }  # fmt: skip
        record = {k: x.at[:, t].set(now[k].astype(x.dtype)) for k, x in record.items()}
        return t + 1, state, policy_state, alive & ~result.done, record

    carry = (jnp.int32(0), state, policy.init(rows), jnp.ones([rows], bool), record)
    going_on = lambda carry: carry[3].any() & (carry[0] < env.max_steps)  # noqa: E731
    _, state, _, _, record = jax.lax.while_loop(going_on, one_step, carry)
    accepted = record["action"] == base.ACCEPT
    kept = jnp.where(accepted, record["draft_tokens"], record["strong_tokens"])
    return Episodes(
        worth=worth,
        score=env.observe(env.process, state).scores,
        tokens=kept,
        uniform=first.uniform,
        **record,
    )


def from_traces(
    traces: Sequence[Any], worth: Sequence[float], uniform: Sequence[float], steps: int
) -> Episodes:
    """Episodes of solutions that the routed engine wrote.

    Args:
      traces: objects with the attributes of `trim_jax.eval.traces.Trace`, of policies that score
        every draft and never write without one.
      worth, uniform: of each, see `Episodes`.
      steps: M, at least the longest solution.
    """
    shape = (len(traces), steps)
    kinds = dict(draft_score=float, draft_tokens=int, score=float, tokens=int, action=int,
                 strong_tokens=int, reward=float, mask=bool)  # fmt: skip
    out = {k: np.zeros(shape, np.dtype({float: "f4", int: "i4"}.get(kind, kind)))
           for k, kind in kinds.items()}  # fmt: skip
    for i, trace in enumerate(traces):
        for t, step in enumerate(trace.steps):
            rewritten = step.action == "regenerate"
            out["draft_score"][i, t] = step.score_draft
            out["score"][i, t] = np.nan if step.score is None else step.score
            out["draft_tokens"][i, t] = step.draft_tokens if rewritten else step.n_tokens
            out["tokens"][i, t] = step.n_tokens
            out["action"][i, t] = base.REGENERATE if rewritten else base.ACCEPT
            out["strong_tokens"][i, t] = step.n_tokens if rewritten else 0
        out["reward"][i, len(trace.steps) - 1] = trace.correct
        out["mask"][i, : len(trace.steps)] = True
    first = np.ones_like(out["score"][:, :1])
    known = np.nan_to_num(np.hstack([first, out["score"][:, :-1]]), nan=1)
    return Episodes(
        worth=jnp.asarray(worth, jnp.float32), uniform=jnp.asarray(uniform, jnp.float32),
        min_score=jnp.asarray(np.minimum.accumulate(known, axis=1)),
        prod_score=jnp.asarray(np.multiply.accumulate(known, axis=1)),
        **{k: jnp.asarray(x) for k, x in out.items()},
    )  # fmt: skip
