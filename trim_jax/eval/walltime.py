"""Wall time of each policy alone, from ``walltime.json`` in a result folder, where there is one.

    {"problems": 200, "repeats": [["thr", 16, [0.0101, 0.0103, 0.0100]], ...]}

Each entry is a policy, the index of the setting that it ran at, and the seconds a problem of every
repeat. The repeats of all policies alternate on one machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trim_jax.errors import ResultError

FILE = "walltime.json"


def read(folder: Path) -> dict[str, Any] | None:
    """Milliseconds a problem by policy, each the median with least and most; None without a file.

    Raises:
      ResultError: the file is damaged.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        policies = {}
        for name, setting, seconds in found["repeats"]:
            ms = 1000.0 * np.array(seconds, float)
            if not (ms > 0).all() or not np.isfinite(ms).all() or not ms.size:
                raise ValueError(f"{name} has the times {seconds}")
            policies[str(name)] = {
                "setting": int(setting), "repeats": ms.size,
                "ms": {"value": float(np.median(ms)), "low": float(ms.min()),
                       "high": float(ms.max())}}  # fmt: skip
        return {"problems": int(found["problems"]), "policies": policies}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{path}: cannot be used: {type(error).__name__}: {error}; delete it and "
                          "run again") from error
