"""What every test starts from: CPU, eight fake devices, no network; a summary with reasons.

Set here and not in the tests, because JAX reads these once, when it is first imported.
"""

import importlib.metadata
import os
import shutil
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes to compiling, and programs that run for a moment are not worth optimising.
# `test_engine_mesh.py` and `test_colabs.py` compile as users do. XLA ends a process at a flag that it
# does not know, so these are for the versions that have been tried.
HURRY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
HURRY = HURRY if importlib.metadata.version("jaxlib").startswith("0.10.") else ""
if "PYTEST_XDIST_WORKER" not in os.environ:
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{HURRY} {given} --xla_force_host_platform_device_count=8"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# What one test, or a process that it starts, has compiled, the others find in a folder of this run:
# in the user's, one run would hide what the next one takes.
_CACHE = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="trim_jax_tests_")
    os.environ["TRIM_JAX_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


def pytest_unconfigure():
    if _CACHE is not None:
        shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Runs all tests in two processes, a file in each: most of the time goes to compiling, which
    keeps one core busy. Tests that are named run in one process; the command line overrides.
    """
    option = config.option
    named = config.args_source == config.ArgsSource.ARGS
    one = named or option.usepdb or "PYTEST_XDIST_WORKER" in os.environ
    if not one and getattr(option, "numprocesses", 0) is None:
        option.numprocesses, option.dist = 2, "loadfile"
        option.loadscopereorder = False  # many tests are no sign of long ones


def pytest_configure(config):
    """Shows why a test was skipped and which ten were the slowest; the command line overrides."""
    if config.option.durations is None:
        config.option.durations = 10
    if config.option.reportchars == "fE":
        config.option.reportchars = "fEs"
