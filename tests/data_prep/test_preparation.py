"""The pipeline of every corpus: what it writes, what it drops, and that being killed changes nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from data_prep import preparation as preparation_module
from data_prep.clips import ClipRules, Place
from data_prep.corpus import BadRow, Corpus, CorpusRow
from data_prep.journal import Journal
from data_prep.merge_shards import merge_shards
from data_prep.preparation import Preparation, prepare_corpus
from data_prep.text_rules import TextRules
from fairseq_samu.data.audio import read_audio
from fairseq_samu.data.manifest import Manifest
from helpers.noise_corpus import RATE, corpus

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Whole files of 0.2 s, a little longer each, and a stereo recording of 6 s."""
    folder = tmp_path_factory.mktemp("speech")
    random = np.random.default_rng(1)
    for i in range(20):
        wave = random.uniform(-0.1, 0.1, 3200 + 10 * i)
        soundfile.write(folder / f"{i}.wav", wave, 16_000, subtype="PCM_16")
    soundfile.write(folder / "long.flac", random.uniform(-0.1, 0.1, (6 * RATE, 2)), RATE)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def one(place, **more):
    """A corpus of one good row and one at a place."""
    cells = {"id": "x", "src_text": "b", "src_lang": "es", **more}
    good = CorpusRow("good", Place(str(place.parent / "0.wav")), "a", "es")
    return Corpus(
        "one", {}, {"train": lambda: iter([good, CorpusRow(place=Place(str(place)), **cells)])}
    )


