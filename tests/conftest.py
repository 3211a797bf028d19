"""What every test starts from: CPU, eight fake devices, no network; a summary with reasons.

Set here and not in the tests, because JAX reads these once, when it is first imported.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "")
                           + " --xla_force_host_platform_device_count=8").strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_configure(config):
    """Shows why a test was skipped and which ten were the slowest; the command line overrides."""
    if config.option.durations is None:
        config.option.durations = 10
    if config.option.reportchars == "fE":
        config.option.reportchars = "fEs"
