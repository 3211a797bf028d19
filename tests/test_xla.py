"""Cores become devices; programs are shared between equal arguments, and only between those."""

import os
import subprocess
import sys

import pytest

from trim_jax.xla import CORES, PROGRAMS, cores, shared


@pytest.mark.parametrize("flags,variable,before,count", [
    ("", "", "pass", min(cores(), CORES)),
    ("--xla_force_host_platform_device_count=3", "", "pass", 3),
    ("", "3", "pass", 3),
    ("", "", "jax.devices()", 1),
])  # fmt: skip
def test_cores_are_devices_unless_it_is_decided_already(flags, variable, before, count):
    code = f"import jax, trim_jax; {before}; trim_jax.use_cores(); print(jax.device_count())"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    environment |= {"XLA_FLAGS": flags} | ({"JAX_NUM_CPU_DEVICES": variable} if variable else {})
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, text=True, capture_output=True
    )
    assert int(done.stdout) == count


def test_equal_arguments_share_a_program():
    made = []

    @shared
    def program(*args):
        made.append(args)
        return lambda: args

    assert program((1, 2), "a") is program((1, 2), "a")
    assert program((1, 2), "b") is not program((1, 2), "a")
    assert len(made) == 2
    # What cannot be hashed, or was long ago, is made again.
    assert program([1], "a")() == program([1], "a")() and program([1]) is not program([1])
    for i in range(PROGRAMS):
        program(i)
    first = len(made)
    program((1, 2), "a")
    assert len(made) == first + 1
