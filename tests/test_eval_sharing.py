"""What sharing saves, on a run whose counts are known."""

import dataclasses

import fake_traces
import pytest

from trim_jax.eval import sharing
from trim_jax.eval.traces import load_result


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return load_result(fake_traces.write_result(tmp_path_factory.mktemp("s") / "run", range(5)))


def test_every_setting_is_charged_for_its_whole_history(result):
    want = {name: 0 for name in result.policies}
    for trace in result.traces:
        models = (trace.ledger.small, trace.ledger.large, trace.ledger.prm)
        tokens = sum(m.kept + m.discarded + m.prefilled + m.scored for m in models)
        want[trace.policy] += tokens * (trace.settings[1] - trace.settings[0])
    assert sharing.charged_tokens(sharing.tables(result)) == want


def test_the_sentence_counts_runs_histories_and_tokens(result):
    charged = sum(sharing.charged_tokens(sharing.tables(result)).values())
    executed = {"decode_small": {"used": charged // 4}, "score": {"used": charged // 4}}
    text = sharing.sentence(dataclasses.replace(result, executed=executed))
    lines = (result.folder / "traces.jsonl").read_text().splitlines()
    runs = 5 * 2 * sum(len(spec.settings) for spec in fake_traces.POLICIES.values())
    assert text.startswith(f"{runs:,} runs have {len(lines):,} distinct histories.")
    assert text.endswith("2.0 times less.")
    assert sharing.sentence(dataclasses.replace(result, executed=None)) == ""
    served = {"score": {"used": 0}, "served": {"slots": 0, "used": 0, "calls": 1234}}
    assert sharing.sentence(dataclasses.replace(result, executed=served)).endswith(
        "none had to be computed (1,234 steps and judgements were known from earlier runs)."
    )
