"""A data set routed under a budget: so many large-model tokens a problem, on average or at most.

    trim-jax budget --config.budget.average=10                 # TRIM-Thr, its threshold moved
    trim-jax budget --config.budget.average=10 --config.out=results/budget-judged
        --config.policy=results/arith-study/policies/q-judged
    trim-jax budget --config.budget.cap=64 --config.out=results/budget-cap

An average is met over the whole run by moving the policy's dial between chunks of problems, in the
order of the data set: up while less is spent than planned, down while more is. It ends within 2 %
of the target where there are about 50 chunks and the policy can spend that much; with few chunks it
cannot, and the error that is printed says so. A cap holds for every solution by itself. Both may be
given. Writes the traces, budget.json, table.md and a figure of the dial's path.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from trim_jax.configs import base


def get_config() -> ConfigDict:
    """What routing needs, all of `test` in 50 chunks, one seed."""
    config = base.pick("out", "store", "seeds", "trio", "data", "sampling", "engine", "policy")
    config.out = "results/budget"
    config.seeds = (0,)
    config.data.limit = None
    # Problems between two moves of the dial, and two writes. About 50 chunks are wanted to meet an
    # average within 2 %; smaller chunks are more exact and slower.
    config.engine.chunk_problems = 40

    # What may be spent.
    config.budget = ConfigDict()
    # Tokens of the large model a problem, on average over the whole run; none for no such target.
    # The policy begins at its setting (thr: policy.threshold, random: policy.p; a trained one in
    # the middle of its prices).
    config.budget.average = placeholder(float)
    # Most tokens of the large model any solution may spend, at least engine.max_step_tokens: it is
    # asked only while a step of the greatest length still fits. None for no cap.
    config.budget.cap = placeholder(int)
    return config


RANGES = {"budget.average": (0.0, None), "budget.cap": (1, None)}
