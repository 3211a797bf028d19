"""Result folders: killed, full, locked, foreign, and belonging to another run."""

import contextlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from trim_jax import results
from trim_jax.errors import ResultError
from trim_jax.results import ResultFolder, atomic_write, dumps

CONFIG = {"out": "anywhere", "policy": {"threshold": 0.5}, "seeds": (0, 1)}
PROVENANCE = {"schema_version": 1, "commit": "a" * 40, "device": {"count": 1},
              "weights": {"small": {"model.safetensors": "b" * 64}}, "data": "c" * 64}


def config(threshold: float = 0.5, out: str = "anywhere") -> ConfigDict:
    return ConfigDict({**CONFIG, "out": out, "policy": {"threshold": threshold}})


def open_folder(path, threshold: float = 0.5, out: str = "anywhere", **provenance) -> ResultFolder:
    return ResultFolder.open_or_create(path, config(threshold, out), {**PROVENANCE, **provenance})


def files_of(folder: Path) -> dict[str, bytes]:
    """Content by relative path of everything that two runs of one config must share."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name != "timings.json"}


def test_folder_holds_what_was_written(tmp_path):
    with open_folder(tmp_path / "a" / "b", out="a/b") as folder:
        assert folder.done_chunks() == []
        folder.write_chunk(1, [{"x": 3}], extra={"ticks": 7})
        folder.write_chunk(0, [{"x": 1, "text": "ä\n"}, {"x": 2}])
        assert folder.done_chunks() == [0, 1]
        assert folder.chunk_extra(1) == {"ticks": 7}
        assert folder.chunk_extra(0) is None
        folder.finish(2)
        folder.write_json("summary.json", {"b": 1, "a": [0.1 + 0.2]})
        folder.write_file("frontier.svg", b"<svg/>")
        folder.write_file("report.html", "<p>ä")
    root = tmp_path / "a" / "b"
    assert (root / "traces.jsonl").read_text() == '{"x":1,"text":"ä\\n"}\n{"x":2}\n{"x":3}\n'
    assert (root / "summary.json").read_text() == '{\n  "a": [\n    0.3\n  ],\n  "b": 1\n}\n'
    assert (root / "report.html").read_text() == "<p>ä"
    assert json.loads((root / "provenance.json").read_text()) == PROVENANCE
    # The folder's own place is not part of what was asked.
    assert json.loads((root / "config.json").read_text()) == {"policy": {"threshold": 0.5},
                                                              "seeds": [0, 1]}


def test_chunks_are_concatenated_in_the_order_of_their_number(tmp_path):
    with open_folder(tmp_path) as folder:
        for index in reversed(range(12)):
            folder.write_chunk(index, [{"i": index}])
        folder.finish(12)
    lines = (tmp_path / "traces.jsonl").read_text().splitlines()
    assert [json.loads(line)["i"] for line in lines] == list(range(12))


def test_finish_refuses_a_gap_and_writes_nothing(tmp_path):
    with open_folder(tmp_path) as folder:
        folder.write_chunk(0, [{}])
        folder.write_chunk(2, [{}])
        with pytest.raises(ResultError, match="chunk 1 of 3 is missing"):
            folder.finish(3)
        with pytest.raises(ResultError, match="chunk 1 of 2 is missing"):
            folder.finish(2)
    assert not (tmp_path / "traces.jsonl").exists()


def test_floats_have_six_digits_and_numpy_is_understood():
    value = {"f": np.float32(0.1), "d": 1 / 3, "big": 1234567.0, "z": -0.0, "i": np.int64(12345678),
             "b": np.bool_(True), "a": np.array([[1.0, 2.00000001]]), "n": None, "s": "ü", "t": (1,)}
    assert json.loads(dumps(value)) == {
        "f": 0.1, "d": 0.333333, "big": 1234570.0, "z": 0.0, "i": 12345678, "b": True,
        "a": [[1.0, 2.0]], "n": None, "s": "ü", "t": [1]}
    assert math.copysign(1.0, json.loads(dumps(-0.0))) == 1.0
    assert json.loads(dumps(True)) is True


@pytest.mark.parametrize("bad", [math.nan, math.inf, np.float32("nan")])
def test_nan_is_refused_and_leaves_nothing(tmp_path, bad):
    with open_folder(tmp_path) as folder:
        before = files_of(tmp_path)
        with pytest.raises(ResultError, match="weights"):
            folder.write_chunk(0, [{"score": 0.5}, {"score": bad}])
        assert files_of(tmp_path) == before
        assert folder.done_chunks() == []


# ---- The folder of another run ----


def test_other_config_is_refused_with_the_fields_and_the_folder_untouched(tmp_path):
    open_folder(tmp_path).close()
    before = files_of(tmp_path)
    with pytest.raises(ResultError) as error:
        open_folder(tmp_path, threshold=0.4)
    assert "policy.threshold: 0.4 here, 0.5 in the folder" in str(error.value)
    assert str(tmp_path) in str(error.value) and "--config.out" in str(error.value)
    assert files_of(tmp_path) == before
    open_folder(tmp_path).close()  # the refusal has released the lock


def test_a_moved_folder_resumes(tmp_path):
    open_folder(tmp_path / "a", out="a").close()
    (tmp_path / "a").rename(tmp_path / "b")
    open_folder(tmp_path / "b", out="b").close()


@pytest.mark.parametrize("changed, line", [
    ({"weights": {"small": {"model.safetensors": "d" * 64}}},
     "weights.small.model.safetensors: \"dddddddddddd\" here, \"bbbbbbbbbbbb\" in the folder"),
    ({"data": "e" * 64}, "data: \"eeeeeeeeeeee\" here, \"cccccccccccc\" in the folder"),
    ({"schema_version": 2}, "schema_version: 2 here, 1 in the folder"),
])
def test_other_weights_or_data_are_refused(tmp_path, changed, line):
    open_folder(tmp_path).close()
    with pytest.raises(ResultError) as error:
        open_folder(tmp_path, **changed)
    assert line in str(error.value)


def test_resuming_with_other_code_or_device_is_recorded_once(tmp_path):
    open_folder(tmp_path).close()
    for _ in range(2):
        open_folder(tmp_path, commit="f" * 40).close()
        open_folder(tmp_path).close()
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance == {**PROVENANCE, "resumed_with": [{"commit": "f" * 40,
                                                          "device": {"count": 1}}]}


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ResultError, match="not a result folder.*thesis.tex"):
        open_folder(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "thesis.tex"]


def test_a_run_killed_before_its_config_was_saved_starts_again(tmp_path):
    (tmp_path / "chunks").mkdir()
    (tmp_path / "provenance.json").write_text("{}")
    (tmp_path / ".config.json.tmp").write_text('{"pol')
    with open_folder(tmp_path):
        assert json.loads((tmp_path / "provenance.json").read_text()) == PROVENANCE
    assert not (tmp_path / ".config.json.tmp").exists()


def test_a_broken_config_in_the_folder_is_named(tmp_path):
    open_folder(tmp_path).close()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ResultError, match="config.json"):
        open_folder(tmp_path)


# ---- Killed ----

WRITER = f"""
import sys
from trim_jax.results import ResultFolder

