"""Parameters from traces: what counts as a sample, recovery of known ones, the published file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from trim_jax.errors import DataError
from trim_jax.eval.traces import Ledger, ModelLedger, StepTrace, Trace
from trim_jax.pomdp.estimate import collect, density, estimate, hazard, labels, read_published
from trim_jax.pomdp.solve import solve

NOTHING = Ledger(*[ModelLedger(0, 0, 0, 0, 0)] * 3)


def step(text, right, score, draft=None, tokens=10):
    """`draft` is (text, right, score) of a discarded one."""
    writer, action = ("large", "regenerate") if draft else ("small", "accept")
    text_d, right_d, score_d = draft or (None, None, score)
    return StepTrace(text, writer, action, score_d, score, tokens, text_d, 5 if draft else None,
                     right, right_d, None)  # fmt: skip


def trace(*steps, correct=True, settings=(1, 2), problem="p"):
    return Trace(problem, 0, "thr", settings, "boxed", "1", correct, 0, steps, NOTHING)


def states(samples):
    """(state, minimum, score, first) of every draft, in order."""
    fields = samples.state, samples.minimum, samples.score, samples.first
    return sorted(zip(*(x.tolist() for x in fields)))


def test_each_draft_counts_once_in_its_state():
    one = trace(step("a", True, 0.9), step("b", False, 0.2), step("c", False, 0.5),
                step("d", False, 0.4), correct=False)  # fmt: skip
    # At a higher threshold the first step is shared, the second rewritten and the third new.
    two = trace(step("a", True, 0.9), step("B", True, 0.8, ("b", False, 0.2), tokens=14),
                step("C", True, 0.95), settings=(2, 9))  # fmt: skip
    got = collect([one, two])
    assert states(got) == [
        (0, 0.8, 0.95, False), (0, 1.0, 0.9, True), (1, 0.2, 0.4, False), (1, 0.2, 0.5, False),
        (2, 0.9, 0.2, False),
    ]  # fmt: skip
    assert sorted(got.small_right) == [False, True, True]
    assert got.large_right.tolist() == [True] and got.large_tokens.tolist() == [14]
    assert got.steps.tolist() == [4, 3]


def test_a_rewrite_of_a_wrong_text_says_nothing_about_the_large_model():
    got = collect([trace(step("a", False, 0.9), step("B", False, 0.8, ("b", False, 0.2)))])
    assert got.small_right.tolist() == [False] and not len(got.large_right)
    assert states(got) == [(1, 0.9, 0.2, False), (2, 1.0, 0.9, True)]


def test_labels_without_truth_come_from_scores():
    def unlabelled(*scores, correct):
        return trace(*[step("x", None, s) for s in scores], correct=correct)

    assert labels(unlabelled(0.9, 0.1, 0.9, correct=True)) == [True, True, True]
    assert labels(unlabelled(0.9, 0.34, 0.1, correct=False)) == [True, False, False]
    assert labels(unlabelled(0.9, 0.6, 0.4, correct=False)) == [True, True, False]
    assert labels(unlabelled(None, None, correct=False)) is None
    drafts = [("d", None, 0.2), ("e", None, 0.6)]
    got = collect([trace(*[step("x", None, 0.9, d) for d in drafts])])
    assert sorted(got.state.tolist()) == [0, 2]


def test_hazard_by_hand():
    np.testing.assert_allclose(hazard(np.array([2, 2, 3, 4]), 6), [0, 0.5, 0.5, 1, 1, 1])
    np.testing.assert_allclose(hazard(np.array([2, 4]), 3), [0, 0.5, 1])


def test_density_is_the_reflected_kernel():
    """Against the definition: kernels at the points and their mirror images, integrated finely."""
    rng = np.random.default_rng(0)
    points = rng.beta(0.7, 0.4, (40, 2))
    got = density(*points.T, bins=4)
    width = points.std(0) * 40 ** (-1 / 6)
    x = (np.arange(400) + 0.5) / 400

    def kernel(p, h):
        return sum(np.exp(-0.5 * ((x - image) / h) ** 2) for image in (p, -p, 2 - p))

    fine = sum(np.outer(kernel(p, width[0]), kernel(q, width[1])) for p, q in points)
    want = (fine / fine.sum()).reshape(4, 100, 4, 100).sum((1, 3))
    np.testing.assert_allclose(got, (40 * want + 1 / 16) / 41, atol=1e-4)
    assert got.sum() == pytest.approx(1)
    assert density(np.ones(5), np.ones(5))[-1, -1] > 0.8, "no spread, no bandwidth"


def simulate(problems, p_small, p_large, h, seed=0):
    """Traces of a threshold policy on the process of the method; scores tell the states apart."""
    rng = np.random.default_rng(seed)

    def write(ok, p):
        right = ok and rng.uniform() < p
        return right, rng.beta(8, 2) if right else rng.beta(3, 4) if ok else rng.beta(2, 6)

    result = []
    for i in range(problems):
        steps, ok = [], True
        while True:
            right, score = write(ok, p_small)
            name = f"{i}.{len(steps)}"
            if score < 0.5 and rng.uniform() < 0.5:
                again, again_score = write(ok, p_large)
                steps.append(step(name, again, again_score, (name + "d", right, score), tokens=22))
                right = again
            else:
                steps.append(step(name, right, score))
            ok = right
            if rng.uniform() < h or len(steps) == 8:
                break
        result.append(trace(*steps, correct=ok, problem=f"p{i}"))
    return result


def test_known_parameters_are_recovered():
    got = estimate(simulate(3000, 0.8, 0.95, 0.3), max_steps=8)
    assert got.p_small == pytest.approx(0.8, abs=0.02)
    assert got.p_large == pytest.approx(0.95, abs=0.02)
    assert got.step_tokens == 22
    np.testing.assert_allclose(got.hazard[:4], 0.3, atol=0.04)
    centres = (np.arange(20) + 0.5) / 20
    for state, (a, b) in enumerate([(8, 2), (2, 6), (3, 4)]):
        want = centres ** (a - 1) * (1 - centres) ** (b - 1)
        want /= want.sum()
        assert np.abs(got.score[state] - want).sum() / 2 < 0.05
        if state != 1:
            assert np.abs(got.first[state] - want).sum() / 2 < 0.12
        # Given the state, r_t does not depend on the minimum in this process.
        common = got.joint[state].sum(1) > 0.05
        assert np.abs(got.conditional[state][common] - want).sum(1).max() / 2 < 0.12
    assert got.joint[1].sum(1)[:10].sum() > 0.75 > 0.4 > got.joint[0].sum(1)[:10].sum()


def test_what_the_traces_lack_is_named():
    with pytest.raises(DataError, match="S1"):
        estimate([trace(step("a", True, 0.9))], max_steps=8)
    unrouted = simulate(20, 0.8, 0.95, 0.3)
    accepted = [t for t in unrouted if all(s.action == "accept" for s in t.steps)]
    with pytest.raises(DataError, match="large model"):
        estimate(accepted, max_steps=8)


def published(tmp_path, **changes):
    """A file in the form of the authors' parameters, with two bins and four steps."""
    value = {
        "observation": {"math_train": {"p_obs_given_state[min_prev][current]": {
            "S0": [[0.1, 0.2], [0.2, 0.5]], "S1": [[0.7, 0.1], [0.1, 0.1]],
            "S2": [[0.4, 0.1], [0.4, 0.1]]}}},
        "terminal_hazard_by_step": {"slm_llm": {"0": 0.0, "1": 0.0, "2": 0.3, "3": 1.0}},
        "transition": {"small": {"accuracy": 0.8}, "large": {"accuracy": 0.9}},
    } | changes  # fmt: skip
    path = tmp_path / "published.json"
    path.write_text(json.dumps(value))
    return path


