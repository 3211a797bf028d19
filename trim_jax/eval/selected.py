"""Policies that choose among recorded solutions: query-level routers beside the routed policies.

Such a policy writes nothing of its own. For every (setting, problem, seed) it takes one of the
traces of the run, so its table is stored as numbers in `selected.npz`, not as traces.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import numpy as np

from trim_jax.errors import ResultError
from trim_jax.eval.traces import PolicySpec, Result, Table, tables

FILE = "selected.npz"
_ARRAYS = ("correct", "strong_tokens", "ledger", "trace_index")


def pack(found: Mapping[str, Table]) -> bytes:
    """The content of `selected.npz`; the same tables give the same bytes."""
    specs = [[t.policy.name, t.policy.parameter, list(t.policy.settings)] for t in found.values()]
    arrays = {"policies": np.array(json.dumps(specs))}
    for i, table in enumerate(found.values()):
        arrays |= {f"{i}_{name}": getattr(table, name) for name in _ARRAYS}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def all_tables(result: Result) -> dict[str, Table]:
    """Every policy of a result: the routed ones, and those of `selected.npz` if there is one.

    Raises:
      ResultError: as `traces.tables`; or the file is damaged or of another run.
    """
    found = tables(result)
    path = result.folder / FILE
    if not path.exists():
        return found
    first = next(iter(found.values()))
    try:
        with np.load(path) as arrays:
            for i, (name, parameter, settings) in enumerate(json.loads(str(arrays["policies"]))):
                found[name] = Table(
                    PolicySpec(name, parameter, tuple(settings)), first.problem_ids, first.seeds,
                    *(arrays[f"{i}_{part}"] for part in _ARRAYS),
                )  # fmt: skip
                shape = (len(settings), *first.correct.shape[1:])
                if found[name].correct.shape != shape:
                    raise ValueError(f"{name} has other problems or seeds than the traces")
    except Exception as error:  # a damaged archive raises many things
        raise ResultError(f"{path}: cannot be used: {error}; delete it and run again") from error
    return found
