import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from fairseq.tasks import FairseqTask

from fairseq_samu.data.audio_paths_dataset import AudioPathsDataset

LENGTHS = [16_000, 4000, 9000, 2500, 700]


@pytest.fixture
def waves(tmp_path):
    """Noise in wav files 0.wav, 1.wav, … of the lengths above, in a folder."""
    rng = np.random.default_rng(0)
    for i, length in enumerate(LENGTHS):
        wave = rng.normal(0.1, 0.1, length)
        soundfile.write(tmp_path / f"{i}.wav", wave, 16_000, subtype="FLOAT")
    return tmp_path


def files(waves, normalize=True):
    names = [f"{i}.wav" for i in range(len(LENGTHS))]
    return AudioPathsDataset(names, LENGTHS, normalize, str(waves))


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize(
    "limit", [{"max_tokens": 600_000}, {"max_sentences": 7}, {"max_tokens": 10**9}]
)
def test_every_row_is_in_one_batch(multiple, limit):
    lengths = np.random.default_rng(0).integers(5000, 300_000, 2995)
    dataset = AudioPathsDataset(["none.wav"] * len(lengths), lengths, False, None)
    rows = dataset.ordered_indices()
    batches = dataset.batch_by_size(rows, required_batch_size_multiple=multiple, **limit)
    assert np.concatenate(batches).tolist() == rows.tolist()
    for batch in batches:
        assert len(batch) * lengths[batch].max() <= limit.get("max_tokens", 10**12)
        assert len(batch) <= limit.get("max_sentences", 10**12)
    assert dataset.batch_by_size(rows[:0], required_batch_size_multiple=multiple, **limit) == []


def test_audio_paths_make_batches_without_targets(waves):
    dataset = files(waves)
    assert len(dataset) == 5
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["id"].tolist() == [0, 1] and batch["nsentences"] == 2 and batch["target"] is None
    assert set(batch["net_input"]) == {"src_tokens", "src_lengths"}
    source, lengths = batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"]
    assert source.shape == (2, 16_000) and lengths.tolist() == [16_000, 4000]
    assert not source[1, 4000:].any()
    for i, length in enumerate(lengths):
        wave = torch.from_numpy(soundfile.read(waves / f"{i}.wav", dtype="float32")[0])
        expected = F.layer_norm(wave, wave.shape)
        torch.testing.assert_close(source[i, :length], expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(files(waves, normalize=False)[i]["source"], wave)
    assert dataset.collater([]) == {}


def test_audio_paths_are_ordered_and_limited_by_length(waves):
    dataset = files(waves)
    assert dataset.ordered_indices().tolist() == [4, 3, 1, 2, 0]
    assert dataset.size(1) == (4000,) and dataset.num_tokens(1) == 4000
    for limits in ((9000, 10), (9000,), 9000):
        kept, ignored = dataset.filter_indices_by_size(dataset.ordered_indices(), limits)
        assert kept.tolist() == [4, 3, 1, 2] and ignored == [0]


def test_audio_paths_through_fairseqs_iterator(waves):
    iterator = FairseqTask(None).get_batch_iterator(
        files(waves),
        max_tokens=20_000,
        max_positions=(10**9, 1024),
        required_batch_size_multiple=8,
    )
    ids = [row for batch in iterator.next_epoch_itr(shuffle=False) for row in batch["id"].tolist()]
    assert sorted(ids) == list(range(5))
