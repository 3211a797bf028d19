#!/usr/bin/env bash
# Runs trim-jax on a Cloud TPU VM; `launch/tpu.sh --help` says how. Kept to bash 3.2, as on macOS.
set -euo pipefail
cd "$(dirname "$0")/.."

TPU_NAME=${TPU_NAME:-trim-jax}
ZONE=${ZONE:-}
PROJECT_ID=${PROJECT_ID:-}
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v5litepod-8}
SPOT=${SPOT:-0}
QUEUED=${QUEUED:-0}
DRY_RUN=${DRY_RUN:-0}
case $ACCELERATOR_TYPE in
    v6e-*) default_runtime=v2-alpha-tpuv6e ;;
    v5p-*) default_runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) default_runtime=v2-alpha-tpuv5-lite ;;
    *) default_runtime=tpu-ubuntu2204-base ;;
esac
RUNTIME_VERSION=${RUNTIME_VERSION:-$default_runtime}

usage() {
    cat <<EOF
usage: [SETTING=VALUE ...] launch/tpu.sh [--dry-run] COMMAND

  create                create the TPU VM, or wait for it; one that was preempted is replaced
  setup                 install the commit that is checked out here on all workers
  setup GIT_URL [REF]   the same with a branch or tag of a repository
  push PATH             copy a file or folder of this checkout to the same place on all workers
  ssh 'SHELL COMMAND'   run something in the checkout on all workers
  run ARGUMENTS         start \`trim-jax ARGUMENTS\` on all workers, and leave it running there;
                        the same command again resumes a run that was stopped or preempted
                        (of several workers it is one run, whose files are on worker 0)
  log                   follow what worker 0 prints, until the run ends; Ctrl-C leaves it running
  stop                  end the run on all workers
  fetch PATH            copy a file or folder from worker 0 to the same place in this checkout
  delete [--yes]        delete the TPU VM with its disk, after a question

settings, from the environment, with their values now:
  ZONE=$ZONE (required)
  PROJECT_ID=$PROJECT_ID (empty: the project that gcloud is configured with)
  TPU_NAME=$TPU_NAME
  ACCELERATOR_TYPE=$ACCELERATOR_TYPE (one host: v5litepod-8; a slice of several: v5p-32)
  RUNTIME_VERSION=$RUNTIME_VERSION (follows from the accelerator type)
  SPOT=$SPOT (1: cheaper, may be preempted at any time)
  QUEUED=$QUEUED (1: wait in the queue for capacity instead of failing when there is none)
  DRY_RUN=$DRY_RUN (1, or --dry-run before the command: print the gcloud commands, run nothing)
EOF
}

say() { echo "tpu.sh: $*" >&2; }
fail() { say "$*"; exit 2; }
dry() { [[ $DRY_RUN == 1 ]]; }

# The arguments as words of a shell command, for what is printed and what a worker's shell reads.
quoted() {
    local word gap=''
    for word in "$@"; do
        case $word in
            '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        printf %s "$gap$word"
        gap=' '
    done
}

# gcloud compute tpus ...; a dry run prints it, on 3 because the output of some calls is captured.
exec 3>&1
tpus() {
    local words=(gcloud compute tpus "$@" --zone="$ZONE")
    [[ -z $PROJECT_ID ]] || words+=(--project="$PROJECT_ID")
    if dry; then
        { quoted "${words[@]}"; echo; } >&3
    else
        "${words[@]}"
    fi
}

# ---- The machine ----

# The state of our entry in a list (tpu-vm or queued-resources); nothing if it is not there. It is
# listed, not described: only so does a failure of gcloud differ from a TPU that does not exist.
state_in() {
    local field=state listed
    [[ $1 == tpu-vm ]] || field=state.state
    listed=$(tpus "$1" list --format="value(name.basename(),$field)") || return
    awk -v name="$TPU_NAME" '$1 == name {print $2}' <<<"$listed"
}

# The state of the VM, or of its request while it waits in the queue; nothing if there is neither.
state() {
    local vm
    vm=$(state_in tpu-vm) || return
    if [[ -n $vm ]]; then echo "$vm"; else state_in queued-resources; fi
}

check_type() {
    [[ $ACCELERATOR_TYPE == v*-* && ${ACCELERATOR_TYPE##*-} =~ ^[0-9]+$ ]] ||
        fail "ACCELERATOR_TYPE=$ACCELERATOR_TYPE is not of the form v5litepod-8"
}

request() {
    local kind=() # spelled out below: bash 3.2 takes an empty array for an unset variable
    [[ $SPOT != 1 ]] || kind=(--spot)
    if [[ $QUEUED == 1 ]]; then
        tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
            --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" \
            ${kind[@]+"${kind[@]}"}
    else
        tpus tpu-vm create "$TPU_NAME" --accelerator-type="$ACCELERATOR_TYPE" \
            --version="$RUNTIME_VERSION" ${kind[@]+"${kind[@]}"}
    fi
}

remove() {
    local queued
    queued=$(state_in queued-resources)
    # A queued request outlives a VM that is deleted alone; --force deletes both.
    if [[ -n $queued ]] || { dry && [[ $QUEUED == 1 ]]; }; then
        tpus queued-resources delete "$TPU_NAME" --force --quiet
    else
        tpus tpu-vm delete "$TPU_NAME" --quiet
    fi
}

create() {
    check_type
    local now
    while true; do
        now=$(state)
        case $now in
            READY) say "$TPU_NAME is ready"; return ;;
            '') request ;;
            PREEMPTED | TERMINATED | SUSPENDED)
                say "$TPU_NAME is $now: its machine and disk are gone; creating it again"
                remove ;;
            STOPPED | FAILED) fail "$TPU_NAME is $now: delete it, then create it again" ;;
            *)
                say "$TPU_NAME is $now; waiting (Ctrl-C is safe: create again goes on waiting)"
                sleep 30 ;;
        esac
        if dry; then return; fi
    done
}

delete() {
    local now answer=''
    now=$(state)
    if ! dry && [[ -z $now ]]; then
        say "there is no $TPU_NAME in $ZONE"
        return
    fi
    if [[ ${1:-} != --yes ]] && ! dry; then
        read -r -p "Delete $TPU_NAME ($now) and what is on its disk? [y/N] " answer || true
        [[ $answer == [yY]* ]] || fail "$TPU_NAME was not deleted"
    fi
    remove
}

# ---- What runs on the workers: these functions are sent there ----

# The lock is held by whoever works in the checkout: a setup, or a run with all its processes.
worker_lock() {
    exec 9>~/trim_jax.lock
    flock --nonblock 9
}

# How many hosts the slice has, from the list that JAX reads too; one where there is no list.
worker_hosts() {
    local list=instance/attributes/worker-network-endpoints
    { curl --silent --fail --header 'Metadata-Flavor: Google' \
        "http://metadata.google.internal/computeMetadata/v1/$list" || true; } |
        awk -F, 'END {print (NF ? NF : 1)}'
}

worker_setup() { # where to fetch from, which commit
    worker_lock || { echo "a run is under way: stop it first" >&2; exit 1; }
    export PATH="$HOME/.local/bin:$PATH"
    # The images have Python 3.10; uv brings the version that the tests run on.
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    git init --quiet ~/trim_jax
    cd ~/trim_jax
    git fetch --quiet "$1" "$2"
    git checkout --quiet --detach FETCH_HEAD
    [[ -d .venv ]] || uv venv --quiet --python 3.11
    uv pip install --quiet -e '.[tpu]'
    .venv/bin/python -c '
import sys, jax
if sys.argv[1] != "1":
    jax.distributed.initialize()
kind, count = jax.devices()[0].device_kind, jax.device_count()
if jax.default_backend() != "tpu":
    raise SystemExit(f"JAX finds no TPU here, only {kind}")
print(f"ready: {count} x {kind}, hosts: {jax.process_count()}")' "$(worker_hosts)"
}

worker_run() { # arguments of trim-jax
    worker_lock || { echo "a run is under way: follow it with log, or stop it" >&2; exit 1; }
    [[ -x ~/trim_jax/.venv/bin/trim-jax ]] || { echo "run launch/tpu.sh setup first" >&2; exit 1; }
    cd ~/trim_jax
    local hosts
    hosts=$(worker_hosts)
    if [[ $hosts != 1 && " $*" != *" --config.engine.hosts="* ]]; then
        case $1 in
            report | data | recorded) ;; # they route nothing
            train-*) echo "$1 runs on one host, and this slice has $hosts" >&2; exit 1 ;;
            *) set -- "$@" "--config.engine.hosts=$hosts" ;;
        esac
    fi
    # In a session of its own it outlives this connection, and stop reaches all of its processes.
    # shellcheck disable=SC2016 # for the inner shell to expand
    setsid bash -c 'echo "== $0 $*"; .venv/bin/"$0" "$@"; echo "== ended with status $?"' \
        trim-jax "$@" >>~/trim_jax.log 2>&1 </dev/null &
    echo $! >~/trim_jax.pid
}

worker_log() {
    [[ -f ~/trim_jax.pid ]] || { echo "nothing has run here" >&2; exit 1; }
    tail --lines=50 --follow --pid="$(cat ~/trim_jax.pid)" ~/trim_jax.log
}

worker_stop() {
    if worker_lock; then
        echo "nothing runs here"
        return
    fi
    kill -- "-$(cat ~/trim_jax.pid)"
    flock 9 # until the last process has let go of it
    echo "== stopped" >>~/trim_jax.log
}

# ---- What is sent to them ----

on_workers() { # all or a number, a function from above, its arguments
    local which=$1
    shift
    tpus tpu-vm ssh "$TPU_NAME" --worker="$which" --command="set -euo pipefail
$(declare -f worker_lock worker_hosts "$1")
$(quoted "$@")"
}

setup() {
    if [[ $# -gt 0 ]]; then
        on_workers all worker_setup "$1" "${2:-HEAD}"
        return
    fi
    # A bundle and not an archive: results then know the commit that they were made with.
    local bundle
    bundle=$(git rev-parse --git-dir)/trim_jax.bundle
    [[ -z $(git status --porcelain) ]] ||
        say "uncommitted changes stay here: the workers get commit $(git rev-parse --short HEAD)"
    dry || git bundle create --quiet "$bundle" HEAD
    tpus tpu-vm scp "$bundle" "$TPU_NAME:trim_jax.bundle" --worker=all
    on_workers all worker_setup ../trim_jax.bundle HEAD
    rm -f "$bundle"
}

run() {
    [[ $# -gt 0 ]] || fail "run: give a command of trim-jax: launch/tpu.sh run sweep"
    on_workers all worker_run "$@"
    dry || say "started; launch/tpu.sh log follows it"
}

inside() { # the path, if it is one inside the checkout
    case ${1:-} in
        '') fail "which file or folder? launch/tpu.sh $command results/math500" ;;
        /* | .. | ../* | */../* | */..) fail "$1 must be a path inside the checkout" ;;
    esac
    echo "${1%/}"
}

push() {
    local path folder
    path=$(inside "${1:-}")
    folder=$(dirname "$path")
    tpus tpu-vm ssh "$TPU_NAME" --worker=all --command="mkdir -p $(quoted "trim_jax/$folder")"
    tpus tpu-vm scp "$path" "$TPU_NAME:trim_jax/$folder/" --recurse --worker=all
}

fetch() {
    local path folder
    path=$(inside "${1:-}")
    folder=$(dirname "$path")
    # Aside first: a copy that is cut off must not leave half a file where a whole one was.
    local aside=$folder/.fetched
    dry || { rm -rf "$aside" && mkdir -p "$aside"; }
    tpus tpu-vm scp "$TPU_NAME:trim_jax/$path" "$aside/" --recurse --worker=0
    if dry; then return; fi
    (
        cd "$aside"
        find . -type d -exec mkdir -p ../{} \;
        find . -type f -exec mv -f {} ../{} \;
    )
    rm -rf "$aside"
}

if [[ ${1:-} == --dry-run ]]; then
    DRY_RUN=1
    shift
fi
command=${1:-}
case $command in
    -h | --help) usage; exit ;;
    '') usage >&2; exit 2 ;;
    create | setup | push | ssh | run | log | stop | fetch | delete) shift ;;
    *) fail "no command '$command': see launch/tpu.sh --help" ;;
esac
[[ -n $ZONE ]] || fail "set ZONE, the zone of the TPU: ZONE=us-west4-a launch/tpu.sh $command"
dry || command -v gcloud >/dev/null ||
    fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
case $command in
    log) on_workers 0 worker_log ;;
    stop) on_workers all worker_stop ;;
    ssh)
        [[ $# -gt 0 ]] || fail "ssh: give a shell command: launch/tpu.sh ssh 'df -h .'"
        tpus tpu-vm ssh "$TPU_NAME" --worker=all --command="cd trim_jax && $*" ;;
    *) "$command" "$@" ;;
esac
