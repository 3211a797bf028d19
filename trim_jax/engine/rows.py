"""The state of the rows of a routed run: everything but the KV caches.

One row is one solution in the making. The same structure, `Rows`, is the item of the queue, the
state of a slot, and the record of a finished solution, so nothing is lost between them.

    tokens     | prompt | step 0 | step 1 | ... | step t-1 | draft of step t .. |  free  |
                                                 ^ n_tokens  ^ + draft_n
    prm_tokens | prompt | step 0 <extra_0> | ... | draft <extra_0> |  free
                                                                   ^ n_prm
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# Models, in the order of every axis of three.
SMALL, LARGE, PRM = range(3)
MODELS = ("small", "large", "prm")

# What the ledger counts, in the order of its last axis. Tokens, but for the calls: a call of a
# language model is one step written, a call of the PRM one draft scored.
KEPT, DISCARDED, PREFILLED, SCORED, CALLS = range(5)
LEDGER = ("kept", "discarded", "prefilled", "scored", "calls")

# Phases. The models work on DRAFTING, SCORING and WRITING rows; the others last within one tick,
# but for the halves of a row that parted: they plan or decide in the next.
(
    FREE,  # the slot is empty
    PLANNING,  # the policy is to plan the next step
    PEEKING,  # the small model draws the first token, and the policy is to plan again
    DRAFTING,  # the small model writes
    DRAFTED,  # the draft is complete
    SCORING,  # the PRM reads
    JUDGING,  # the large model reads the draft
    DECIDING,  # the policy is to decide on the draft
    PARTING_PLANS,  # some of its cells plan otherwise: two rows will plan again
    PARTING,  # some of its cells decide otherwise: two rows will decide again
    ACCEPTED,
    REJECTED,
    WRITING,  # the large model writes
    WRITTEN,  # its step is complete
    DONE,  # the solution is complete
) = range(15)

# Why a solution ended.
FINISHES = ("boxed", "eos", "steps", "context")
BOXED, EOS, STEPS, CONTEXT = range(4)


@flax.struct.dataclass
class Rows:
    """B rows, up to M steps each, S tokens of text, P tokens of PRM stream.

    Attributes:
      phase: int32 [B].
      item: int32 [B], the host's number of this (problem, seed, policy).
      cells: bool [B, C], the cells (a policy of the run and one of its settings) that this row
        stands for. leaving: bool [B, C], those of them that leave it at a fork.
      spilled: bool [B], a fork that found no free slot and goes back to the queue.
      key: uint32 [B, 2], random key data of (seed, problem).
      tokens: int32 [B, S]. n_tokens: int32 [B]. draft_n: int32 [B], tokens of the step in progress.
      step_state, boxed_state: int32 [B], automata over the step in progress.
      newlines: int32 [B], tokens at its end that are nothing but newlines.
      ended: bool [B], it stopped at end-of-sequence.
      decoded: int32 [B], tokens decoded for it, end-of-sequence included.
      plan: int32 [B], what the policy planned for it.
      prm_tokens: int32 [B, P]. n_prm: int32 [B]. prm_prompt: int32 [B], length of the prompt part.
      hits: int32 [B], separators within the first length[PRM] tokens of the PRM stream.
      length: int32 [B, 3], real slots of each model's cache.
      covered: int32 [B, 3], tokens already charged for (more than `length` only after a spill).
      t: int32 [B], accepted steps.
      step_end: int32 [B, M], end of each step in `tokens`.
      writer, action: int32 [B, M]. cost: int32 [B, M], tokens of the step without its delimiter.
      score, draft_score: float32 [B, M], PRM score of the accepted step and of the draft; NaN
        where there is none.
      first_entropy, draft_loglik: float32 [B, M or 0], see `Observation`; of each step, NaN where
        nobody peeked or judged. Without columns where no policy of the run does.
      first_token: int32 [B, M or 0], what a peek drew.
      stopped: bool [B, M, 2], whether what the small or the large model wrote for this step stopped
        at end-of-sequence.
      draft_cost: int32 [B, M], tokens of the discarded draft without its delimiter; -1: none.
      discarded: int32 [B, S], discarded drafts end to end; discarded_end: int32 [B, M].
      n_discarded: int32 [B].
      ledger: int32 [B, 3, 5], useful tokens by model and kind, charged as if alone.
      finish: int32 [B], index into FINISHES.
      reference: int32 [B, S or 0], tokens of prompt and reference solution, then -1; for oracles.
      states: one pytree per policy of the run.
    """

    phase: jax.Array
    item: jax.Array
    cells: jax.Array
    leaving: jax.Array
    spilled: jax.Array
    key: jax.Array
    tokens: jax.Array
    n_tokens: jax.Array
    draft_n: jax.Array
    step_state: jax.Array
    boxed_state: jax.Array
    newlines: jax.Array
    ended: jax.Array
    decoded: jax.Array
    plan: jax.Array
    prm_tokens: jax.Array
    n_prm: jax.Array
    prm_prompt: jax.Array
    hits: jax.Array
    length: jax.Array
    covered: jax.Array
    t: jax.Array
    step_end: jax.Array
    writer: jax.Array
    action: jax.Array
    cost: jax.Array
    score: jax.Array
    draft_score: jax.Array
    first_entropy: jax.Array
    draft_loglik: jax.Array
    first_token: jax.Array
    stopped: jax.Array
    draft_cost: jax.Array
    discarded: jax.Array
    discarded_end: jax.Array
    n_discarded: jax.Array
    ledger: jax.Array
    finish: jax.Array
    reference: jax.Array
    states: Any

    @property
    def n_text(self) -> jax.Array:
        """int32 [B], tokens of accepted text and of the step in progress."""
        return self.n_tokens + self.draft_n


def empty_rows(
    rows: int, cells: int, context: int, prm_context: int, steps: int, references: bool,
    states: Any, peeks: bool = False, judges: bool = False,
) -> Rows:  # fmt: skip
    """`rows` free rows, as NumPy arrays; `states` is the policies' state for that many rows."""
    ints = lambda *shape: np.zeros([rows, *shape], np.int32)  # noqa: E731
    flags = lambda: np.zeros([rows], bool)  # noqa: E731
    unknown = lambda n: np.full([rows, n], np.nan, np.float32)  # noqa: E731
    return Rows(
        phase=ints(), item=ints(), cells=np.zeros([rows, cells], bool),
        leaving=np.zeros([rows, cells], bool), spilled=flags(),
        key=np.zeros([rows, 2], np.uint32), tokens=ints(context),
        n_tokens=ints(), draft_n=ints(), step_state=ints(), boxed_state=ints(), newlines=ints(),
        ended=flags(), decoded=ints(), plan=ints(), prm_tokens=ints(prm_context),
        n_prm=ints(), prm_prompt=ints(), hits=ints(), length=ints(3), covered=ints(3), t=ints(),
        step_end=ints(steps), writer=ints(steps), action=ints(steps), cost=ints(steps),
        score=unknown(steps), draft_score=unknown(steps),
        first_entropy=unknown(steps if peeks else 0), draft_loglik=unknown(steps if judges else 0),
        first_token=ints(steps if peeks else 0), stopped=np.zeros([rows, steps, 2], bool),
        draft_cost=np.full([rows, steps], -1, np.int32), discarded=ints(context),
        discarded_end=ints(steps), n_discarded=ints(), ledger=ints(3, len(LEDGER)),
        finish=ints(), reference=ints(context if references else 0),
        states=jax.tree.map(np.asarray, states),
    )  # fmt: skip


def where(mask: jax.Array, new: Any, old: Any) -> Any:
    """Row-wise choice between two pytrees of arrays with the leading axis of `mask` [B]."""
    pick = lambda a, b: jnp.where(mask.reshape(-1, *[1] * (b.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(pick, new, old)
