"""Numbers in place of texts: tell which cells of a block of a manifest are alike, all rows at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Masks of the lowest 0 to 8 bytes of a word.
_LOW_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)

#: An odd number without a pattern.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

#: Highest bits of a hash, by which equal ones find each other; so many places stay in the processor's cache.
_SLOT_BITS = 14


def hash_cells(
    block: bytes,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    after: NDArray[np.uint64] | None = None,
) -> NDArray[np.uint64]:
    """A number of each cell's text, which another text has hardly ever; 8 bytes of all rows a step.

    Args:
        block: where the cells are.
        begin: (N,) bytes of the block before each cell.
        end: (N,) bytes up to its end.
        after: (N,) hashes of other cells, to hash two of each row as one.

    Returns:
        Hashes (N,).
    """
    # A word of 8 bytes from every byte on, and behind the last; its first byte in the lowest bits.
    words: NDArray[np.uint64] = np.ndarray(len(block) + 1, "<u8", block + bytes(8), strides=(1,))
    left = end - begin
    hashes = left.astype(np.uint64) * _MULTIPLIER
    if after is not None:
        hashes ^= after
    hashes = _mix(hashes, words[begin], left)
    rows, step = np.flatnonzero(left > 8), 8
    while len(rows) > 0:
        hashes[rows] = _mix(hashes[rows], words[begin[rows] + step], left[rows] - step)
        step += 8
        rows = rows[left[rows] > step]
    return hashes


def _mix(
    hashes: NDArray[np.uint64], words: NDArray[np.uint64], left: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Hashes that also depend on the next word of each text, of which ``left`` bytes are left."""
    mixed = _LOW_BYTES[np.minimum(left, 8)]
    mixed &= words
    mixed ^= hashes
    mixed *= _MULTIPLIER
    mixed ^= mixed >> np.uint64(32)
    return mixed


def first_of_each(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Rows, rising, that have the first of every hash, and perhaps some whose hash came before.

    One step a row, where sorting takes several: rows whose hashes differ, but not in the bits that choose a
    place, are all taken.
    """
    slots = (hashes >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)
    rows = np.arange(len(hashes))
    firsts = np.empty(1 << _SLOT_BITS, dtype=np.int64)
    firsts[slots[::-1]] = rows[::-1]  # of rows with the same place the last one written stays
    first = firsts[slots]
    return np.flatnonzero((first == rows) | (hashes[first] != hashes))


def number_cells(
    hashes: NDArray[np.uint64], rows: NDArray[np.int64], numbers: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Number of every cell, given those of the rows that :func:`first_of_each` chose."""
    keys = hashes[rows]
    order = np.argsort(keys)
    return numbers[order[np.searchsorted(keys[order], hashes)]]
