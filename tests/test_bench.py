"""The benchmark measures what it says: same work in both programs, honest floor, real peaks."""

import contextlib
import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from trim_jax import api
from trim_jax.bench import floor, footprint, throughput
from trim_jax.bench.torch_baseline import TorchProcesses, TorchRouter
from trim_jax.commands import bench
from trim_jax.config import load_config
from trim_jax.engine import loop
from trim_jax.engine.engine import Engine, EngineConfig, Request
from trim_jax.engine.sampling import Sampling
from trim_jax.errors import TrimError
from trim_jax.models.hf import save_model
from trim_jax.models.qwen2 import ModelConfig, init_params
from trim_jax.policies.simple import Threshold
from trim_jax.tasks.data import load_problems
from trim_jax.tasks.tokenizer import ARITH_TOKENIZER
from trim_jax.xla import cores

GREEDY = Sampling(temperature=0)
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="the baseline runs on PyTorch: pip install '.[test]'",
)
needs_trio = pytest.mark.skipif(
    not all((api.SHIPPED / name / "config.json").exists() for name in ("small", "large", "prm")),
    reason="the shipped trio is not in trim_jax/assets",
)


@pytest.fixture(scope="module")
def random_trio(tmp_path_factory) -> api.Trio:
    """The random trio of the engine's tests, in model folders; it never writes control tokens."""
    folder, trio = tmp_path_factory.mktemp("trio"), tiny.tiny_trio()
    banned = [i for i, allowed in enumerate(trio.tables.allowed) if not allowed]
    params = [dict(p) for p in trio.params]
    for own in params[:2]:
        # transformers has no list of forbidden tokens here; the first channel is constant.
        head = own["lm_head"].at[:, jnp.asarray(banned)].set(0.0)
        own["lm_head"] = head.at[0, jnp.asarray(banned)].set(-50.0)
    folders = {}
    for name, config, own in zip(("small", "large", "prm"), trio.models, params):
        folders[name] = folder / name
        save_model(folders[name], config, own)
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.pad_token = "<|endoftext|>"
    return api.Trio(folders, trio.models, tuple(params), tokenizer, trio.tables, tokenizer)


def route_both(trio, asked, threshold, size, batch, sampling=GREEDY):
    """Outcomes of our engine and of the baseline, by problem."""
    engine = Engine(
        trio.models, trio.params, trio.tables, [Threshold((threshold,))], size, sampling, trio.mesh
    )
    ours = {s.request.problem_id: throughput.outcome(s) for s in engine.run(asked)}
    router = TorchRouter(trio, threshold, sampling, size)
    theirs = {o.problem_id: o for o in router.solve(asked, batch, seed=0)}
    return ours, theirs


@needs_torch
@pytest.mark.parametrize("threshold", [0.35, 0.65])
def test_baseline_writes_our_greedy_texts(random_trio, threshold):
    size = EngineConfig(
        slots=8, rows=4, tail_rows=4, max_context=128, max_steps=6, max_step_tokens=9,
        decode_chunk=8, extend_chunk=16,
    )  # fmt: skip
    random = np.random.default_rng(0)
    ids = lambda: tuple(random.integers(0, 40, random.integers(2, 30)).tolist())  # noqa: E731
    asked = [Request(f"p{i}", 0, ids(), ids()) for i in range(14)]
    ours, theirs = route_both(random_trio, asked, threshold, size, batch=5)
    assert ours == theirs
    # The comparison is only worth something if the texts meet every case.
    regenerated = [r for outcome in ours.values() for r in outcome.regenerated]
    lengths = {len(step) for outcome in ours.values() for step in outcome.steps}
    assert 0.1 < np.mean(regenerated) < 0.9
    assert 9 in lengths and len(lengths) > 4
    assert len({len(outcome.steps) for outcome in ours.values()}) > 2


@needs_torch
@needs_trio
def test_baseline_writes_our_greedy_texts_with_the_shipped_trio():
    trio = api.load_trio()
    config = load_config("bench", ["--config.bench.threshold=0.5"])
    problems = load_problems("arith", "validation", 12)
    size = EngineConfig(slots=12, rows=12, tail_rows=12, max_context=383, max_step_tokens=96)
    asked = throughput.requests(config, trio, problems, seed=0)
    ours, theirs = route_both(trio, asked, 0.5, size, batch=12)
    assert ours == theirs
    with contextlib.closing(TorchProcesses(trio, 0.5, GREEDY, size)) as router:
        assert ours == {o.problem_id: o for o in router.solve(asked, batch=8, seed=0)}


def test_floor_counts_useful_tokens_at_the_best_rate():
    best, past = [100.0, 50.0, 200.0, 10.0, 20.0], [60] * 5
    executed = np.array([[320, 200, 1], [0, 0, 0], [1000, 400, 2], [64, 30, 4], [128, 100, 8]])
    account = floor.account(executed, 20.0, best, past)
    assert account["floor_seconds"] == pytest.approx(2 + 0 + 2 + 3 + 5)
    assert account["share"] == pytest.approx(0.6)
    score = account["kinds"]["score"]
    assert score["padding_seconds"] == pytest.approx(3) and score["used_share"] == 0.4
    assert "60.0%" in floor.table(account)


def bench_config(folder, *overrides):
    names = ("small", "large", "prm")
    trio = [f"--config.trio.{name}={folder / name}" for name in names]
    return load_config("bench", [f"--config.out={folder / 'out'}", *trio, *overrides])


