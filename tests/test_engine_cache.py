"""The cache contract: any sequence of extends, commits and rollbacks is one full forward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import lively

from trim_jax.engine.cache import append, commit, extend, view
from trim_jax.engine.reference import full_pass
from trim_jax.models.qwen2 import KV, ModelConfig, Qwen2, empty_kv

LM = ModelConfig(29, 32, 2, 4, 2, 8, 40)
PRM = ModelConfig(29, 32, 2, 4, 4, 8, 40, head="prm")
SINGLE = ModelConfig(29, 32, 2, 4, 1, 8, 40)  # one key-value head: gathered in another way
ROWS, SIZE, SMALLER, CHUNK = 5, 24, 16, 4
SIDE = 3  # tokens of a decoding chain


@functools.cache
def params_of(config):
    return lively(config, scale=0.3)


@functools.partial(jax.jit, static_argnames=("config", "past_length"))
def extend_rows(config, params, kv, index, length, tokens, n_new, past_length):
    return extend(Qwen2(config), params, kv, index, length, tokens, n_new)


@functools.partial(jax.jit, static_argnames=("config", "past_length"))
def decode_rows(config, params, kv, index, length, tokens, n_kept, past_length):
    """A chain of one-token calls behind a read-only past; the first `n_kept` tokens are kept."""
    past = view(kv, index, past_length)
    side, logits = empty_kv(config, len(tokens), SIDE), []
    for i in range(SIDE):
        out, new = Qwen2(config).apply(
            {"params": params}, tokens[:, i : i + 1], past, length, side, i
        )
        side = append(side, new, i)
        logits.append(out)
    return jnp.concatenate(logits, axis=1), commit(kv, index, length, side, n_kept)


class Texts:
    """Rows of text beside their caches; what was never written is poison, to be seen if read."""

    def __init__(self, config, seed):
        self.config, self.params = config, params_of(config)
        self.rng = np.random.default_rng(seed)
        self.rows = [[] for _ in range(ROWS)]
        self.kv = jax.tree.map(lambda x: x + 1e3, empty_kv(config, ROWS, SIZE))

    def lengths(self, rows):
        return np.array([len(self.rows[r]) if r < ROWS else 0 for r in rows], np.int32)

    def choose(self, masked):
        """Rows of the next call: all of them, or some in any order with strays outside."""
        if masked:
            return None, np.arange(ROWS)
        rows = self.rng.permutation([*range(ROWS), ROWS, ROWS + 2])[:4].astype(np.int32)
        return rows, rows

    def call(self, function, width, masked, past_length):
        """Appends up to `width` tokens to rows; checks the logits of all that is then real."""
        index, rows = self.choose(masked)
        length = self.lengths(rows)
        room = np.where(rows < ROWS, SIZE - length, width)
        n_new = np.minimum(self.rng.integers(0, width + 1, len(rows)), room).astype(np.int32)
        tokens = self.rng.integers(0, self.config.vocab, (len(rows), width)).astype(np.int32)
        before = self.kv
        logits, self.kv = function(
            self.config, self.params, before, index, length, tokens, n_new, past_length
        )
        for i, row in enumerate(rows):
            if row < ROWS:
                self.rows[row] += tokens[i, : n_new[i]].tolist()
                if n_new[i]:
                    want = self.full(row)[length[i] : length[i] + n_new[i]]
                    np.testing.assert_allclose(logits[i, : n_new[i]], want, rtol=0, atol=1e-4)
        self.check_untouched(before, rows, length, n_new)

    def full(self, row):
        padded = np.zeros(SIZE, np.int32)
        padded[: len(self.rows[row])] = self.rows[row]
        return np.asarray(full_pass(self.params, padded, np.arange(SIZE), config=self.config))

    def check_untouched(self, before: KV, rows, length, n_new):
        """No slot but the new ones has changed."""
        new = np.zeros([ROWS, SIZE], bool)
        for row, begin, n in zip(rows, length, n_new):
            if row < ROWS:
                new[row, begin : begin + n] = True
        for part, axes in (("k", (1, 2)), ("v", (1, 3))):
            for old, now in zip(getattr(before, part), getattr(self.kv, part)):
                changed = (np.asarray(old) != np.asarray(now)).any(axis=axes)
                assert not (changed & ~new).any()

    def roll_back(self):
        for row in self.rng.permutation(ROWS)[:3]:
            del self.rows[row][self.rng.integers(0, len(self.rows[row]) + 1) :]


@pytest.mark.parametrize("config", [LM, PRM, SINGLE], ids=["lm", "prm", "single head"])
@pytest.mark.parametrize("seed", range(2))
def test_any_sequence_is_one_full_forward_pass(config, seed):
    texts = Texts(config, seed)
    rng = np.random.default_rng(seed)
    full = 0
    for _ in range(30):
        kind = rng.choice(["extend", "decode", "roll back"], p=[0.5, 0.4, 0.1])
        if kind == "roll back":
            texts.roll_back()
            continue
        longest = max(map(len, texts.rows))
        full += sum(len(row) == SIZE for row in texts.rows)
        past_length = SMALLER if longest <= SMALLER else SIZE
        function, width = (extend_rows, CHUNK) if kind == "extend" else (decode_rows, SIDE)
        texts.call(function, width, bool(rng.integers(2)), past_length)
    assert full, "no row ever filled its cache"


def test_padding_at_the_end_of_the_cache_overwrites_nothing():
    texts = Texts(LM, 0)
    for n in (CHUNK,) * (SIZE // CHUNK - 1) + (2,):
        tokens = texts.rng.integers(0, LM.vocab, (ROWS, CHUNK)).astype(np.int32)
        length = texts.lengths(range(ROWS))
        n_new = np.full(ROWS, n, np.int32)
        _, texts.kv = extend_rows(LM, texts.params, texts.kv, None, length, tokens, n_new, SIZE)
        for row in range(ROWS):
            texts.rows[row] += tokens[row, :n].tolist()
    # Two slots are left; a call of four tokens, one of them real, must not move to fit.
    texts.call(extend_rows, CHUNK, True, SIZE)
    assert max(map(len, texts.rows)) <= SIZE
    texts.call(extend_rows, CHUNK, False, SIZE)


def test_read_at_gives_the_logits_of_those_positions_only():
    texts = Texts(LM, 1)
    tokens = texts.rng.integers(0, LM.vocab, (ROWS, CHUNK)).astype(np.int32)
    length, n_new = np.zeros(ROWS, np.int32), np.full(ROWS, CHUNK, np.int32)
    args = (Qwen2(LM), texts.params, texts.kv, None, length, tokens, n_new)
    everywhere, _ = extend(*args)
    last, _ = extend(*args, read_at=np.array([[3], [0], [1], [2], [3]]))
    np.testing.assert_allclose(last[:, 0], everywhere[np.arange(ROWS), [3, 0, 1, 2, 3]], atol=1e-6)
