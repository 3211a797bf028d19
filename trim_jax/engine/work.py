"""The kinds of model work on rows: catch up, score, judge, decode (a peek is one token of it).

Each takes the batch of rows that it works on, and how to call its model: in the compiled size, or
`Tile`, that fits. It returns the rows and caches with the work done, and [slots executed, slots
used]. What it reads of the rows and writes to them is compiled once, the model once a tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.engine import rows as R
from trim_jax.engine.cache import append, commit, extend, view
from trim_jax.engine.rows import Rows
from trim_jax.engine.sampling import Sampling, fold, sample
from trim_jax.engine.tokens import BOXED, OVER, TokenTables
from trim_jax.models.qwen2 import KV, Qwen2, empty_kv, untied


FAR = np.iinfo(np.int32).max
PEEK_WIDTH = 20  # tokens that the entropy of a peek looks at


class Tile(NamedTuple):
    """Static size of one call: rows, cache slots that a decode reads, tokens of a row."""

    rows: int
    past: int
    chunk: int


class Batch(NamedTuple):
    """The up to R rows that work is done on, in the order in which a smaller tile takes them.

    Attributes:
      row: int32 [R], their place among the rows, and that of their cache; one outside where there
        are fewer than R, so that what is written there is dropped.
      valid: bool [R], whether there is a row. slots: B.
    """

    row: jax.Array
    valid: jax.Array
    slots: int

    def get(self, x: jax.Array) -> jax.Array:
        """[B, ...] to [R, ...]; anything where there is no row."""
        return x.at[self.row].get(mode="clip")

    def index(self, tile: Tile) -> jax.Array | None:
        """The caches of a tile; None where it takes all of them where they stand."""
        return None if tile.rows == self.slots else self.row[: tile.rows]


def first(mask: jax.Array, order: jax.Array, count: int, smaller: int) -> Batch:
    """The up to `count` rows of `mask` [B] that come first in `order` [B].

    Callers put the shortest first, since a call costs what its longest row does. Where `count` is
    the whole batch, and more wait than the next `smaller` tile holds, every row stays where it
    stands (masking) instead of being gathered (compaction).
    """
    B = mask.shape[0]
    row = jnp.argsort(jnp.where(mask, order, FAR))[:count].astype(jnp.int32)
    if count == B:
        row = jnp.where(mask.sum() > smaller, jnp.arange(B, dtype=jnp.int32), row)
    valid = mask[row]
    return Batch(jnp.where(valid, row, B), valid, B)


# Takes `call(tile, state)`, which returns the state after a call of the model, and the state before
# it, and calls it once, with the tile that holds the batch. A state is the caches, and what a call
# finds out, for all R rows.
Run = Callable[[Callable[[Tile, Any], Any], Any], Any]


def unscored(rows: Rows) -> jax.Array:
    """int32 [B], tokens of its stream that the PRM has not read."""
    return rows.n_prm - rows.length[:, R.PRM]


def read_before(rows: Rows) -> jax.Array:
    """int32 [B], tokens a language model must have read before it writes, or judges a draft."""
    return jnp.where(rows.phase == R.JUDGING, rows.n_tokens, rows.n_text) - 1


def _charge(rows: Rows, index, model: int, begin, end, prefix) -> Rows:
    """Charge tokens begin..end-1 of a stream that was read, but for those already `covered`.

    Those before `prefix` are prefilled, the others scored.
    """
    begin = jnp.maximum(begin, rows.covered.at[index, model].get(mode="clip"))
    prefilled = jnp.maximum(jnp.minimum(end, prefix) - begin, 0)
    scored = jnp.maximum(end - jnp.maximum(begin, prefix), 0)
    ledger = rows.ledger.at[index, model, R.PREFILLED].add(prefilled, mode="drop")
    ledger = ledger.at[index, model, R.SCORED].add(scored, mode="drop")
    return rows.replace(ledger=ledger)


def _set_length(rows: Rows, index, model: int, length) -> Rows:
    return rows.replace(
        length=rows.length.at[index, model].set(length, mode="drop"),
        covered=rows.covered.at[index, model].max(length, mode="drop"),
    )


def catch_up(
    model: Qwen2, params: Any, kv: KV, rows: Rows, batch: Batch, run: Run, which: int, chunk: int
) -> tuple[Rows, KV, jax.Array]:
    """A language model reads up to `chunk` tokens that it has not seen, all but the last one."""
    length = batch.get(rows.length[:, which]) * batch.valid
    n_new = jnp.clip((batch.get(read_before(rows)) - length) * batch.valid, 0, chunk)
    text, at = batch.get(rows.tokens), length[:, None] + jnp.arange(chunk)
    tokens = jnp.take_along_axis(text, at, axis=1, mode="clip")

    def call(tile, state):
        n = tile.rows
        nothing = jnp.zeros([n, 0], jnp.int32)
        _, kv = extend(
            model, params, state[0], batch.index(tile), length[:n], tokens[:n], n_new[:n], nothing
        )
        return kv, jnp.int32(n * chunk)

    kv, slots = run(call, (kv, jnp.int32(0)))
    rows = _charge(rows, batch.row, which, length, length + n_new, jnp.int32(FAR))
    rows = _set_length(rows, batch.row, which, length + n_new)
    return rows, kv, jnp.stack([slots, n_new.sum()])


def score(
    model: Qwen2, params: Any, kv: KV, rows: Rows, batch: Batch, run: Run, separator: int, chunk: int
) -> tuple[Rows, KV, jax.Array]:
    """The PRM reads up to `chunk` new tokens of its stream and scores the steps that end there.

    The n-th separator of the stream ends step n; the score of the last step is the draft's, and it
    sends the row to its decision. A tile may have a shorter chunk, for rows that do not fill it.
    """
    B, M = rows.score.shape
    get, row, valid = batch.get, batch.row, batch.valid
    length = get(rows.length[:, R.PRM]) * valid
    n_new = jnp.clip((get(rows.n_prm) - length) * valid, 0, chunk)
    at = length[:, None] + jnp.arange(chunk)
    tokens = jnp.take_along_axis(get(rows.prm_tokens), at, axis=1, mode="clip")

    def call(tile, state):
        kv, right, _ = state
        n, T = tile.rows, tile.chunk
        logits, kv = extend(
            model, params, kv, batch.index(tile), length[:n], tokens[:n, :T], n_new[:n]
        )
        right = right.at[:n, :T].set(jax.nn.softmax(logits, axis=-1)[..., 1])
        return kv, right, jnp.int32(n * T)

    unread = jnp.zeros(tokens.shape, jnp.float32)
    kv, right, slots = run(call, (kv, unread, jnp.int32(0)))

    real = jnp.arange(chunk) < n_new[:, None]
    hit = (tokens == separator) & real & (at >= get(rows.prm_prompt)[:, None])
    step = get(rows.hits)[:, None] + jnp.cumsum(hit, axis=1) - 1
    accepted = jnp.where(hit & (step < get(rows.t)[:, None]), step, M)
    draft = jnp.where(hit & (step == get(rows.t)[:, None]), step, M)
    row_2d = jnp.broadcast_to(row[:, None], step.shape)
    complete = valid & (draft < M).any(axis=1)
    rows = _charge(rows, row, R.PRM, length, length + n_new, get(rows.prm_prompt))
    rows = rows.replace(
        score=rows.score.at[row_2d, accepted].set(right, mode="drop"),
        draft_score=rows.draft_score.at[row_2d, draft].set(right, mode="drop"),
        hits=rows.hits.at[row].add(hit.sum(axis=1), mode="drop"),
        phase=rows.phase.at[jnp.where(complete, row, B)].set(R.DECIDING, mode="drop"),
        ledger=rows.ledger.at[row, R.PRM, R.CALLS].add(complete, mode="drop"),
    )
    rows = _set_length(rows, row, R.PRM, length + n_new)
    return rows, kv, jnp.stack([slots, n_new.sum()])


def judge(
    model: Qwen2, params: Any, kv: KV, rows: Rows, batch: Batch, run: Run, tables: TokenTables,
    chunk: int,
) -> tuple[Rows, KV, jax.Array]:  # fmt: skip
    """The large model reads up to `chunk` tokens of drafts and adds up how likely it finds them.

    It begins at the last accepted token, as if to write, and reads all but the last token that the
    small model drew. If the draft is accepted it so stands where it would after a catch-up;
    `steps.reject` takes it back.
    """
    get, row, valid = batch.get, batch.row, batch.valid
    length, drawn, text = get(rows.length[:, R.LARGE]) * valid, get(rows.decoded), get(rows.tokens)
    end, n_text = get(rows.n_tokens) - 1 + drawn, get(rows.n_text)
    n_new = jnp.clip((end - length) * valid, 0, chunk)
    at = length[:, None] + jnp.arange(chunk)
    tokens = jnp.take_along_axis(text, at, axis=1, mode="clip")
    following = jnp.take_along_axis(text, at + 1, axis=1, mode="clip")

    def call(tile, state):
        kv, loglik, _ = state
        n = tile.rows
        logits, kv = extend(
            model, params, kv, batch.index(tile), length[:n], tokens[:n], n_new[:n]
        )
        allowed, is_eos = map(jnp.asarray, tables.of_model(logits.shape[-1]))
        chance = jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf))
        goes_on = jnp.take_along_axis(chance, following[:n, :, None], axis=2, mode="clip")[..., 0]
        stops = jax.nn.logsumexp(jnp.where(is_eos, chance, -jnp.inf), axis=-1)
        # Only a draft that drew end-of-sequence reads as far as this.
        each = jnp.where(at[:n] + 1 == n_text[:n, None], stops, goes_on)
        read = jnp.arange(chunk) < n_new[:n, None]
        return kv, loglik.at[:n].set(jnp.where(read, each, 0).sum(axis=1)), jnp.int32(n * chunk)

    kv, loglik, slots = run(call, (kv, jnp.zeros(length.shape, jnp.float32), jnp.int32(0)))

    t = get(rows.t)
    before = jnp.nan_to_num(rows.draft_loglik.at[row, t].get(mode="clip"))
    complete = jnp.where(valid & (length + n_new == end), row, batch.slots)
    rows = _charge(rows, row, R.LARGE, length, length + n_new, jnp.int32(0))
    rows = rows.replace(
        draft_loglik=rows.draft_loglik.at[row, t].set(before + loglik / drawn, mode="drop"),
        phase=rows.phase.at[complete].set(R.DECIDING, mode="drop"),
    )
    rows = _set_length(rows, row, R.LARGE, length + n_new)
    return rows, kv, jnp.stack([slots, n_new.sum()])


def _entropy(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """Entropy in nats of the likeliest tokens, renormalised: [R, V] to float32 [R]."""
    logits = jnp.where(allowed, logits, -jnp.inf)
    best, _ = jax.lax.top_k(logits, min(PEEK_WIDTH, logits.shape[-1]))
    chance = jax.nn.softmax(best, axis=-1)
    return -jnp.where(chance > 0, chance * jnp.log(chance), 0).sum(axis=-1)


def decode(
    model: Qwen2,
    params: Any,
    kv: KV,
    rows: Rows,
    batch: Batch,
    run: Run,
    which: int,
    chunk: int,
    tables: TokenTables,
    sampling: Sampling,
    max_step_tokens: int,
    peek: bool = False,
) -> tuple[Rows, KV, jax.Array]:
    """A language model writes up to `chunk` tokens of the step in progress of each row.

    New keys and values wait in a side buffer, the cache is read-only meanwhile. The loop ends early
    once most of the rows it began with have come to the end of their step; the rest go on at a
    later call, beside other rows. A `peek` (with a chunk of 1) sends its rows back to the policy
    with the entropy of the token that it drew.
    """
    step_next, boxed_next = jnp.asarray(tables.step_next), jnp.asarray(tables.boxed_next)
    stripped = jnp.asarray(tables.stripped)
    allowed, is_eos = map(jnp.asarray, tables.of_model(model.config.vocab))
    model, params = untied(model, params)

    B, S = rows.tokens.shape
    get, row, valid = batch.get, batch.row, batch.valid
    length, n_text = get(rows.length[:, which]), get(rows.n_text)
    keys = fold(get(rows.key), jnp.uint32(which))
    last = jnp.take_along_axis(get(rows.tokens), n_text[:, None] - 1, axis=1, mode="clip")[:, 0]
    count = len(row)
    begin = dict(
        active=valid,
        token=last,
        n=jnp.zeros([count], jnp.int32),  # tokens decoded in this call
        draft_n=get(rows.draft_n),
        step_state=get(rows.step_state),
        boxed_state=get(rows.boxed_state),
        newlines=get(rows.newlines),
        ended=jnp.zeros([count], bool),
        written=jnp.zeros([count, chunk], jnp.int32),
    )
    if peek:
        begin["entropy"] = jnp.zeros([count], jnp.float32)
    begun = valid.sum()

    def write_token(tile, past, s):
        i, active, n_before = s["i"], s["active"], n_text[: tile.rows]
        logits, new = model.apply(
            {"params": params}, s["token"][:, None], past, length[: tile.rows], s["side"], i
        )
        token = sample(logits[:, 0], fold(keys[: tile.rows], n_before + i), allowed, sampling)
        # What is written depends on all that was read. Without this the compiler is free to write a
        # layer's new keys before it reads the older ones, and copies the side buffer to be safe.
        here = jnp.where(token.min() < 0, 0, i)
        full = s["draft_n"] + 1 >= max_step_tokens
        token = jnp.where(full, tables.delimiter, token)
        ended = active & is_eos[token]
        text = active & ~ended
        step_state = step_next[token, s["step_state"]].astype(jnp.int32)
        blank = jnp.where(stripped[token] < 0, s["newlines"] + 1, 0)
        over = ended | (step_state == OVER) | full | (n_before + i + 1 >= S)
        keep = lambda new, old: jnp.where(text, new, old)  # noqa: E731
        seen = {"entropy": _entropy(logits[:, 0], allowed)} if peek else {}
        return seen | dict(
            i=i + 1,
            active=active & ~over,
            token=token,
            n=s["n"] + active,
            draft_n=s["draft_n"] + text,
            step_state=keep(step_state, s["step_state"]),
            boxed_state=keep(boxed_next[token, s["boxed_state"]].astype(jnp.int32), s["boxed_state"]),
            newlines=keep(blank, s["newlines"]),
            ended=s["ended"] | ended,
            written=s["written"].at[:, i].set(token),
            side=append(s["side"], new, here),
        )

    def call(tile, state):
        kv, done, _ = state
        index = batch.index(tile)
        go_on = lambda s: (s["i"] < chunk) & (4 * s["active"].sum() > begun)  # noqa: E731
        s = {name: x[: tile.rows] for name, x in begin.items()}
        s |= dict(i=jnp.int32(0), side=empty_kv(model.config, tile.rows, chunk))
        write = functools.partial(write_token, tile, view(kv, index, tile.past))
        s = jax.lax.while_loop(go_on, write, s)
        kv = commit(kv, index, length[: tile.rows], s["side"], s["n"])
        done = {name: x.at[: tile.rows].set(s[name]) for name, x in done.items()}
        return kv, done, tile.rows * s["i"]

    kv, s, slots = run(call, (kv, begin, jnp.int32(0)))

    at = jnp.arange(chunk)
    row_2d = jnp.broadcast_to(row[:, None], s["written"].shape)
    text_at = jnp.where(at < (s["n"] - s["ended"])[:, None], n_text[:, None] + at, S)
    put = lambda x, value: x.at[row].set(value, mode="drop")  # noqa: E731
    complete = jnp.where(valid & ~s["active"], row, B)
    rows = rows.replace(
        tokens=rows.tokens.at[row_2d, text_at].set(s["written"], mode="drop"),
        draft_n=put(rows.draft_n, s["draft_n"]),
        step_state=put(rows.step_state, s["step_state"]),
        boxed_state=put(rows.boxed_state, s["boxed_state"]),
        newlines=put(rows.newlines, s["newlines"]),
        ended=put(rows.ended, s["ended"]),
        decoded=rows.decoded.at[row].add(s["n"], mode="drop"),
        phase=rows.phase.at[complete].set(
            R.DRAFTED if which == R.SMALL else R.WRITTEN, mode="drop"
        ),
    )
    if peek:
        first_entropy = rows.first_entropy.at[row, get(rows.t)].set(s["entropy"], mode="drop")
        token = rows.first_token.at[row, get(rows.t)].set(s["written"][:, 0], mode="drop")
        again = rows.phase.at[row].set(R.PLANNING, mode="drop")
        rows = rows.replace(first_entropy=first_entropy, first_token=token, phase=again)
    rows = _set_length(rows, row, which, length + s["n"])
    return rows, kv, jnp.stack([slots, s["n"].sum()])