@pytest.fixture(scope="module")
def arith_folders(tmp_path_factory):
    """Model folders of a trio that reads arith's prompts and writes nonsense."""
    folder = tmp_path_factory.mktemp("arith")
    shape = ModelConfig(vocab=512, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16)
    for name, head in (("small", "lm"), ("large", "lm"), ("prm", "prm")):
        config = dataclasses.replace(shape, head=head)
        save_model(folder / name, config, init_params(config, 0), ARITH_TOKENIZER,
                   extra={"eos_token_id": 510})  # fmt: skip
    return folder


def test_bench_end_to_end(arith_folders, capsys):
    config = bench_config(
        arith_folders, "--config.bench.batches=2", "--config.bench.rounds=1",
        "--config.bench.repeats=2", "--config.engine.max_context=192", "--config.engine.slots=8",
        "--config.engine.rows=2", "--config.engine.max_steps=2", "--config.engine.max_step_tokens=8",
    )  # fmt: skip
    result = bench.run(config)
    assert json.loads((arith_folders / "out" / "bench.json").read_text()).keys() == result.keys()
    (measured,) = result["throughput"]
    assert measured["compilations"] == 0
    programs = {"trim_jax, 16 in flight", "trim_jax, 2 in flight"}
    if importlib.util.find_spec("torch") is not None:
        processes = f"{throughput.TORCH}, {cores()} processes"
        torch = {f"{name}{at_once}" for name in (throughput.TORCH, processes)
                 for at_once in ("", ", 16 at once")}  # fmt: skip
        programs |= torch
        speed = {name: entry["problems_per_second"] for name, entry in measured["programs"].items()}
        fastest = max(speed[name] for name in torch)
        lead = {name: pytest.approx(speed[name] / fastest) for name in speed.keys() - torch}
        assert measured["lead"] == lead
        assert measured["ratio"][throughput.TORCH] == 1
        ratio = speed["trim_jax, 16 in flight"] / speed[throughput.TORCH]
        assert measured["ratio"]["trim_jax, 16 in flight"] == pytest.approx(ratio)
    assert measured["programs"].keys() == programs
    assert all(len(entry["seconds"]) == 2 for entry in measured["programs"].values())
    # Of runs of milliseconds, on a busy machine, the share may be above 1; its parts are exact.
    account = measured["floor"]
    assert 0 < account["share"] == account["floor_seconds"] / account["wall_seconds"]
    assert all(kind["used"] <= kind["slots"] for kind in account["kinds"].values())
    memory = result["memory"]
    peaks = memory["peaks_mb"]
    assert memory["problems"] == 16 and len(peaks) == 8 and peaks == sorted(peaks)
    assert peaks[0] > 30 and peaks[-1] - peaks[1] < 30
    shared = result["sharing"]
    assert (shared["problems"], shared["settings"]) == (8, 21)
    assert 2 * 8 <= shared["histories"] < 8 * 21  # its ends never share a history
    assert len(shared["together"]) == 2 and {len(each) for each in shared["apart"]} == {2}
    tokens = shared["tokens"]
    assert tokens["apart"] > 3 * tokens["together"] > 0
    # With a store nothing is written twice, though a text is read again where the models go on.
    assert tokens["together"] <= tokens["kept"] < 0.6 * tokens["apart"]
    assert {len(each) for each in (*shared["kept"], shared["known"])} == {2}
    assert result["simulator"]["bare"]["best"] > 0 and "main_job" not in result
    printed = capsys.readouterr().out
    assert "routed floor" in printed and "compilations after warm-up: 0" in printed
    assert "million steps a second" in printed and "21 thresholds on 8 problems" in printed


@pytest.mark.parametrize("parts", [("simulator",), ()])  # none: as if all ran apart
def test_some_parts_alone(arith_folders, parts):
    config = bench_config(arith_folders, "--config.bench.repeats=1")
    config.bench.parts = parts
    wanted = {"config", "provenance", *parts}
    assert bench.run(config).keys() == wanted
    assert json.loads((Path(config.out) / "bench.json").read_text()).keys() == wanted


def test_compilations_are_counted():
    function = jax.jit(lambda x: 3 * x + 1)
    with throughput.compilations() as seen:
        function(jnp.ones(7))
        once = len(seen)
        function(jnp.zeros(7))
    assert once >= 1 and len(seen) == once
    function(jnp.ones(8))
    assert len(seen) == once  # no longer listening


def test_peak_memory_grows_with_an_array():
    before = footprint.peak_megabytes()
    del_me = np.ones(int(before) * (1 << 20) // 8 + (64 << 17))  # more than was ever resident
    assert footprint.peak_megabytes() >= before + 60
    assert del_me[-1] == 1


def test_command_is_measured_in_its_own_process(tmp_path):
    ballast = np.ones(300 << 17)  # 300 MB here must not count there
    file = tmp_path / "problems.jsonl"
    peaks = footprint.run_command(["data", "test", str(file), "--limit=3"], str(tmp_path))
    assert len(file.read_text().splitlines()) == 3
    assert peaks["seconds"] > 0
    assert 10 < peaks["peak_mb"] < footprint.peak_megabytes() and ballast[0] == 1


def test_failing_command_is_an_error(tmp_path):
    with pytest.raises(TrimError, match="status 2"):
        footprint.run_command(["data", "nosuchsplit", str(tmp_path / "x")], str(tmp_path))


def test_every_kind_of_work_has_a_model():
    assert sorted(floor.MODEL_OF) == list(range(len(loop.WORK)))
