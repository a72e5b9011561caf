"""Order, re-sampling and speeds of the rows of an epoch."""

import copy

import numpy as np
import pytest
from fairseq.data import iterators
from fairseq.data.data_utils import numpy_seed
from fairseq.tasks import FairseqTask

from fairseq_samu.data import speech_to_text_dataset
from fairseq_samu.data.audio import change_speed, read_audio
from fairseq_samu.data.manifest_index import COLUMNS
from helpers.small_dataset import LENGTHS, dataset, write_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_manifest(tmp_path_factory.mktemp("data"))


def test_the_order_without_shuffling_is_by_length_then_row(data):
    speech = dataset(data)
    expected = sorted(range(10), key=lambda row: (LENGTHS[row], row))
    assert speech.ordered_indices().tolist() == expected
    speech.set_epoch(2)
    assert speech.ordered_indices().tolist() == expected
    assert speech.can_reuse_epoch_itr_across_epochs
    assert not dataset(data, shuffle=True).can_reuse_epoch_itr_across_epochs
    assert not dataset(data, speed_factors=(0.9, 1.1)).can_reuse_epoch_itr_across_epochs


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Manifest of 3,000 rows without audio, 2,700 of them es-en."""
    rng = np.random.default_rng(0)
    lines = ["\t".join(COLUMNS)]
    for row in range(3000):
        lang = "es" if row % 10 else "fr"
        length = int(rng.integers(5000, 300_000))
        lines.append(f"{row}\t{row}.wav\t{length}\tab\ts\tba\t{lang}\ten")
    path = tmp_path_factory.mktemp("large") / "train.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def order(speech, epoch, global_seed=0):
    speech.set_epoch(epoch)
    with numpy_seed(global_seed):
        return speech.ordered_indices()


def test_a_shuffled_order_depends_on_seed_and_epoch_and_is_nearly_sorted(large):
    speech = dataset(large, shuffle=True)
    first = order(speech, 1)
    assert np.array_equal(np.sort(first), np.arange(3000))
    lengths = speech.sizes[first]
    assert (lengths[1:] / np.maximum.accumulate(lengths)[:-1]).min() > 0.97 / 1.03 - 1e-6
    assert not np.array_equal(lengths, np.sort(lengths))
    assert np.array_equal(first, order(dataset(large, shuffle=True), 1, global_seed=7))
    assert not np.array_equal(first, order(speech, 2))
    assert not np.array_equal(first, order(dataset(large, shuffle=True, seed=2), 1))
    assert np.array_equal(first, order(speech, 1))


def test_rows_of_equal_blurred_lengths_keep_their_order(large, monkeypatch):
    monkeypatch.setattr(speech_to_text_dataset, "LENGTH_NOISE", 0.0)
    speech = dataset(large, shuffle=True)
    expected = sorted(range(3000), key=lambda row: (speech.num_tokens(row), row))
    assert order(speech, 1).tolist() == expected
    assert len(set(speech.sizes.tolist())) < 3000


def test_language_pairs_are_resampled_when_shuffling(large):
    speech = dataset(large, shuffle=True, alpha=0.0)
    rows = order(speech, 1)
    fr = rows % 10 == 0
    assert len(rows) == len(speech) == 3000
    assert fr.sum() == 1500 and len(set(rows[fr])) == 300 and len(set(rows[~fr])) == 1500
    assert speech.drawn_report() == "es-en 2700 → 1500, fr-en 300 → 1500"
    assert set(order(speech, 2)[~(order(speech, 2) % 10 == 0)]) != set(rows[~fr])
    assert len(set(dataset(large, alpha=0.0).ordered_indices())) == 3000


def test_rows_left_out_are_not_resampled(large):
    limits = {"max_samples": 200_000, "min_samples": 20_000}
    speech = dataset(large, shuffle=True, alpha=0.0, **limits)
    rows = order(speech, 3)
    sizes = speech.sizes[rows]
    assert sizes.max() <= 200_000 and sizes.min() >= 20_000
    kept = 3000 - len(speech.overlong)
    assert abs(len(rows) - kept) <= 1
    assert abs((rows % 10 == 0).sum() - kept / 2) <= 1


def test_speeds_are_drawn_for_every_row_and_epoch(large):
    factors = (0.9, 1.0, 1.1)
    speech = dataset(large, speed_factors=factors)
    n_frames = speech.manifest.n_frames
    drawn = n_frames / speech.sizes
    nearest = np.abs(drawn[:, None] - factors)
    assert nearest.min(axis=1).max() < 2e-4
    assert np.bincount(nearest.argmin(axis=1)).min() > 850
    np.testing.assert_array_equal(dataset(large, speed_factors=factors).sizes, speech.sizes)
    before = speech.sizes
    speech.set_epoch(2)
    assert (speech.sizes != before).mean() > 0.5
    rows = np.array([5, 5, 2000])
    np.testing.assert_array_equal(speech.num_tokens_vec(rows), speech.sizes[rows])
    assert speech.num_tokens(5) == speech.sizes[5]


def test_speed_changes_the_audio_as_it_says(data):
    speech = dataset(data, speed_factors=(0.9, 1.0, 1.1), normalize=False)
    seen = set()
    for epoch in range(1, 8):
        speech.set_epoch(epoch)
        for row, length in enumerate(LENGTHS):
            source = speech[row]["source"].numpy()
            assert len(source) == speech.num_tokens(row)
            speed = min((0.9, 1.0, 1.1), key=lambda factor: abs(length / len(source) - factor))
            wave = read_audio(f"{row}.wav", str(data.parent))
            np.testing.assert_array_equal(source, wave if speed == 1 else change_speed(wave, speed))
            seen.add(speed)
    assert seen == {0.9, 1.0, 1.1}


def test_padding_share(large):
    speech = dataset(large, shuffle=True)
    batches = speech.batch_by_size(order(speech, 1), max_tokens=3_000_000)
    padded = total = 0
    for batch in batches:
        sizes = [speech.num_tokens(row) for row in batch]
        padded += sum(max(sizes) - size for size in sizes)
        total += max(sizes) * len(sizes)
    assert speech.padding_share(batches) == pytest.approx(padded / total)
    assert speech.padding_share(batches) < 0.05
    assert speech.padding_share([[0], [1]]) == 0


class Task(FairseqTask):
    """As little of a task as makes fairseq's batch iterators."""


