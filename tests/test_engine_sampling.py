"""Sampling against a straightforward distribution, and independence of everything but the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from trim_jax.engine.sampling import Sampling, fold, row_key, sample, uniform
from trim_jax.errors import ConfigError

VOCAB, DRAWS = 12, 20_000
ALL = np.ones(VOCAB, bool)
LOGITS = np.array([2.0, 1.5, 1.4, 1.0, 0.7, 0.2, 0.0, -0.5, -1.0, -1.5, -2.0, -9.0])
LOGITS = np.random.default_rng(0).permutation(LOGITS).astype(np.float32)

draw = jax.jit(sample, static_argnames="sampling")


def keys(n, seed=0):
    return fold(jnp.broadcast_to(row_key(seed, "p"), (n, 2)), jnp.arange(n, dtype=jnp.uint32))


def draws(sampling, logits=LOGITS, allowed=ALL, n=DRAWS):
    return np.asarray(draw(jnp.tile(logits, (n, 1)), keys(n), allowed, sampling=sampling))


def distribution(sampling, logits, allowed):
    """What `Sampling` promises, token by token: temperature, then top-k, then top-p."""
    weight = {i: np.exp(float(logits[i]) / sampling.temperature) for i in np.flatnonzero(allowed)}
    ranked = sorted(weight, key=lambda i: -weight[i])[: sampling.top_k or None]
    total = sum(weight[i] for i in ranked)
    kept, mass = [], 0.0
    for i in ranked:
        if mass >= sampling.top_p:
            break
        kept.append(i)
        mass += weight[i] / total
    chance = np.zeros(len(logits))
    chance[kept] = [weight[i] for i in kept]
    return chance / chance.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, 1.0, 0),
        Sampling(0.7, 1.0, 0),
        Sampling(1.3, 1.0, 4),
        Sampling(1.0, 0.6, 0),
        Sampling(0.7, 0.8, 5),
        Sampling(0.7, 0.8, 20),
        Sampling(1.0, 0.01, 0),
        Sampling(1.0, 1.0, 1),
    ],
    ids=str,
)
def test_draws_follow_the_promised_distribution(sampling):
    allowed = ALL.copy()
    allowed[np.argmax(LOGITS)] = False
    want = distribution(sampling, LOGITS, allowed)
    found = np.bincount(draws(sampling, allowed=allowed), minlength=VOCAB)
    assert not found[want == 0].any(), "drew a token outside the promised set"
    likely = want * DRAWS >= 5
    assert (found[likely] > 0).all(), "never drew a token of the promised set"
    if likely.sum() > 1:
        expected = want[likely] / want[likely].sum() * found[likely].sum()
        assert stats.chisquare(found[likely], expected).pvalue > 1e-3


def test_temperature_zero_is_greedy_among_the_allowed():
    allowed = ALL.copy()
    allowed[np.argmax(LOGITS)] = False
    want = np.argmax(np.where(allowed, LOGITS, -np.inf))
    assert (draws(Sampling(0.0), allowed=allowed, n=50) == want).all()


def test_fewer_allowed_tokens_than_top_k():
    allowed = np.zeros(VOCAB, bool)
    allowed[[3, 8]] = True
    found = draws(Sampling(2.0, 1.0, 5), allowed=allowed, n=500)
    assert set(found.tolist()) == {3, 8}


def test_a_row_draws_the_same_in_any_batch():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(64, VOCAB)).astype(np.float32)
    all_keys = keys(64)
    together = np.asarray(draw(logits, all_keys, ALL, sampling=Sampling()))
    order = rng.permutation(64)
    shuffled = np.asarray(draw(logits[order], all_keys[order], ALL, sampling=Sampling()))
    np.testing.assert_array_equal(together[order], shuffled)
    alone = [int(draw(logits[i : i + 1], all_keys[i : i + 1], ALL, sampling=Sampling())[0])
             for i in range(64)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, 1.0, 0)], ids=str)
def test_the_luck_of_a_token_does_not_depend_on_its_rank(sampling):
    """Two candidates that change places by rounding do not exchange their noise."""
    one, other = LOGITS.copy(), LOGITS.copy()
    first, second = np.argsort(-LOGITS)[:2]
    one[[first, second]] = [2.0, 2.0 + 1e-6]
    other[[first, second]] = [2.0 + 1e-6, 2.0]
    found = draws(sampling, logits=one, n=2000)
    np.testing.assert_array_equal(found, draws(sampling, logits=other, n=2000))
    assert len(set(found.tolist())) > 1


def test_keys_differ_by_seed_problem_and_position():
    made = {
        tuple(np.asarray(fold(row_key(seed, problem), jnp.uint32(n))).tolist())
        for seed in (0, 1) for problem in ("p1", "p2") for n in range(50)
    }  # fmt: skip
    assert len(made) == 2 * 2 * 50


def test_fold_is_fold_in_with_broadcasting():
    base = jax.random.key(3)
    data = jnp.arange(4, dtype=jnp.uint32)
    want = [jax.random.key_data(jax.random.fold_in(base, i)) for i in range(4)]
    got = fold(jax.random.key_data(base)[None], data)
    np.testing.assert_array_equal(got, np.stack(want))


def test_uniform_numbers_are_uniform_and_never_0_or_1():
    numbers = np.asarray(uniform(keys(DRAWS)))
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    extremes = uniform(jnp.array([[0, 0], [0xFFFFFFFF, 0]], jnp.uint32))
    assert 0 < extremes[0] < extremes[1] < 1
    assert np.isfinite(-np.log(-np.log(np.asarray(extremes)))).all()


@pytest.mark.parametrize(
    "field, value", [("temperature", -0.1), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1)]
)
def test_a_bad_setting_is_named(field, value):
    with pytest.raises(ConfigError, match=f"sampling.{field}"):
        Sampling(**{field: value})
