"""Small files of recorded solutions of two made-up models, for the tests that read such files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def llama_files():
    """The recorded solutions of Llama-3.2-1B and 3.1-8B on MATH-500, and its questions; or a skip."""
    if "TRIM_JAX_DATA" not in os.environ:
        pytest.skip("TRIM_JAX_DATA does not name the folder of recorded data")
    data = Path(os.environ["TRIM_JAX_DATA"])
    traces = data / "traces_math500_llama_prm"
    return (traces / "llama32_1b.jsonl", traces / "llama31_8b.jsonl",
            data / "math500" / "test.jsonl")  # fmt: skip


def make_files(folder, problems=60, p_small=0.75, p_large=0.92, seed=0, unboxed=10):
    """Three files: small and large solutions of 2 to 5 steps, and questions with a level.

    A step is right with the model's probability; the judge gives right steps 0.6 to 1 and wrong
    ones, and all after, 0 to 0.3. One small solution in `unboxed` has no box.
    """
    rng = np.random.default_rng(seed)
    files = {"small": [], "large": [], "questions": []}
    for i in range(problems):
        n = int(rng.integers(2, 6))
        files["questions"].append({"id": f"q{i}", "problem": f"Sum {i} and {n}.", "level": i % 3})
        for name, p in (("small", p_small), ("large", p_large)):
            right = np.minimum.accumulate(rng.uniform(size=n) < p)
            scores = np.where(right, rng.uniform(0.6, 1, n), rng.uniform(0, 0.3, n))
            steps = [f"step {t} gives {t + i}" for t in range(n - 1)] + [f"\\boxed{{{i}}}"]
            if name == "small" and i % unboxed == 0:
                steps[-1] = "no answer"
            files[name].append({"id": f"q{i}", "steps": steps, "correct": bool(right[-1]),
                                "prm_scores": scores.round(4).tolist()})  # fmt: skip
    return {name: write(folder / f"{name}.jsonl", rows) for name, rows in files.items()}
