"""k-NN against a plain float64 computation; blocks and files change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mto_tools.evaluate import knn
from mto_tools.evaluate.rows import Rows


def reference(bank, labels, queries, k, temperature):
    """All similarities at once, a stable sort, one query at a time."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)]
    found = []
    for similarity in unit[1] @ unit[0].T:
        near = np.argsort(-similarity, kind="stable")[:k]
        votes = np.zeros(labels.max() + 1)
        for index in near:
            votes[labels[index]] += np.exp(similarity[index] / temperature)
        ordered = np.sort(votes)
        sure = len(ordered) < 2 or ordered[-1] > 1.001 * ordered[-2]
        found.append((int(votes.argmax()), sure))
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(2, 60),
    asked=st.integers(1, 20),
    size=st.integers(2, 9),
    classes=st.integers(1, 5),
    k=st.integers(1, 25),
    block=st.tuples(st.integers(1, 70), st.integers(1, 25)),
)
def test_predictions_are_those_of_float64(seed, rows, asked, size, classes, k, block) -> None:
    rng = np.random.default_rng(seed)
    bank, queries = rng.normal(size=(rows, size)), rng.normal(size=(asked, size))
    labels, k = rng.integers(0, classes, rows), min(k, rows)
    found = knn.predict(
        Rows(bank.astype(np.float32)), labels, Rows(queries.astype(np.float32)), k=k, block=block
    )
    expected = reference(bank, labels, queries, k, 0.07)
    assert all(x == y for x, (y, sure) in zip(found, expected, strict=True) if sure)


def test_weights_decide_and_not_counts_alone() -> None:
    """Two far neighbours of class 1 weigh less than a near one of class 0, at T = 0.07."""
    bank = np.array([[1, 0], [0.8, 0.6], [0.8, -0.6]], np.float32)
    labels, query = np.array([0, 1, 1]), Rows(np.array([[5, 0]], np.float32))
    assert knn.predict(Rows(bank), labels, query, k=3).tolist() == [0]
    assert knn.predict(Rows(bank), labels, query, k=3, temperature=10).tolist() == [1]


@pytest.mark.parametrize("block", [(3, 2), (1000, 1000)])
def test_a_file_is_read_in_blocks(tmp_path: Path, block: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    bank, queries = (rng.normal(size=(n, 6)).astype(np.float32) for n in (40, 11))
    labels = rng.integers(0, 3, 40)
    np.save(tmp_path / "bank.npy", bank)
    whole = knn.predict(Rows(bank), labels, Rows(queries), k=5)
    seen: list[int] = []
    bank_file = Rows(tmp_path / "bank.npy")
    found = knn.predict(bank_file, labels, Rows(queries), k=5, block=block, watch=seen.append)
    assert (found == whole).all()
    assert seen == [min(end, 40) for end in range(block[0], 40 + block[0], block[0])]
