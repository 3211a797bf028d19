"""`arith` as a tensorflow-datasets builder: array_record files, read without TensorFlow.

    from trim_jax.tasks.arith_tfds import Arith
    builder = Arith(data_dir=folder, file_format="array_record")    # or config="tiny"
    builder.download_and_prepare()
    source = builder.as_data_source("test")                         # len(source), source[17]["id"]
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator

import numpy as np
import tensorflow_datasets as tfds

from trim_jax.tasks import arith
from trim_jax.tasks.data import Problem


@dataclasses.dataclass
class ArithConfig(tfds.core.BuilderConfig):
    """`limit`: only the first so many problems of each split (None: whole splits)."""

    limit: int | None = None


class Arith(tfds.core.GeneratorBasedBuilder):
    """Multi-step arithmetic word problems; the features are the fields of `Problem`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        ArithConfig(name="full", description="whole splits, 200,000 problems in train"),
        ArithConfig(name="tiny", description="the first 32 of each split", limit=32),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=(
                "Arithmetic word problems on one running quantity, with a written solution: one "
                "step per paragraph, the final answer boxed."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "problem": tfds.features.Text(),
                    "solution": tfds.features.Text(),
                    "answer": tfds.features.Text(),
                    "level": tfds.features.Scalar(np.int32),
                    "source": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,  # record i of a split is problem i
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {split: self._generate_examples(split) for split in arith.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index, problem in enumerate(arith.generate(split, self.builder_config.limit)):
            yield index, dataclasses.asdict(problem)


def read_record(record: dict[str, Any]) -> Problem:
    """A record of a data source as the Problem that it was written from."""
    fields = {
        name: int(value) if name == "level" else value.decode("utf-8")
        for name, value in record.items()
    }
    return Problem(**fields)
