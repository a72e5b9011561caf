"""What hurried people do, and what disks and tables have: one line that says so, never silent harm."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import prep_tsv
from data_prep import preparation as preparation_module
from data_prep.clips import ClipReader, ClipRules, Place, UnusableAudio
from data_prep.corpus import Corpus, CorpusRow
from data_prep.manifest import read_column
from data_prep.merge_shards import merge_shards
from data_prep.prep_common_voice import common_voice_corpus
from data_prep.prep_fleurs import fleurs_corpus
from data_prep.prep_how2 import read_texts
from data_prep.prep_mtedx import mtedx_corpus
from data_prep.prep_mustc import mustc_corpus
from data_prep.prep_tsv import Columns, prepare_tsv
from data_prep.preparation import Preparation, prepare_corpus
from data_prep.tables import read_table
from fairseq_samu.data.audio import read_audio

ALONE = Preparation(workers=1)
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def clip(tmp_path):
    """A recording of one second."""
    wave = np.random.default_rng(1).uniform(-0.1, 0.1, 16_000)
    soundfile.write(tmp_path / "clip.wav", wave, 16_000)
    return tmp_path / "clip.wav"


def corpus(clip, rows=40, fail_at=None):
    def some():
        for i in range(rows):
            if i == fail_at:
                raise OSError("the disk went away")
            yield CorpusRow(str(i), Place(str(clip), i / 400, 0.5), f"uno {i}", "es")

    return Corpus("example", {}, {"train": some})


def test_rows_that_vanish_under_an_interrupted_run_are_found(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation_module, "COMMIT_EVERY", 0)
    with pytest.raises(OSError, match="went away"):
        prepare_corpus(corpus(clip, rows=120, fail_at=99), tmp_path / "out", ALONE)
    with pytest.raises(ValueError, match="found 16 instead of at least 48 rows of train"):
        prepare_corpus(corpus(clip, rows=16), tmp_path / "out", ALONE)
    prepared = prepare_corpus(corpus(clip, rows=120), tmp_path / "out", ALONE)
    assert prepared.splits["train"].rows == 120


def test_a_shard_killed_as_it_began_is_named_and_can_be_run(clip, tmp_path):
    prepare_corpus(corpus(clip), tmp_path / "out", Preparation(workers=1, shard=(1, 2)))
    begun = tmp_path / "out/.preparation/0-of-2"
    begun.mkdir()
    (begun / "journal.sqlite").touch()
    with pytest.raises(ValueError, match="0-of-2/journal.sqlite: empty"):
        merge_shards(tmp_path / "out")
    prepare_corpus(corpus(clip), tmp_path / "out", Preparation(workers=1, shard=(0, 2)))
    assert merge_shards(tmp_path / "out").splits["train"].rows == 40


@pytest.mark.parametrize("limit", [5.0, -0.1, float("nan")])
def test_a_merge_has_the_limits_of_a_preparation(tmp_path, limit):
    with pytest.raises(ValueError, match="--max-dropped: expected at least 0 and less than 1"):
        merge_shards(tmp_path, limit)


def test_an_archive_of_the_corpus_is_not_replaced(clip, tmp_path):
    (tmp_path / "train.zip").write_bytes(b"the corpus as it was downloaded")
    with pytest.raises(ValueError, match=r"train\.zip: expected a folder without manifests"):
        prepare_corpus(corpus(clip), tmp_path, ALONE)
    assert (tmp_path / "train.zip").read_bytes() == b"the corpus as it was downloaded"


def test_a_finished_folder_without_its_manifest_is_not_finished(clip, tmp_path):
    prepare_corpus(corpus(clip), tmp_path / "out", ALONE)
    (tmp_path / "out/train.tsv").unlink()
    with pytest.raises(ValueError, match=r"train\.tsv: expected the manifest that summary\.json"):
        prepare_corpus(corpus(clip), tmp_path / "out", ALONE)


def test_a_second_run_finds_the_journal_locked_until_its_folder_is_gone(
    clip, tmp_path, monkeypatch
):
    found = []

    def replace(source, target, real=os.replace):
        if os.path.basename(source) == ".preparation":
            with pytest.raises(ValueError, match="no other process uses") as refused:
                prepare_corpus(corpus(clip), tmp_path / "out", ALONE)
            found.append(refused)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    prepare_corpus(corpus(clip), tmp_path / "out", ALONE)
    assert len(found) == 1
    assert sorted(os.listdir(tmp_path / "out")) == [
        "dropped.tsv", "summary.json", "summary.md", "train.tsv", "train.zip",
    ]  # fmt: skip


def test_after_a_mistake_in_a_column_the_command_can_be_given_again(clip, tmp_path):
    (tmp_path / "t.tsv").write_text("wav\ttext\nclip.wav\tun\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a column audio"):
        prepare_tsv({"dev": tmp_path / "t.tsv"}, Columns("audio", "=cy", "text"), tmp_path / "out")
    columns = Columns("wav", "=cy", "text")
    prepare_tsv({"dev": tmp_path / "t.tsv"}, columns, tmp_path / "out", preparation=ALONE)
    assert list(read_column(tmp_path / "out/dev.tsv", "src_text")) == ["un"]


@pytest.mark.parametrize(
    "tables,message",
    [
        (["train=a.tsv", "train=b.tsv"], "expected every name once, found train again"),
        (["../train=a.tsv"], "expected the name of a manifest, such as train, found '../train'"),
        (["=a.tsv"], "expected the name of a manifest"),
        (["dropped=a.tsv"], "expected the name of a manifest"),
    ],
)
def test_names_of_manifests(clip, tmp_path, tables, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.tsv").write_text("wav\ttext\nclip.wav\tun\n", encoding="utf-8")
    more = ["--audio", "wav", "--src-text", "text", "--src-lang", "=cy", "--out", "out"]
    with pytest.raises(SystemExit) as exit_:
        prep_tsv.main(["--tables", *tables, *more, "--workers", "1"])
    assert exit_.value.code == 1 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_commas_inside_quotes_are_found_to_be_text(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text('file,text\n1,"one, two"\n2,"three, four"\n3,five\n', encoding="utf-8")
    rows = [cells for _, cells in read_table(table, ["text"], "auto", ",")]
    assert [row["text"] for row in rows] == ["one, two", "three, four", "five"]


def test_a_column_that_is_there_twice_is_named(tmp_path):
    (tmp_path / "t.tsv").write_text("text\tfile\ttext\na\tb\tc\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"t\.tsv:1: expected one column text, found"):
        list(read_table(tmp_path / "t.tsv", ["text"]))


@pytest.mark.parametrize("start,duration", [(1e308, 1.0), (0.0, 1e308), (1e308, 1e308)])
def test_times_beyond_any_recording(clip, start, duration):
    with pytest.raises(UnusableAudio, match="segment outside the recording"):
        ClipReader(ClipRules()).read(Place(str(clip), start, duration))


@pytest.mark.parametrize("headers_only", [False, True])
def test_segments_and_lengths_of_what_is_in_an_archive(clip, headers_only):
    data = clip.read_bytes()
    archive = clip.with_name("archive.zip")
    archive.write_bytes(b"12345" + data + b"more")
    reader = ClipReader(ClipRules(headers_only=headers_only))
    spec = f"{archive}:5:{len(data)}"
    assert reader.read(Place(spec)).n_frames == 16_000
    assert reader.read(Place(spec, 0.5, 0.25)).n_frames == 4000


@pytest.mark.parametrize(
    "name,subtype,tolerance",
    [
        ("talk.mp3", "MPEG_LAYER_III", 1e-6),
        ("talk.ogg", "VORBIS", 0),
        ("talk.ogg", "OPUS", 5e-3),
        ("talk.flac", "PCM_16", 0),
        ("talk.wav", "MS_ADPCM", 0),
    ],
)
def test_segments_are_the_same_in_any_order_and_where_they_belong(
    tmp_path, name, subtype, tolerance
):
    random = np.random.default_rng(1)
    path, rate = tmp_path / name, 16_000
    with soundfile.SoundFile(path, "w", rate, 1, subtype) as file:
        for i in range(40):  # of varying loudness and colour
            wave = np.cumsum(random.normal(0, 1, rate)) if i % 3 else random.normal(0, 30, rate)
            file.write(0.4 * wave / np.abs(wave).max() * (1 + np.sin(np.arange(rate) / 3000)) / 2)
    starts = np.sort(random.uniform(0, 37, 30)).round(3)
    rules = ClipRules(pack="wav")

    def read(order):
        reader = ClipReader(rules)
        return {i: reader.read(Place(str(path), float(starts[i]), 1.5)).encoded for i in order}

    forwards, shuffled = read(range(30)), read(random.permutation(30))
    alone = {i: read([i])[i] for i in range(30)}
    assert forwards == shuffled == alone
    whole, _ = soundfile.read(path, dtype="float32")
    for i, encoded in alone.items():
        wave, _ = soundfile.read(io.BytesIO(encoded), dtype="float32")
        begin = round(starts[i] * rate)
        np.testing.assert_allclose(wave, whole[begin : begin + len(wave)], atol=tolerance + 2**-15)


@pytest.mark.parametrize("workers", [1, 2])
def test_damage_in_a_recording_costs_the_segments_in_it_alone(tmp_path, workers):
    random = np.random.default_rng(1)
    wave = random.uniform(-0.5, 0.5, 100 * 16_000)
    soundfile.write(tmp_path / "talk.flac", wave, 16_000)
    data = bytearray((tmp_path / "talk.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = random.bytes(300)
    (tmp_path / "talk.flac").write_bytes(data)
    expected = np.round(wave * 32768) / 32768

    def rows():
        for i in range(100):
            yield CorpusRow(str(i), Place(str(tmp_path / "talk.flac"), i, 0.9), f"uno {i}", "es")

    out = tmp_path / "out"
    options = Preparation(workers=workers, max_dropped=0.1)
    prepare_corpus(Corpus("damaged", {}, {"train": rows}), out, options)
    kept = list(zip(read_column(out / "train.tsv", "id"), read_column(out / "train.tsv", "audio")))
    assert 97 <= len(kept) < 100
    for utterance, audio in kept:
        begin = int(utterance) * 16_000
        np.testing.assert_allclose(
            read_audio(audio, str(out)), expected[begin : begin + 14_400], atol=2**-15
        )


@pytest.mark.parametrize("headers_only", [False, True])
def test_a_pipe_is_not_waited_for(tmp_path, headers_only):
    os.mkfifo(tmp_path / "clip.wav")
    with pytest.raises(UnusableAudio, match="unreadable audio: .*: no regular file"):
        ClipReader(ClipRules(headers_only=headers_only)).read(Place(f"{tmp_path}/clip.wav"))


def test_a_folder_whose_name_is_not_utf_8(clip, tmp_path):
    (tmp_path / "t.tsv").write_text("wav\ttext\nclip.wav\tun\n", encoding="utf-8")
    line = ["--tables", "dev=t.tsv", "--audio", "wav", "--src-text", "text", "--src-lang", "=cy"]
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.prep_tsv", *line, "--workers", "1", "--out", b"caf\xe9"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert r"caf\udce9/summary.md" in done.stdout


@pytest.mark.parametrize(
    "describe,names",
    [
        (common_voice_corpus, ["cy/"]),
        (common_voice_corpus, ["cy", "cy"]),
        (fleurs_corpus, ["fr_fr/"]),
        (mtedx_corpus, ["es-en/"]),
        (mtedx_corpus, ["es-en-fr"]),
        (mustc_corpus, ["en-pt-br"]),
    ],
)
def test_names_as_shells_complete_them_do_not_become_languages(tmp_path, describe, names):
    with pytest.raises(ValueError, match="expected (every language once|pairs such as)"):
        describe(tmp_path, names)


def test_blank_lines_at_the_end_of_a_table_are_no_rows(clip, tmp_path):
    (tmp_path / "t.tsv").write_text(
        "wav\ttext\nclip.wav\tun\n\nclip.wav\tdau\n\n \n\t\n", encoding="utf-8"
    )
    columns, options = Columns("wav", "=cy", "text"), Preparation(workers=1, max_dropped=0.5)
    prepare_tsv({"dev": tmp_path / "t.tsv"}, columns, tmp_path / "out", preparation=options)
    assert list(read_column(tmp_path / "out/dev.tsv", "src_text")) == ["un", "dau"]
    lines = (tmp_path / "out/dropped.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert lines == ["dev\tt.tsv:3\twrong number of cells: expected 2, found 1"]


def test_a_byte_order_mark_is_no_part_of_an_utterance(tmp_path):
    (tmp_path / "text.id.en").write_bytes(b"\xef\xbb\xbfv_0 caf\xe9\r\n")
    assert list(read_texts(tmp_path / "text.id.en")) == [(1, "v_0", "caf\udce9")]


@pytest.mark.parametrize("workers", [-1, 1_000_000])
def test_numbers_of_workers_that_no_machine_has(workers):
    with pytest.raises(ValueError, match="--workers: expected 0 to 1000, found"):
        Preparation(workers=workers)


def test_audio_that_crashes_its_reader_costs_its_row(clip, tmp_path, monkeypatch):
    """A crash of libsndfile ends the process; which file will do that in years to come, nobody knows."""

    def read(reader, place, real=ClipReader.read):
        if place.audio.endswith(("crash.wav", "leave.wav")):
            os.kill(os.getpid(), signal.SIGKILL) if "crash" in place.audio else os._exit(1)
        return real(reader, place)

    monkeypatch.setattr(ClipReader, "read", read)
    audio = {5: "crash.wav", 20: "leave.wav", 21: "crash.wav", 90: "crash.wav"}

    def some():
        for i in range(100):
            place = Place(str(clip.with_name(audio.get(i, "clip.wav"))))
            yield CorpusRow(str(i), place, f"uno {i}", "es")

    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        options = Preparation(workers=workers, max_dropped=0.04)
        summary = prepare_corpus(Corpus("crashes", {}, {"train": some}), out, options)
        assert summary.splits["train"].rows == 96
        assert list(read_column(out / "train.tsv", "id")) == [
            str(i) for i in range(100) if i not in audio
        ]
        lines = (out / "dropped.tsv").read_text(encoding="utf-8").splitlines()[1:]
        assert [int(line.split("\t")[1]) for line in lines] == list(audio)
        assert lines[0].endswith(
            f"worker died: audio that crashes the decoder, or too little memory: {clip.parent}/crash.wav"
        )
        (found,) = summary.splits["train"].pairs
        assert (found.src_lang, found.dropped) == ("es", 4)


def test_workers_that_always_die_are_an_error_not_a_reason(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation_module, "finish_row", lambda *_: os._exit(1))
    with pytest.raises(RuntimeError, match="die whatever they do"):
        prepare_corpus(corpus(clip), tmp_path, ALONE)


def test_ctrl_c_is_heard_while_one_worker_decodes(clip, tmp_path):
    """In a callback of the decoder Python would only print it, and the clip be taken for a broken one."""
    (tmp_path / "t.tsv").write_text("wav\ttext\n" + "clip.wav\tun\n" * 4000, encoding="utf-8")
    command = [
        sys.executable, "-m", "data_prep.prep_tsv", "--tables", "train=t.tsv", "--audio", "wav",
        "--src-text", "text", "--src-lang", "=cy", "--pack", "flac", "--out", "out", "--workers", "1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    running = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    seen = ""
    while not re.search(r"[1-9]\d*/4000", seen):  # until a block is done
        more = running.stderr.read(1)
        assert more, seen
        seen += more
    for _ in range(4):  # by somebody impatient
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGINT)  # as a terminal does, workers too
        time.sleep(0.03)
    _, rest = running.communicate(timeout=20)
    assert running.returncode == 130 and "Traceback" not in rest
    assert rest.endswith("interrupted: the same command goes on\n")
