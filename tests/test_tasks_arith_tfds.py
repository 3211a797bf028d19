"""`arith` as a tensorflow-datasets builder, without TensorFlow."""

import subprocess
import sys

import pytest

pytest.importorskip("tensorflow_datasets")

BUILD_AND_READ = """
import sys
from trim_jax.tasks import arith
from trim_jax.tasks.arith_tfds import Arith, read_record

builder = Arith(data_dir=sys.argv[1], config="tiny", file_format="array_record")
builder.download_and_prepare()
for split in arith.SPLITS:
    source = builder.as_data_source(split)
    assert len(source) == 32
    problems = [read_record(source[i]) for i in range(32)]
    assert problems == arith.generate(split, 32), split
assert "tensorflow" not in sys.modules, "TensorFlow was imported"
"""


def test_build_and_read_without_tensorflow(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BUILD_AND_READ, str(tmp_path)],
        capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path), "HOME": "/nowhere"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files = [p.name for p in (tmp_path / "arith" / "tiny").rglob("*array_record*")]
    assert any("arith-hard.array_record" in name for name in files)


def test_the_full_configuration_is_the_default(tmp_path):
    from trim_jax.tasks.arith_tfds import Arith

    builder = Arith(data_dir=tmp_path, file_format="array_record")
    assert builder.builder_config.name == "full" and builder.builder_config.limit is None
