"""RSD, GlimpRouter and the log-likelihood judge: hand-worked plans and decisions, and bad dials."""

import dataclasses

import numpy as np
import pytest
from test_policies import actions, observe, plans
from tiny import requests, tiny_engine, tiny_trio

from trim_jax.engine.engine import Cells
from trim_jax.engine.reference import full_pass
from trim_jax.engine import rows as R
from trim_jax.errors import ConfigError
from trim_jax.policies import base
from trim_jax.policies.neighbours import Glimp, LogLik, Rsd
from trim_jax.policies.registry import make_policy
from trim_jax.policies.simple import Never

KEEP, AGAIN = base.ACCEPT, base.REGENERATE
NAN = float("nan")


def test_rsd_accepts_from_delta_on_and_has_no_anchors():
    obs = observe(4, draft_score=np.float32([0.0, 0.6999, 0.7, 1.0]))
    np.testing.assert_array_equal(actions(Rsd(), 0.7, obs), [AGAIN, AGAIN, KEEP, KEEP])
    np.testing.assert_array_equal(actions(Rsd(), 0.0, obs), [KEEP] * 4)
    np.testing.assert_array_equal(actions(Rsd(), 1.0, obs), [AGAIN, AGAIN, AGAIN, KEEP])
    for delta in (0.0, 0.7, 1.0):
        assert (plans(Rsd((0.0, 0.7, 1.0)), delta, obs) == base.DRAFT_AND_SCORE).all()


def test_glimp_looks_first_and_then_one_of_the_models_writes():
    obs = observe(4, first_entropy=np.float32([NAN, 0.0, 0.99, 1.0]), draft_loglik=[NAN] * 4)
    want = [base.PEEK, base.DRAFT, base.DRAFT, base.LARGE]
    np.testing.assert_array_equal(plans(Glimp(), 1.0, obs), want)
    np.testing.assert_array_equal(plans(Glimp(), 0.0, obs)[1:], [base.LARGE] * 3)
    assert (actions(Glimp(), 1.0, obs) == KEEP).all()


def test_the_judge_rejects_below_its_dial():
    obs = observe(4, draft_loglik=np.float32([-9.0, -1.01, -1.0, 0.0]), first_entropy=[NAN] * 4)
    assert (plans(LogLik(), -1.0, obs) == base.DRAFT_AND_JUDGE).all()
    np.testing.assert_array_equal(actions(LogLik(), -1.0, obs), [AGAIN, AGAIN, KEEP, KEEP])
    np.testing.assert_array_equal(actions(LogLik(), 0.0, obs), [AGAIN, AGAIN, AGAIN, KEEP])


@pytest.mark.parametrize("policy, settings, message", [
    (Rsd, (0.5, 1.5), r"rsd: delta must be in \[0, 1\], it is 1.5"),
    (Glimp, (-0.5, 1.0), r"glimp: entropy must be in \[0, inf\], it is -0.5"),
    (LogLik, (-1.0, 0.5), r"loglik: loglik must be in \[-inf, 0\], it is 0.5"),
    (LogLik, (-1.0, NAN), "loglik"),
])  # fmt: skip
def test_bad_dials_are_refused(policy, settings, message):
    with pytest.raises(ConfigError, match=message):
        policy(settings)


def test_they_go_by_their_names():
    assert make_policy("rsd", threshold=0.25) == Rsd((0.25,))
    assert make_policy("glimp") == Glimp((1.0,))
    assert make_policy("loglik") == LogLik((-1.0,))


def chances(writer, text):
    """Probability of each allowed token behind every prefix of `text`, float64 [S, V]."""
    trio = tiny_trio()
    tokens = np.asarray(text, np.int32)
    logits = full_pass(
        trio.params[writer], tokens, np.arange(len(tokens)), config=trio.models[writer]
    )
    chance = np.exp(np.asarray(logits, np.float64)) * trio.tables.allowed[: logits.shape[-1]]
    return chance / chance.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def solutions():
    """One problem under the two policies with signals of their own, at one dial each."""
    engine = tiny_engine(policies=(Never(), Glimp((2.2,)), LogLik((-3.75,))))
    asked = requests([1], [0])
    found = engine.run(dataclasses.replace(asked[0], cells=(Cells(i),), reference=()) for i in range(3))
    return {s.cells[0].policy: s for s in found}


def test_the_signals_are_what_a_full_pass_gives(solutions):
    eos = tiny_trio().tables.is_eos
    seen = set()
    for policy in (1, 2):
        text = list(solutions[policy].request.prompt)
        for step in solutions[policy].steps:
            if policy == 1:
                best = np.sort(chances(R.SMALL, text)[-1])[::-1][:20]
                best /= best.sum()
                assert step.first_entropy == pytest.approx(-(best * np.log(best)).sum(), abs=1e-4)
                assert step.action == (base.DIRECT if step.first_entropy >= 2.2 else KEEP)
                assert step.draft_loglik is None
            else:
                draft = step.tokens if step.draft is None else step.draft
                here = chances(R.LARGE, [*text, *draft])[len(text) - 1 :]
                each = [np.log(here[i, token]) for i, token in enumerate(draft)]
                stopped = step is solutions[policy].steps[-1] and step.action == KEEP
                stopped &= solutions[policy].finish == "eos"
                each += [np.log(here[len(draft), eos].sum())] * stopped
                assert step.draft_loglik == pytest.approx(np.mean(each), abs=1e-4)
                assert step.action == (AGAIN if step.draft_loglik < -3.75 else KEEP)
                assert step.first_entropy is None
            seen.add((policy, step.action))
            text += step.tokens
    assert seen == {(1, KEEP), (1, base.DIRECT), (2, KEEP), (2, AGAIN)}, seen


class Undeclared(LogLik):
    judges = False


def test_a_plan_that_was_not_declared_is_one_clear_error():
    engine = tiny_engine(policies=(Undeclared(),))
    assert len(engine.executed) == 5
    with pytest.raises(ConfigError, match="without the class attribute"):
        list(engine.run(requests([0], [0])))


def test_other_policies_compile_nothing_for_peeks_and_judges():
    loops = {p: tiny_engine(policies=(p,)).loop for p in (Never(), Rsd(), Glimp(), LogLik())}
    extra = [list(loop.kinds.values())[5:] for loop in loops.values()]
    assert extra == [[], [], ["peek"], ["judge"]]
    for policy, loop in loops.items():
        row = loop.blank(2)
        assert row.first_entropy.shape == (2, 8 * policy.peeks)
        assert row.draft_loglik.shape == (2, 8 * policy.judges)
