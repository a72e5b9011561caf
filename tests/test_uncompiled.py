"""The stand-ins for compiled code do exactly what the compiled code does."""

import hashlib
import importlib
import time

import numpy as np
import pytest
import torch
from fairseq.scoring import bleu

from fairseq_samu import uncompiled


def _compiled(name):
    """The compiled module of fairseq, or None. A stand-in that compat put there has no file."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    return module if hasattr(module, "__file__") else None


compiled_batching = _compiled("fairseq.data.data_utils_fast")
compiled_bleu = _compiled("fairseq.libbleu")


def _batching_cases(count):
    """Random rows, lengths and limits, the same on every version of numpy."""
    rng = np.random.RandomState(1)
    for _ in range(count):
        size = rng.randint(0, 60)
        longest = rng.randint(1, 40)
        lengths = rng.randint(0, longest + 1, size)
        if rng.rand() < 0.5:
            lengths = np.sort(lengths)
        max_tokens = -1 if rng.rand() < 0.2 else longest * rng.randint(1, 12)
        max_sentences = -1 if rng.rand() < 0.3 else rng.randint(1, 20)
        multiple = rng.choice([1, 1, 2, 3, 8])
        yield rng.permutation(size), lengths, int(max_tokens), int(max_sentences), int(multiple)


def _digest(batches):
    text = ";".join(" ".join(str(row) for row in batch) for batch in batches)
    return hashlib.sha256(text.encode()).hexdigest()


def _fixed_shapes_cases(count):
    rng = np.random.RandomState(2)
    for _ in range(count):
        size = rng.randint(0, 40)
        lengths = rng.randint(1, 30, size)
        rows = np.sort(rng.randint(1, 9, rng.randint(1, 5)))[::-1]
        shapes = np.stack([rows, np.sort(rng.randint(5, 35, len(rows)))], axis=1)
        yield rng.permutation(size), lengths, np.ascontiguousarray(shapes)


@pytest.mark.skipif(compiled_batching is None, reason="fairseq has no compiled data_utils_fast")
def test_batches_equal_compiled():
    for rows, lengths, *limits in _batching_cases(6000):
        by_row = np.zeros(len(rows), dtype=np.int64)
        by_row[rows] = lengths
        expected = compiled_batching.batch_by_size_vec(rows, lengths, *limits)
        by_vector = uncompiled.batch_by_size_vec(rows, lengths, *limits)
        by_function = uncompiled.batch_by_size_fn(rows, lambda row: by_row[row], *limits)  # noqa: B023
        for found in (by_vector, by_function):
            assert len(found) == len(expected), (lengths, limits)
            assert all(map(np.array_equal, found, expected)), (lengths, limits)
            assert all(batch.dtype == np.int64 for batch in found)


@pytest.mark.skipif(compiled_batching is None, reason="fairseq has no compiled data_utils_fast")
def test_fixed_shape_batches_equal_compiled():
    for rows, lengths, shapes in _fixed_shapes_cases(3000):
        expected, found = (
            module.batch_fixed_shapes_fast(rows, lambda row: lengths[row], shapes)  # noqa: B023
            for module in (compiled_batching, uncompiled)
        )
        assert found == expected, (lengths, shapes)


def test_batches_equal_recorded():
    """Digests were recorded from the compiled functions of fairseq-fixed 0.12.3.1."""
    by_size = [b for case in _batching_cases(2000) for b in uncompiled.batch_by_size_vec(*case)]
    by_shape = [
        batch
        for rows, lengths, shapes in _fixed_shapes_cases(1000)
        for batch in uncompiled.batch_fixed_shapes_fast(rows, lengths.__getitem__, shapes)
    ]
    assert _digest(by_size) == "1c1df165e7099cb58fc63396b1dc1e30e6bb9caf4d309d3056bb24dca99fcd44"
    assert _digest(by_shape) == "f66ff04fb8db9d28f2e2bdb227d04d0c08b9c5a9c5af68738b9b689e29e3fc1e"


def test_too_long_row_is_refused():
    with pytest.raises(AssertionError, match="max_tokens=10"):
        uncompiled.batch_by_size_vec(np.arange(2), np.array([3, 11]), 10, -1, 1)


def test_million_rows_take_seconds():
    lengths = np.sort(np.random.RandomState(0).randint(16_000, 480_000, 1_000_000))
    start = time.process_time()
    batches = uncompiled.batch_by_size_vec(np.arange(len(lengths)), lengths, 4_000_000, -1, 8)
    assert time.process_time() - start < 10
    assert sum(map(len, batches)) == len(lengths)


def _bleu_cases(count):
    """Random pairs: pad is 1, eos 2, unk 3; padding on the left and right, and in between too."""
    rng = np.random.RandomState(3)
    for _ in range(count):
        # A prediction of nothing but padding makes the compiled code read past its end.
        ref, pred = (
            torch.from_numpy(np.append(rng.randint(2, 9), rng.randint(1, 9, rng.randint(0, 14))))
            for _ in range(2)
        )
        pads = torch.tensor([1, 1])
        yield (
            torch.cat([ref, torch.tensor([2, 1])]).int(),
            torch.cat([pads[: rng.randint(0, 3)], pred]).int(),
        )


def _python_scorer():
    scorer = bleu.Scorer.__new__(bleu.Scorer)
    scorer.stat = bleu.BleuStat()
    scorer.pad, scorer.eos, scorer.unk = 1, 2, 3
    scorer.C = uncompiled.Libbleu
    scorer.reset()
    return scorer


def _counts(scorer):
    return {name: getattr(scorer.stat, name) for name, _ in bleu.BleuStat._fields_}


@pytest.mark.skipif(compiled_bleu is None, reason="fairseq has no compiled libbleu")
def test_bleu_counts_equal_compiled():
    scorers = _python_scorer(), bleu.Scorer(bleu.BleuConfig(pad=1, eos=2, unk=3))
    for ref, pred in _bleu_cases(500):
        for scorer in scorers:
            scorer.add(ref, pred)
        assert _counts(scorers[0]) == _counts(scorers[1]), (ref, pred)
    assert scorers[0].result_string() == scorers[1].result_string()
    for scorer in scorers:
        scorer.reset(one_init=True)
    assert _counts(scorers[0]) == _counts(scorers[1])


def test_bleu_equals_recorded():
    """The line was recorded from the compiled functions of fairseq-fixed 0.12.3.1."""
    scorer = _python_scorer()
    for ref, pred in _bleu_cases(500):
        scorer.add(ref, pred)
    assert scorer.result_string() == (
        "BLEU4 = 2.07, 37.2/6.1/0.9/0.1 (BP=0.988, ratio=0.988, syslen=3487, reflen=3528)"
    )
    assert _counts(scorer)["match4"] == 2


def test_bleu_counts_by_hand():
    scorer = _python_scorer()
    scorer.add(torch.IntTensor([5, 6, 7, 8, 2]), torch.IntTensor([5, 6, 6, 8, 2, 1]))
    scorer.add(torch.IntTensor([3, 5, 2]), torch.IntTensor([3, 5, 2]))  # unk (3) never matches
    assert _counts(scorer) == {
        "reflen": 6,
        "predlen": 6,
        "match1": 4,
        "count1": 6,
        "match2": 1,
        "count2": 4,
        "match3": 0,
        "count3": 2,
        "match4": 0,
        "count4": 1,
    }


def test_bleu_of_nothing():
    scorer = _python_scorer()
    scorer.add(torch.IntTensor([5, 2]), torch.IntTensor([]))
    assert _counts(scorer)["predlen"] == 0
    assert _counts(scorer)["reflen"] == 1
