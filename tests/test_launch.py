"""The launch scripts, against a `gcloud` that records its arguments and plays one worker.

The worker is a folder, its home: what is sent by ssh really runs there, what is copied really lies
there. Only the installation of packages is replaced, by a `uv` that leaves a small `trim-jax`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))

GCLOUD = f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys
play = pathlib.Path(os.environ["PLAY"])
with open(play / "calls.jsonl", "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
group, verb, *rest = sys.argv[3:]
flags = dict(a[2:].partition("=")[::2] for a in rest if a.startswith("--"))
plain = [a for a in rest if not a.startswith("--")]
entries = play / group
worker = play / "worker"
if (play / "broken").exists():
    sys.exit("ERROR: (gcloud) you do not have permission")
if verb == "list":  # one state a line: the next call gets the next one, the last one stays
    states = entries.read_text().split() if entries.exists() else []
    print("other-tpu\\tREADY", *(f"trim-jax\\t{{s}}" for s in states[:1] if s != "none"), sep="\\n")
    entries.write_text(" ".join(states[1:] or states))
elif verb == "create":
    (play / "tpu-vm").write_text("READY")
elif verb == "delete":
    (play / "tpu-vm").write_text("")
    (play / "queued-resources").write_text("")
elif verb == "ssh":
    command = " ".join(flags["command"].split(" "))
    home = {{**os.environ, "HOME": worker}}
    sys.exit(subprocess.call(["bash", "-c", command], cwd=worker, env=home))
elif verb == "scp":
    source, target = (a.replace("trim-jax:", f"{{worker}}/") for a in plain)
    failed = subprocess.call(["cp", "-r", source, target])
    if (play / "cut off").exists():
        for file in filter(pathlib.Path.is_file, pathlib.Path(target).rglob("*")):
            file.write_text("")
        failed = 1
    sys.exit(failed)
"""

UV = """#!/bin/bash
if [[ $1 == venv ]]; then
    mkdir -p .venv/bin
    printf '#!/bin/bash\\necho "ready: 8 x TPU"\\n' >.venv/bin/python
    cp "$PLAY/trim-jax" .venv/bin/trim-jax
    chmod +x .venv/bin/*
fi
"""

# The metadata server's list of workers: one, and no list, unless a test has written it.
CURL = """#!/bin/bash
cat "$PLAY/endpoints" 2>/dev/null || exit 22
"""

# Leaves its arguments and the commit it runs from, and goes on until it is told to end.
TRIM_JAX = """#!/bin/bash
mkdir -p results/run/chunks
printf '%s\\n' "$@" >results/run/arguments
git rev-parse HEAD >results/run/commit
until [[ -e $PLAY/end ]]; do /bin/sleep 0.1; done
echo "all done"
"""


