"""The default embedding: what it sees, its projection, and that it is a fixed function."""

import numpy as np

from trim_jax.query.embed import TfIdf, unit

TEXTS = ["add 3 apples to 5 apples", "add 7 pears to 9 pears", "multiply 12 by 34",
         "multiply 56 by 78", "the square of a number", ""]


def test_vectors_have_length_one_and_the_same_text_the_same_vector():
    embed = TfIdf(dim=4)(TEXTS)
    vectors = embed(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (6, 4)
    np.testing.assert_allclose(np.linalg.norm(vectors[:5], axis=1), 1, rtol=1e-5)
    assert not vectors[5].any()  # nothing to see
    np.testing.assert_allclose(embed(TEXTS[2:3]), vectors[2:3], atol=1e-6)  # whatever the batch
    np.testing.assert_array_equal(TfIdf(dim=4)(TEXTS)(TEXTS), vectors)


def test_similar_questions_are_near():
    embed = TfIdf(dim=5)(TEXTS)
    similar = embed(TEXTS) @ embed(["multiply 21 by 43"])[0]
    assert set(np.argsort(-similar)[:2]) == {2, 3}


def test_numbers_count_by_their_digits():
    vectors = TfIdf()(TEXTS)(["multiply 12 by 34", "multiply 99 by 10", "multiply 9 by 10"])
    np.testing.assert_allclose(vectors[0], vectors[1])
    assert not np.allclose(vectors[0], vectors[2])


def test_full_projection_keeps_the_similarities():
    # With every singular vector the projection is a rotation: TF-IDF cosines by hand.
    texts = ["a b", "a c"]
    embed = TfIdf(dim=10)(texts)
    counts = {}  # features of one-letter words: the words, their pair, "<a>" of 3 characters
    for t in texts:
        first, second = t.split()
        counts[t] = {first, second, t, f"#<{first}>", f"#<{second}>"}
    idf = {f: np.log(3 / (1 + sum(f in c for c in counts.values()))) + 1
           for f in counts["a b"] | counts["a c"]}
    shared = sum(idf[f] ** 2 for f in counts["a b"] & counts["a c"])
    norm = [np.sqrt(sum(idf[f] ** 2 for f in counts[t])) for t in texts]
    vectors = embed(texts)
    np.testing.assert_allclose(vectors[0] @ vectors[1], shared / norm[0] / norm[1], rtol=1e-5)


def test_unit():
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])
