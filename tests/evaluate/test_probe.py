"""The probe against scikit-learn's logistic regression; blocks and files change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mto_tools.evaluate import probe
from mto_tools.evaluate.rows import Rows


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels that are never zero everywhere, far from standardised; labels."""
    found = load_digits()
    x = found.data[:700] * np.geomspace(1e-3, 1e3, 64) + 50
    return x.astype(np.float32), found.target[:700].astype(np.int64)


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_fits_as_scikit_learn_does(c: float) -> None:
    x, y = digits()
    scaler = StandardScaler().fit(x.astype(np.float64))
    model = LogisticRegression(C=c, tol=1e-9, max_iter=5000)
    model.fit(scaler.transform(x.astype(np.float64)), y)
    fitted = probe.fit(Rows(x), y, 10, c=c, steps=1000, block=99)
    np.testing.assert_allclose(fitted.weight.T, model.coef_, atol=3e-4)
    centred = fitted.bias - fitted.bias.mean()  # biases are free up to a constant
    np.testing.assert_allclose(centred, model.intercept_ - model.intercept_.mean(), atol=3e-4)
    expected = model.predict(scaler.transform(x.astype(np.float64)))
    assert (fitted.predict(Rows(x)) == expected).mean() > 0.998


def test_the_default_stops_where_accuracy_is_settled() -> None:
    """On held-out images, within two of them, of which scikit-learn's own default may differ."""
    x, y = digits()
    scaler = StandardScaler().fit(x[:500])
    model = LogisticRegression(C=probe.C, max_iter=5000).fit(scaler.transform(x[:500]), y[:500])
    for dtype in (torch.float64, torch.float32):
        fitted = probe.fit(Rows(x[:500]), y[:500], 10, dtype=dtype)
        assert fitted.steps < probe.STEPS
        right = (fitted.predict(Rows(x[500:])) == y[500:]).sum()
        assert abs(right - (model.predict(scaler.transform(x[500:])) == y[500:]).sum()) <= 2


def test_a_file_and_chosen_rows_give_the_same(tmp_path: Path) -> None:
    x, y = digits()
    np.save(tmp_path / "x.npy", x)
    chosen = np.arange(0, 700, 3)
    one = probe.fit(Rows(x[chosen]), y[chosen], 10, steps=30)
    other = probe.fit(Rows(tmp_path / "x.npy").take(chosen), y[chosen], 10, steps=30, block=50)
    np.testing.assert_allclose(one.weight, other.weight, rtol=1e-3, atol=1e-5)


def test_standard_deviations_do_not_cancel() -> None:
    rng = np.random.default_rng(0)
    x = (1e4 + rng.normal(size=(1000, 3)) * [1, 0.1, 0]).astype(np.float32)
    mean, scale = probe.standard(Rows(x), block=64)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale[:2], exact.std(0)[:2], rtol=1e-9)
    assert scale[2] == 1  # constant
