"""Cross-fitting: every prediction comes from rows that do not hold its own."""

import jax
import numpy as np

from trim_jax.query.router import cross_fit


def test_cross_fit_predicts_rows_that_were_not_trained_on():
    values = np.arange(11.0)

    def predict(train, test):
        assert not set(train) & set(test)
        return np.column_stack([values[test], np.full(len(test), values[train].sum())])

    found = cross_fit(11, jax.random.key(0), predict)
    np.testing.assert_array_equal(found[:, 0], values)  # in the order of the rows
    assert len(np.unique(found[:, 1])) == 5 and (found[:, 1] < values.sum()).all()
