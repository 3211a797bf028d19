"""Our Qwen2 against transformers, and the KV cache against one full forward pass."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import lively

from trim_jax.models import hf
from trim_jax.models.qwen2 import KV, ModelConfig, Qwen2, empty_kv

TOLERANCE = 1e-4  # against transformers
ROUNDING = 3e-5  # between two of our own orders of summation, at logits of up to about 5

BASE = ModelConfig(vocab=120, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=56)
SHAPES = {
    "tied-2kv": BASE,
    "untied-4kv-theta-eps": dataclasses.replace(
        BASE, heads=8, kv_heads=4, head_dim=6, width=48, tied=False, rope_theta=1e4, norm_eps=1e-5
    ),
    "untied-1kv-wide-heads": dataclasses.replace(BASE, kv_heads=1, head_dim=16, tied=False),
    "tied-2kv-bf16": dataclasses.replace(BASE, layers=3, dtype="bfloat16"),
    "untied-4kv-bf16": dataclasses.replace(BASE, kv_heads=4, tied=False, dtype="bfloat16"),
}


@functools.partial(jax.jit, static_argnums=0, static_argnames="block")
def forward(
    config, params, tokens, past=None, past_length=None, side=None, side_length=0, block=None,
    past_rows=None, read_at=None,
):  # fmt: skip
    """Logits, and keys and values of `tokens`; compiled once a shape."""
    inputs = tokens, past, past_length, side, side_length, block, past_rows, read_at
    return Qwen2(config).apply({"params": params}, *inputs)


def put(side: KV, new: KV, at: int) -> KV:
    """The side buffer with the keys and values of one token in slot `at`."""
    k, v = ([np.array(x) for x in part] for part in side)
    for layer in range(len(k)):
        k[layer][..., at], v[layer][:, :, at] = new.k[layer][..., 0], new.v[layer][:, :, 0]
    return KV(*(tuple(map(jnp.asarray, part)) for part in (k, v)))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason="parity with transformers needs torch: pip install '.[test]'"
    )


def reference(torch, config: ModelConfig, seed: int = 0):
    """A random transformers model of our shape, biases and norms included, weights as stored."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    theirs = Qwen2Config(
        vocab_size=config.vocab,
        hidden_size=config.width,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tied,
        eos_token_id=None,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(theirs).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
            # Not model.to(...), which would round the rotary frequencies as well.
            weight.data = weight.data.to(getattr(torch, config.dtype))
    return model


def prompts(config: ModelConfig, rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab, (rows, length))


@pytest.mark.parametrize("shards", ["1 file", "shards"])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_logits_of_a_transformers_checkpoint(torch, tmp_path, config, shards):
    model = reference(torch, config)
    model.save_pretrained(tmp_path, max_shard_size="30KB" if shards == "shards" else "1GB")
    assert (tmp_path / hf.INDEX).exists() == (shards == "shards")
    found, params = hf.load_model(tmp_path, dtype="float32")
    assert found == dataclasses.replace(config, dtype="float32")
    assert hf.load_config(tmp_path).dtype == config.dtype  # as stored, where nothing is asked for

    tokens = prompts(config, 3, 21)
    with torch.no_grad():
        want = model.float()(torch.tensor(tokens)).logits.numpy()
    got = forward(found, params, jnp.asarray(tokens))[0]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


def test_bfloat16_arithmetic_follows_transformers(torch, tmp_path):
    """Weights kept in bfloat16: logits agree to the rounding of bfloat16 (8 bits)."""
    config = SHAPES["tied-2kv-bf16"]
    model = reference(torch, config)
    model.save_pretrained(tmp_path)
    found, params = hf.load_model(tmp_path)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    tokens = prompts(config, 3, 21)
    with torch.no_grad():
        want = model(torch.tensor(tokens)).logits.float().numpy()
        exact = model.float()(torch.tensor(tokens)).logits.numpy()
    got = np.asarray(forward(found, params, jnp.asarray(tokens))[0])
    rounding = np.abs(want - exact).mean()
    assert 0 < np.abs(got - exact).mean() < 1.5 * rounding


@pytest.mark.parametrize(
    "name,length", [("tied-2kv", 1), ("untied-1kv-wide-heads", 9), ("untied-4kv-bf16", 5)]
)
def test_greedy_continuation_through_the_cache(torch, tmp_path, name, length):
    """Token by token: a past, a side buffer of 5 slots, and a commit whenever it is full."""
    n_new, slots = 24, 5
    model = reference(torch, SHAPES[name])
    model.save_pretrained(tmp_path)
    config, params = hf.load_model(tmp_path, dtype="float32")
    tokens = prompts(config, 2, length)
    start = torch.tensor(tokens)
    want = model.float().generate(
        start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=n_new,
        do_sample=False,
        pad_token_id=0,
    )

    cache = Cache(config, params, rows=2, size=40)
    last = cache.extend(tokens, np.full(2, length))[:, -1]
    got = []
    while len(got) < n_new:
        side = empty_kv(config, 2, slots)
        for at in range(slots):
            got.append(last.argmax(-1))
            new, past_length = jnp.asarray(got[-1][:, None]), jnp.asarray(cache.length)
            logits, now = forward(config, params, new, cache.kv, past_length, side, at)
            side = put(side, now, at)
            last = np.asarray(logits[:, -1])
        cache.commit(side, np.full(2, slots))
    np.testing.assert_array_equal(np.stack(got[:n_new], 1), want.numpy()[:, length:])


