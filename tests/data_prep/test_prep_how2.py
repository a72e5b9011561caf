"""How2: manifests of a small folder laid out as the corpus, and what cannot be used of it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.prep_how2 import prepare_how2
from data_prep.preparation import Preparation
from fairseq_samu.data.audio import audio_duration, read_audio
from fairseq_samu.data.manifest import Manifest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def how2(tmp_path):
    """Three utterances a split, one of them at 44.1 kHz."""
    root = tmp_path / "how2"
    noise = np.random.default_rng(1).uniform(-0.1, 0.1, 5001)
    for split in ("train", "val", "dev5"):
        audio, text = root / "audio_data" / split, root / "text_data" / split
        audio.mkdir(parents=True)
        text.mkdir(parents=True)
        for number, rate in enumerate((16_000, 16_000, 44_100)):
            soundfile.write(audio / f"{split}-v_{number}.wav", noise, rate)
        for lang, words in (("en", "mix it"), ("pt", "misture  isso"), ("de", "mischen")):
            lines = [f"{split}-v_{number} {words} {number}\n" for number in range(3)]
            (text / f"text.id.{lang}").write_text("".join(lines), encoding="utf-8")
    return root


def dropped(out):
    header, *lines = (out / "dropped.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "split\tid\treason"
    return [tuple(line.split("\t")) for line in lines]


def test_manifests_say_what_training_reads(how2, tmp_path):
    summary = prepare_how2(how2, tmp_path / "data", preparation=Preparation(workers=1))
    assert {name: split.rows for name, split in summary.splits.items()} == dict.fromkeys(
        ("train", "dev", "test"), 3
    )
    for name, split in (("train", "train"), ("dev", "val"), ("test", "dev5")):
        manifest = Manifest(tmp_path / "data" / f"{name}.tsv")
        assert manifest.pairs == [("en", "pt")]
        for row in range(3):
            cells = manifest.row(row)
            assert cells["id"] == f"{split}-v_{row}"
            assert cells["src_text"] == f"mix it {row}"
            assert cells["tgt_text"] == f"misture isso {row}"
            assert int(cells["n_frames"]) == len(read_audio(cells["audio"]))
            assert int(cells["n_frames"]) == audio_duration(cells["audio"])
    assert manifest.n_frames.tolist() == [5001, 5001, 1814]  # 5001 / 44.1 * 16 = 1814.4
    assert dropped(tmp_path / "data") == []


@pytest.mark.parametrize("target,text", [("de", "mischen 0"), ("en", "mix it 0")])
def test_other_targets_and_recognition(how2, tmp_path, target, text):
    prepare_how2(how2, tmp_path / "data", target, Preparation(workers=1))
    manifest = Manifest(tmp_path / "data" / "test.tsv")
    assert manifest.pairs == [("en", target)]
    assert manifest.cell(0, "tgt_text") == text
    assert manifest.cell(0, "src_text") == "mix it 0"


def spoil(how2):
    """Everything that a row of the training split may have wrong, in utterances of their own."""
    text = how2 / "text_data" / "train"
    for lang, more in (
        ("en", "gone_0 a\nnoise_0 b\nempty_0 c\nalone_0 d\nbell_0 e\x07\nmute_0 f\n"),
        ("pt", "gone_0 a\nnoise_0 b\nempty_0 c\nbell_0 e\nmute_0\nlost_0 g\n"),
    ):
        with open(text / f"text.id.{lang}", "a", encoding="utf-8") as file:
            file.write(more)
    audio = how2 / "audio_data" / "train"
    (audio / "noise_0.wav").write_bytes(b"not audio")
    soundfile.write(audio / "empty_0.wav", np.zeros(0), 16_000)


def test_what_cannot_be_used_is_listed_with_its_reason(how2, tmp_path):
    spoil(how2)
    out = tmp_path / "data"
    summary = prepare_how2(how2, out, preparation=Preparation(max_dropped=0.8, workers=1))
    assert (summary.splits["train"].rows, summary.splits["train"].dropped) == (3, 7)
    reasons = {utterance: reason for split, utterance, reason in dropped(out) if split == "train"}
    expected = {
        "gone_0": "no audio file",
        "noise_0": "unreadable audio",
        "empty_0": "audio without samples",
        "alone_0": "no text in text.id.pt",
        "bell_0": "control character in the text: '\\x07'",
        "mute_0": "no text in text.id.pt",
        "lost_0": "no text in text.id.en",
    }
    assert reasons.keys() == expected.keys()
    for utterance, reason in expected.items():
        assert reasons[utterance].startswith(reason)


@pytest.mark.parametrize("target,files", [("pt", ("en", "pt")), ("en", ("en",))])
def test_an_empty_line_costs_no_other(how2, tmp_path, target, files):
    """Lines name their utterances: nothing is shifted; those at the end are no lines."""
    for lang in ("en", "pt"):
        path = how2 / "text_data" / "train" / f"text.id.{lang}"
        first, *others = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join([first, " \n", *others, "\n\n"]), encoding="utf-8")
    out = tmp_path / "data"
    prepare_how2(how2, out, target, Preparation(max_dropped=0.4, workers=1))
    assert dropped(out) == [("train", f"text.id.{lang}:2", "empty line") for lang in files]
    manifest = Manifest(out / "train.tsv")
    word = {"pt": "misture isso", "en": "mix it"}[target]
    assert [manifest.cell(i, "tgt_text") for i in range(3)] == [f"{word} {i}" for i in range(3)]


def test_too_many_unusable_utterances_write_no_manifest(how2, tmp_path):
    spoil(how2)
    with pytest.raises(
        ValueError, match=r"train: .* at most 60\.0%.* found 7 of 10, .*gone_0: no au"
    ):
        preparation = Preparation(max_dropped=0.6, workers=1)
        prepare_how2(how2, tmp_path / "data", preparation=preparation)
    assert len(dropped(tmp_path / "data")) == 7
    assert sorted(os.listdir(tmp_path / "data")) == [".preparation", "dropped.tsv"]


def test_the_command_and_its_errors(how2, tmp_path):
    def run(*options, out="other"):
        return subprocess.run(
            [sys.executable, "-m", "data_prep.prep_how2", "--how2", how2, "--out", tmp_path / out, *options],
            cwd=REPOSITORY, capture_output=True, text=True,
        )  # fmt: skip

    assert run(out="data").stdout.splitlines()[0] == "train: 3 rows, 0.0 min; 0 dropped"
    missing = run("--tgt", "fr")
    assert missing.returncode == 1 and "text.id.fr" in missing.stderr
    path = how2 / "text_data" / "val" / "text.id.en"
    path.write_text("a_1 x\na_1 y\n")
    twice = run()
    assert twice.returncode == 1
    assert "text.id.en: utterance a_1: expected once, found it again" in twice.stderr
