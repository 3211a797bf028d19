"""The commands as a user meets them, with a tiny random trio in real checkpoint folders."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import padded

import trim_jax
from trim_jax import cli
from trim_jax.api import check_prompts, load_trio, prompt_ids, route
from trim_jax.config import load_config
from trim_jax.engine.engine import EngineConfig
from trim_jax.errors import CheckpointError, ConfigError, DataError
from trim_jax.eval.traces import dump_traces, load_result, tables, traces_from_json
from trim_jax.models.hf import load_model, save_model
from trim_jax.models.qwen2 import ModelConfig, init_params
from trim_jax.policies.registry import make_policy
from trim_jax.policies.simple import Threshold
from trim_jax.tasks.data import Problem, load_problems
from trim_jax.tasks.tokenizer import ARITH_TOKENIZER

HERE = Path(__file__).parent
SIZE = EngineConfig(slots=8, rows=4, max_context=224, max_steps=3, max_step_tokens=6)
SMALL_ENGINE = ["--config.engine.slots=8", "--config.engine.rows=4",
                "--config.engine.max_context=224", "--config.engine.max_steps=3",
                "--config.engine.max_step_tokens=6", "--config.engine.chunk_problems=2"]  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Checkpoint folders of a random trio with the arith tokenizer."""
    root = tmp_path_factory.mktemp("trio")
    shapes = {"small": ("lm", 1, 0), "large": ("lm", 2, 1), "prm": ("prm", 1, 2)}
    for name, (head, layers, seed) in shapes.items():
        config = ModelConfig(512, 32, layers, 2, 1, 16, 48, head=head)
        params = init_params(config, seed)
        if head == "prm":  # scores that spread over (0, 1)
            params["score_w2"] = params["score_w2"] * 400
            params["score_w1"] = params["score_w1"] * 20
        save_model(root / name, config, params, ARITH_TOKENIZER, extra={"eos_token_id": 510})
    return root


@pytest.fixture(scope="session")
def trio(folders):
    return load_trio(folders / "small", folders / "large", folders / "prm")


def flags(folders):
    return [f"--config.trio.{name}={folders / name}" for name in ("small", "large", "prm")]


# ---- Python API and solve ----


def test_route_gives_one_valid_trace_per_problem_and_setting(trio):
    problems = load_problems("arith", "test", 3)
    policy = Threshold((0.0, 0.3, 0.6, 1.0))
    found = route(problems, policy, trio, seeds=(0, 1), engine=SIZE)
    for problem in problems:
        for seed in (0, 1):
            ranges = [t.settings for t in found if (t.problem_id, t.seed) == (problem.id, seed)]
            covered = sorted(i for lo, hi in ranges for i in range(lo, hi))
            assert covered == [0, 1, 2, 3]
    for trace in found:
        assert traces_from_json(json.loads(dump_traces([trace]))) == [trace]
        assert len(trace.steps) <= 3
    always = [t for t in found if t.settings == (3, 4)]
    assert {s.writer for t in always for s in t.steps} == {"large"}
    assert all(t.ledger.small.calls == t.ledger.prm.calls == 0 for t in always)


def test_solve_shows_writer_score_and_answer(folders, capsys):
    text = load_problems("arith", "test", 1)[0].problem
    assert cli.main(["solve", text, *flags(folders), *SMALL_ENGINE[:-1]]) == 0
    shown = capsys.readouterr().out
    assert "answer" in shown and "tokens by the large model" in shown
    assert len([line for line in shown.splitlines() if line.startswith(("small", "large"))]) >= 3


def test_a_policy_from_outside_the_repository(trio, monkeypatch):
    monkeypatch.chdir(HERE)
    policy = make_policy("example_policy:make_policy")
    found = route(load_problems("arith", "test", 4), policy, trio, engine=SIZE)
    by_setting = {i: [t for t in found if t.settings[0] <= i < t.settings[1]] for i in (0, 1)}
    spent = {i: sum(s.action == "regenerate" for t in ts for s in t.steps)
             for i, ts in by_setting.items()}
    assert 0 < spent[1] and spent[0] <= spent[1]
    assert max(sum(s.action == "regenerate" for s in t.steps) for t in found) <= 2


# ---- sweep ----


def sweep_arguments(folders, out):
    return ["sweep", *flags(folders), *SMALL_ENGINE, f"--config.out={out}", "--config.data.limit=6",
            "--config.sweep.validation=2", "--config.seeds=0,1", "--config.sweep.bootstrap=20",
            "--config.sweep.thresholds=0,0.5,1", "--config.sweep.random=0,0.5,1"]  # fmt: skip


