"""Several hosts: two processes write what one writes, also resumed; what fails is said once."""

import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import HURRY
from test_commands import SMALL_ENGINE, contents, flags, folders  # noqa: F401
from tiny import tiny_engine, tiny_trio

from trim_jax import cli
from trim_jax.engine import hosts
from trim_jax.errors import ConfigError, DataError
from trim_jax.eval.traces import load_result
from trim_jax.policies.registry import make_policy
from trim_jax.policies.simple import Never, Threshold

ROOT = Path(__file__).parent.parent

# ---- Two processes ----


def start(arguments, out, count):
    """Processes of one command that have four devices between them; the leader is the first.

    Each device has the slots and rows of `SMALL_ENGINE`.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    xla = (f"{HURRY} --xla_force_host_platform_device_count={4 // count} "
           "--xla_cpu_collective_call_terminate_timeout_seconds=600")  # see test_engine_mesh.py
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"XLA_FLAGS": xla, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "trim_jax.cli", *arguments, f"--config.engine.hosts={count}",
               f"--config.out={out}", "--config.engine.mesh_data=4", "--config.engine.slots=32",
               "--config.engine.rows=16"]  # fmt: skip
    return [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                         env=env | {"JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": str(i)})
        for i in range(count)
    ]  # fmt: skip


def ended(processes):
    """Their exit statuses and what they said."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], said


def test_two_hosts_killed_and_resumed_write_what_one_writes(folders, tmp_path):  # noqa: F811
    # Eight requests a chunk: two for each shard, so both processes have some.
    arguments = ["sweep", *flags(folders), *SMALL_ENGINE, "--config.engine.chunk_problems=4",
                 "--config.data.limit=40", "--config.seeds=0,1",
                 "--config.sweep.validation=2", "--config.sweep.bootstrap=20",
                 "--config.sweep.thresholds=0.5", "--config.sweep.random=0.5",
                 "--config.sweep.oracle=false"]  # fmt: skip
    processes = start(arguments, tmp_path / "two", 2)
    chunks = tmp_path / "two" / "chunks"
    while not (chunks / "00001.jsonl").exists() and processes[0].poll() is None:
        time.sleep(0.01)
    processes[0].terminate()
    codes, said = ended(processes)
    assert codes[0] == -signal.SIGTERM, said[0]
    assert codes[1] not in (0, 2), said[1]  # JAX does not let it wait for ever
    kept = sorted(chunks.glob("*.jsonl"))
    assert 2 <= len(kept) < 10

    written = [path.stat().st_mtime_ns for path in kept]
    codes, said = ended(start(arguments, tmp_path / "two", 2))
    assert codes == [0, 0], said
    assert [path.stat().st_mtime_ns for path in kept] == written
    codes, said = ended(start(arguments, tmp_path / "one", 1))
    assert codes == [0], said
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    # How many processes there were is all they differ in: bit for bit the same solutions.
    names = {"config.json", "provenance.json", "summary.json", "report.html"}
    differing = {name for name in one if one[name] != two[name]}
    assert {name for name in differing if Path(name).name not in names} == set()
    assert len(one["traces.jsonl"].splitlines()) >= 160

    # Half of twelve problems are known from a run on one device.
    store, few = f"--config.store={tmp_path / 'steps'}", "--config.data.limit={}"
    alone = [*arguments, store, few.format(6), f"--config.out={tmp_path / 'alone'}",
             "--config.engine.mesh_data=1"]  # fmt: skip
    assert cli.main(alone) == 0
    codes, said = ended(start([*arguments, store, few.format(12)], tmp_path / "half", 2))
    assert codes == [0, 0], said
    work = [tokens_by_chunk(tmp_path / run) for run in ("half", "two")]
    assert work[0][0] == 0 < work[0][1] < work[1][1] and work[0][2] == work[1][2]
    want = {key: trace for key, trace in plain_traces(tmp_path / "two").items() if key[0] < 12}
    assert plain_traces(tmp_path / "half") == want


def tokens_by_chunk(folder):
    """The tokens that the models worked on, of each chunk of a result folder."""
    chunks = sorted((folder / "chunks").glob("*.json"))
    return [sum(row[1] for row in json.loads(path.read_text())["executed"]) for path in chunks]


def plain_traces(folder):
    """By problem, seed, policy and settings: actions, texts and charges of the traces."""
    result = load_result(folder)
    at = {problem.id: i for i, problem in enumerate(result.problems)}
    return {
        (at[t.problem_id], t.seed, t.policy, t.settings):
            (t.ledger, [(s.action, s.text, s.draft) for s in t.steps])
        for t in result.traces
    }  # fmt: skip


# ---- What is said, with threads for processes and a log for a machine ----


class Log:
    """Stands for a `Machine`, and writes down what it is asked."""

    made: list = []

    def __init__(self, config, params, mesh):
        self.asked = [config.policies]
        Log.made.append((threading.current_thread() is threading.main_thread(), weakref.ref(self)))

    def _asked(self, *what):
        self.asked.append(pickle.dumps(what))

    def begin(self, fresh):
        self._asked("begin", fresh)

    def call(self, *arguments):
        self._asked("call", *arguments)

    def load_weights(self, policy, weights):
        self._asked("load_weights", policy, weights)

    @staticmethod
    def of(follower):
        """Those of one side that are still there."""
        return [machine() for side, machine in Log.made if side == follower and machine()]


