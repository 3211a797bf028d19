"""How much less a run computed than the same runs apart would have: tokens charged over executed.

Every setting of every policy is charged as if it had run alone; what the models really read and
wrote is counted by the loop. Both count useful tokens only, so their quotient is what sharing steps
saves, whatever the machine. Where steps were known from earlier runs, the sentence says so: they are
charged, and were not computed.
"""

from __future__ import annotations

from collections.abc import Mapping

from trim_jax.eval.traces import SERVED, TOKEN_COUNTERS, Result, Table, tables


def charged_tokens(found: Mapping[str, Table]) -> dict[str, int]:
    """Tokens of all three models charged to each policy, summed over settings, problems, seeds."""
    return {name: int(table.ledger[..., TOKEN_COUNTERS].sum()) for name, table in found.items()}


def sentence(result: Result) -> str:
    """The saving of one run in words; "" where the run did not count what it executed."""
    if result.executed is None:
        return ""
    charged = sum(charged_tokens(tables(result)).values())
    executed = sum(kind["used"] for kind in result.executed.values())
    runs = sum(len(s.settings) for s in result.policies.values())
    runs *= len(result.problems) * len(result.seeds)
    histories = len({(t.problem_id, t.seed, t.steps, t.ledger) for t in result.traces})
    computed = "none had to be computed"
    if executed:
        computed = f"{executed:,} were computed, {charged / executed:.1f} times less"
    if served := result.executed.get(SERVED, {}).get("calls"):
        computed += f" ({served:,} steps and judgements were known from earlier runs)"
    return (f"{runs:,} runs have {histories:,} distinct histories. They are charged {charged:,} "
            f"tokens; {computed}.")