def test_published_parameters_are_read(tmp_path):
    got = read_published(published(tmp_path), "small", "large")
    assert (got.p_small, got.p_large, got.step_tokens) == (0.8, 0.9, 60)
    np.testing.assert_allclose(got.hazard, [0, 0.3, 1])
    np.testing.assert_allclose(got.joint[1], [[0.7, 0.1], [0.1, 0.1]])
    np.testing.assert_allclose(got.first[2], [0.8, 0.2])


def test_a_broken_file_is_named(tmp_path):
    with pytest.raises(DataError, match="published.json.*huge"):
        read_published(published(tmp_path), "small", "huge")
    with pytest.raises(DataError, match="published.json.*joint"):
        read_published(published(tmp_path, observation={"math_train": {
            "p_obs_given_state[min_prev][current]": {s: [[1, 1]] for s in ("S0", "S1", "S2")}}}),
            "small", "large")  # fmt: skip
    with pytest.raises(DataError, match="nowhere.json"):
        read_published(tmp_path / "nowhere.json", "small", "large")


@pytest.mark.skipif("TRIM_JAX_DATA" not in os.environ, reason="TRIM_JAX_DATA is not set")
def test_the_released_parameters_solve_within_a_thousandth():
    path = Path(os.environ["TRIM_JAX_DATA"]) / "trim_official" / "pomdp_parameters.json"
    for problems in ("math_train", "omnimath"):
        p = read_published(path, "qwen2.5-1.5b-instruct", "qwen2.5-7b-instruct", problems)
        assert len(p.hazard) == 30 and p.joint.shape == (3, 20, 20)
        costs = np.array([0.85, 0.45, 0.05])  # of a token, against a reward of 100
        for likelihood in (p.joint.reshape(3, -1), p.score):
            got = solve(p, likelihood, 100 / costs)
            assert (np.asarray(got.gap) <= 1e-3).all()
            assert (np.diff(got.lower[:, 0, -1]) > 0).all()