@pytest.fixture
def pair(monkeypatch):
    """A function that runs what a leader does, before a follower with the models of `load`."""
    tiny_trio()  # now, and not in two threads at once
    wires = {"told": queue.Queue(), True: queue.Queue(), False: queue.Queue()}

    def here():
        return threading.current_thread() is threading.main_thread()

    def broadcast(array):
        if not here():
            wires["told"].put(array)
            return array
        told = wires["told"].get(timeout=60)
        assert (told.shape, told.dtype) == (array.shape, array.dtype)
        return told

    def allgather(array):
        wires[here()].put(array)
        other = wires[not here()].get(timeout=60)
        return np.stack([other, array] if here() else [array, other])

    monkeypatch.setattr(hosts.multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", allgather)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    monkeypatch.setattr(hosts, "Machine", Log)
    monkeypatch.setattr(hosts.Led, "torn", False)
    monkeypatch.setattr(Log, "made", [])

    def run(lead, load=lambda: (tiny_trio().models, None, None)):
        def leading():
            with hosts.leading():
                return lead()

        before = signal.getsignal(signal.SIGINT)
        try:
            with ThreadPoolExecutor(1) as pool:
                led = pool.submit(leading)
                hosts.serve(load)
                return led.result(timeout=60)
        finally:
            signal.signal(signal.SIGINT, before)

    return run


def led(*policies):
    return hosts.Led(tiny_engine(policies=policies or (Threshold((0.2, 0.6)),)).loop, None, None)


def test_a_follower_does_what_the_leader_does_and_forgets_what_it_forgets(pair):
    def lead():
        first, second = led(), led(Never())
        first.begin(True)
        large = np.arange(hosts.LETTER, dtype=np.int32)  # more than goes at once
        first.call({"tokens": large, "score": np.float32([np.nan])}, large[:4], large[:2], False)
        second.begin(True)
        first.load_weights(0, {"dial": np.float32(0.3)})
        second.begin(False)
        third = led()  # its answer comes after all that was asked before
        assert len(Log.of(True)) == 3
        assert [one.asked for one in Log.of(True)] == [one.asked for one in Log.of(False)]
        del first, third
        second.begin(False)
        led()
        assert len(Log.of(True)) == 2 and Log.of(True)[0].asked == Log.of(False)[0].asked

    pair(lead)


def test_a_leader_that_fails_dismisses_its_followers(pair):
    def lead():
        led()
        raise DataError("a problem cannot be asked")

    with pytest.raises(DataError, match="cannot be asked"):
        pair(lead)


def test_a_follower_that_cannot_follow_says_why(pair):
    def load():
        raise DataError("no such folder")

    with pytest.raises(ConfigError, match="^host 1: no such folder$"):
        pair(led, load)
    small, large, prm = tiny_trio().models
    with pytest.raises(ConfigError, match="host 1: the models here are not those of host 0"):
        pair(led, lambda: ((large, small, prm), None, None))


def test_a_policy_that_cannot_be_sent_is_named(pair):
    class Mine(Never):
        name = "mine"

    with pytest.raises(ConfigError, match="policy mine cannot be sent to the other hosts"):
        pair(lambda: led(Never(), Mine()))


def test_a_module_of_the_users_own_is_found_as_the_leader_finds_it(monkeypatch, tmp_path):
    monkeypatch.setattr(hosts, "Machine", Log)
    (tmp_path / "own_policy.py").write_text((ROOT / "tests/example_policy.py").read_text())
    monkeypatch.chdir(tmp_path)
    config = tiny_engine(policies=(make_policy("own_policy:make_policy"),)).loop
    sent = pickle.dumps(config)
    del sys.modules["own_policy"]
    (made,) = hosts._made(sent, config.models, None, None).asked[0]
    assert made.full_name == "budgeted"
    del sys.modules["own_policy"]
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match="cannot read the policies: .*own_policy"):
        hosts._made(sent, config.models, None, None)


def test_ctrl_c_waits_for_the_end_of_a_message():
    done = []
    # A shell starts its background jobs with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            with hosts._message():
                signal.raise_signal(signal.SIGINT)
                done.append(1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done and not hosts.Led.torn


# ---- Bad input ----


@pytest.fixture
def processes(monkeypatch):
    """Sets how many processes JAX finds."""
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)

    def found(count):
        if count:
            initialize = lambda: None  # noqa: E731
            monkeypatch.setattr(jax, "process_count", lambda: count)
        else:
            def initialize():
                raise ValueError("coordinator_address should be defined.")
        monkeypatch.setattr(jax.distributed, "initialize", initialize)

    return found


@pytest.mark.parametrize("found,message", [
    (0, "engine.hosts=2: JAX does not find the other hosts here"),
    (1, "engine.hosts is 2, and JAX finds 1: set --config.engine.hosts=1"),
    (2, "engine.mesh_model must be the number of all their devices, 8; it is 4"),
])  # fmt: skip
def test_hosts_that_are_not_there_are_refused(processes, capsys, found, message):
    processes(found)
    arguments = ["solve", "x", "--config.engine.hosts=2", "--config.engine.mesh_data=4"]
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_hosts_that_nobody_asked_for_are_refused(processes, capsys):
    processes(4)
    assert cli.main(["solve", "x"]) == 2
    assert "engine.hosts is 1, and JAX finds 4" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["bench", "train-prm"])
def test_a_command_for_one_host_says_so(capsys, command):
    assert cli.main([command, "--config.engine.hosts=2"]) == 2
    assert f"engine.hosts is 2: {command} runs on one host" in capsys.readouterr().err
