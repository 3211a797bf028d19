"""The cheap random numbers: uniform, and independent between problems, steps and streams."""

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.sim import noise

ROWS = 200_000


def draws(stream, t=0, seed=0):
    keys = noise.problem_keys(jax.random.key(seed), ROWS)
    return noise.bits(keys, jnp.full([ROWS], t), stream)


def test_problems_have_different_keys():
    keys = np.asarray(noise.problem_keys(jax.random.key(3), ROWS))
    assert len(np.unique(keys)) == ROWS


def test_every_byte_and_the_unit_interval_are_uniform():
    x = draws(noise.DRAFT)
    cells = [np.asarray(x >> s & 0xFF) for s in (0, 8, 16, 24)]
    cells.append((np.asarray(noise.uniform(x)) * 256).astype(int))
    for cell in cells:
        chi2 = ((np.bincount(cell, minlength=256) - ROWS / 256) ** 2 / (ROWS / 256)).sum()
        assert abs(chi2 - 255) < 5 * (2 * 255) ** 0.5
    u = np.asarray(noise.uniform(jnp.array([0, 2**32 - 1], jnp.uint32)))
    assert 0 < u[0] < u[1] < 1


def test_pairs_of_streams_steps_and_neighbours_are_independent():
    u = lambda *a: np.asarray(noise.uniform(draws(*a)))  # noqa: E731
    first = u(noise.DRAFT, 3)
    pairs = [(first, u(s, 3)) for s in range(1, 9)] + [(first, u(noise.DRAFT, t)) for t in range(3)]
    pairs += [(first, u(noise.DRAFT, 3, 1)), (first[1:], first[:-1]), (first, u(noise.DRAFT, -1))]
    for a, b in pairs:
        counts = np.histogram2d(a, b, bins=16, range=[[0, 1]] * 2)[0]
        want = len(a) / 256
        assert abs(((counts - want) ** 2 / want).sum() - 255) < 5 * (2 * 255) ** 0.5


def test_normal_has_the_moments_of_a_standard_normal():
    z = np.asarray(noise.normal(noise.uniform(draws(noise.EFFECT_SMALL))))
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and abs((z**4).mean() - 3) < 0.1
