"""Smoothie (arXiv 2412.04692): the quality of writers without labels, from distances of outputs.

Outputs are noisy views of an unseen true output, with independent errors. Then for writers i, j, k
E|x_i - y|^2 = (d_ij + d_ik - d_jk) / 2, with d the mean squared distances of their embeddings. The
distances are means over the nearest training questions, so that no output of the question itself
is needed to route it: nothing runs before the decision.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from trim_jax.query.embed import Embedder, Embedding, TfIdf
from trim_jax.query.knn import votes
from trim_jax.query.outcomes import Outcomes
from trim_jax.query.router import Router
from trim_jax.query.similar import fit_similar


def triplet(d_ij: np.ndarray, d_ik: np.ndarray, d_jk: np.ndarray) -> np.ndarray:
    """Expected squared error of writer i from mean squared distances."""
    return 0.5 * (d_ij + d_ik - d_jk)


def excess_error(outcomes: Outcomes, embed: Embedding) -> np.ndarray:
    """Error of the small model minus that of the large model, float32 [N], before smoothing.

    The third writer is the mixed solution (`Outcomes.mixed_texts`). Without one the triplet cannot
    be solved; the large model's error is then taken to be the same everywhere, which leaves the
    distance between the two, up to a constant. No label is read.
    """
    small, large = _embedded(outcomes.small_texts, embed), _embedded(outcomes.large_texts, embed)
    between = np.square(small - large).sum(-1)
    if outcomes.mixed_texts is None:
        return between.mean(1).astype(np.float32)
    mixed = _embedded(outcomes.mixed_texts, embed)
    to_small = np.square(small - mixed).sum(-1)
    to_large = np.square(large - mixed).sum(-1)
    error = triplet(between, to_small, to_large) - triplet(between, to_large, to_small)
    return error.mean(1).astype(np.float32)


def _embedded(texts: tuple[tuple[str, ...], ...], embed: Embedding) -> np.ndarray:
    """Vectors [N, S, D] of texts [N][S]."""
    vectors = embed([t for row in texts for t in row])
    return vectors.reshape(len(texts), len(texts[0]), -1)


@dataclasses.dataclass(frozen=True)
class Smoothie(Router):
    """Scores a question by the small model's excess error on the nearest training questions.

    Attributes:
      embedder: of questions and of solutions; each is fitted on its own texts.
      neighbours: candidates for their number, chosen by how well held-out distances are predicted:
        like everything here, without labels.
    """

    name = "query-smoothie"
    embedder: Embedder = TfIdf()
    neighbours: tuple[int, ...] = (10, 20, 40, 80, 160)

    def fit(self, outcomes, key):
        written = self.embedder([t for row in outcomes.small_texts + outcomes.large_texts
                                 for t in row])
        return fit_similar(self, self.embedder, outcomes, key, excess_error(outcomes, written), "k",
                           votes(self.neighbours), is_gain=False,
                           writers=2 if outcomes.mixed_texts is None else 3)
