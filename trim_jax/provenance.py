"""Where a result comes from: code, versions, device, and hashes of weights and data.

Nothing here depends on when, by whom or in which folder the program ran, so that two runs of the
same thing have the same provenance.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trim_jax
from trim_jax.errors import CheckpointError, DataError
from trim_jax.eval.traces import SCHEMA_VERSION

_PACKAGES = ("jax", "jaxlib", "flax", "transformers", "tokenizers", "numpy")
# What decides the numbers that a Hugging Face folder gives: weights, shapes, tokens, chat template.
_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer.json",
                "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
                "special_tokens_map.json", "chat_template.jinja")


def collect(weights: Mapping[str, Path], data: Sequence[Any] | str | Path) -> dict[str, Any]:
    """Everything that determines a result besides its config.

    Args:
        weights: Checkpoint folder of each model, such as {"small": ..., "large": ..., "prm": ...}.
        data: The problems (dataclasses) that are solved, in order; or the path of their file.

    Returns:
        A JSON-able dict: commit, uncommitted changes, versions, device, numerics, hashes.

    Raises:
        CheckpointError: A checkpoint folder does not exist or holds no weights.
        DataError: The data file cannot be read.
    """
    import jax

    commit, dirty = _commit(Path(trim_jax.__file__).resolve())
    where = arithmetic()
    return {
        "schema_version": SCHEMA_VERSION,
        "commit": commit,
        "uncommitted_changes": dirty,
        "versions": {"python": platform.python_version(), "trim_jax": trim_jax.__version__,
                     **{name: importlib.metadata.version(name) for name in _PACKAGES}},
        "device": {**where["device"], "count": jax.device_count(),
                   "processes": jax.process_count()},
        "numerics": where["numerics"] | {
            "xla_flags": _without_paths(os.environ.get("XLA_FLAGS", ""))},
        "weights": {name: hash_checkpoint(folder) for name, folder in weights.items()},
        "data": hash_data(data),
    }


def arithmetic() -> dict[str, Any]:
    """What decides how models compute besides their weights: versions, device, numerics."""
    import jax  # not at the top: the command line answers --help without loading JAX

    device = jax.devices()[0]
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
        "device": {"platform": device.platform, "kind": device.device_kind},
        "numerics": {"matmul_precision": jax.config.jax_default_matmul_precision,
                     "x64": jax.config.jax_enable_x64},
    }


def hash_checkpoint(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint folder that decides its numbers, by file name."""
    folder = Path(folder)
    files = sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise CheckpointError(f"{folder}: no *.safetensors in this folder" if folder.is_dir()
                              else f"{folder}: no such checkpoint folder")
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return {file.name: digest for file, digest in zip(files, pool.map(_hash_file, files))}


def hash_data(data: Sequence[Any] | str | Path) -> str:
    """SHA-256 of the problems in their order, or of the file at a path."""
    if isinstance(data, (str, Path)):
        try:
            return _hash_file(Path(data))
        except OSError as error:
            raise DataError(f"{data}: cannot be read: {error.strerror}") from error
    digest = hashlib.sha256()
    for problem in data:
        digest.update(json.dumps(asdict(problem), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit(module: Path) -> tuple[str, bool | None]:
    """Commit of the checkout that `module` belongs to, and whether the code differs from it.

    ("unknown", None) for an installed package, even one in a virtual environment that lies inside
    some repository: git must know the very file that is running.
    """
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=module.parent, check=True, text=True,
                              capture_output=True).stdout.strip()
    try:
        git("ls-files", "--error-unmatch", module.name)
        # Only the code: a run must not look changed because it writes results into the checkout.
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".", "../configs"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None


def _without_paths(flags: str) -> str:
    """Compiler flags without the paths of the machine among their values."""
    return re.sub(r"=\S*/\S*", "=<path>", flags)
