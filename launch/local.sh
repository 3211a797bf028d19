#!/usr/bin/env bash
# The same command on this machine, in the foreground: launch/local.sh sweep --config.seeds=0
set -euo pipefail

usage() {
    cat <<'EOF'
usage: [DEVICES=N] launch/local.sh COMMAND [ARGUMENTS]

Runs `trim-jax COMMAND ARGUMENTS` on whatever JAX finds here. With DEVICES=N it runs on the CPU,
split into N devices, to try the mesh of a TPU before paying for one:

  DEVICES=8 launch/local.sh solve 'Start with 46. Add 27. What is the result?' \
      --config.engine.mesh_data=8
EOF
}

fail() { echo "local.sh: $*" >&2; exit 2; }

case ${1:-} in
    -h | --help) usage; exit ;;
    '') usage >&2; exit 2 ;;
esac

if [[ -n ${DEVICES:-} ]]; then
    [[ $DEVICES =~ ^[1-9][0-9]*$ ]] || fail "DEVICES=$DEVICES is not a number of devices"
    export JAX_PLATFORMS=cpu
    # The devices share the cores: one may wait for another for longer than XLA's 40 seconds.
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES \
--xla_cpu_collective_call_terminate_timeout_seconds=600"
fi

# Where it is installed: an active environment, or the one in the checkout.
PATH=$PATH:$(cd "$(dirname "$0")/.." && pwd)/.venv/bin
command -v trim-jax >/dev/null || fail "trim-jax is not installed: pip install -e ."
exec trim-jax "$@"