def test_a_collection_holds_both_models_steps_behind_every_text_of_the_small_one(folders, tmp_path):
    arguments = ["collect", *flags(folders), *SMALL_ENGINE, f"--config.out={tmp_path / 'out'}",
                 f"--config.store={tmp_path / 'steps'}", "--config.data.limit=3", "--config.collect.detours=3", "--config.sweep.bootstrap=20",
                 "--config.sweep.thresholds=0,1", "--config.sweep.random=0.5"]  # fmt: skip
    assert cli.main(arguments) == 0
    result = load_result(tmp_path / "out")
    assert set(result.policies) == {"thr", "random", "detour"}
    for problem in result.problems:
        mine = [t for t in result.traces if t.problem_id == problem.id]
        (alone,) = [t for t in mine if t.policy == "thr" and t.settings[0] == 0]
        detours = [t for t in mine if t.policy == "detour"]
        for i, step in enumerate(alone.steps):
            (own,) = [t for t in detours if t.settings[0] <= i < t.settings[1]]
            assert [s.text for s in own.steps[:i]] == [s.text for s in alone.steps[:i]]
            assert own.steps[i].writer == "large" and own.steps[i].draft == step.text


def in_process_of_its_own(arguments):
    code = "import sys; from trim_jax.cli import main; sys.exit(main())"
    env = {**os.environ,
           "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=env,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in ("timings.json", ".lock")}


def test_a_sweep_killed_and_resumed_ends_with_the_same_files(folders, tmp_path):
    whole, killed = tmp_path / "a" / "run", tmp_path / "b" / "run"
    process = in_process_of_its_own(sweep_arguments(folders, whole))
    assert process.wait(600) == 0, process.stderr.read()

    process = in_process_of_its_own(sweep_arguments(folders, killed))
    begun = time.monotonic()
    while not (killed / "chunks" / "00000.jsonl").exists() and time.monotonic() < begun + 600:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "traces.jsonl").exists()

    process = in_process_of_its_own(sweep_arguments(folders, killed))
    assert process.wait(600) == 0, process.stderr.read()
    here, there = contents(killed), contents(whole)
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []

    result = load_result(whole)
    found = tables(result)
    assert set(found) == {"thr", "random", "oracle"}
    assert found["thr"].correct.shape == (3, 6, 2)
    assert result.validation is not None and len(result.validation.problems) == 2
    # k = 1 is strong-only, p = 1 as well: the same texts, so the same cost.
    np.testing.assert_array_equal(found["thr"].strong_tokens[2], found["random"].strong_tokens[2])
    np.testing.assert_array_equal(found["thr"].strong_tokens[0], 0)


def test_a_folder_of_another_config_is_refused_before_any_model_runs(folders, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    config = json.loads(json.dumps(load_config("sweep").to_dict()))
    config.pop("out")
    (out / "config.json").write_text(json.dumps(config))
    assert cli.main(sweep_arguments(folders, out)) == 2
    message = capsys.readouterr().err
    assert "sweep.bootstrap: 20 here, 2000 in the folder" in message


# ---- bad input ----


def test_unknown_policy_and_bad_threshold_are_named(folders, capsys):
    assert cli.main(["solve", "x", "--config.policy=tr", *flags(folders)]) == 2
    assert "did you mean 'thr'" in capsys.readouterr().err
    assert cli.main(["solve", "x", "--config.policy.threshold=1.5", *flags(folders)]) == 2
    assert "policy.threshold" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"k must be in \[0, 1\], it is 1.5"):
        Threshold((1.5,))
    with pytest.raises(ConfigError, match="no_such_module"):
        make_policy("no_such_module:make_policy")
    with pytest.raises(ConfigError, match="not a trim_jax Policy"):
        make_policy("builtins:dict")


def test_models_in_the_wrong_place_are_refused(folders):
    with pytest.raises(CheckpointError, match="trio.prm must be a process reward model"):
        load_trio(folders / "small", folders / "large", folders / "large")
    with pytest.raises(CheckpointError, match="nowhere"):
        load_trio(folders / "nowhere", folders / "large", folders / "prm")


def test_another_tokenizer_is_refused(folders, tmp_path):
    config, params = load_model(folders / "large")
    save_model(tmp_path / "large", config, params, folders / "large")
    path = tmp_path / "large" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.get)[300:302]
    vocabulary[names[0]], vocabulary[names[1]] = vocabulary[names[1]], vocabulary[names[0]]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="small.*large|large.*small"):
        load_trio(folders / "small", tmp_path / "large", folders / "prm")


def with_control_token(folder, old, new):
    """Rename a control token of a checkpoint folder."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def like_qwen(folders, trio, tmp_path_factory):
    """The same trio as Qwen2.5 comes: the step token is a control token of the PRM's own, whose id
    has another meaning to the others, and the large model's vocabulary is padded further."""
    root = tmp_path_factory.mktemp("like_qwen")
    for name, config, params in zip(("small", "large", "prm"), trio.models, trio.params):
        if name == "large":
            config = dataclasses.replace(config, vocab=config.vocab + 3)
            params = padded(params, 3)
        save_model(root / name, config, params, folders / name, extra={"eos_token_id": 510})
        if name != "prm":
            with_control_token(root / name, "<extra_0>", "<|quad_end|>")
    return root


