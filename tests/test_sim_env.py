"""The environment: transitions by hand, closed forms, common luck, policies of the engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trim_jax.policies import base
from trim_jax.policies.simple import Always, Never, Oracle, Random, Threshold
from trim_jax.sim import env
from trim_jax.sim.process import LAST, S0, S1, S2, plans, simple_process

KEY = jax.random.key(0)
ROWS = 40_000
ACCEPT, REGENERATE = base.ACCEPT, base.REGENERATE


def at(process, latent, **fields):
    """One row at its second step of four, in the given latent state."""
    state = env.reset(process, KEY, 1)
    fields = {"t": 1, "kind": 2, "latent": latent, "draft_score": 0.4, "min_score": 0.7} | fields
    cast = {k: jnp.asarray([v], getattr(state, k).dtype) for k, v in fields.items()}
    return state.replace(**cast)


@pytest.mark.parametrize("latent, action, p_large, after", [
    (S0, ACCEPT, 1, {S0, S2}), (S1, ACCEPT, 1, {S1}), (S2, ACCEPT, 1, {S1}),
    (S0, REGENERATE, 1, {S0, S2}), (S2, REGENERATE, 1, {S0, S2}), (S1, REGENERATE, 1, {S1}),
    (S0, REGENERATE, 0, {S1}), (S2, REGENERATE, 0, {S1}), (S2, base.DIRECT, 1, {S0, S2}),
])  # fmt: skip
def test_transitions_of_the_latent_state(latent, action, p_large, after):
    process = simple_process(p_large=np.clip(p_large, 1e-9, 1 - 1e-7))
    state, result = env.step(process, at(process, latent), jnp.array([action]))
    assert int(state.latent[0]) in after and int(state.t[0]) == 2
    assert int(result.strong_tokens[0]) == (0 if action == ACCEPT else 10)
    assert not result.done[0] and result.reward[0] == 0


def test_scores_and_tokens_are_counted():
    process = simple_process()
    state, _ = env.step(process, at(process, S0), jnp.array([ACCEPT]))
    np.testing.assert_allclose([state.min_score[0], state.prod_score[0]], 0.4)
    state, _ = env.step(process, at(process, S0, large_tokens=7), jnp.array([REGENERATE]))
    assert int(state.large_tokens[0]) == 17
    assert float(state.min_score[0]) == pytest.approx(0.7)  # the rewrite's score is about 0.9


@pytest.mark.parametrize("latent, action, reward", [
    (S0, ACCEPT, 1), (S1, ACCEPT, 0), (S2, ACCEPT, 0), (S2, REGENERATE, 1), (S1, REGENERATE, 0),
])  # fmt: skip
def test_the_last_step_pays_and_a_finished_row_stays(latent, action, reward):
    process = simple_process(p_large=1 - 1e-7)
    start = at(process, latent, t=3, kind=LAST)
    assert bool(env.observe(process, start).last[0])
    state, result = env.step(process, start, jnp.array([action]))
    assert float(result.reward[0]) == reward and bool(result.done[0])
    again, result = env.step(process, state, jnp.array([REGENERATE]))
    assert float(result.reward[0]) == 0 and int(result.strong_tokens[0]) == 0
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again)))


def test_luck_of_wrong_solutions_and_repeated_drafts():
    process = simple_process(p_small=0.5).replace(lucky=jnp.asarray(0.2))
    got = float(env.rollout(process, Never(), KEY, ROWS).accuracy[0])
    assert got == pytest.approx(0.0625 + 0.9375 * 0.2, abs=0.01)
    process = simple_process(p_large=1 - 1e-7).replace(same=jnp.ones(3))
    state, _ = env.step(process, at(process, S0), jnp.array([REGENERATE]))
    assert float(state.prod_score[0]) == pytest.approx(0.4)
    state, _ = env.step(process, at(process, S2), jnp.array([REGENERATE]))
    assert float(state.prod_score[0]) > 0.8  # the draft was wrong, the rewrite is another text


def test_closed_forms_without_random_effects():
    process = simple_process(0.8, 0.95, steps=4)
    for policy, accuracy, tokens in (
        (Never(), 0.8**4, 0), (Always(), 0.95**4, 40), (Oracle(), (0.8 + 0.2 * 0.95) ** 4, None),
        (Random((0.5,)), 0.875**4, 20),
    ):  # fmt: skip
        found = env.rollout(process, policy, KEY, ROWS)
        assert float(found.accuracy[0]) == pytest.approx(accuracy, abs=0.01), policy.name
        if tokens is not None:
            assert float(found.strong_tokens[0]) == pytest.approx(tokens, abs=0.2)
    large = lambda off: 1 / (1 + np.exp(-(np.log(0.95 / 0.05) - off)))  # noqa: E731
    harder = process.replace(draft_wrong=jnp.array([1.0, 2.0]))  # score of a wrong draft: 0.1
    got = float(env.rollout(harder, Oracle(), KEY, ROWS).accuracy[0])
    assert got == pytest.approx((0.8 + 0.2 * large(1.2)) ** 4, abs=0.01)
    doubted = process.replace(draft_doubted=jnp.asarray(8.0))  # score of a right draft: 0.9
    got = float(env.rollout(doubted, Always(), KEY, ROWS).accuracy[0])
    assert got == pytest.approx((0.8 * large(0.8) + 0.2 * 0.95) ** 4, abs=0.01)


def test_scores_know_the_number_of_steps_and_the_least_score():
    process = simple_process(0.5, steps=3)
    n_steps = jnp.array([3, 6])
    # Cells: (fewer than 5 steps, from 5 on) by (least score below 0.5, above). Scores say which.
    cells = jnp.array([0.1, 0.6, 0.3, 0.8])[:, None] * jnp.ones(5)
    process = process.replace(
        n_steps=n_steps, kinds=plans(n_steps, 30), step_edges=jnp.array([5]),
        min_edges=jnp.array([0.5]), scores=jnp.broadcast_to(cells, (2, 3, 3, 4, 5)),
    )  # fmt: skip
    state = env.reset(process, KEY, 200)
    long = np.asarray(state.n_steps) == 6
    assert 50 < long.sum() < 150
    np.testing.assert_allclose(state.draft_score, np.where(long, 0.8, 0.6))
    low = env.step(process, state.replace(min_score=jnp.full(200, 0.2)), jnp.full(200, ACCEPT))[0]
    np.testing.assert_allclose(low.draft_score, np.where(long, 0.3, 0.1))


def test_random_effects_are_shared_by_a_problem():
    """E[p^4] under a logit-normal p, by quadrature; and hard problems are hard for both."""
    process = simple_process(0.8, 0.95).replace(
        effect_sd=jnp.array([1.5, 1.0]), effect_correlation=jnp.asarray(0.9)
    )
    z, w = np.polynomial.hermite_e.hermegauss(60)
    want = (1 / (1 + np.exp(-(np.log(4) + 1.5 * z)))) ** 4 @ w / w.sum()
    weak = env.rollout(process, Never(), KEY, ROWS)
    assert float(weak.accuracy[0]) == pytest.approx(want, abs=0.01)
    strong = np.asarray(env.rollout(process, Always(), KEY, ROWS).correct[0])
    solved = np.asarray(weak.correct[0])
    assert strong[solved].mean() - strong[~solved].mean() > 0.1
    effects = np.asarray(env.reset(process, KEY, ROWS).effects)
    assert np.corrcoef(effects)[0, 1] == pytest.approx(0.9, abs=0.01)


def test_the_same_luck_for_every_setting_and_run():
    process = simple_process(0.6, 0.7, right_score=0.6, wrong_score=0.4)
    policy = Threshold((0.0, 0.3, 0.5, 0.7, 1.0))
    a, b = (env.rollout(process, policy, KEY, 500) for _ in range(2))
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
    # No score is below 0.3 or above 0.7: those settings are the anchors, problem by problem.
    assert (a.correct[0] == a.correct[1]).all() and (a.correct[3] == a.correct[4]).all()
    alone = env.rollout(process, policy, KEY, 500, settings=(0.5,))
    assert (alone.correct[0] == a.correct[2]).all() and (alone.tokens[0] == a.tokens[2]).all()
    # Drafts do not depend on what happened before, only on whether it is right.
    low, high = (env.step(process, env.reset(process, KEY, 500), jnp.full(500, x))[0]
                 for x in (ACCEPT, REGENERATE))  # fmt: skip
    alike = low.latent == high.latent
    assert (low.draft_score == high.draft_score)[alike].all() and alike.mean() > 0.4


def test_policies_see_the_observation_of_the_engine():
    process = simple_process()
    obs = env.observe(process, env.reset(process, KEY, 7))
    assert isinstance(obs, base.Observation) and obs.scores.shape == (7, 0)
    for policy in (Never(), Oracle(), Threshold((0.5,)), Random((0.5,))):
        action, _ = policy.decide(jnp.full([7], 0.5), obs, policy.init(7))
        assert action.shape == (7,)
    assert (obs.right <= obs.prefix_right).all() and (obs.min_score == 1).all()


def test_trimmed_to_its_longest_plan_it_is_the_same_process():
    process = simple_process(steps=4).replace(effect_sd=jnp.ones(2), history=True)
    process = process.replace(
        n_steps=jnp.array([3, 5]), kinds=plans(jnp.array([3, 5]), process.max_steps)
    )
    short = process.trimmed()
    assert (process.max_steps, short.max_steps) == (30, 5)
    whole, trimmed = (env.rollout(p, Threshold((0.0, 0.5, 1.0)), KEY, 500) for p in (process, short))
    jax.tree.map(np.testing.assert_array_equal, whole, trimmed)
    assert env.reset(short, KEY, 2).scores.shape == (2, 5)


def test_histories_are_kept_on_demand():
    process = simple_process().replace(history=True)
    state = env.reset(process, KEY, 3)
    first = state.draft_score
    for action in (ACCEPT, REGENERATE):
        state, _ = env.step(process, state, jnp.full(3, action))
    obs = env.observe(process, state)
    assert obs.scores.shape == (3, 30) and (obs.scores[:, 0] == first).all()
    assert (obs.writers[:, :2] == jnp.array([0, 1])).all() and jnp.isnan(obs.scores[:, 2:]).all()
    np.testing.assert_allclose(obs.min_score, obs.scores[:, :2].min(axis=1))


def test_auto_reset_starts_new_problems():
    process, rows = simple_process(steps=2), 5000
    state = env.reset(process, KEY, rows)
    for _ in range(2):
        state, result = env.step(process, state, jnp.zeros(rows, int), auto_reset=True)
    assert result.done.all() and not state.done.any() and (state.t == 0).all()
    assert (state.large_tokens == 0).all() and (state.min_score == 1).all()
    assert float((state.latent == S0).mean()) == pytest.approx(0.8, abs=0.03)
    assert not (state.latent == S1).any()


def test_other_parameters_do_not_recompile():
    policy = Threshold((0.2, 0.8))
    env.rollout(simple_process(0.8), policy, KEY, 64)
    before = env._rollout._cache_size()
    env.rollout(simple_process(0.7, 0.9), policy, jax.random.key(1), 64, settings=(0.3, 0.9))
    assert env._rollout._cache_size() == before