class Play:
    """A checkout with the launch scripts, and what `gcloud` was asked."""

    def __init__(self, folder: Path):
        self.folder, self.checkout, self.worker = folder, folder / "checkout", folder / "worker"
        self.worker.mkdir()
        for name, text in {"gcloud": GCLOUD, "uv": UV, "curl": CURL,
                           "sleep": "#!/bin/sh\n"}.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        (folder / "trim-jax").write_text(TRIM_JAX)
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.checkout, check=True, text=True,
                              capture_output=True)
        return done.stdout.strip()

    def tpu(self, *arguments: str, code: int = 0, answer: str = "", **settings: str) -> str:
        """What `launch/tpu.sh` prints, given that it ends with `code`."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = {"PATH": path, "HOME": str(self.folder), "PLAY": str(self.folder), "ZONE": "z1"}
        done = subprocess.run([self.checkout / "launch/tpu.sh", *arguments], cwd="/", text=True,
                              env=env | settings, input=answer, timeout=60, capture_output=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def calls(self) -> list[str]:
        """What `gcloud compute tpus` was asked since the last time, without the zone."""
        path = self.folder / "calls.jsonl"
        if not path.exists():
            return []
        found = [json.loads(line) for line in path.read_text().splitlines()]
        path.unlink()
        assert all(call[:2] == ["compute", "tpus"] and "--zone=z1" in call for call in found)
        return [" ".join(a for a in call[2:] if a != "--zone=z1") for call in found]

    def changes(self) -> list[str]:
        """The calls that do something, by their first lines."""
        return [call.split("\n")[0] for call in self.calls() if " list " not in call]


@pytest.fixture
def play(tmp_path):
    yield Play(tmp_path)
    (tmp_path / "end").touch()  # a run that a failed test has left


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert [line for line in script.read_text().splitlines() if len(line) > 100] == []
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", script], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


# ---- The machine ----

ON_DEMAND = ("tpu-vm create trim-jax --accelerator-type=v5litepod-8 "
             "--version=v2-alpha-tpuv5-lite")
QUEUED = ("queued-resources create trim-jax --node-id=trim-jax --accelerator-type=v6e-4 "
          "--runtime-version=v2-alpha-tpuv6e --spot --project=p1")


def test_create_asks_what_is_there_and_creates_it_once(play):
    assert "trim-jax is ready" in play.tpu("create")
    lists = ["tpu-vm list --format=value(name.basename(),state)",
             "queued-resources list --format=value(name.basename(),state.state)"]
    assert play.calls() == [*lists, ON_DEMAND, lists[0]]
    play.tpu("create")
    assert play.calls() == lists[:1]


def test_create_in_the_queue_with_the_settings_of_the_environment(play):
    settings = {"SPOT": "1", "QUEUED": "1", "PROJECT_ID": "p1", "ACCELERATOR_TYPE": "v6e-4"}
    play.tpu("create", **settings)
    assert play.changes() == [QUEUED]
    assert "--version=mine" in play.tpu("--dry-run", "create", RUNTIME_VERSION="mine")


def test_create_waits_for_what_is_under_way(play):
    (play.folder / "tpu-vm").write_text("none CREATING READY")
    (play.folder / "queued-resources").write_text("WAITING_FOR_RESOURCES")
    printed = play.tpu("create")
    assert "trim-jax is WAITING_FOR_RESOURCES; waiting" in printed
    assert "trim-jax is CREATING; waiting" in printed
    assert play.changes() == []


@pytest.mark.parametrize("where,state", [
    ("tpu-vm", "PREEMPTED"), ("queued-resources", "SUSPENDED"),
])  # fmt: skip
def test_create_replaces_what_was_preempted(play, where, state):
    (play.folder / where).write_text(state)
    assert f"trim-jax is {state}: its machine and disk are gone" in play.tpu("create")
    force = " --force" if where == "queued-resources" else ""
    assert play.changes() == [f"{where} delete trim-jax{force} --quiet", ON_DEMAND]


def test_create_leaves_a_stopped_machine_alone(play):
    (play.folder / "tpu-vm").write_text("STOPPED")
    assert "trim-jax is STOPPED: delete it" in play.tpu("create", code=2)
    assert play.changes() == []


def test_an_accelerator_type_of_another_form_is_refused(play):
    printed = play.tpu("create", code=2, ACCELERATOR_TYPE="huge")
    assert "ACCELERATOR_TYPE=huge is not of the form" in printed
    assert play.calls() == []


def test_delete_asks_first(play):
    (play.folder / "tpu-vm").write_text("READY")
    for answer in ("", "n\n"):
        assert "was not deleted" in play.tpu("delete", code=2, answer=answer)
    assert play.changes() == []
    play.tpu("delete", answer="y\n")
    assert play.changes() == ["tpu-vm delete trim-jax --quiet"]
    (play.folder / "tpu-vm").write_text("READY")
    (play.folder / "queued-resources").write_text("ACTIVE")
    play.tpu("delete", "--yes")
    assert play.changes() == ["queued-resources delete trim-jax --force --quiet"]
    assert "there is no trim-jax in z1" in play.tpu("delete", "--yes")
    assert play.changes() == []


@pytest.mark.parametrize("command", [["create"], ["delete", "--yes"]])
def test_failure_of_gcloud_is_not_taken_for_an_absent_machine(play, command):
    (play.folder / "broken").touch()
    printed = play.tpu(*command, code=1)
    assert "you do not have permission" in printed and "there is no" not in printed
    assert len(play.calls()) == 1


# ---- A run ----

def wait_for(path: Path) -> str:
    for _ in range(200):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_setup_run_log_fetch(play):
    (play.checkout / "not committed").touch()
    printed = play.tpu("setup")
    assert "uncommitted changes stay here" in printed and "ready: 8 x TPU" in printed
    scp, ssh = play.changes()
    assert scp == "tpu-vm scp .git/trim_jax.bundle trim-jax:trim_jax.bundle --worker=all"
    assert ssh.startswith("tpu-vm ssh trim-jax --worker=all --command=set -euo pipefail")
    assert not (play.worker / "trim_jax/not committed").exists()
    assert not (play.checkout / ".git/trim_jax.bundle").exists()

    words = ["sweep", "--config.data.instruction=It's $HOME;  \"two\"  spaces", ""]
    assert "launch/tpu.sh log follows it" in play.tpu("run", *words)
    results = play.worker / "trim_jax/results/run"
    assert wait_for(results / "commit").strip() == play.git("rev-parse", "HEAD")
    assert (results / "arguments").read_text().split("\n") == [*words, ""]
    # It goes on without us, alone, and nothing is installed under it.
    assert "a run is under way" in play.tpu("run", "sweep", code=1)
    assert "a run is under way" in play.tpu("setup", code=1)

    (play.folder / "end").touch()
    play.calls()
    printed = play.tpu("log")
    assert "all done" in printed and "== ended with status 0" in printed
    assert "--worker=0" in play.calls()[0]

    play.tpu("fetch", "results/run/")
    copied = "tpu-vm scp trim-jax:trim_jax/results/run results/.fetched/ --recurse --worker=0"
    assert play.calls() == [copied]
    fetched = play.checkout / "results/run"
    assert (fetched / "commit").read_text() == (results / "commit").read_text()
    play.tpu("fetch", "results/run")  # onto what was fetched before, not into it
    assert not (fetched / "run").exists() and not (play.checkout / "results/.fetched").exists()
    # A copy that is cut off leaves what was there as it was.
    (results / "commit").write_text("newer")
    (play.folder / "cut off").touch()
    play.tpu("fetch", "results/run", code=1)
    assert (fetched / "commit").read_text() != "newer"
    (play.folder / "cut off").unlink()
    play.tpu("fetch", "results/run")
    assert (fetched / "commit").read_text() == "newer"


@pytest.mark.parametrize("given,arguments", [
    (["sweep"], ["sweep", "--config.engine.hosts=4"]),
    (["sweep", "--config.engine.hosts=2"], ["sweep", "--config.engine.hosts=2"]),
    (["report", "results/run"], ["report", "results/run"]),  # routes nothing
    (["train-lm"], None),
])  # fmt: skip
def test_on_a_slice_of_several_hosts_each_is_told_how_many_there_are(play, given, arguments):
    (play.folder / "endpoints").write_text("10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4")
    play.tpu("create", ACCELERATOR_TYPE="v5p-32")
    assert play.changes() == ["tpu-vm create trim-jax --accelerator-type=v5p-32 "
                              "--version=v2-alpha-tpuv5"]
    play.tpu("setup")
    if arguments is None:
        assert "train-lm runs on one host, and this slice has 4" in play.tpu("run", *given, code=1)
        return
    play.tpu("run", *given)
    written = wait_for(play.worker / "trim_jax/results/run/arguments").split()
    assert written == arguments
    play.calls()
    play.tpu("stop")
    assert "--worker=all" in play.calls()[0]


def test_stopped_run_goes_on_with_the_same_command(play):
    play.tpu("setup")
    assert "nothing runs here" in play.tpu("stop")
    play.tpu("run", "sweep")
    results = play.worker / "trim_jax/results/run"
    wait_for(results / "commit")
    play.tpu("stop")
    assert (play.worker / "trim_jax.log").read_text().splitlines()[-1] == "== stopped"
    (results / "commit").unlink()
    play.tpu("run", "sweep")
    wait_for(results / "commit")
    play.tpu("stop")


def test_setup_again_moves_to_the_new_commit_and_keeps_results(play):
    play.tpu("setup")
    kept = play.worker / "trim_jax/results/mine"
    kept.parent.mkdir()
    kept.touch()
    (play.checkout / "new").touch()
    play.git("add", ".")
    play.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "two")
    play.tpu("setup")
    assert (play.worker / "trim_jax/new").exists() and kept.exists()
    play.calls()
    # From a repository instead, at a commit of its choice.
    play.git("tag", "old", "HEAD~1")
    play.tpu("setup", str(play.checkout), "old")
    assert not (play.worker / "trim_jax/new").exists()
    assert len(play.changes()) == 1


def test_push_puts_back_what_was_fetched(play):
    play.tpu("setup")
    play.calls()
    chunk = play.checkout / "results/run/chunks/00000.jsonl"
    chunk.parent.mkdir(parents=True)
    chunk.touch()
    play.tpu("push", "results/run")
    assert play.calls() == [
        "tpu-vm ssh trim-jax --worker=all --command=mkdir -p trim_jax/results",
        "tpu-vm scp results/run trim-jax:trim_jax/results/ --recurse --worker=all"]
    assert (play.worker / "trim_jax/results/run/chunks/00000.jsonl").exists()
    assert "chunks" in play.tpu("ssh", "ls results/run")


# ---- Bad input, and a dry run ----

@pytest.mark.parametrize("arguments,settings,message", [
    (["create"], {"ZONE": ""}, "set ZONE, the zone of the TPU"),
    (["run"], {}, "run: give a command of trim-jax"),
    (["ssh"], {}, "ssh: give a shell command"),
    (["fetch"], {}, "which file or folder?"),
    (["fetch", "/etc"], {}, "/etc must be a path inside the checkout"),
    (["push", "../x"], {}, "../x must be a path inside the checkout"),
    (["fly"], {}, "no command 'fly'"),
])  # fmt: skip
def test_bad_input_is_one_clear_error(play, arguments, settings, message):
    printed = play.tpu(*arguments, code=2, **settings)
    assert printed.startswith(f"tpu.sh: {message}") and printed.count("\n") == 1
    assert play.calls() == []


def test_missing_gcloud_is_said(play):
    tools = play.folder / "tools"
    tools.mkdir()
    for name in ("bash", "env", "dirname", "sed", "awk"):
        (tools / name).symlink_to(shutil.which(name))
    assert "gcloud is not installed" in play.tpu("create", code=2, PATH=str(tools))
    assert "tpu-vm create" in play.tpu("--dry-run", "create", PATH=str(tools))


def test_help_shows_every_setting_with_its_value(play):
    printed = play.tpu("--help", ZONE="", SPOT="1", ACCELERATOR_TYPE="v4-8")
    for line in ("ZONE=", "SPOT=1", "RUNTIME_VERSION=tpu-ubuntu2204-base", "TPU_NAME=trim-jax"):
        assert f"  {line}" in printed
    assert play.tpu(code=2, ZONE="").startswith("usage:")


def test_dry_run_calls_nothing_and_prints_the_very_commands(play):
    commands = [["create"], ["setup"], ["push", "launch"], ["ssh", "df -h ."], ["run", "a", "it's"],
                ["log"], ["stop"], ["fetch", "results/run"], ["delete"]]
    printed = [play.tpu("--dry-run", *command) for command in commands]
    assert play.calls() == [] and not (play.checkout / "results").exists()
    assert play.tpu("run", "a", "it's", DRY_RUN="1") == printed[4]
    # A shell that is given what was printed asks gcloud the same.
    play.tpu("setup")
    play.calls()
    play.tpu("run", "a", "it's")
    asked = play.calls()
    play.tpu("stop")
    play.calls()
    path = f"{play.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PLAY": str(play.folder)}
    subprocess.run(["bash", "-c", printed[4]], check=True, env=env)
    assert play.calls() == asked


# ---- This machine ----

def local(*arguments: str, path: Path | None = None, code: int = 0, **settings: str) -> str:
    first = path or Path(sys.executable).parent
    env = os.environ | {"PATH": f"{first}{os.pathsep}{os.environ['PATH']}"} | settings
    done = subprocess.run([ROOT / "launch/local.sh", *arguments], env=env, text=True,
                          timeout=300, capture_output=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_local_runs_on_as_many_devices_as_asked(tmp_path):
    program = tmp_path / "trim-jax"
    program.write_text(f"#!{sys.executable}\nimport jax, sys\n"
                       "print(jax.default_backend(), jax.device_count(), sys.argv[1:])\n")
    program.chmod(0o755)
    assert "cpu 3 ['sweep', 'two words']" in local("sweep", "two words", path=tmp_path, DEVICES="3")


def test_local_is_the_command_itself():
    if not (Path(sys.executable).parent / "trim-jax").exists():
        pytest.skip("trim-jax is not installed beside this Python")
    assert "--config.engine.mesh_data" in local("solve", "--help", DEVICES="8")


def test_local_says_what_is_wrong():
    assert "DEVICES=many is not a number" in local("sweep", code=2, DEVICES="many")
    assert "usage:" in local(code=2) and "usage:" in local("--help")
    if shutil.which("trim-jax", path="/usr/bin:/bin") is None and not (ROOT / ".venv").exists():
        assert "pip install -e ." in local("sweep", code=2, PATH="/usr/bin:/bin")
