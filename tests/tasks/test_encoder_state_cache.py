"""The cache computes what is missing, once, and nothing else."""

import logging
import multiprocessing
import os
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from fairseq_samu.data.encoder_states import EncoderStatesError
from fairseq_samu.data.manifest import Manifest
from fairseq_samu.data.manifest_index import COLUMNS
from fairseq_samu.data.speech_to_text_dataset import SpeechToTextSamuDataset
from fairseq_samu.tasks import encoder_state_cache
from fairseq_samu.tasks.encoder_state_cache import EncoderStateCache

LENGTHS = [4000, 9000, 4100, 16_000, 700, 12_345, 8000]
WIDTH = 4


class Encoder(nn.Module):
    """Frames of 320 samples, four numbers each; remembers the batches that it saw."""

    width = WIDTH

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0, 0.5, 2.0]) * scale)
        self.batches = []

    def forward(self, wave, lengths):
        self.batches.append(lengths.tolist())
        windows = nn.functional.pad(wave, (0, -wave.size(1) % 320)).unflatten(1, (-1, 320))
        frames = windows.mean(dim=2, keepdim=True).transpose(0, 1) * self.weight
        counts = (lengths + 319).div(320, rounding_mode="floor")
        return frames, torch.arange(len(frames)) >= counts.unsqueeze(1)


@pytest.fixture
def data(tmp_path):
    """Manifest of seven recordings."""
    rng = np.random.default_rng(0)
    for row, length in enumerate(LENGTHS):
        soundfile.write(
            tmp_path / f"{row}.wav", rng.normal(0, 0.3, length), 16_000, subtype="FLOAT"
        )
    return write_manifest(tmp_path / "train.tsv", range(len(LENGTHS)))


def write_manifest(path, rows):
    lines = ["\t".join(COLUMNS)]
    for i, row in enumerate(rows):
        lines.append(f"utt{i}\t{row}.wav\t{LENGTHS[row]}\tb\ts\ta\tes\ten")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def dataset(path, **more):
    return SpeechToTextSamuDataset(
        Manifest(path), audio_root=str(path.parent), encode_target=None, pad=1, eos=2, prefix_size=0,
        normalize=False, shuffle=False, min_samples=1, max_samples=10**6, max_target_tokens=99, **more,
    )  # fmt: skip


def serve(root, encoder, *datasets, weights="w1", normalization="none", cpu_bf16=False):
    cache = EncoderStateCache(str(root), normalization, cpu_bf16)
    cache.add_model(SimpleNamespace(frozen_speech_encoder=encoder, frozen_speech_weights=weights))
    cache.serve(datasets, 0)
    return [length for batch in encoder.batches for length in batch]


def check(path, encoder, served, rows):
    """What a dataset gives is what the encoder makes of the waveform, in float16."""
    plain = dataset(path)
    for row in rows:
        wave = plain[row]["source"]
        expected, _ = encoder(wave.unsqueeze(0), torch.tensor([len(wave)]))
        source = served[row]["source"]
        assert source.dtype == torch.float16
        assert torch.equal(source, expected[:, 0].half()), row


def test_states_come_in_place_of_waveforms_and_batches_stay(data, tmp_path):
    encoder, served, plain = Encoder(), dataset(data), dataset(data)
    seen = serve(tmp_path / "cache", encoder, served)
    assert sorted(seen[1:]) == sorted(LENGTHS)  # the first is silence, by which frames are counted
    check(data, encoder, served, range(7))
    order = plain.ordered_indices()
    assert served.ordered_indices().tolist() == order.tolist()
    batches = [dataset.batch_by_size(order, max_tokens=32_000) for dataset in (plain, served)]
    assert [list(batch) for batch in batches[0]] == [list(batch) for batch in batches[1]]

    batch = served.collater([served[row] for row in (4, 1)])
    assert batch["net_input"]["src_tokens"].shape == (2, 29, WIDTH)
    assert batch["net_input"]["src_tokens"].dtype == torch.float16
    assert batch["net_input"]["src_lengths"].tolist() == [3, 29]
    assert batch["net_input"]["src_tokens"][0, 3:].eq(0).all()
    assert batch["id"].tolist() == [4, 1]


def test_a_second_run_and_a_subset_compute_nothing(data, tmp_path):
    serve(tmp_path / "cache", Encoder(), dataset(data))
    again, part = Encoder(), write_manifest(tmp_path / "part.tsv", [5, 2, 5])
    served = dataset(part)
    before = {path: path.read_bytes() for path in tmp_path.glob("cache/**/*.*")}
    assert serve(tmp_path / "cache", again, dataset(data), served) == []
    check(part, Encoder(), served, range(3))
    assert {path: path.read_bytes() for path in tmp_path.glob("cache/**/*.*")} == before


