"""The encoder's vectors on disk: the same in every batch, stale never unnoticed, errors before the work."""

import json
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

from data_prep import vector_files
from data_prep.embed_text import Teacher, embed_manifest
from data_prep.manifest import ManifestRow, ManifestWriter
from fairseq_samu import embed as embed_module
from fairseq_samu.data.audio import AudioError, normalize_utterance, read_audio
from fairseq_samu.data.manifest import Manifest
from fairseq_samu.data.manifest_index import ManifestError
from fairseq_samu.data.teacher_embeddings import TeacherEmbeddings, TeacherEmbeddingsError
from fairseq_samu.embed import embed, load_encoder, main
from fairseq_samu.utterances import open_files, open_manifest

REPOSITORY = Path(__file__).resolve().parents[1]
#: Samples of every utterance of the test split; in no order.
LENGTHS = [6000, 2500, 9000, 2500, 4000, 1200, 7000]
SIZES = [
    "--encoder-conv-layers", "[(16,20,10),(16,8,4),(32,4,4)]", "--encoder-layers", "1",
    "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "64", "--encoder-attention-heads", "2",
]  # fmt: skip


def write_split(path, lengths):
    rng = np.random.default_rng(zlib.crc32(path.stem.encode()))
    (path.parent / "clips").mkdir(exist_ok=True)
    with ManifestWriter(path) as writer:
        for i, samples in enumerate(lengths):
            name = f"clips/{path.stem}-{i}.wav"
            soundfile.write(path.parent / name, rng.normal(size=samples) * 0.1, 16000)
            text = f"hello world {i}"
            row = ManifestRow(f"u{i}", name, samples, text, "s", text, "en", "en")
            writer.write(row)


