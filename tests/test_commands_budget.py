"""`trim-jax budget`: what it meets, what it writes, resuming, and errors that help."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_commands import SIZE, SMALL_ENGINE, contents, flags, folders, trio  # noqa: F401

from trim_jax import cli
from trim_jax.api import route
from trim_jax.commands import budget
from trim_jax.errors import ConfigError
from trim_jax.eval.traces import load_result, read_traces
from trim_jax.policies.budget import DualPrice, follow
from trim_jax.policies.features import Features
from trim_jax.policies.learned import Agg
from trim_jax.policies.neighbours import Glimp
from trim_jax.policies.saved import save_policy
from trim_jax.policies.simple import Never, Random, Threshold
from trim_jax.results import ResultFolder
from trim_jax.tasks.data import load_problems

PROBLEMS = 16


def arguments(folders, out, *budgets):  # noqa: F811
    return ["budget", *flags(folders), *SMALL_ENGINE, f"--config.out={out}", *budgets,
            f"--config.data.limit={PROBLEMS}", "--config.policy=random"]  # fmt: skip


@pytest.fixture(scope="module")
def done(folders, tmp_path_factory):  # noqa: F811
    """An average of 5 tokens, from a start that spends about 9, in chunks of two problems."""
    out = tmp_path_factory.mktemp("budget") / "run"
    assert cli.main(arguments(folders, out, "--config.budget.average=5")) == 0
    return out


def test_the_dial_follows_what_the_chunks_spent(done, trio):  # noqa: F811
    found = json.loads((done / "budget.json").read_text())
    price, dials, written = DualPrice(0.5, 0.01, 1.0, 5.0, PROBLEMS), [], []
    for i, step in enumerate(found["path"]):
        dials.append(price.dial)
        written.append(list(read_traces(done / "chunks" / f"{i:05d}.jsonl")))
        assert step["dial"] == pytest.approx(price.dial, rel=1e-5)
        assert step["spent"] == sum(t.strong_tokens for t in written[-1])
        assert step["solutions"] == len(written[-1]) == 2
        price = follow(price, 2, step["spent"])
    assert len(dials) == PROBLEMS // 2
    assert found["error"] == pytest.approx(price.spent / PROBLEMS / 5 - 1, abs=1e-5)
    # The dial was at work: the chunk at the lowest holds the solutions of random routing there.
    at = int(np.argmin(dials))
    problems = load_problems("arith", "test", PROBLEMS)[2 * at : 2 * at + 2]
    again = route(problems, Random((dials[at], 0.5)), trio, engine=SIZE)
    assert [t.steps for t in again if t.settings[0] == 0] == [t.steps for t in written[at]]
    assert [t.steps for t in again if t.settings[1] == 2] != [t.steps for t in written[at]]


def test_what_is_written_and_printed(done, folders, capsys):  # noqa: F811
    assert {"config.json", "provenance.json", "traces.jsonl", "policies.json", "budget.json",
            "table.md", "path.png", "path.svg"} <= {p.name for p in done.iterdir()}  # fmt: skip
    (spec,) = load_result(done).policies.values()
    assert (spec.name, spec.parameter, spec.settings) == ("random-steered", None, (None,))
    before = contents(done)
    assert cli.main(arguments(folders, done, "--config.budget.average=5")) == 0
    assert contents(done) == before
    printed = capsys.readouterr().out
    found = json.loads((done / "budget.json").read_text())
    assert f"missed by {100 * found['error']:+.1f} %, in 8 chunks" in printed
    assert "About 50 chunks are wanted" in printed and (done / "table.md").read_text() in printed


def test_a_run_that_was_stopped_goes_on_to_the_same_files(
    done, folders, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    write = ResultFolder.write_chunk

    def stop(self, index, *rest):
        if index == 3:  # solved but not written
            raise KeyboardInterrupt
        write(self, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ResultFolder, "write_chunk", stop)
        assert cli.main(arguments(folders, tmp_path / "run", "--config.budget.average=5")) == 130
    assert not (tmp_path / "run" / "traces.jsonl").exists()
    assert cli.main(arguments(folders, tmp_path / "run", "--config.budget.average=5")) == 0
    here, there = contents(tmp_path / "run"), contents(done)
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []


def test_a_run_goes_on_with_the_policy_that_it_began_with(folders, tmp_path, capsys):  # noqa: F811
    trained = save_agg(tmp_path / "agg", 0)
    given = [*arguments(folders, tmp_path / "run", "--config.budget.average=5"),
             f"--config.policy={trained}"]  # fmt: skip
    assert cli.main(given) == 0
    assert cli.main(given) == 0
    save_agg(tmp_path / "agg", 1)
    assert cli.main(given) == 2
    assert "weights.policy.content" in capsys.readouterr().err


def save_agg(folder, seed):
    policy = Agg((20.0, 60.0), features=Features(price=True))
    weights = jax.tree.map(lambda x: x[None], policy.init_weights(jax.random.key(seed)))
    save_policy(folder, dataclasses.replace(policy, weights=weights))
    return folder


def test_a_cap_holds_for_every_solution_and_beside_an_average(folders, tmp_path):  # noqa: F811
    out = tmp_path / "cap"
    assert cli.main([*arguments(folders, out, "--config.budget.cap=9"),
                     "--config.policy.p=1"]) == 0  # fmt: skip
    spent = np.array([t.strong_tokens for t in load_result(out).traces])
    found = json.loads((out / "budget.json").read_text())
    assert 0 < spent.max() == found["settings"][0]["most"] <= 9
    assert found["error"] is None and found["policy"] == "random-cap9"
    assert found["settings"][0]["value"] == 1 and not (out / "path.png").exists()

    out = tmp_path / "both"
    both = ("--config.budget.cap=9", "--config.budget.average=4")
    assert cli.main([*arguments(folders, out, *both), "--config.data.limit=4"]) == 0
    found = json.loads((out / "budget.json").read_text())
    assert found["policy"] == "random-cap9-steered" and found["settings"][0]["most"] <= 9


def test_where_a_dial_begins_and_ends():
    assert budget.start(Threshold((0.5,)), 7.0) == DualPrice(0.5, 0.01, 1.0, 7.0, 0)
    assert budget.start(Threshold((0.0,)), 7.0).dial == 0.01
    assert budget.start(Random((0.1, 0.4)), 7.0) == DualPrice(0.2, 0.1, 0.4, 7.0, 0)
    with pytest.raises(ConfigError, match="policy never has no dial"):
        budget.start(Never(), 7.0)
    with pytest.raises(ConfigError, match="glimp spends less the higher its dial"):
        budget.start(Glimp((0.1, 1.0)), 7.0)


def test_budgets_that_cannot_be(folders, tmp_path, capsys):  # noqa: F811
    for budgets, message in [
        ((), "give --config.budget.average"),
        (("--config.budget.average=0",), "give --config.budget.average"),
        (("--config.budget.average=0", "--config.budget.cap=9"), "give --config.budget.average"),
        (("--config.budget.cap=5",), "a cap of 5 tokens has no room for a step of up to 6"),
        (("--config.budget.average=-1",), "--config.budget.average=-1.0: must be at least 0.0"),
    ]:
        assert cli.main(arguments(folders, tmp_path / "run", *budgets)) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
