"""The step process without language models: its parameters, and what they mean.

**Latent state** (method, section 2) of the text with the draft of step t:

    S0  every step so far is right, the draft included
    S1  a step before this one is wrong, nothing can mend it
    S2  only the draft is wrong

**A problem** is a plan, drawn from a table of plans, and two effects. The plan is the number of
steps N and the kind of each: FIRST, LAST, or one of the kinds between (groups of steps of similar
length); both models follow it. The effects, one for each model, come from a bivariate normal on the
logit scale: what is hard for the small model is hard for the large one. Without them a rejected
step would get a fresh chance at every attempt, and the accuracy of careful thresholds would
come out far too high (method, section 5).

**A step**, given a right prefix, is right with probability

    sigmoid(logit[m, kind, t] + by_length[m, N] + effect[m]
            - [m is large and the draft is wrong] (draft_wrong[0] + draft_wrong[1] * draft score)
            - [m is large and the draft is right] draft_doubted * (1 - draft score))

for model m. The last terms say that a step the small model fails at is harder for the large one
too, most of all where its error deceives the PRM, and that so is a step which the PRM doubts
without reason.

**The PRM** scores a step by its state, kind, writer, the number of steps, and the least score
accepted before it: the score is read from the quantile function of that cell. (How well an error
shows depends on the number of steps: on `arith`, of the first errors in solutions of 4 steps 18 %
have a score below 0.05, in those of 12 it is 72 %.) A rewrite may repeat the draft word for word
(`same`), and then has its score.

**The reward** is 1 if every accepted step is right; a wrong solution still ends on the right answer
with probability `lucky`.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

S0, S1, S2 = range(3)
SMALL, LARGE = range(2)
FIRST, LAST = range(2)  # the other kinds of steps are 2, 3, ...
MAX_PLANS = 32768

ENTRIES = 256  # equally likely entries of the tables that are drawn from with eight random bits


@flax.struct.dataclass
class Process:
    """Parameters of the process. Z kinds of steps, M steps at most, C cells of scores.

    Attributes:
      n_steps: int32 [P], number of steps of each plan, in 1..M; at most MAX_PLANS plans, all
        equally likely.
      kinds: int32 [P, M], kind of each of its steps; what follows the last is not read.
      effect_sd: float32 [2], standard deviation of the problem effect on each model's logit.
      effect_correlation: float32 [], of the two effects.
      by_length: float32 [2, M + 1], effect of the number of steps on each model's logit.
      logit: float32 [2, Z, M], of a right step given a right prefix, for an average problem.
      draft_wrong: float32 [2], taken off the large model's logit where the draft is wrong: a
        constant, and a multiple of the draft's score.
      draft_doubted: float32 [], likewise where the draft is right, for each unit that its score
        lacks to 1.
      draft_tokens: float32 [Z, ENTRIES], length of the draft, whole numbers.
      strong_slope: float32 [], tokens of the large model's step for each token of the draft.
      strong_rest: float32 [Z, ENTRIES], what is added to that, then rounded and kept at 1 or more.
      step_edges: int32 [L - 1], ascending; the number of steps is in bin (n >= edges).sum().
      min_edges: float32 [B - 1], ascending; the least score is in bin (min >= edges).sum().
      scores: float32 [2, 3, Z, C, Q + 1], by writer, state, kind and cell, which is B times the bin
        of the number of steps plus that of the least score: quantiles 0, 1/Q, ..., 1 of the PRM
        score, joined by straight lines.
      same: float32 [3], by state: the rewrite has the draft's score, where both are right or
        neither is.
      lucky: float32 [], probability that a wrong solution has the right answer.
      history: static; observations carry all scores and writers, which costs speed.
    """

    n_steps: jax.Array
    kinds: jax.Array
    effect_sd: jax.Array
    effect_correlation: jax.Array
    by_length: jax.Array
    logit: jax.Array
    draft_wrong: jax.Array
    draft_doubted: jax.Array
    draft_tokens: jax.Array
    strong_slope: jax.Array
    strong_rest: jax.Array
    step_edges: jax.Array
    min_edges: jax.Array
    scores: jax.Array
    same: jax.Array
    lucky: jax.Array
    history: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def max_steps(self) -> int:
        return self.logit.shape[2]

    def trimmed(self, longest: int | None = None) -> Process:
        """The same process with a step limit of `longest`, by default that of its longest plan; the
        work of a simulation grows with it. Not under jit."""
        longest = longest or int(np.max(self.n_steps))
        return self.replace(kinds=self.kinds[:, :longest], logit=self.logit[:, :, :longest])


def plans(n_steps: jax.Array, max_steps: int) -> jax.Array:
    """Kinds int32 [P, M] of plans with one kind between the first step and the last."""
    t = jnp.arange(max_steps)
    return jnp.where(t == n_steps[:, None] - 1, LAST, jnp.where(t == 0, FIRST, 2))


def simple_process(
    p_small: float = 0.8, p_large: float = 0.95, steps: int = 4, right_score: float = 0.9,
    wrong_score: float = 0.1, tokens: int = 10, max_steps: int = 30,
) -> Process:
    """Independent steps of one kind and two scores: the plain process, worked out by hand in tests.

    Scores are uniform within 0.05 of `right_score` (S0) and `wrong_score` (S1, S2).
    """  # fmt: skip
    logit = jnp.log(jnp.array([p_small, p_large]) / (1 - jnp.array([p_small, p_large])))
    kinds, quantiles = 3, jnp.linspace(-0.05, 0.05, 5)
    means = jnp.array([right_score, wrong_score, wrong_score])
    scores = (means[:, None] + quantiles)[None, :, None, None]
    return Process(
        n_steps=jnp.array([steps]),
        kinds=plans(jnp.array([steps]), max_steps),
        effect_sd=jnp.zeros(2),
        effect_correlation=jnp.zeros(()),
        by_length=jnp.zeros([2, max_steps + 1]),
        logit=jnp.broadcast_to(logit[:, None, None], (2, kinds, max_steps)).astype(jnp.float32),
        draft_wrong=jnp.zeros(2),
        draft_doubted=jnp.zeros(()),
        draft_tokens=jnp.full([kinds, ENTRIES], float(tokens)),
        strong_slope=jnp.ones(()),
        strong_rest=jnp.zeros([kinds, ENTRIES]),
        step_edges=jnp.zeros([0], jnp.int32),
        min_edges=jnp.zeros([0]),
        scores=jnp.broadcast_to(scores, (2, 3, kinds, 1, 5)).astype(jnp.float32),
        same=jnp.zeros(3),
        lucky=jnp.zeros(()),
    )