def reasons(out):
    lines = (out / "dropped.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[2] for line in lines[1:]]


LOOSE = Preparation(max_dropped=0.9, workers=1)


def test_whole_files_stay_and_segments_are_packed(speech, tmp_path):
    summary = prepare_corpus(corpus(speech), tmp_path, Preparation(workers=1))
    manifest = Manifest(tmp_path / "train.tsv")
    assert len(manifest) == 40 and manifest.pairs == [("es", "en")]
    recording, _ = soundfile.read(speech / "long.flac", dtype="float32")
    for i in range(40):
        row = manifest.row(i)
        wave = read_audio(row["audio"], str(tmp_path))
        assert len(wave) == int(row["n_frames"])
        if i < 20:
            assert row["audio"] == f"{speech}/{i}.wav" and len(wave) == 3200 + 10 * i
        else:
            begin = round(0.25 * (i - 20) * RATE)
            spoken = recording[begin : begin + round(0.2 * RATE), (i - 20) % 2]
            assert len(wave) == pytest.approx(3200, abs=1)
            # White noise keeps the power below 8 kHz when it is resampled.
            share = (wave**2).mean() / (spoken**2).mean()
            assert share == pytest.approx(16_000 / RATE, rel=0.15)
            # Its own channel and time; 16 bits.
            expected = soxr.resample(spoken, RATE, 16_000)
            np.testing.assert_allclose(wave, expected, atol=2**-15)
    with zipfile.ZipFile(tmp_path / "train.zip") as archive:
        assert archive.testzip() is None and len(archive.namelist()) == 20
        assert archive.namelist()[0] == "train-long-0.flac"
    pair = summary.splits["train"].pairs[0]
    seconds = (sum(3200 + 10 * i for i in range(20)) + 20 * 3200) / 16_000
    assert (pair.rows, pair.published_rows) == (40, 41)
    assert pair.mean_seconds == pytest.approx(seconds / 40, abs=1e-3)
    characters = 2 * (10 * len("uno 1") + 10 * len("uno 10"))
    assert pair.characters_per_second == pytest.approx(characters / seconds, abs=0.02)
    assert [(d.what, d.splits, d.count) for d in summary.duplicates] == [
        ("speech", ("train", "dev"), 40),
        ("transcript and translation", ("train", "dev"), 40),
    ]
    assert json.loads((tmp_path / "summary.json").read_text())["splits"]["dev"]["rows"] == 40
    assert summary.remarks()[0] == "train, es→en: 40 rows, published 41"
    assert "| train | es→en | 40 | 41 |" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    "kill_at,workers", [("train-long-0", 1), ("train-long-15", 1), ("dev-long-13", 2)]
)
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    speech, tmp_path, kill_at, workers, monkeypatch
):
    options = Preparation(workers=workers, clips=ClipRules(pack="flac"))
    prepare_corpus(corpus(speech), tmp_path / "whole", options)
    # A program of its own that does not take seconds to import torch. The archive has the row's speech then.
    program = f"""
import os, signal, sys; sys.path[:0] = [{str(REPOSITORY / "tests")!r}, {str(REPOSITORY)!r}]
from data_prep import preparation
from data_prep.clips import ClipRules
from data_prep.journal import Journal
from helpers.noise_corpus import corpus
def add(journal, split, row, real=Journal.add):
    if row.id == {kill_at!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    real(journal, split, row)
Journal.add = add
preparation.COMMIT_EVERY = 0
preparation.prepare_corpus(corpus({str(speech)!r}), {str(tmp_path / "killed")!r},
    preparation.Preparation(workers={workers}, clips=ClipRules(pack="flac")))
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert os.listdir(tmp_path / "killed") == [".preparation"]  # nothing has appeared
    notes = tmp_path / "done"  # of worker processes

    def finish_row(number, *rest, real=preparation_module.finish_row):
        with open(notes, "a", encoding="utf-8") as file:
            file.write(f"{number}\n")
        return real(number, *rest)

    monkeypatch.setattr(preparation_module, "finish_row", finish_row)
    prepare_corpus(corpus(speech), tmp_path / "killed", options)
    done = [int(number) for number in notes.read_text(encoding="utf-8").split()]
    if workers == 1:  # blocks of 16 rows that were committed are not done again
        first = {"train-long-0": 16, "train-long-15": 32}[kill_at]
        assert done == [*range(first, 40), *range(40)]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_an_end_that_is_cut_short_is_made_up_for(speech, tmp_path, monkeypatch):
    """Files take their names one after the other: a run may be killed between any two."""
    options = Preparation(workers=1)
    prepare_corpus(corpus(speech), tmp_path / "whole", options)
    real, allowed = os.replace, []

    def replace(source, target):
        if not allowed:
            raise KeyboardInterrupt
        allowed.pop()
        real(source, target)

    # Two archives, dropped.tsv, duplicates.tsv, two manifests, two summaries, the folder of the work.
    for cut in (0, 1, 3, 4, 7, 8):
        out = tmp_path / f"cut{cut}"
        allowed[:] = range(cut)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(KeyboardInterrupt):
                prepare_corpus(corpus(speech), out, options)
        assert (out / "summary.json").exists() == (cut == 8)
        prepare_corpus(corpus(speech), out, options)
        assert contents(out) == contents(tmp_path / "whole")


def test_a_second_call_changes_nothing_and_another_preparation_is_refused(speech, tmp_path):
    first = prepare_corpus(corpus(speech), tmp_path, Preparation(workers=1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert prepare_corpus(corpus(speech), tmp_path, Preparation(workers=1)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="found pack = 'wav' instead of '': name another"):
        prepare_corpus(corpus(speech), tmp_path, Preparation(clips=ClipRules(pack="wav")))
    (tmp_path / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"train\.tsv: expected a folder without manifests"):
        prepare_corpus(corpus(speech), tmp_path, Preparation(workers=1))


def test_rows_that_changed_under_an_interrupted_run_are_found(speech, tmp_path):
    def splits(word, broken):
        def some():
            for i in range(120):
                if broken and i == 99:
                    raise OSError("the disk went away")
                yield CorpusRow(str(i), Place(f"{speech}/{i % 20}.wav"), word, "es")

        return Corpus("example", {}, {"train": some})

    def attempt(word, broken):
        return prepare_corpus(splits(word, broken), tmp_path, Preparation(workers=1))

    preparation_module.COMMIT_EVERY, kept = 0, preparation_module.COMMIT_EVERY
    try:
        with pytest.raises(OSError, match="went away"):
            attempt("hola", True)
    finally:
        preparation_module.COMMIT_EVERY = kept
    with pytest.raises(ValueError, match="among the first 48 rows of train"):
        attempt("adios", False)
    assert attempt("hola", False).splits["train"].rows == 120


def test_two_processes_do_not_write_one_journal(tmp_path):
    meta = {"corpus": "a", "splits": []}
    used = Journal(tmp_path / "journal.sqlite", meta)
    with pytest.raises(ValueError, match=r"journal\.sqlite: .*locked: expected a journal that no"):
        Journal(tmp_path / "journal.sqlite", meta)
    used.close()
    (tmp_path / "journal.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(ValueError, match=r"not a database: .* to start again"):
        Journal(tmp_path / "journal.sqlite", meta)


def test_shards_make_the_same_rows(speech, tmp_path):
    whole = prepare_corpus(corpus(speech), tmp_path / "whole", Preparation(workers=1))
    for i in (1, 0, 2):
        with pytest.raises((FileNotFoundError, ValueError), match="expected"):
            merge_shards(tmp_path / "parts")
        prepare_corpus(corpus(speech), tmp_path / "parts", Preparation(workers=1, shard=(i, 3)))
    merged = merge_shards(tmp_path / "parts")
    assert merged.splits == whole.splits and merged.duplicates == whole.duplicates
    one, other = (Manifest(tmp_path / name / "dev.tsv") for name in ("whole", "parts"))
    for i in range(40):
        a, b = one.row(i), other.row(i)
        waves = [
            read_audio(row["audio"], str(tmp_path / name))
            for row, name in ((a, "whole"), (b, "parts"))
        ]
        assert np.array_equal(*waves)
        assert {**a, "audio": ""} == {**b, "audio": ""}
    assert not (tmp_path / "parts" / ".preparation").exists()


def broken_files(folder, speech):
    whole = (speech / "5.wav").read_bytes()
    flac = speech / "long.flac"
    files = {
        "empty.wav": b"",
        "text.wav": b"not audio at all",
        "cut.wav": whole[:5000],
        "cut.flac": flac.read_bytes()[: flac.stat().st_size // 2],
        "raw.raw": whole[44:],
        "header.wav": whole[:60],
    }
    spoken, _ = soundfile.read(flac)
    soundfile.write(folder / "whole.ogg", spoken, RATE, format="OGG", subtype="VORBIS")
    ogg = (folder / "whole.ogg").read_bytes()
    # Samples in all: the last 36 bits of bytes 10 to 17 of the block STREAMINFO, which begins at byte 8.
    pipe = bytearray(flac.read_bytes())
    pipe[21:26] = pipe[21] & 0xF0, 0, 0, 0, 0
    files.update(
        {"cut.ogg": ogg[: len(ogg) // 2], "header.ogg": ogg[:20], "pipe.flac": bytes(pipe)}
    )
    for name, data in files.items():
        (folder / name).write_bytes(data)
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "short.wav", np.zeros(100), 16_000)
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(folder / "day.flac", np.zeros(130 * 8000), 8000)
    soundfile.write(folder / "0.wav", np.zeros(8000), 16_000)
    (folder / "folder.wav").mkdir()


@pytest.mark.parametrize(
    "name,reason",
    [
        ("missing.mp3", "no audio file: "),
        ("empty.wav", "empty file: "),
        ("text.wav", "unreadable audio: "),
        ("cut.wav", "truncated audio: "),
        ("header.wav", "truncated audio: "),
        ("cut.ogg", "truncated audio: .*its last page is not whole"),
        ("header.ogg", "truncated audio: .*its last page is not whole"),
        ("cut.flac", "truncated audio: |unreadable audio: "),
        ("raw.raw", "unreadable audio: "),
        ("pipe.flac", r"audio without a length: .*: FLAC written to a pipe\? "),
        ("none.wav", "audio without samples"),
        ("short.wav", r"too short: 0\.006 s"),
        ("nan.wav", "samples that are not finite: "),
        ("day.flac", r"too long: 130\.0 s"),
        ("folder.wav", "unreadable audio: "),
    ],
)
def test_speech_that_cannot_be_used_is_dropped_with_its_reason(speech, tmp_path, name, reason):
    folder = tmp_path / "audio"
    folder.mkdir()
    broken_files(folder, speech)
    prepare_corpus(one(folder / name), tmp_path / "out", LOOSE)
    (found,) = reasons(tmp_path / "out")
    assert re.match(reason, found)
    assert len(Manifest(tmp_path / "out" / "train.tsv")) == 1


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_whole_ogg_is_used(speech, tmp_path, subtype):
    (tmp_path / "0.wav").write_bytes((speech / "0.wav").read_bytes())
    wave, _ = soundfile.read(speech / "0.wav")
    soundfile.write(
        tmp_path / "1.ogg", np.tile(wave, 40), 16_000, format="OGG", subtype=subtype
    )  # several pages
    summary = prepare_corpus(one(tmp_path / "1.ogg"), tmp_path / "out", LOOSE)
    assert summary.splits["train"].rows == 2


def test_a_wrong_extension_does_not_matter(speech, tmp_path):
    for name, source in (("0.wav", "0.wav"), ("clip.mp3", "1.wav")):
        (tmp_path / name).write_bytes((speech / source).read_bytes())
    summary = prepare_corpus(one(tmp_path / "clip.mp3"), tmp_path / "out", LOOSE)
    assert summary.splits["train"].rows == 2


@pytest.mark.parametrize(
    "cells,reason",
    [
        ({"src_text": "a\tb"}, "control character in the text: "),
        ({"src_text": "a\nb"}, "control character in the text: "),
        ({"src_text": "caf\udce9"}, "text is not UTF-8: "),
        ({"src_text": "  "}, "no transcript"),
        ({"tgt_lang": "en"}, "no translation"),
        ({"tgt_text": "b"}, "translation without target language"),
        ({"id": "good"}, "duplicate id: row 1 "),
        ({"id": "a\tb"}, "control character in the id"),
        ({"id": ""}, "no id"),
    ],
)
def test_rows_that_cannot_be_used_are_dropped_with_their_reason(speech, tmp_path, cells, reason):
    summary = prepare_corpus(one(speech / "1.wav", **cells), tmp_path, LOOSE)
    (found,) = reasons(tmp_path)
    assert found.startswith(reason)
    assert summary.splits["train"].reasons == {found.split(": ")[0]: 1}


@pytest.mark.parametrize(
    "place,reason",
    [
        (("long.flac", 5.9, 0.5), ""),  # half a second beyond the end is rounding
        (("long.flac", 5.9, 1.0), "segment outside the recording: 5.900 s to 6.900 s of 6.000 s"),
        (("long.flac", 7.0, 1.0), "segment outside the recording"),
        (("long.flac", -1.0, 2.0), "segment outside the recording"),
        (("long.flac", 1.0, 1.0, 2), "no such channel: 2 of 2"),
        (("gone.flac", 1.0, 1.0), "no audio file"),
    ],
)
def test_segments_outside_their_recording(speech, tmp_path, place, reason):
    row = CorpusRow("x", Place(f"{speech}/{place[0]}", *place[1:]), "b", "es")
    good = CorpusRow("good", Place(f"{speech}/0.wav"), "a", "es")
    prepare_corpus(Corpus("c", {}, {"train": lambda: iter([good, row])}), tmp_path, LOOSE)
    assert [found.startswith(reason) for found in reasons(tmp_path)] == [True] * bool(reason)


def test_too_many_unusable_rows_fail_and_a_higher_limit_goes_on(speech, tmp_path):
    made = corpus(speech, ["train"])
    bad = Corpus(
        "bad", {}, {"train": lambda: iter([*made.splits["train"](), BadRow("t:9", "odd: 9")])}
    )
    with pytest.raises(ValueError, match=r"train: .* at most 1\.0%.* found 1 of 41, .*t:9: odd: 9"):
        prepare_corpus(bad, tmp_path, Preparation(workers=1))
    assert sorted(os.listdir(tmp_path)) == [".preparation", "dropped.tsv"]
    summary = prepare_corpus(bad, tmp_path, Preparation(workers=1, max_dropped=0.03))
    assert (summary.splits["train"].rows, summary.splits["train"].dropped) == (40, 1)
    assert summary.to_markdown().count("| train |  | 0 |  |  |  |  |  | 1 |") == 1


@pytest.mark.parametrize("lang", ["pt-BR", "fr_XX", "zho_Hant", "cmn_hans_cn"])
def test_tags_of_languages(speech, tmp_path, lang):
    prepare_corpus(one(speech / "1.wav", src_lang=lang), tmp_path, LOOSE)
    assert reasons(tmp_path) == []


@pytest.mark.parametrize("lang", ["Guten Tag", "d", "17", "de/"])
def test_a_cell_of_another_column_is_no_language(speech, tmp_path, lang):
    prepare_corpus(one(speech / "1.wav", src_lang=lang), tmp_path, LOOSE)
    assert reasons(tmp_path) == [f"no language tag: {lang!r}"]


def test_dropped_rows_are_counted_in_their_language_pair(speech, tmp_path):
    rows = [
        CorpusRow("good", Place(str(speech / "1.wav")), "a", "es"),
        BadRow("t:2", "odd: 2", "fr", "en"),
        BadRow("t:3", "odd: 3"),
    ]
    mixed = Corpus("mixed", {}, {"train": lambda: iter(rows)})
    pairs = (
        prepare_corpus(mixed, tmp_path, Preparation(workers=1, max_dropped=0.9))
        .splits["train"]
        .pairs
    )
    assert [(pair.src_lang, pair.rows, pair.dropped) for pair in pairs] == [
        ("es", 1, 0),
        ("fr", 0, 1),
    ]


@pytest.mark.parametrize("pack,subtype", [("flac", "FLAC"), ("wav", "WAV")])
def test_packing_everything(speech, tmp_path, pack, subtype):
    odd = one(speech / "1.wav", id="../../odd ü")
    prepare_corpus(odd, tmp_path, Preparation(workers=1, clips=ClipRules(pack=pack)))
    manifest = Manifest(tmp_path / "train.tsv")
    original, _ = soundfile.read(speech / "1.wav", dtype="float32")
    assert np.array_equal(read_audio(manifest.cell(1, "audio"), str(tmp_path)), original)
    with zipfile.ZipFile(tmp_path / "train.zip") as archive:
        assert archive.namelist() == [f"good.{pack}", f"__.._odd__.1.{pack}"]
        with archive.open(f"good.{pack}") as file:
            assert soundfile.info(file).format == subtype


def test_text_rules_and_what_they_changed(speech, tmp_path):
    text = TextRules(lowercase=("src",), no_punctuation=("src",), moses=("tgt",))
    made = one(
        speech / "1.wav",
        src_text="L'E\u0301te\u0301,  « vingt-deux » !",
        tgt_text="“Hi”",
        tgt_lang="en",
    )
    summary = prepare_corpus(made, tmp_path, Preparation(workers=1, text=text))
    row = Manifest(tmp_path / "train.tsv").row(1)
    assert (row["src_text"], row["tgt_text"]) == ("l'été vingt-deux", '"Hi"')
    assert summary.splits["train"].changes == {
        "NFC:src": 1, "lowercase:src": 1, "moses:tgt": 1, "punctuation:src": 1, "spaces:src": 1,
    }  # fmt: skip


def test_one_utterance_in_two_target_languages_is_packed_once(speech, tmp_path):
    place = Place(f"{speech}/long.flac", 1.0, 0.5)
    both = [
        CorpusRow(lang, place, "uno", "es", text, lang)
        for lang, text in (("en", "one"), ("de", "eins"))
    ]
    prepare_corpus(Corpus("c", {}, {"train": lambda: iter(both)}), tmp_path, LOOSE)
    manifest = Manifest(tmp_path / "train.tsv")
    assert len(manifest) == 2 and manifest.cell(0, "audio") == manifest.cell(1, "audio")
