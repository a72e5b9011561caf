"""Nearest neighbours against scikit-learn and FAISS."""

import numpy as np
import pytest

from fairseq_samu import nearest
from fairseq_samu.nearest import nearest_neighbours


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(nearest, "QUERY_BLOCK", 7)
    monkeypatch.setattr(nearest, "CORPUS_BLOCK", 9)


def vectors(tmp_path, name, count):
    """Of any length, half precision, on disk."""
    rng = np.random.default_rng(count)
    found = rng.normal(size=(count, 12)) * rng.uniform(0.1, 9, size=(count, 1))
    np.save(tmp_path / name, found.astype(np.float16))
    return np.lib.format.open_memmap(tmp_path / name, mode="r")


@pytest.mark.parametrize("use_faiss", [False, True])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_neighbours_are_scikit_learns(small_blocks, tmp_path, use_faiss, k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    if use_faiss:
        pytest.importorskip("faiss", reason="needs the extra `search`")
    queries, corpus = vectors(tmp_path, "q.npy", 23), vectors(tmp_path, "c.npy", 40)
    index = neighbors.NearestNeighbors(n_neighbors=min(k, 40), metric="cosine")
    index.fit(corpus.astype(np.float64))
    distances, expected = index.kneighbors(queries.astype(np.float64))
    scores, rows = nearest_neighbours(queries, corpus, k, use_faiss)
    assert rows.shape == scores.shape == (23, min(k, 40))
    np.testing.assert_allclose(scores, 1 - distances, atol=1e-6)
    np.testing.assert_array_equal(rows, expected)


def test_equal_vectors_come_in_the_order_of_the_corpus(small_blocks):
    corpus = np.tile(np.eye(2, dtype=np.float32), (10, 1))
    scores, rows = nearest_neighbours(np.array([[2.0, 0]], np.float32), corpus, 10)
    assert rows.tolist() == [list(range(0, 20, 2))] and (scores == 1).all()


def test_no_whole_matrix_is_built(monkeypatch):
    monkeypatch.setattr(nearest, "QUERY_BLOCK", 10)
    monkeypatch.setattr(nearest, "CORPUS_BLOCK", 20)
    seen = []
    search = nearest._numpy_search

    def recorded(queries, corpus, k):
        seen.append((len(queries), len(corpus)))
        return search(queries, corpus, k)

    monkeypatch.setattr(nearest, "_numpy_search", recorded)
    nearest_neighbours(np.eye(25, 50), np.eye(50), 3)
    assert seen == [(10, 20), (10, 20), (5, 20)] * 2 + [(10, 10), (10, 10), (5, 10)]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_vector_without_direction_is_an_error(small_blocks, value):
    corpus = np.eye(12, dtype=np.float32)
    corpus[10, 10] = value
    with pytest.raises(ValueError, match="corpus, row 10: expected a vector with a direction"):
        nearest_neighbours(np.eye(12, dtype=np.float32), corpus, 3)
    with pytest.raises(ValueError, match=r"one width, found \(12, 12\) and \(12, 3\)"):
        nearest_neighbours(np.eye(12), np.eye(12, 3), 3)