def fake_teacher(texts):
    seeds = [zlib.crc32(text.encode()) for text in texts]
    return np.array([np.random.default_rng(s).normal(size=6) for s in seeds], np.float32)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, run_fairseq):
    """A SAMU encoder after one update; the folder it was trained in is gone."""
    folder = tmp_path_factory.mktemp("samu")
    data = folder / "data"
    data.mkdir()
    write_split(data / "train.tsv", [4000, 5000, 6000])
    embed_manifest(data / "train.tsv", Teacher("t", "abc", 6, fake_teacher), "labse", "src_text")
    subprocess.run(
        [sys.executable, "-m", "data_prep.build_vocab", "--manifests", str(data / "train.tsv"),
         "--model-type", "char", "--vocab-size", "15", "--langs", "en", "--out", str(data)],
        check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    run_fairseq(
        "train", data, "--task", "speech_to_text_samu", "--teacher", "labse", "--arch", "samu_xlsr",
        *SIZES, "--criterion", "mse_to_labse", "--train-subset", "train", "--valid-subset", "train",
        "--disable-validation",
        "--max-tokens", "100000", "--optimizer", "adam", "--lr", "0.01", "--max-update", "1", "--cpu",
        "--num-workers", "0", "--save-dir", folder, "--no-epoch-checkpoints", cwd=folder,
    )  # fmt: skip
    shutil.rmtree(data)
    return (folder / "checkpoint_last.pt").rename(folder / "Samu.pt")


@pytest.fixture(scope="session")
def encoder(checkpoint):
    return load_encoder(checkpoint, "cpu")


@pytest.fixture
def data(tmp_path):
    write_split(tmp_path / "test.tsv", LENGTHS)
    return tmp_path


def utterances(data, encoder):
    return open_manifest(data / "test.tsv", data, encoder.task)


def one_by_one(encoder, data):
    """Vectors of the test split, each computed alone and without anything of this command."""
    found = []
    for i, samples in enumerate(LENGTHS):
        wave, _ = soundfile.read(data / f"clips/test-{i}.wav", dtype="float32")
        wave = F.layer_norm(torch.from_numpy(wave), wave.shape)[None]
        with torch.no_grad():
            found.append(encoder.model(wave, torch.tensor([samples]))["embedding"][0])
    return torch.stack(found).numpy()


def test_rows_are_the_manifests_and_batches_change_nothing(checkpoint, encoder, data, capsys):
    common = ["--path", str(checkpoint), "--data", str(data), "--splits", "test", "--cpu"]
    main([*common, "--max-tokens", "19000"])
    main([*common, "--max-tokens", "1", "--out", str(data / "alone"), "--num-workers", "0"])
    batched, alone = np.load(data / "test.samu.npy"), np.load(data / "alone" / "test.samu.npy")
    assert batched.shape == (7, 6) and batched.dtype == np.float16
    expected = one_by_one(encoder, data)
    assert np.abs(expected[0] - expected[2]).max() > 1e-3, "utterances have to differ"
    np.testing.assert_allclose(batched, expected, atol=6e-4)
    np.testing.assert_allclose(alone, expected, atol=6e-4)
    assert "7 utterances (7 embedded now), 6 numbers each" in capsys.readouterr().out


def test_finished_files_are_kept_until_audio_or_encoder_change(encoder, data):
    assert embed(encoder, utterances(data, encoder), "samu", 30000)[1] == 7
    assert embed(encoder, utterances(data, encoder), "samu", 9000)[1] == 0
    sidecar = json.loads((data / "test.samu.json").read_text())
    assert (sidecar["model"], sidecar["model_sha256"]) == ("Samu.pt", encoder.sha256)
    assert (sidecar["rows"], sidecar["dimension"], sidecar["column"]) == (7, 6, "audio")
    other = encoder._replace(sha256="other weights")
    assert embed(other, utterances(data, encoder), "samu", 30000)[1] == 7

    manifest = data / "test.tsv"
    assert TeacherEmbeddings(Manifest(manifest), "samu").column == "audio"
    shutil.copy(data / "clips/test-3.wav", data / "clips/same.wav")
    manifest.write_text(manifest.read_text().replace("test-3.wav", "same.wav"))
    with pytest.raises(TeacherEmbeddingsError, match=r"test\.tsv:5: .* the audio of 7 rows"):
        TeacherEmbeddings(Manifest(manifest), "samu")
    assert embed(encoder, utterances(data, encoder), "samu", 30000)[1] == 7


def test_interrupted_run_goes_on(encoder, data, monkeypatch):
    monkeypatch.setattr(vector_files, "JOURNAL_SECONDS", 0.0)
    embed(encoder, utterances(data, encoder), "whole", 9000)
    calls = []
    original = embed_module._embed_batch

    def dies_third(encoder, batch, utterances):
        calls.append(batch["id"].tolist())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(encoder, batch, utterances)

    monkeypatch.setattr(embed_module, "_embed_batch", dies_third)
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, utterances(data, encoder), "samu", 9000)
    assert calls == [[2], [6], [0]], "the longest come first"
    assert not (data / "test.samu.npy").exists() and not (data / "test.samu.json").exists()
    assert embed(encoder, utterances(data, encoder), "samu", 9000)[1] == 5
    assert (data / "test.samu.npy").read_bytes() == (data / "test.whole.npy").read_bytes()
    assert not list(data.glob(".test.samu.*"))