def test_a_trio_with_vocabularies_like_those_of_qwen_solves_the_same(trio, like_qwen):
    other = load_trio(*(like_qwen / name for name in ("small", "large", "prm")))
    assert [m.vocab for m in other.models] == [512, 515, 512]
    problems, policy = load_problems("arith", "test", 3), Threshold((0.0, 0.3, 0.6, 1.0))
    found, expected = (route(problems, policy, own, engine=SIZE) for own in (other, trio))
    assert found == expected
    assert {"accept", "regenerate"} <= {step.action for trace in found for step in trace.steps}


def test_the_control_tokens_of_the_prm_may_not_be_in_a_problem(like_qwen):
    trio = load_trio(*(like_qwen / name for name in ("small", "large", "prm")))
    for token in ("<extra_0>", "<|quad_end|>"):
        problem = Problem("spelled", f"1 + {token}", "", "1", None, "x")
        with pytest.raises(DataError, match=r"'spelled' contains"):
            route([problem], "thr", trio, engine=SIZE)


def test_language_models_with_other_control_tokens_are_refused(like_qwen, folders):
    with pytest.raises(CheckpointError, match="token 511"):
        load_trio(like_qwen / "small", folders / "large", folders / "prm")


def test_a_prm_without_a_step_token_is_refused(like_qwen, folders, tmp_path):
    shutil.copytree(folders / "prm", tmp_path / "prm")
    with_control_token(tmp_path / "prm", "<extra_0>", "<|quad_end|>")
    with pytest.raises(CheckpointError, match="PRM has no token <extra_0>"):
        load_trio(like_qwen / "small", like_qwen / "large", tmp_path / "prm")


def test_a_system_turn_that_the_prm_has_no_room_for_is_refused_before_anything_runs(trio):
    problems = load_problems("arith", "test", 2)
    with pytest.raises(DataError, match="(?s)2 problem.*data.prm_system"):
        route(problems, "thr", trio, prm_system="word " * 40, engine=SIZE)


def test_nan_weights_are_refused(folders, tmp_path):
    from safetensors.numpy import load_file, save_file

    config, params = load_model(folders / "small")
    save_model(tmp_path / "small", config, params, folders / "small")
    (path,) = (tmp_path / "small").glob("*.safetensors")
    tensors = {name: np.array(value) for name, value in load_file(path).items()}
    name = next(n for n in tensors if n.endswith("q_proj.weight"))
    tensors[name][0, 0] = np.nan
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="NaN"):
        load_trio(tmp_path / "small", folders / "large", folders / "prm")


def test_problems_that_do_not_fit_are_named_before_anything_runs(trio, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"id": "long", "problem": "word " * 400, "answer": "1"}) + "\n")
    with pytest.raises(DataError, match="'long'"):
        route(load_problems(str(path)), "thr", trio, engine=SIZE)


def test_problems_that_cannot_be_asked_are_named_together(trio):
    problems = [
        Problem("fine", "2+2?", "", "4", None, "x"),
        Problem("long", "x " * 300, "", "4", None, "x"),
        Problem("token", "<extra_0>", "", "4", None, "x"),
        Problem("named", "2+2?", "Two and two.\n\n\\boxed{4}", "4", None, "arith"),
    ]
    check_prompts(trio, problems[:1], SIZE)
    with pytest.raises(DataError) as error:
        check_prompts(trio, problems, SIZE)
    message = str(error.value)
    assert "3 problem(s)" in message and "'long': its prompt has 6" in message
    assert "'token'" in message and "'named' says that it comes from arith" in message
    length = len(prompt_ids(trio, problems[0])[0])
    check_prompts(trio, problems[:1], dataclasses.replace(SIZE, max_context=length + 2))
    with pytest.raises(DataError, match="'fine'.*engine.max_context"):
        check_prompts(trio, problems[:1], dataclasses.replace(SIZE, max_context=length + 1))


def test_errors_leave_no_traceback(capsys):
    assert cli.main(["sweep", "--config.sweep.treshold=0.4"]) == 2
    assert capsys.readouterr().err.startswith("trim-jax: unknown field --config.sweep.treshold")
    assert cli.main(["solve"]) == 2
    assert cli.main(["report", "/nowhere/at/all"]) == 2
    assert cli.main(["report", "/nowhere/at/all", "--config.out=x"]) == 2
    assert "report has no setting --config.out=x" in capsys.readouterr().err
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["sweep", "study", "budget", "recorded", "solve", "train-lm", "train-prm", "bench"]
)
def test_help_names_every_setting_and_loads_no_jax(command):
    code = (f"import sys; from trim_jax.cli import main; main([{command!r}, '--help']); "
            "assert 'jax' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(HERE.parent)})
    assert done.returncode == 0, done.stderr
    assert "--config." in done.stdout


def test_data_writes_a_split_that_reads_back(tmp_path):
    file = tmp_path / "hard.jsonl"
    assert cli.main(["data", "hard", str(file), "--limit", "5"]) == 0
    assert load_problems(str(file)) == load_problems("arith", "hard", 5)


def test_public_names_exist():
    for name in trim_jax.__all__:
        assert getattr(trim_jax, name) is not None
