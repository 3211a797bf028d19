"""Runs of the simulator written out as results of the engine, to fit and to compare with."""

import jax
import jax.numpy as jnp
import numpy as np

from trim_jax.eval.traces import (
    Ledger, ModelLedger, PolicySpec, ProblemRecord, Result, StepTrace, Trace,
)  # fmt: skip
from trim_jax.policies.simple import Threshold
from trim_jax.sim import env

_NO_LEDGER = Ledger(*(ModelLedger(0, 0, 0, 0, 0) for _ in range(3)))


def simulated_result(process, rows, thresholds, folder, seed=0):
    """A `Result` of TRIM-Thr on `rows` simulated problems, as if read from `folder`."""
    policy, traces = Threshold(thresholds), []
    for setting, k in enumerate(thresholds):
        state = env.reset(process, jax.random.key(seed), rows)
        steps, dial = [[] for _ in range(rows)], jnp.full([rows], k, jnp.float32)
        correct = np.zeros(rows, bool)
        while not bool(state.done.all()):
            action, _ = env.act(process, policy, dial, state, ())
            right, score, tokens = (np.asarray(x) for x in env._rewrite(process, state))
            old, actions = jax.tree.map(np.asarray, state), np.asarray(action)
            state, result = env.step(process, state, action)
            correct |= np.asarray(result.reward) > 0
            for i in np.flatnonzero(~old.done):
                steps[i].append(_step(old, i, actions[i], right, score, tokens, scored=0 < k < 1))
        for i in range(rows):
            strong = sum(s.n_tokens for s in steps[i] if s.writer == "large")
            traces.append(Trace(f"p{i}", 0, "thr", (setting, setting + 1), "boxed", None,
                                bool(correct[i]), strong, tuple(steps[i]), _NO_LEDGER))  # fmt: skip
    problems = tuple(ProblemRecord(f"p{i}", "", "", None, None) for i in range(rows))
    spec = PolicySpec("thr", "k", tuple(thresholds))
    return Result(folder, "simulated", {}, {}, None, {"thr": spec}, problems, (0,),
                  tuple(traces), None)  # fmt: skip


def _step(old, i, action, right, score, tokens, scored):
    draft_right, draft_tokens = bool(old.latent[i] == 0), int(old.draft_tokens[i])
    draft_score = float(old.draft_score[i]) if scored else None
    if action == 0:
        return StepTrace("small", "small", "accept", draft_score, draft_score, draft_tokens, None,
                         None, draft_right, None, None)  # fmt: skip
    name = ("accept", "regenerate", "direct")[action]
    draft = ("small", draft_tokens) if name == "regenerate" else (None, None)
    label = draft_right if name == "regenerate" else None
    own = float(score[i]) if scored else None
    return StepTrace("large", "large", name, draft_score if name == "regenerate" else None, own,
                     int(tokens[i]), *draft, bool(right[i]), label, None)  # fmt: skip
