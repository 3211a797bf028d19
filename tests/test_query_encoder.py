"""The BERT-style router: pieces, masking, labels, recovery, determinism."""

import jax
import numpy as np
from fake_outcomes import make, separable

from trim_jax.query.automix import separation
from trim_jax.query.encoder import Encoder, EncoderNet, build_vocabulary, tokenize, verdicts


def test_pieces():
    vocabulary = build_vocabulary(["Add 12 to 12.", "add \\frac"], 5)
    # Digits and words by frequency, once-seen pieces left out; at most five ids with the two fixed.
    assert vocabulary == {"1": 2, "2": 3, "add": 4}
    np.testing.assert_array_equal(tokenize(["add 21 nails", "1"], vocabulary, 5),
                                  [[4, 3, 2, 1, 0], [2, 0, 0, 0, 0]])
    assert tokenize(["1 1 1"], vocabulary, 2).tolist() == [[2, 2]]


def test_padding_changes_nothing():
    net = EncoderNet(vocabulary=9, layers=2, width=8, heads=2, dropout=0.5)
    tokens = np.array([[2, 3, 4, 0, 0, 0], [5, 6, 7, 8, 2, 3]])
    params = net.init(jax.random.key(0), tokens, train=False)
    both = net.apply(params, tokens, train=False)
    assert both.shape == (2, 3)
    other = tokens.copy()
    other[1] = [8, 8, 8, 0, 0, 0]
    np.testing.assert_allclose(net.apply(params, other, train=False)[0], both[0], atol=1e-6)
    # The padded positions of row 0 are read by nobody: their position vectors do not matter.
    moved = jax.tree.map(lambda x: x, params)
    moved["params"]["positions"] = params["params"]["positions"].at[3:].add(
        jax.random.normal(jax.random.key(1), (3, 8)))
    np.testing.assert_allclose(net.apply(moved, tokens, train=False)[0], both[0], atol=1e-6)
    assert not np.allclose(net.apply(moved, tokens, train=False)[1], both[1], atol=1e-3)


def test_verdicts():
    outcomes = make([[1, 0], [1, 1], [0, 0]], [[1, 1], [0, 0], [0, 1]])
    np.testing.assert_allclose(verdicts(outcomes), [[0.5, 0.5, 0], [0, 0, 1], [0.5, 0.5, 0]])


def test_learns_which_questions_are_hard_and_repeats_itself():
    train, test = separable(96), separable(60, seed=1, seeds=2)
    router = Encoder(layers=1, width=16, heads=2, learning_rates=(3e-3,))
    scores = router.fit(train, jax.random.key(0)).score(test)
    assert scores.shape == (60, 2) and (scores[:, 0] == scores[:, 1]).all()
    assert separation(scores, ~test.small_correct) > 0.98
    np.testing.assert_array_equal(router.fit(train, jax.random.key(0)).score(test), scores)