def test_the_same_recordings_elsewhere_compute_nothing(data, tmp_path):
    """Copied to another disk, in an archive, or touched."""
    serve(tmp_path / "cache", Encoder(), dataset(data))
    moved = tmp_path / "moved"
    moved.mkdir()
    lines = data.read_text(encoding="utf-8").splitlines()
    with open(moved / "all.tar", "wb") as archive:
        for row in range(7):
            audio = (tmp_path / f"{row}.wav").read_bytes()
            slice_ = f"all.tar:{archive.tell()}:{len(audio)}"
            lines[row + 1] = lines[row + 1].replace(f"{row}.wav", slice_)
            archive.write(audio)
    (moved / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.utime(tmp_path / "3.wav", ns=(0, 1))
    encoder, served = Encoder(), dataset(moved / "train.tsv")
    assert serve(tmp_path / "cache", encoder, dataset(data), served) == []
    check(data, encoder, served, range(7))


def test_every_speed_is_stored_and_read_in_its_epochs(data, tmp_path):
    speeds = {"speed_factors": (0.5, 1.0, 2.0), "seed": 3}
    served, plain, encoder = dataset(data, **speeds), dataset(data, **speeds), Encoder()
    seen = serve(tmp_path / "cache", encoder, served, dataset(data))
    assert sorted(seen[1:]) == sorted(
        [*LENGTHS, *(2 * length for length in LENGTHS), *(-(-length // 2) for length in LENGTHS)]
    )
    heard = set()
    for epoch in (1, 2, 3):
        for split in (served, plain):
            split.set_epoch(epoch)
        for row in range(7):
            wave = plain[row]["source"]
            heard.add(len(wave) / LENGTHS[row])
            expected, _ = encoder(wave.unsqueeze(0), torch.tensor([len(wave)]))
            assert torch.equal(served[row]["source"], expected[:, 0].half()), (epoch, row)
    assert min(heard) < 0.6 and 1.0 in heard and max(heard) == 2.0


def test_a_larger_manifest_computes_what_is_new_and_a_recording_once(data, tmp_path):
    serve(tmp_path / "cache", Encoder(), dataset(write_manifest(tmp_path / "few.tsv", [1, 4])))
    encoder, twice = Encoder(), write_manifest(tmp_path / "twice.tsv", [3, 3, 0])
    served = dataset(twice)
    seen = serve(tmp_path / "cache", encoder, dataset(data), served)
    assert sorted(seen[1:]) == sorted(LENGTHS[row] for row in (0, 2, 3, 5, 6))
    check(twice, encoder, served, range(3))


def test_what_was_cut_off_is_computed_again(data, tmp_path):
    serve(tmp_path / "cache", Encoder(), dataset(data))
    (states,) = tmp_path.glob("cache/*/*.f16")
    states.write_bytes(states.read_bytes()[:-9])  # within the last one, the shortest
    encoder, served = Encoder(), dataset(data)
    assert serve(tmp_path / "cache", encoder, served)[1:] == [700]
    check(data, encoder, served, range(7))


class DyingEncoder(Encoder):
    """Kills its process in the third batch of utterances; the first one it sees is silence."""

    def forward(self, wave, lengths):
        if len(self.batches) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(wave, lengths)


def serve_small_batches(encoder, path, root):
    encoder_state_cache.BATCH_SAMPLES = 18_000
    return serve(root, encoder, dataset(path))


def test_a_killed_run_keeps_what_it_has(data, tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (DyingEncoder(), data, tmp_path / "cache")
    process = context.Process(target=serve_small_batches, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    encoder, served = Encoder(), dataset(data)
    seen = serve(tmp_path / "cache", encoder, served)
    assert seen[1:] == [9000, 8000, 4100, 4000, 700]  # but the two longest, of a batch each
    check(data, encoder, served, range(7))


def share(rank, folder):
    """One of two workers of a distributed run."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    encoder, served = Encoder(), dataset(folder / "train.tsv")
    seen = serve(folder / "cache", encoder, served)
    check(folder / "train.tsv", encoder, served, range(7))
    torch.save(seen[1:], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_workers_share_the_work_and_read_all_of_it(data, tmp_path):
    torch.multiprocessing.spawn(share, (tmp_path,), nprocs=2)
    seen = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert sorted(seen[0] + seen[1]) == sorted(LENGTHS)
    assert len(list(tmp_path.glob("cache/*/*.f16"))) == sum(map(bool, seen))
    assert serve(tmp_path / "cache", Encoder(), dataset(data)) == []


@pytest.mark.parametrize(
    "other", [{"weights": "w2"}, {"normalization": "utterance"}, {"cpu_bf16": True}]
)
def test_another_encoder_has_a_folder_of_its_own(data, tmp_path, other):
    serve(tmp_path / "cache", Encoder(), dataset(data))
    encoder, served = Encoder(scale=3.0), dataset(data)
    assert len(serve(tmp_path / "cache", encoder, served, **other)) == 8
    check(data, encoder, served, range(7))
    assert len(list(tmp_path.glob("cache/*/encoder.json"))) == 2
    half, served = Encoder().half(), dataset(data)
    half.forward = lambda wave, lengths: Encoder.forward(half, wave.half(), lengths)
    assert len(serve(tmp_path / "cache", half, served)) == 8


class MultiplyingEncoder(Encoder):
    """Remembers the precision of its products."""

    def forward(self, wave, lengths):
        self.products = nn.functional.linear(wave.new_ones(1, 1), wave.new_ones(1, 1)).dtype
        return super().forward(wave, lengths)


@pytest.mark.parametrize("cpu_bf16", [False, True])
def test_states_are_computed_in_the_precision_that_their_folder_names(data, tmp_path, cpu_bf16):
    encoder = MultiplyingEncoder()
    serve(tmp_path / "cache", encoder, dataset(data), cpu_bf16=cpu_bf16)
    (folder,) = (path.parent.name for path in tmp_path.glob("cache/*/encoder.json"))
    assert folder.endswith("_bf16") == cpu_bf16
    assert encoder.products == (torch.bfloat16 if cpu_bf16 else torch.float32)


def test_audio_that_changed_is_encoded_again(data, tmp_path):
    serve(tmp_path / "cache", Encoder(), dataset(data))
    shutil.copy(tmp_path / "2.wav", tmp_path / "0.wav")
    wave = np.ones(LENGTHS[0]) / 2
    soundfile.write(tmp_path / "0.wav", wave, 16_000, subtype="FLOAT")
    encoder, served = Encoder(), dataset(data)
    assert serve(tmp_path / "cache", encoder, served)[1:] == [4000]
    check(data, encoder, served, range(7))


def test_disk_need_is_said_and_refused_before_anything_is_written(
    data, tmp_path, monkeypatch, caplog
):
    usage = SimpleNamespace(free=10**9)
    monkeypatch.setattr(encoder_state_cache.shutil, "disk_usage", lambda path: usage)
    with caplog.at_level(logging.INFO):
        serve(tmp_path / "cache", Encoder(), dataset(data))
    (states,) = tmp_path.glob("cache/*/*.f16")
    written = states.stat().st_size + states.with_suffix(".index").stat().st_size
    said = re.search(r"7 of 7 recordings.* need ([\d,]+) of the 1,000,000,000 bytes", caplog.text)
    # Never less, and no more than a frame an utterance too much
    assert written <= int(said[1].replace(",", "")) <= written + 7 * 2 * WIDTH

    usage.free = written - 1
    with pytest.raises(EncoderStatesError, match="expected room for the states of 7 utterances"):
        serve(tmp_path / "small", Encoder(), dataset(data))
    assert not list(tmp_path.glob("small/*/*"))


def test_what_is_no_folder_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(
            EncoderStatesError, match="expected a folder to write to, found: .*file"
        ):
            serve(root, Encoder(), dataset(data))
    with pytest.raises(
        ValueError, match="--cache-encoder-states: expected a folder, found an empty"
    ):
        serve("", Encoder(), dataset(data))


def test_frames_out_of_range_name_their_row(data, tmp_path):
    with pytest.raises(EncoderStatesError, match=r"train.tsv:5: expected frames within the range"):
        serve(tmp_path / "cache", Encoder(scale=1e8), dataset(data))


def test_models_without_one_frozen_encoder_are_refused(data, tmp_path):
    cache = EncoderStateCache(str(tmp_path), "none", False)
    trained = SimpleNamespace(frozen_speech_encoder=None)
    for model, name in ((nn.Linear(1, 1), "Linear"), (trained, "SimpleNamespace")):
        with pytest.raises(ValueError, match=f"a frozen speech encoder .*, found a {name} without"):
            cache.add_model(model)
    for weights in ("w1", "w2"):
        model = SimpleNamespace(frozen_speech_encoder=Encoder(), frozen_speech_weights=weights)
        cache.add_model(model)
    with pytest.raises(
        ValueError, match="models of one speech encoder, found the weights w1 and w2"
    ):
        cache.serve([dataset(data)], 0)
    cache = EncoderStateCache(str(tmp_path / "cache"), "none", False)
    for _ in range(2):
        cache.add_model(
            SimpleNamespace(frozen_speech_encoder=Encoder(), frozen_speech_weights="w1")
        )
    cache.serve([dataset(data)], 0)


def test_a_longest_hypothesis_in_frames_is_refused(tmp_path):
    cache = EncoderStateCache(str(tmp_path), "none", False)
    for options in ({}, {"max_len_a": 0}):
        cache.check_generation(SimpleNamespace(**options))
    with pytest.raises(ValueError, match="--max-len-a: expected 0 .*, found 0.5.*--max-len-b"):
        cache.check_generation(SimpleNamespace(max_len_a=0.5))
