"""Tests of numbers in place of texts."""

import random

import numpy as np
import pytest

from fairseq_samu.data import cell_hashes


def test_hashes_differ_where_texts_do():
    rng = random.Random(0)
    texts = {"".join(rng.choices("ab\u00e9", k=rng.randint(0, 40))) for _ in range(3000)}
    texts |= {text[:-1] + "c" for text in texts} | {"a" * count for count in range(50)}
    block, begin, end = b"", [], []
    for text in 2 * sorted(texts):
        begin.append(len(block))
        block += text.encode()
        end.append(len(block))
        block += b"\t"
    hashes = cell_hashes.hash_cells(block, np.array(begin), np.array(end))
    assert hashes[: len(texts)].tolist() == hashes[len(texts) :].tolist()
    assert len(set(hashes.tolist())) == len(texts)


def test_hashes_of_two_cells_differ_where_either_does():
    block = b"a\tab\tb\tabcdefghi\t"
    begin, end = np.array([0, 2, 5, 7, 0]), np.array([1, 4, 6, 16, 0])
    single = cell_hashes.hash_cells(block, begin, end)
    pairs = {
        int(cell_hashes.hash_cells(block, begin[[second]], end[[second]], after=single[[first]])[0])
        for first in range(5)
        for second in range(5)
    }
    assert len(pairs) == 25


@pytest.mark.parametrize("bits", [64, 1])
def test_first_rows_and_numbers_of_hashes(bits, monkeypatch):
    monkeypatch.setattr(cell_hashes, "_SLOT_BITS", 2)  # more hashes than places
    rng = np.random.default_rng(0)
    kinds = rng.integers(1 << 63, size=9, dtype=np.uint64) << np.uint64(64 - bits)
    chosen = np.concatenate([np.arange(9), rng.integers(9, size=200)])
    hashes = kinds[chosen]
    rows = cell_hashes.first_of_each(hashes)
    assert (np.diff(rows) > 0).all()
    _, firsts = np.unique(hashes, return_index=True)
    assert set(firsts.tolist()) <= set(rows.tolist())
    numbers = cell_hashes.number_cells(
        hashes, rows, (hashes[rows] >> np.uint64(1)).astype(np.int64)
    )
    assert numbers.tolist() == (hashes >> np.uint64(1)).tolist()
