"""LibriSpeech's layout becomes manifests of transcripts, one a part."""

import pytest

from data_prep.prep_librispeech import PARTS, librispeech_corpus, main, prepare_librispeech
from data_prep.preparation import Preparation
from fairseq_samu.data.audio import read_audio
from fairseq_samu.data.manifest import Manifest
from helpers.utterance_trees import librispeech, utterance

LOOSE = Preparation(max_dropped=0.9, workers=1)


@pytest.fixture
def root(tmp_path):
    librispeech(tmp_path / "LibriSpeech")
    return tmp_path / "LibriSpeech"


def test_a_part_becomes_a_manifest_of_transcripts(root, tmp_path):
    summary = prepare_librispeech(root, tmp_path / "out", preparation=Preparation(workers=1))
    assert list(summary.splits) == ["train-clean-100", "dev-clean"]
    manifest = Manifest(tmp_path / "out" / "dev-clean.tsv")
    rows = [manifest.row(i) for i in range(len(manifest))]
    assert [(row["id"], row["src_text"], row["speaker"]) for row in rows] == [
        ("1272-128104-0000", "MISTER QUILTER'S", "1272"),
        ("84-121123-0000", "GO", "84"),
        ("84-121123-0001", "DO YOU HEAR", "84"),
        ("84-121550-0000", "BUT WITH FULL", "84"),
    ]
    assert {(row["src_lang"], row["tgt_lang"], row["tgt_text"]) for row in rows} == {("en", "", "")}
    assert all(len(read_audio(row["audio"], "")) == int(row["n_frames"]) == 3200 for row in rows)
    pair = summary.splits["train-clean-100"].pairs[0]
    assert (pair.rows, pair.published_rows) == (1, 28_539)
    assert pair.hours == pytest.approx(1 / 3600, abs=1e-4)
    assert "| dev-clean | en | 4 | 2,703 |" in (tmp_path / "out" / "summary.md").read_text()


def test_bad_rows_have_reasons(root, tmp_path):
    chapter = root / "dev-clean" / "84" / "121123"
    (chapter / "84-121123.trans.txt").write_bytes(
        b"84-121123-0000 GO\n84-121123-0001\n84-121123-0002 NOT SPOKEN\n\nX-1 NO NAME\n"
        b"84-121123-/../../../x OUT OF HERE\n84-121123-0003 \xff\n84-121123-0000 AGAIN\n"
    )
    utterance(chapter / "84-121123-0003.flac")
    utterance(chapter / "84-121123-0009.flac")
    utterance(root / "dev-clean" / "84" / "7" / "84-7-0000.flac")
    prepare_librispeech(root, tmp_path / "out", ["dev-clean"], LOOSE)
    lines = (tmp_path / "out" / "dropped.tsv").read_text(encoding="utf-8").splitlines()[1:]
    found = {tuple(line.split("\t")[1:]) for line in lines}
    kinds = sorted((name, reason.split(":")[0]) for name, reason in found)
    assert len(found) == len(lines) and kinds == [
        ("84-121123-0000", "duplicate id"),
        ("84-121123-0001", "no transcript"),
        ("84-121123-0002", "no audio file"),
        ("84-121123-0003", "text is not UTF-8"),
        ("84-121123-0009", "no transcript"),
        ("84-121123.trans.txt:4", "no name of an utterance"),
        ("84-121123.trans.txt:5", "no name of an utterance"),
        ("84-121123.trans.txt:6", "no name of an utterance"),
        ("84-7-0000", "no transcript"),
    ]
    assert ("84-121123-0009", f"no transcript: {chapter}/84-121123.trans.txt") in found
    assert len(Manifest(tmp_path / "out" / "dev-clean.tsv")) == 3


def test_parts_that_are_not_there(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="test-other: expected a part of LibriSpeech"):
        librispeech_corpus(root, ["dev-clean", "test-other"])
    with pytest.raises(FileNotFoundError, match="expected folders such as dev-clean"):
        librispeech_corpus(tmp_path)
    with pytest.raises(ValueError, match="expected parts of train-clean-100, .* found 'dev'"):
        librispeech_corpus(root, ["dev"])
    assert len(PARTS) == 7


def test_command(root, tmp_path, capsys):
    main(["--root", str(root), "--parts", "dev-clean", "--lowercase", "src", "--workers", "1",
          "--out", str(tmp_path / "out")])  # fmt: skip
    assert "dev-clean: 4 rows, 0.0 min; 0 dropped" in capsys.readouterr().out
    assert Manifest(tmp_path / "out" / "dev-clean.tsv").cell(1, "src_text") == "go"
    with pytest.raises(SystemExit) as stopped:
        main(["--root", str(tmp_path / "none"), "--out", str(tmp_path / "more")])
    assert stopped.value.code == 1 and "expected folders" in capsys.readouterr().err
