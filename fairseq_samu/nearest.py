"""Nearest neighbours by cosine, exact and in blocks: vectors may be more than fit into memory."""

from typing import Any, Callable, Tuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

Neighbours = Tuple[NDArray[np.float32], NDArray[np.int64]]

#: Queries and vectors of the corpus compared at a time: 64 MB of similarities.
QUERY_BLOCK, CORPUS_BLOCK = 1024, 16384

# Shorter vectors have no direction worth comparing.
_MIN_NORM = 1e-6


def nearest_neighbours(
    queries: NDArray[Any], corpus: NDArray[Any], k: int, use_faiss: bool = False
) -> Neighbours:
    """The vectors of a corpus with the highest cosine to every query, the nearest first.

    Memory grows with the queries times ``k``: vectors are read and normalised in blocks. Equal
    similarities come in the order of the corpus, up to those that just miss the first ``k``.

    Args:
        queries: shape (Q, E), of any length; a memory map stays on disk.
        corpus: shape (C, E).
        k: neighbours of each; at most C are found.
        use_faiss: compare with FAISS instead of numpy; the result is the same up to rounding.

    Returns:
        Cosines (Q, min(k, C)) and rows of the corpus, of the same shape.

    Raises:
        ValueError: vectors of different widths, or one without a direction.
        ModuleNotFoundError: FAISS is not installed.
    """
    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"expected queries and corpus with vectors of one width, found {queries.shape} and "
            f"{corpus.shape}"
        )
    search = _faiss_search() if use_faiss else _numpy_search
    k = min(k, len(corpus))
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.zeros((len(queries), k), np.int64)
    blocks = range(0, len(corpus), CORPUS_BLOCK)
    for start in tqdm(blocks, desc="search", unit="block", disable=len(blocks) < 2):
        candidates = _normalise(corpus, start, CORPUS_BLOCK, "corpus")
        for first in range(0, len(queries), QUERY_BLOCK):
            block = slice(first, first + QUERY_BLOCK)
            wanted = _normalise(queries, first, QUERY_BLOCK, "queries")
            found, where = search(wanted, candidates, min(k, len(candidates)))
            scores[block], rows[block] = _best(
                np.concatenate([scores[block], found], axis=1),
                np.concatenate([rows[block], where + start], axis=1),
                k,
            )
    return scores, rows


def _best(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Neighbours:
    """The first k by score, then by row; (Q, n) each."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _numpy_search(
    queries: NDArray[np.float32], corpus: NDArray[np.float32], k: int
) -> Tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k highest products of every query, in any order."""
    similarity = queries @ corpus.T
    rows = np.argpartition(similarity, len(corpus) - k, axis=1)[:, len(corpus) - k :]
    return np.take_along_axis(similarity, rows, axis=1), rows


def _faiss_search() -> Callable[..., Neighbours]:
    import faiss

    def search(
        queries: NDArray[np.float32], corpus: NDArray[np.float32], k: int
    ) -> Tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores, rows = faiss.knn(queries, corpus, k, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, rows

    return search


def _normalise(vectors: NDArray[Any], start: int, count: int, what: str) -> NDArray[np.float32]:
    """A block of vectors, float32 and of length 1."""
    block: NDArray[np.float32] = np.ascontiguousarray(vectors[start : start + count], np.float32)
    norms: NDArray[np.float32] = np.linalg.norm(block, axis=1, keepdims=True)
    bad = ~(np.isfinite(norms) & (norms > _MIN_NORM))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{what}, row {start + row}: expected a vector with a direction, found one of length "
            f"{norms[row, 0]}"
        )
    return block / norms
