"""The fit to the published parameters, on made-up ones with a known answer and on the real file."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from trim_jax.errors import DataError
from trim_jax.policies.simple import Threshold
from trim_jax.sim import deblur, published
from trim_jax.sim.env import rollout


def test_kernel_width_and_heaps_are_recovered():
    sharp = np.zeros(deblur.CELLS)
    sharp[[0, 30, -1]] = 0.3, 0.1, 0.6
    marginal = deblur.blur(20, 0.08) @ sharp
    assert deblur.kernel_width(marginal) == pytest.approx(0.08, abs=0.01)
    table = np.outer(marginal, marginal)
    blurred = table.sum(axis=0)[-1]
    found = deblur.recover(table, 0.08, 0.08).sum(axis=0)
    assert blurred < 0.35 and found[-4:].sum() > blurred + 0.05
    assert found.sum() == pytest.approx(1) and found[:4].sum() > table.sum(axis=0)[0]


def test_histograms_give_back_their_model():
    """Counts expected of a logit-normal model, integrated by hand over a fine grid."""
    lengths = np.zeros(published.MAX_STEPS + 1)
    lengths[[3, 6, 10, 15]] = 0.2, 0.4, 0.3, 0.1
    z = np.linspace(-6, 6, 2001)
    w = np.exp(-0.5 * z**2)
    w /= w.sum()
    p = 1 / (1 + np.exp(-(2.0 + 1.3 * z)))
    first = 1 / (1 + np.exp(-(2.0 + 0.7 + 1.3 * z)))
    correct, wrong = np.zeros(31), np.zeros(31)
    for n in (3, 6, 10, 15):
        correct[n] = 7500 * lengths[n] * (w * first * p ** (n - 1)).sum()
        for t in range(1, n + 1):
            before = np.ones_like(p) if t == 1 else first * p ** (t - 2)
            error = 1 - (first if t == 1 else p)
            wrong[t] += 7500 * lengths[n] * (w * before * error).sum()
    found = published._fit_model(
        {"correct_steps_hist": correct, "first_error_step_hist": wrong}, lengths
    )
    want = {"mean": 2.0, "sd": 1.3, "slope": 0.0, "first": 0.7}
    for name, value in want.items():
        assert found[name] == pytest.approx(value, abs=0.12), name


def test_tilting_reaches_the_mean_and_keeps_the_support():
    p = np.array([0, 0.5, 0, 0.3, 0.2])
    tilted = published._tilt(p, 2.0)
    assert tilted @ np.arange(5) == pytest.approx(2.0) and tilted.sum() == pytest.approx(1)
    assert (tilted[p == 0] == 0).all()


def test_kinds_of_steps_are_groups_of_lengths():
    draws, excess = published._step_lengths(60.0)
    assert draws.mean() == pytest.approx(60, rel=0.02)
    assert (np.diff(draws.mean(axis=1)) > 0).all()
    assert np.log(draws).std() == pytest.approx(published.LENGTH_SPREAD, abs=0.03)
    assert excess.mean() == pytest.approx(0, abs=1e-9)


def test_long_steps_score_low_and_all_together_as_before():
    _, excess = published._step_lengths(60.0)
    cells = np.tile(np.linspace(0, 1, 129) ** 0.25, (3, 2, 1))  # P(score < s) = s^4
    found = published._by_length(cells, excess)
    below = lambda rows: np.mean(rows < 0.5, axis=-1)  # noqa: E731
    own = below(found)
    for state in (0, 1):
        assert own[state, -1, 0] > 2.5 * own[state, 0, 0]
        assert own[state].mean() == pytest.approx(1 / 16, abs=0.012)
    np.testing.assert_array_equal(found[2], np.tile(cells[2], (len(excess), 1, 1)))


def test_doubt_multiplies_the_odds_of_every_low_score():
    cells = np.linspace(0, 1, 129)[None]  # P(score < s) = s
    found = np.asarray(published._doubted(cells, 3.0))[0]
    u = np.linspace(0, 1, 129)
    np.testing.assert_allclose(u[1:-1] / (1 - u[1:-1]), 3 * found[1:-1] / (1 - found[1:-1]),
                               rtol=1e-4)
    assert found[0] == 0 and found[-1] == 1
    np.testing.assert_allclose(published._doubted(cells, 1.0), cells, atol=1e-6)


@pytest.mark.parametrize("text, message", [
    (None, "cannot be read"), ("{", "cannot be read"), ("{}", "terminal_hazard_by_step"),
])  # fmt: skip
def test_a_file_that_is_no_file_of_theirs(tmp_path, text, message):
    path = tmp_path / "pomdp_parameters.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        published.fit_published(path)


def test_recorded_anchors_and_points_are_met():
    data = os.environ.get("TRIM_JAX_DATA")
    if not data:
        pytest.skip("TRIM_JAX_DATA (folder of the recorded data) is not set")
    path = Path(data) / "trim_official" / "pomdp_parameters.json"
    assert "transition" in json.loads(path.read_text())
    process, report = published.fit_published(path)
    ks = (0.0, 1.0, 0.5, 0.9)
    found = rollout(process, Threshold((0.5,)), jax.random.key(7), 50_000, ks)
    want = [0.364, 0.730, 0.674, 0.714]
    np.testing.assert_allclose(found.accuracy, want, atol=0.025)
    np.testing.assert_allclose(report.predicted[:4], want, atol=0.02)
    np.testing.assert_allclose(report.predicted[4:], report.wanted[4:], atol=0.06)
    assert float(found.steps[0]) == pytest.approx(8.0, abs=0.1)
    assert float(found.strong_tokens[1]) == pytest.approx(494.8, rel=0.02)
    # What the judge rejects is long: tokens of a rewrite against those of any step.
    rewrite = found.strong_tokens[2] / found.strong_steps[2] / (494.8 / 8.0)
    assert 1.2 < float(rewrite) < 1.8
