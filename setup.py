"""Installation: `pip install -e .`; the extras are '.[test]', '.[tpu]' and '.[cuda]'."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "trim_jax/__init__.py").read_text()).group(1)

setup(
    name="trim_jax",
    version=VERSION,
    description="TRIM: stepwise routing between a small and a large language model, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The configs live at the top level, where people look for them, and are installed as a
    # sub-package, so that `trim-jax sweep` finds them from any directory.
    packages=[*find_packages(include=["trim_jax", "trim_jax.*"]), "trim_jax.configs"],
    package_dir={"trim_jax.configs": "configs"},
    package_data={"trim_jax": ["assets/**/*", "eval/templates/*"]},
    # Upper bounds: the next version not tried yet. Python 3.11 resolves to JAX 0.10, 3.13 to 0.12.
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12,<0.14",
        "optax>=0.2.8,<0.4",
        "orbax-checkpoint>=0.11,<0.14",
        "transformers>=5.0,<6",
        "tokenizers>=0.22,<0.25",
        "safetensors>=0.8,<1",
        "ml_collections>=1.0,<2",
        "absl-py>=2.1,<3",
        "numpy>=2.0,<3",
        "tqdm>=4.66,<5",
        "matplotlib>=3.9,<4",
        "jinja2>=3.1,<4",
        "math-verify>=0.8,<0.11",
        "tensorflow-datasets>=4.9.9,<5",
        # Needed by tensorflow-datasets to read without TensorFlow, but not asked for by it.
        "array_record>=0.7,<0.10",
        "importlib_resources>=6.0,<8",
    ],
    extras_require={
        # torch is the reference of the parity tests only; the package itself never imports it.
        "test": ["pytest>=8.0,<10", "pytest-xdist>=3.6,<4", "hypothesis>=6.100,<7",
                 "setuptools>=70.1", "torch==2.13.0", "nbclient>=0.10,<0.12", "nbformat>=5.10,<6",
                 "ipykernel>=6.29,<8"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
    },
    entry_points={"console_scripts": ["trim-jax = trim_jax.cli:main"]},
)
