"""The interface of a query-level router, and what several of them share.

`Router.fit(outcomes, key)` chooses its hyperparameters inside the training outcomes and returns a
`Fitted`, whose `score(outcomes)` says how much each question should go to the large model. A
frontier follows by sending the highest scores there (`trim_jax.query.evaluate`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from trim_jax.query.outcomes import Outcomes, folds

# What a router has read when it decides, in ascending cost: the question alone; the small model's
# full solution as well; its process rewards too.
QUESTION, SOLUTION, SCORES = "question", "solution", "scores"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained router.

    Attributes:
      name, reads: of its router.
      calibration: float32 [n, S or 1], scores of training questions that were held out when the
        scoring function was made (or of all of them, where nothing was fitted): the cuts are
        quantiles of these, never of the questions that are judged.
      rows: int [n], which training questions these are; None where they are no questions.
      chosen: hyperparameters chosen on held-out training questions, for the record.
      is_gain: scores are expected gains in correctness, which a cost can be set against.
    """

    name: str
    reads: str
    calibration: np.ndarray
    chosen: Mapping[str, Any]
    rows: np.ndarray | None = None
    is_gain: bool = False

    def score(self, outcomes: Outcomes) -> np.ndarray:
        """How much to prefer the large model, float32 [N, S]; -inf is never routed.

        A router that reads the question alone gives all seeds of a question one score.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Router:
    """A recipe for a `Fitted`; subclasses are frozen dataclasses of their settings.

    Attributes:
      name: under which results are stored.
      reads: QUESTION, SOLUTION or SCORES: which models run before it decides.
    """

    name: ClassVar[str]
    reads: ClassVar[str] = QUESTION

    def fit(self, outcomes: Outcomes, key: jax.Array) -> Fitted:
        """Trains on the labels of `outcomes`; the same key gives the same router.

        Raises:
          DataError: the outcomes lack what this router reads.
        """
        raise NotImplementedError


def per_seed(scores: np.ndarray, outcomes: Outcomes) -> np.ndarray:
    """Scores [N] of questions as float32 [N, S]."""
    wide = np.broadcast_to(np.asarray(scores, np.float32)[:, None], outcomes.small_correct.shape)
    return np.array(wide)


def cross_fit(n: int, key: jax.Array, predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
              parts: int = 5) -> np.ndarray:
    """Predictions for n rows, each by a model that has not seen it, [n, ...].

    `predict(train, test)` fits on the rows `train` (int arrays) and predicts the rows `test`.
    """
    out = None
    for train, test in folds(n, parts, key):
        found = np.asarray(predict(train, test))
        out = np.empty((n, *found.shape[1:]), found.dtype) if out is None else out
        out[test] = found
    return out