@pytest.mark.parametrize("workers", [0, 2])
def test_fairseqs_iterator_gives_every_epoch_its_own_speeds(data, workers):
    task = Task(None)
    speech = dataset(data, shuffle=True, speed_factors=(0.5, 2.0), normalize=False)
    seen = {}
    for epoch in (1, 2, 3):
        iterator = task.get_batch_iterator(
            speech, max_tokens=64_000, max_positions=(10**9, 1024), seed=1, epoch=epoch,
            num_workers=workers, required_batch_size_multiple=8,
        )  # fmt: skip
        assert isinstance(iterator, iterators.EpochBatchIterator)
        expected = copy.copy(speech)
        expected.set_epoch(epoch)
        lengths = {}
        for batch in iterator.next_epoch_itr(shuffle=True):
            sources = batch["net_input"]
            lengths.update(zip(batch["id"].tolist(), sources["src_lengths"].tolist()))
            assert sources["src_tokens"].shape[1] == sources["src_lengths"].max()
        assert lengths == dict(enumerate(expected.sizes.tolist()))
        seen[epoch] = lengths
        if workers:
            # Else the garbage collector, which finds fairseq's iterators in a reference cycle,
            # closes the workers' queues before it asks them to stop, and waits 5 s for each.
            iterator.dataloader._iterator._shutdown_workers()
    assert seen[1] != seen[2] != seen[3]