def test_process_reward_head(torch, tmp_path):
    """Linear, ReLU, Linear on the body, in the tensor names of Qwen2.5-Math-PRM."""
    from safetensors.torch import load_file, save_file

    config = dataclasses.replace(BASE, head="prm", tied=False)
    body = reference(torch, dataclasses.replace(config, head="lm")).model
    head = torch.nn.Sequential(
        torch.nn.Linear(config.width, config.width),
        torch.nn.ReLU(),
        torch.nn.Linear(config.width, 2),
    )
    weights = {f"model.{name}": w for name, w in body.state_dict().items()}
    weights |= {f"score.{name}": w for name, w in head.state_dict().items()}
    # The language-model head that it was trained from may still be in the folder.
    weights["lm_head.weight"] = torch.zeros(config.vocab, config.width)
    save_file(weights, tmp_path / hf.SINGLE)
    body.config.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / hf.CONFIG).read_text())
    raw["architectures"] = ["Qwen2ForProcessRewardModel"]
    (tmp_path / hf.CONFIG).write_text(json.dumps(raw))

    found, params = hf.load_model(tmp_path)
    assert found == config
    tokens = prompts(config, 3, 21)
    with torch.no_grad():
        want = head(body(torch.tensor(tokens)).last_hidden_state).numpy()
    got = forward(found, params, jnp.asarray(tokens))[0]
    assert got.shape == (3, 21, 2)
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)

    hf.save_model(tmp_path / "again", found, params)
    written = load_file(tmp_path / "again" / hf.SINGLE)
    assert set(written) == set(weights) - {"lm_head.weight"}
    assert all(torch.equal(written[name], weights[name]) for name in written)


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_reads_what_we_write(torch, tmp_path, name):
    from transformers import AutoModelForCausalLM

    config = SHAPES[name]
    params = lively(config)
    limit = 5_000_000_000 if name == "tied-2kv" else 20_000
    hf.save_model(tmp_path / "m", config, params, max_shard_bytes=limit, extra={"eos_token_id": 7})
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype="auto", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert str(model.dtype) == f"torch.{config.dtype}"
    assert model.config.eos_token_id == 7
    assert model.config.rope_parameters["rope_theta"] == config.rope_theta
    tokens = prompts(config, 3, 21)
    with torch.no_grad():
        want = model.float()(torch.tensor(tokens)).logits.numpy()
    single = dataclasses.replace(config, dtype="float32")
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    got = forward(single, params, jnp.asarray(tokens))[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)

    # And transformers' own copy of it comes back to us bit for bit.
    model.to(getattr(torch, config.dtype)).save_pretrained(tmp_path / "theirs")
    back, again = hf.load_model(tmp_path / "theirs", dtype="float32")
    assert back == single
    jax.tree.map(np.testing.assert_array_equal, again, params)


class Cache:
    """The cache contract in its plainest form: left-aligned rows, commits by copying slots."""

    def __init__(self, config, params, rows, size):
        self.config, self.params = config, params
        # Slots that are not real hold rubbish, to show that nobody reads them.
        self.kv = jax.tree.map(lambda x: x + 50.0, empty_kv(config, rows, size))
        self.length = np.zeros(rows, np.int32)

    def extend(self, tokens, n_new):
        logits, side = forward(
            self.config, self.params, jnp.asarray(tokens), self.kv, jnp.asarray(self.length)
        )
        self.commit(side, n_new)
        return np.asarray(logits)

    def commit(self, side: KV, n_new):
        def write(full, new):  # [B, K, slots, H]
            full = np.array(full)
            for row, (at, n) in enumerate(zip(self.length, n_new)):
                full[row, :, at : at + n] = np.asarray(new)[row, :, :n]
            return jnp.asarray(full)

        turned = lambda x: jnp.swapaxes(x, 2, 3)  # noqa: E731
        self.kv = KV(
            tuple(turned(write(turned(x), turned(new))) for x, new in zip(self.kv.k, side.k)),
            tuple(write(x, new) for x, new in zip(self.kv.v, side.v)),
        )
        self.length = self.length + np.asarray(n_new, np.int32)


