"""Both datasets read the same batches, from every kind of audio."""

import numpy as np
import pytest

from benchmarks import data_loading
from benchmarks.comparison import table
from benchmarks.data_loading import read_epoch
from benchmarks.peers import stand_in_for_torchaudio
from benchmarks.sizes import SIZES


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    stand_in_for_torchaudio()
    folder = tmp_path_factory.mktemp("slices")
    data_loading.write_recordings(folder, "slices", 20)
    return [
        data_loading._dataset(task, folder) for task in ("speech_to_text_samu", "speech_to_text")
    ]


def test_the_same_batches_hold_the_same(datasets):
    ours, theirs = datasets
    batches = [np.array([3, 1, 4]), np.array([15, 9]), np.array([2, 6, 5])]
    for side in datasets:
        rows, waits = read_epoch(side, batches, 0)
        assert sorted(map(len, rows)) == [2, 3, 3] and len(waits) == 3 and min(waits) > 0
        assert {tuple(sorted(found)) for found in rows} == {(1, 3, 4), (9, 15), (2, 5, 6)}
    a, b = (side.collater([side[row] for row in (3, 1, 4)]) for side in datasets)
    order = [b["id"].tolist().index(row) for row in a["id"].tolist()]
    for name in ("src_tokens", "src_lengths"):
        np.testing.assert_allclose(a["net_input"][name], b["net_input"][name][order], atol=1e-6)
    np.testing.assert_array_equal(a["target"], b["target"][order])
    assert all(":" in cell for cell in ours.manifest.cells("audio", 0, 20))


def test_speed_counts_all_batches_but_the_first(datasets, monkeypatch):
    ours, _ = datasets
    rows = [np.array([0, 1]), np.array([2]), np.array([3])]
    monkeypatch.setattr(data_loading, "read_epoch", lambda *args: (rows, [9.0, 0.5, 1.5]))
    lengths = np.array([16_000, 16_000, 32_000, 64_000])
    assert data_loading._speed(ours, rows, lengths, 0) == (2 + 4) / 2.0
    assert data_loading._waiting(ours, rows, 0) == 1000.0


def test_every_kind_and_number_of_workers_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(data_loading, "USE_SECONDS", 0.001)
    monkeypatch.setattr(data_loading, "MAX_TOKENS", 480_000)
    found = data_loading.measure(tmp_path, SIZES["tiny"], "cpu", 1)
    figures = [row.figure for row in found]
    assert len(set(figures)) == len(figures) == 4 * 3 + 2
    assert figures[0] == "wav, 0 workers: audio a second"
    assert figures[-1] == "flac, 2 workers: waiting for a batch, each used for 1 ms"
    for row in found:
        assert row.ours[0] > 0 and row.theirs[0] > 0 and row.target is None
        assert row.more_is_better == ("audio a second" in row.figure)
        mp3 = row.figure.startswith("mp3")
        assert row.peer == ("this project from wav" if mp3 else "fairseq speech_to_text")
        if not mp3 and row.more_is_better:
            assert row.same.startswith("3 rows: same tokens, samples of unit variance differ by")
            assert float(row.same.split()[-3]) < 1e-5
    assert len(table(found)) == 2 + len(found)
