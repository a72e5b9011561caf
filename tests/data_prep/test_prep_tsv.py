"""Any table, and Common Voice alone."""

import numpy as np
import pytest
import soundfile

from data_prep import prep_tsv
from data_prep.prep_common_voice import prepare_common_voice
from data_prep.prep_tsv import Columns, prepare_tsv
from data_prep.preparation import Preparation
from fairseq_samu.data.audio import read_audio
from fairseq_samu.data.manifest import Manifest
from helpers.spoken_clips import speak_clips

LOOSE = Preparation(workers=1, max_dropped=0.9)


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(1)
    soundfile.write(tmp_path / "talk.wav", random.uniform(-0.1, 0.1, 48_000), 16_000)
    return tmp_path


def test_a_comma_separated_table_by_its_command(folder, capsys):
    (folder / "train.csv").write_text(
        'file,text,english\ntalk.wav,"Dydd da, bawb.","Good ""day"", all."\n', encoding="utf-8"
    )
    prep_tsv.main([
        "--tables", f"train={folder / 'train.csv'}", "--separator", "comma", "--quoting", "minimal",
        "--audio", "file", "--src-text", "text", "--src-lang", "=cy", "--tgt-text", "english",
        "--tgt-lang", "=en", "--out", str(folder / "out"), "--workers", "1",
    ])  # fmt: skip
    row = Manifest(folder / "out/train.tsv").row(0)
    assert (row["id"], row["src_lang"], row["tgt_lang"]) == ("train-2", "cy", "en")
    assert (row["src_text"], row["tgt_text"]) == ("Dydd da, bawb.", 'Good "day", all.')
    assert row["audio"] == str(folder / "talk.wav") and row["n_frames"] == "48000"
    assert "train: 1 rows" in capsys.readouterr().out


def test_segments_ids_and_bad_rows(folder):
    (folder / "t.tsv").write_text(
        "wav\tfrom\tlong\ttext\tname\n"
        "talk.wav\t0.5\t1.0\tun\ta\n"
        "talk.wav\t1.5\tsoon\tdau\tb\n"
        "talk.wav\tnan\t1\tdau\tc\n"
        "\t0\t1\ttri\td\n"
        "talk.wav\t0\n",
        encoding="utf-8",
    )
    columns = Columns(
        audio="wav", src_lang="=cy", src_text="text", id="name", start="from", duration="long"
    )
    summary = prepare_tsv({"dev": folder / "t.tsv"}, columns, folder / "out", preparation=LOOSE)
    assert summary.splits["dev"].reasons == {
        "no time in seconds": 2, "no path of audio": 1, "wrong number of cells": 1,
    }  # fmt: skip
    row = Manifest(folder / "out/dev.tsv").row(0)
    expected, _ = soundfile.read(folder / "talk.wav", start=8000, stop=24_000, dtype="float32")
    assert row["id"] == "a"
    assert np.array_equal(read_audio(row["audio"], str(folder / "out")), expected)


def test_a_missing_column_and_table_are_named(folder):
    (folder / "t.tsv").write_text("wav\ttext\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"t\.tsv:1: expected a column audio, found \['wav', 'text'\]"
    ):
        prepare_tsv({"dev": folder / "t.tsv"}, Columns("audio", "=cy", "text"), folder / "out")
    with pytest.raises(FileNotFoundError, match="gone.tsv: expected a table"):
        prepare_tsv({"dev": folder / "gone.tsv"}, Columns("audio", "=cy", "text"), folder / "out")


@pytest.mark.parametrize("all_validated,train", [(False, ["1"]), (True, ["1", "4"])])
def test_common_voice_alone(tmp_path, all_validated, train):
    folder = tmp_path / "cv" / "sv-SE"
    speak_clips({folder / "clips" / f"{i}.mp3": f"ett {i}" for i in range(1, 5)}, "sv")
    for table, numbers in (("train", "1"), ("dev", "2"), ("test", "3"), ("validated", "1234")):
        lines = [f'c{i}\t{i}.mp3\tEtt {i}, "två".\n' for i in numbers]
        (folder / f"{table}.tsv").write_text(
            "client_id\tpath\tsentence\n" + "".join(lines), encoding="utf-8"
        )
    prepare_common_voice(
        tmp_path / "cv", ["sv-SE"], tmp_path / "out", all_validated, Preparation(workers=1)
    )
    manifest = Manifest(tmp_path / "out/train.tsv")
    assert manifest.pairs == [("sv", "")]
    assert [manifest.cell(i, "id") for i in range(len(manifest))] == train
    assert manifest.cell(0, "src_text") == 'Ett 1, "två".' and manifest.cell(0, "speaker") == "c1"