@pytest.mark.parametrize("head", ["lm", "prm"])
@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_extend_and_rollback_is_one_forward_pass(head, seed):
    """Ragged chunks with padding, committed in part; lengths set back; other tokens written over.

    Three rows go their own ways in the same calls; in the end every accepted token's logits must
    be those of one pass over the row's final text.
    """
    config = dataclasses.replace(SHAPES["untied-4kv-theta-eps"], head=head)
    params, rng = lively(config), np.random.default_rng(seed)
    rows, size, chunk = 3, 32, 6
    cache = Cache(config, params, rows, size)
    text = [[] for _ in range(rows)]
    seen = [[] for _ in range(rows)]  # logits at the time each token was read
    rollbacks = 0
    while min(map(len, text)) < 16:
        n_new = np.minimum(rng.integers(0, chunk + 1, rows), size - cache.length)
        tokens = rng.integers(0, config.vocab, (rows, chunk))  # beyond n_new: padding
        logits = cache.extend(tokens, n_new)
        for row in range(rows):
            text[row] += tokens[row, : n_new[row]].tolist()
            seen[row] += list(logits[row, : n_new[row]])
            if rng.random() < 0.35 and len(text[row]) > 1:
                keep = int(rng.integers(0, len(text[row])))
                text[row], seen[row] = text[row][:keep], seen[row][:keep]
                cache.length[row] = keep
                rollbacks += 1
    assert rollbacks > 2
    padded = np.zeros((rows, size), int)
    for row in range(rows):
        padded[row, : len(text[row])] = text[row]
    want = np.asarray(forward(config, params, jnp.asarray(padded))[0])
    for row in range(rows):
        got = np.stack(seen[row])
        np.testing.assert_allclose(got, want[row, : len(got)], rtol=0, atol=ROUNDING)


def test_side_buffer_at_ragged_offsets():
    """Tokens decoded one by one into a side buffer equal the same tokens read as one chunk."""
    config = SHAPES["untied-1kv-wide-heads"]
    params, rng = lively(config), np.random.default_rng(0)
    cache = Cache(config, params, rows=3, size=16)
    cache.extend(rng.integers(0, config.vocab, (3, 9)), np.array([9, 0, 4]))
    new = jnp.asarray(rng.integers(0, config.vocab, (3, 6)))
    length = jnp.asarray(cache.length)
    want, chunk = forward(config, params, new, cache.kv, length)
    side = jax.tree.map(lambda x: x + 50.0, empty_kv(config, 3, 8))  # rubbish again
    for at in range(6):
        logits, now = forward(config, params, new[:, at : at + 1], cache.kv, length, side, at)
        side = put(side, now, at)
        np.testing.assert_allclose(logits[:, 0], want[:, at], rtol=0, atol=ROUNDING)
    for ours, theirs in zip(side.k, chunk.k):
        np.testing.assert_allclose(ours[..., :6], theirs, rtol=0, atol=ROUNDING)
    for ours, theirs in zip(side.v, chunk.v):
        np.testing.assert_allclose(ours[:, :, :6], theirs, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("head", ["lm", "prm"])
def test_blocks_of_the_past_change_nothing(head, kv_heads):
    """A past read block by block, whatever its length, in place or out of other rows of a cache."""
    shape = SHAPES["untied-4kv-theta-eps"]
    config = dataclasses.replace(shape, head=head, kv_heads=kv_heads)
    params, rng = lively(config), np.random.default_rng(1)
    cache = Cache(config, params, rows=5, size=20)
    cache.extend(rng.integers(0, config.vocab, (5, 19)), np.array([19, 0, 8, 9, 1]))
    tokens, length = jnp.asarray(rng.integers(0, config.vocab, (5, 6))), jnp.asarray(cache.length)
    want, want_kv = forward(config, params, tokens, cache.kv, length)
    at = jnp.array([[0], [5], [0], [2], [1]])
    rows = jnp.array([3, 0, 4])
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=ROUNDING)
    for block in (8, 64):  # 20 is no multiple of 8
        inputs = dict(block=block)
        logits, kv = forward(config, params, tokens, cache.kv, length, **inputs)
        some, _ = forward(config, params, tokens, cache.kv, length, **inputs, read_at=at)
        moved, moved_kv = forward(
            config, params, tokens[rows], cache.kv, length[rows], **inputs, past_rows=rows
        )
        near(logits, want)
        near(some, jnp.take_along_axis(want, at[..., None], axis=1))
        near(moved, want[rows])
        for ours, theirs in zip(jax.tree.leaves(kv), jax.tree.leaves(want_kv)):
            near(ours, theirs)
        for ours, theirs in zip(jax.tree.leaves(moved_kv), jax.tree.leaves(want_kv)):
            near(ours, theirs[rows])


def test_read_at_gives_the_logits_of_those_positions():
    params, tokens = lively(BASE), jnp.asarray(prompts(BASE, 2, 9))
    full = forward(BASE, params, tokens)[0]
    at = jnp.array([[8, 0, 3], [2, 2, 7]])
    some = forward(BASE, params, tokens, read_at=at)[0]
    np.testing.assert_allclose(
        some, jnp.take_along_axis(full, at[..., None], axis=1), rtol=0, atol=ROUNDING
    )
