"""Episodes: what is played is what was seen; returns by hand; traces become the same episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny_process
from fake_traces import POLICIES, simulate
from tiny_process import ENV

from trim_jax.policies import base
from trim_jax.policies.features import Features
from trim_jax.policies.simple import Threshold
from trim_jax.train.episodes import from_traces, play, summarize

FIVE = Features(product=True)


def test_played_features_are_those_that_the_policy_saw():
    worth = jnp.full([50], 0.5)
    episodes = play(ENV, Threshold((0.5,)), jax.random.key(0), worth)
    state = ENV.reset((), jax.random.key(0), 50)
    for t in range(3):
        obs = ENV.observe((), state)
        np.testing.assert_array_equal(episodes.features(FIVE)[:, t], FIVE.of(obs, worth))
        rejected = np.asarray(obs.draft_score < 0.5)
        np.testing.assert_array_equal(episodes.action[:, t] == base.REGENERATE, rejected)
        state, result = ENV.step((), state, episodes.action[:, t])
        np.testing.assert_array_equal(episodes.strong_tokens[:, t], result.strong_tokens)
        stood = np.where(rejected, result.strong_tokens, obs.draft_tokens)
        np.testing.assert_array_equal(episodes.tokens[:, t], stood)
    np.testing.assert_array_equal(episodes.score, state.scores)
    assert episodes.mask.all()


def test_returns_by_hand():
    episodes = play(ENV, Threshold((0.5,)), jax.random.key(0), jnp.full([2], 0.5))
    episodes = episodes.replace(
        worth=jnp.array([100.0, 50.0]), strong_tokens=jnp.array([[10, 0, 30], [0, 20, 99]]),
        reward=jnp.array([[0.0, 0.0, 1.0], [0.0, 0.0, 5.0]]),
        mask=jnp.array([[True] * 3, [True, True, False]]),
    )  # fmt: skip
    np.testing.assert_allclose(episodes.rewards(), [[-0.1, 0, 0.7], [0, -0.4, 0]], atol=1e-6)
    right, tokens = episodes.outcome()
    np.testing.assert_array_equal(right, [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(tokens, [[40, 30, 30], [20, 20, 0]])
    seen = summarize(episodes)
    np.testing.assert_allclose(seen[:3], [0.5, 30.0, (0.6 - 0.4) / 2], atol=1e-6)
    assert seen.steps == 5


def test_the_threshold_that_rewrites_every_wrong_draft_has_its_exact_value():
    episodes = play(ENV, Threshold((0.5,)), jax.random.key(1), jnp.full([20000], 0.5))
    seen = summarize(episodes.replace(worth=jnp.full([20000], 1000.0)))
    wrong = [int(not right) for _, _, right, _ in tiny_process.STATES]
    want = tiny_process.solve(1000.0, wrong)[0]
    np.testing.assert_allclose(seen.objective, want, atol=0.01)


def test_traces_of_the_engine_become_episodes():
    traces = simulate(range(12), (0,), {"thr": POLICIES["thr"]})
    routed = lambda s: s.score_draft is not None and s.action != "direct"  # noqa: E731
    scored = [t for t in traces if t.steps and all(routed(s) for s in t.steps)]
    assert len(scored) > 5 and any(s.action == "regenerate" for t in scored for s in t.steps)
    n = len(scored)
    steps = max(len(t.steps) for t in scored) + 1
    episodes = from_traces(scored, np.full(n, 100.0), np.full(n, 0.5), steps)
    assert not np.isnan(np.asarray(episodes.features(FIVE))[np.asarray(episodes.mask)]).any()
    right, tokens = episodes.outcome()
    np.testing.assert_array_equal(tokens[:, 0], [t.strong_tokens for t in scored])
    np.testing.assert_array_equal(right[:, 0], [t.correct for t in scored])
    np.testing.assert_array_equal(episodes.mask.sum(axis=1), [len(t.steps) for t in scored])
    for i, trace in enumerate(scored):
        past = [1.0]
        for t, step in enumerate(trace.steps):
            rewritten = step.action == "regenerate"
            length = step.draft_tokens if rewritten else step.n_tokens
            want = [step.score_draft, min(past), length / 300, (t + 1) / 30, np.prod(past)]
            np.testing.assert_allclose(episodes.features(FIVE)[i, t], want, rtol=1e-5)
            past.append(1.0 if step.score is None else step.score)