folder = ResultFolder.open_or_create(sys.argv[1], {CONFIG!r}, {PROVENANCE!r})
print("open", flush=True)
for index in range(10):
    if index not in folder.done_chunks():
        traces = ({{"index": index, "i": i, "text": "word " * 40}} for i in range(2000))
        folder.update_timings({{"chunks": {{str(index): {{"seconds": 0.1}}}}}})
        folder.write_chunk(index, traces, extra={{"ticks": index * index}})
ticks = sum(folder.chunk_extra(index)["ticks"] for index in range(10))
folder.write_json("executed.json", {{"ticks": ticks}})
folder.finish(10)
folder.write_json("summary.json", {{"n": 10}})
folder.close()
"""


def start_writer(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)],
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "open\n"
    return process


def test_killed_while_writing_and_resumed_gives_the_same_files(tmp_path):
    with start_writer(tmp_path / "whole") as process:
        assert process.wait() == 0
    whole = files_of(tmp_path / "whole")
    assert len(whole["traces.jsonl"].splitlines()) == 20_000

    delay, killed, half_written = random.Random(0), 0, 0
    for _ in range(100):
        with start_writer(tmp_path / "killed") as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delay.uniform(0.0, 0.04 + 0.005 * killed))
            process.kill()
            ended_by = process.wait()
        if ended_by == 0:
            break
        assert ended_by == -signal.SIGKILL
        killed += 1
        half_written += any((tmp_path / "killed").rglob(".*.tmp"))
    assert ended_by == 0 and killed >= 3 and half_written >= 1  # else the test has tested nothing
    assert files_of(tmp_path / "killed") == whole
    timings = json.loads((tmp_path / "killed" / "timings.json").read_text())
    assert sorted(timings["chunks"]) == [str(index) for index in range(10)]


def test_the_file_that_marks_a_chunk_as_done_is_written_last(tmp_path, monkeypatch):
    written = []
    write = results.atomic_write

    def note_and_write(path, pieces):
        written.append(path.name)
        write(path, pieces)

    monkeypatch.setattr(results, "atomic_write", note_and_write)
    with open_folder(tmp_path) as folder:
        folder.write_chunk(0, [{"x": 1}], {"executed": 1})
    assert written[-2:] == ["00000.json", "00000.jsonl"]


def test_half_written_files_are_ignored_and_removed(tmp_path):
    with open_folder(tmp_path) as folder:
        folder.write_chunk(0, [{"x": 1}])
    leftover = [tmp_path / "chunks" / ".00001.jsonl.tmp", tmp_path / ".traces.jsonl.tmp"]
    for path in leftover:
        path.write_text('{"x": 2}\n{"x"')
    # The extra of a chunk whose traces were never written is no sign of a done chunk.
    (tmp_path / "chunks" / "00001.json").write_text("{}")
    with open_folder(tmp_path) as folder:
        assert folder.done_chunks() == [0]
        assert not any(path.exists() for path in leftover)


def test_a_failure_while_traces_are_made_leaves_the_folder_as_it_was(tmp_path):
    def traces():
        yield {"x": 1}
        raise KeyboardInterrupt

    with open_folder(tmp_path) as folder:
        before = files_of(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            folder.write_chunk(0, traces())
        assert files_of(tmp_path) == before


def test_timings_are_merged_over_resumes(tmp_path):
    with open_folder(tmp_path) as folder:
        folder.update_timings({"chunks": {"0": {"seconds": 1.0}}, "device": "cpu"})
    with open_folder(tmp_path) as folder:
        folder.update_timings({"chunks": {"1": {"seconds": 2.0}}, "device": "tpu"})
    assert json.loads((tmp_path / "timings.json").read_text()) == {
        "chunks": {"0": {"seconds": 1.0}, "1": {"seconds": 2.0}}, "device": "tpu"}


# ---- Locked ----


def test_two_processes_cannot_write_one_folder(tmp_path):
    program = WRITER.replace('print("open", flush=True)',
                             'print("open", flush=True); import time; time.sleep(60)')
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)],
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(ResultError, match=f"{tmp_path} is being written by another process"):
            open_folder(tmp_path)
        process.kill()
        process.wait()
    open_folder(tmp_path).close()  # a lock dies with its process


def test_one_process_cannot_open_a_folder_twice(tmp_path):
    with open_folder(tmp_path):
        with pytest.raises(ResultError, match="is being written"):
            open_folder(tmp_path / ".")
        # The refused attempt must not have released the first lock either.
        refused = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)],
                                 capture_output=True, text=True)
        assert "is being written by another process" in refused.stderr


def test_a_worker_that_outlives_a_killed_run_does_not_keep_the_lock(tmp_path):
    program = WRITER.replace('print("open", flush=True)', """