def test_audio_files_and_lists(checkpoint, encoder, data, capsys, monkeypatch):
    monkeypatch.chdir(data)
    files = ["clips/test-4.wav", "clips/test-0.wav"]
    (data / "some.txt").write_text("\n".join(files) + "\n")
    main(["--path", str(checkpoint), "--audio", *files, "--cpu", "--num-workers", "0"])
    main(["--path", str(checkpoint), "--audio-list", "some.txt", "--cpu", "--num-workers", "0"])
    expected = one_by_one(encoder, data)[[4, 0]]
    np.testing.assert_allclose(np.load("audio.samu.npy"), expected, atol=6e-4)
    np.testing.assert_allclose(np.load("some.samu.npy"), expected, atol=6e-4)
    assert json.loads(Path("audio.samu.json").read_text())["audio"] == files

    shutil.copy("clips/test-6.wav", "clips/test-0.wav")  # another recording of this name
    main(["--path", str(checkpoint), "--audio", *files, "--cpu", "--num-workers", "0"])
    np.testing.assert_allclose(
        np.load("audio.samu.npy"), one_by_one(encoder, data)[[4, 6]], atol=6e-4
    )
    main(["--path", str(checkpoint), "--audio", *files, "--cpu", "--num-workers", "0"])
    assert "2 utterances (already there)" in capsys.readouterr().out

    for lines, message in (
        ("clips/test-4.wav\nnone.wav\n", r"some\.txt:2: none\.wav: .*no such file"),
        ("clips/test-4.wav\n\n", r"some\.txt:2: .*empty line"),
    ):
        (data / "some.txt").write_text(lines)
        with pytest.raises(SystemExit):
            main(["--path", str(checkpoint), "--audio-list", "some.txt", "--cpu"])
        assert re.search(message, capsys.readouterr().err)


def test_rows_that_cannot_be_embedded_are_errors_before_the_work(encoder, data):
    write_split(data / "short.tsv", [4000, 200])
    with pytest.raises(ManifestError, match=r"short\.tsv:3: expected 400 to 480000 .*found 200"):
        open_manifest(data / "short.tsv", data, encoder.task)
    (data / "clips/test-2.wav").write_bytes(b"no audio")
    with pytest.raises(ManifestError, match=r"test\.tsv:4: clips/test-2\.wav: expected wav"):
        utterances(data, encoder)
    (data / "clips/test-2.wav").unlink()
    with pytest.raises(ManifestError, match=r"test\.tsv:4: .*no such file"):
        utterances(data, encoder)
    with pytest.raises(AudioError, match=r"--audio:1: .*: expected 400 to 480000 .*found 200"):
        open_files([str(data / "clips/short-1.wav")], data / "a", "--audio", encoder.task)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_audio_that_breaks_later_is_named_without_a_traceback(encoder, data, num_workers):
    there = utterances(data, encoder)
    (data / "clips/test-1.wav").write_bytes(b"no audio")
    with pytest.raises(ManifestError) as error:
        embed(encoder, there, "samu", 9000, num_workers)
    assert str(error.value).startswith(f"{data}/test.tsv:3: clips/test-1.wav: expected wav")


def test_vectors_of_texts_are_not_written_over(encoder, data):
    embed_manifest(data / "test.tsv", Teacher("t", "abc", 6, fake_teacher), "labse", "src_text")
    with pytest.raises(ValueError, match="found those of src_text; choose another --name"):
        embed(encoder, utterances(data, encoder), "labse", 9000)


def test_a_vector_that_is_not_finite_is_an_error(encoder, data, monkeypatch):
    there = utterances(data, encoder)

    class Broken(torch.nn.Linear):
        def forward(self, wave, lengths):
            return {"embedding": torch.full((len(wave), 6), float("nan"))}

    with pytest.raises(ValueError, match=r"test\.tsv:4: expected a finite vector of clips/test-2"):
        embed(encoder._replace(model=Broken(1, 1)), there, "samu", 9000)


def test_other_checkpoints_are_refused(tmp_path):
    for content, message in (
        ({"cfg": {"model": {"_name": "xlsr_mbart_st"}, "task": {}}, "model": {}}, "one of xlsr_mbart"),
        ({"model": {}}, "found no cfg"),
    ):  # fmt: skip
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=f"other.pt: expected a checkpoint of samu.*{message}"):
            load_encoder(tmp_path / "other.pt", "cpu")


def test_waveforms_are_normalised_as_in_training(encoder, data):
    item = utterances(data, encoder).dataset[0]["source"].numpy()
    wave = read_audio("clips/test-0.wav", str(data))
    np.testing.assert_array_equal(item, normalize_utterance(wave))
