"""Stand-ins for the compiled parts of fairseq that training and generation use.

``fairseq_samu.compat`` puts them in place where fairseq was built without a compiler. Results are
the same to the last bit; a test holds them against the compiled functions.
"""

import collections
import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def batch_by_size_vec(
    indices: np.ndarray,
    num_tokens_vec: np.ndarray,
    max_tokens: int,
    max_sentences: int,
    bsz_mult: int,
) -> list[np.ndarray]:
    """Cut ordered rows into batches.

    A batch may end where its number of rows is below ``bsz_mult`` or a multiple of it. Rows after
    the last such place wait in a tail. As soon as batch and tail together exceed a limit, the batch
    is finished and the tail opens the next one.

    Args:
        indices: (N,) int64 rows in order.
        num_tokens_vec: (N,) int64 length of each of them.
        max_tokens: limit of rows × longest row; none if not positive.
        max_sentences: limit of rows; none if not positive.
        bsz_mult: what the number of rows in a batch is to be a multiple of.

    Returns:
        Batches, views of ``indices``.

    Source:
        ``fairseq/data/data_utils_fast.pyx``, the function of the same name.
    """
    if len(indices) == 0:
        return []
    assert max_tokens <= 0 or np.max(num_tokens_vec) <= max_tokens, (
        f"Sentences lengths should not exceed max_tokens={max_tokens}"
    )
    row_limit = max_sentences if max_sentences > 0 else len(indices)
    token_limit = max_tokens if max_tokens > 0 else sys.maxsize
    finished: list[int] = []  # where finished batches end
    start = end = 0  # the running batch is rows [start, end), its tail is [end, next_end)
    longest = tail_longest = 0
    # Plain integers: a million rows take a fraction of a second, numpy scalars would take ten times
    # that.
    for next_end, tokens in enumerate(num_tokens_vec.tolist(), start=1):
        if tokens > tail_longest:
            tail_longest = tokens
        new_longest = longest if longest > tail_longest else tail_longest
        rows = next_end - start
        if rows > row_limit or rows * new_longest > token_limit:
            finished.append(end)
            start = end
            if tail_longest * (next_end - end) > token_limit:
                # The tail is too large by itself: it becomes a batch without the row just read.
                start = next_end - 1
                finished.append(start)
                tail_longest = tokens
            end, longest, tail_longest = next_end, tail_longest, 0
        elif rows < bsz_mult or rows % bsz_mult == 0:
            end, longest, tail_longest = next_end, new_longest, 0
    if end != len(indices):
        finished.append(end)
    # Not np.split, which takes four times as long.
    return [indices[a:b] for a, b in zip([0, *finished], [*finished, len(indices)])]


def batch_by_size_fn(
    indices: np.ndarray,
    num_tokens_fn: Callable[[int], int],
    max_tokens: int,
    max_sentences: int,
    bsz_mult: int,
) -> list[np.ndarray]:
    """As :func:`batch_by_size_vec`, with lengths from a function of the row."""
    lengths = np.fromiter(map(num_tokens_fn, indices.tolist()), np.int64, len(indices))
    return batch_by_size_vec(indices, lengths, max_tokens, max_sentences, bsz_mult)


def batch_fixed_shapes_fast(
    indices: np.ndarray, num_tokens_fn: Callable[[int], int], fixed_shapes_sorted: np.ndarray
) -> list[list[int]]:
    """Cut ordered rows into batches of given shapes.

    Args:
        indices: (N,) int64 rows in order.
        num_tokens_fn: length of a row.
        fixed_shapes_sorted: (K, 2) int64 allowed shapes (rows, length), smallest first.

    Returns:
        Batches of rows. The first is empty if the first row fits no shape.

    Source:
        ``fairseq/data/data_utils_fast.pyx``, the function of the same name.
    """
    shapes = fixed_shapes_sorted.tolist()
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = smallest_shape = 0
    for row in indices.tolist():
        longest = max(longest, num_tokens_fn(row))
        for shape in range(smallest_shape, len(shapes)):
            if len(batch) < shapes[shape][0] and longest <= shapes[shape][1]:
                smallest_shape = shape
                break
        else:
            batches.append(batch)
            # As in fairseq, the row that opens a batch does not count towards its longest row.
            batch, longest, smallest_shape = [], 0, 0
        batch.append(row)
    if batch:
        batches.append(batch)
    return batches


class Libbleu:
    """fairseq's ``libbleu``: takes what ``fairseq.scoring.bleu.Scorer`` hands to ctypes.

    Source:
        ``fairseq/clib/libbleu/libbleu.cpp``.
    """

    @staticmethod
    def bleu_zero_init(stat: Any) -> None:
        """Set all counts of a ``BleuStat`` to zero; ``stat`` is a ``ctypes.byref`` of it."""
        ctypes.memset(stat, 0, ctypes.sizeof(stat._obj))

    @staticmethod
    def bleu_one_init(stat: Any) -> None:
        """Set the counts of 2- to 4-grams to one (smoothing), the rest to zero."""
        Libbleu.bleu_zero_init(stat)
        for order in (2, 3, 4):
            setattr(stat._obj, f"count{order}", 1)
            setattr(stat._obj, f"match{order}", 1)

    @staticmethod
    def bleu_add(
        stat: Any,
        ref_length: ctypes.c_size_t,
        ref_address: ctypes.c_void_p,
        pred_length: ctypes.c_size_t,
        pred_address: ctypes.c_void_p,
        pad: ctypes.c_int,
        eos: ctypes.c_int,
    ) -> None:
        """Add the n-grams of a prediction and their matches in its reference to the counts."""
        ref = _trim(_int_array(ref_address, ref_length), pad.value, eos.value)
        pred = _trim(_int_array(pred_address, pred_length), pad.value, eos.value)
        counts = stat._obj
        counts.reflen += len(ref)
        counts.predlen += len(pred)
        for order in (1, 2, 3, 4):
            total = max(len(pred) - order + 1, 0)
            matches = sum((_ngrams(ref, order) & _ngrams(pred, order)).values())
            setattr(counts, f"count{order}", getattr(counts, f"count{order}") + total)
            setattr(counts, f"match{order}", getattr(counts, f"match{order}") + matches)


def _int_array(address: ctypes.c_void_p, length: ctypes.c_size_t) -> list[int]:
    """Copy a C array of int32; an empty one may have no address."""
    if not length.value or not address.value:
        return []
    return list((ctypes.c_int * length.value).from_address(address.value))


def _trim(ids: list[int], pad: int, eos: int) -> list[int]:
    """Remove padding on the left, and end-of-sentence and padding on the right down to one id."""
    start = next((i for i, token in enumerate(ids) if token != pad), len(ids))
    ids = ids[start:]
    while len(ids) > 1 and ids[-1] in (pad, eos):
        ids.pop()
    return ids


def _ngrams(ids: list[int], order: int) -> "collections.Counter[tuple[int, ...]]":
    return collections.Counter(zip(*(ids[start:] for start in range(order)), strict=False))