import os, time
if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print("open", flush=True)
time.sleep(60)""")
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)],
                               stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout.readline() == "open\n"
        process.kill()
        process.wait()
        open_folder(tmp_path).close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the forked worker
        process.stdout.close()


# ---- Full or unwritable ----


def fill(folder: ResultFolder) -> None:
    """Writes chunks of about 90 kB until the folder refuses."""
    for index in range(100):
        folder.write_chunk(index, [{"i": i, "text": "x" * 80} for i in range(900)])


def check_nothing_lost_and_finish(path: Path, error: ResultError, make_room) -> None:
    """After `error`: the done chunks are whole, no debris is left, and with room it goes on."""
    assert f"cannot write {path}" in str(error) and "make room" in str(error)
    done = sorted((path / "chunks").iterdir())
    assert done and all(len(p.read_text().splitlines()) == 900 for p in done)
    assert not list(path.rglob(".*.tmp"))
    make_room()
    with open_folder(path) as folder:
        assert folder.done_chunks() == list(range(len(done)))
        folder.finish(len(done))
    assert len((path / "traces.jsonl").read_text().splitlines()) == 900 * len(done)


def test_full_disk_is_one_clear_error_and_nothing_is_lost(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount the small disk that this test fills")
    try:
        with open_folder(disk / "run") as folder, pytest.raises(ResultError, match="No space") as e:
            fill(folder)
        check_nothing_lost_and_finish(disk / "run", e.value, lambda: subprocess.run(
            ["mount", "-o", "remount,size=4m", str(disk)], check=True))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_size_limit_is_one_clear_error_and_nothing_is_lost(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    with open_folder(tmp_path) as folder:
        folder.write_chunk(0, [{"i": i, "text": "x" * 80} for i in range(900)])
        folder.write_chunk(1, [{"i": i, "text": "x" * 80} for i in range(900)])
        limit(120_000)
        try:
            with pytest.raises(ResultError, match="File too large") as e:
                folder.finish(2)
        finally:
            limit(soft)
    assert not (tmp_path / "traces.jsonl").exists()
    check_nothing_lost_and_finish(tmp_path, e.value, lambda: None)


def test_unwritable_folder_is_one_clear_error(tmp_path):
    if os.geteuid() == 0:
        folder, user = Path("/sys/kernel/trim_jax"), None  # not even root may write there
    else:
        folder, user = tmp_path / "run", tmp_path
        tmp_path.chmod(0o500)
    with pytest.raises(ResultError) as error:
        open_folder(folder)
    assert f"cannot write {folder}" in str(error.value) and "--config.out" in str(error.value)
    if user:
        tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_the_folder_is_one_clear_error(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(ResultError, match="cannot write .*run.*--config.out"):
        open_folder(tmp_path / "run")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    def pieces():
        yield b"new"
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ResultError, match="make room"):
        atomic_write(tmp_path / "file", pieces())
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    atomic_write(tmp_path / "file", [b"new", b"er"])
    assert (tmp_path / "file").read_bytes() == b"newer"


def test_memory_does_not_grow_with_the_size_of_the_traces(tmp_path):
    program = f"""
import resource
from trim_jax.results import ResultFolder
folder = ResultFolder.open_or_create({str(tmp_path)!r}, {CONFIG!r}, {PROVENANCE!r})
def write(index): folder.write_chunk(index, ({{"t": "x" * 999}} for _ in range(10_000)))
write(0)
folder.finish(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for index in range(8): write(index)
folder.finish(8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True,
                           text=True, timeout=120)
    assert (tmp_path / "traces.jsonl").stat().st_size > 75e6
    assert int(grown.stdout) < 10_000  # kB, of 80,000 written
