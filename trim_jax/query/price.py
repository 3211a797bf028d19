"""Routers that know what a question will cost: expected gain per expected strong token.

The published query-level routers rank questions by gain alone, as if every large solution cost the
same. Cost here is tokens, as for the step-level policies, which are trained on a price per token;
so each router whose score is an expected gain is also given in this form, with no training of its
own but a regression of the large solution's length. Routing where gain / tokens exceeds a price is
the best rule for gain - price * tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from trim_jax.query.outcomes import Outcomes
from trim_jax.query.router import QUESTION, Fitted


def _lengths(outcomes: Outcomes, reads: str) -> np.ndarray:
    """What predicts the length of the large solution, float64 [N, S, D]: logarithms of the words
    of the question and, for a router that reads it, of the small solution; and a constant."""
    words = lambda text: np.log1p(len(text.split()))  # noqa: E731
    question = np.array([[words(q)] for q in outcomes.questions])
    columns = [np.ones_like(outcomes.strong_tokens, float),
               np.broadcast_to(question, outcomes.strong_tokens.shape)]
    if reads != QUESTION:
        columns.append(np.array([[words(t) for t in row] for row in outcomes.small_texts]))
    return np.stack(columns, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerToken(Fitted):
    """A trained router's expected gain divided by the expected tokens of the large solution.

    Attributes:
      inner: the router. weights: [D], of the regression of log tokens.
    """

    inner: Fitted
    weights: np.ndarray

    def tokens(self, outcomes: Outcomes) -> np.ndarray:
        """Expected strong tokens, up to a constant factor, float64 [N, S]."""
        return np.exp(_lengths(outcomes, self.reads) @ self.weights)

    def score(self, outcomes: Outcomes) -> np.ndarray:
        return (self.inner.score(outcomes) / self.tokens(outcomes)).astype(np.float32)


def per_token(fitted: Fitted, train: Outcomes) -> PerToken:
    """The router in units of gain per token; `train` is what it was trained on.

    Raises:
      ValueError: its scores are no gains.
    """
    if not fitted.is_gain:
        raise ValueError(f"the scores of {fitted.name} are no gains in correctness")
    x = _lengths(train, fitted.reads)
    # A large solution of no token costs nothing; counting it as one keeps the logarithm finite.
    y = np.log(np.maximum(train.strong_tokens, 1))
    weights = np.linalg.lstsq(x.reshape(-1, x.shape[-1]), y.ravel(), rcond=None)[0]
    cost = np.exp(x @ weights)[fitted.rows]
    return PerToken(name=f"{fitted.name}-per-token", reads=fitted.reads, chosen=fitted.chosen,
                    calibration=(fitted.calibration / cost).astype(np.float32),
                    rows=fitted.rows, inner=fitted, weights=weights)
