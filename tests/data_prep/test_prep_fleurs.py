"""FLEURS's layout becomes manifests of transcripts, or of translations joined by sentence."""

import pytest

from data_prep.prep_fleurs import fleurs_corpus, main, prepare_fleurs
from data_prep.preparation import Preparation
from fairseq_samu.data.audio import read_audio
from fairseq_samu.data.manifest import Manifest
from helpers.utterance_trees import fleurs, fleurs_line

LOOSE = Preparation(max_dropped=0.9, workers=1)


@pytest.fixture
def root(tmp_path):
    fleurs(tmp_path / "data")
    return tmp_path / "data"


def rows_of(path, *columns):
    manifest = Manifest(path)
    return [tuple(manifest.row(i)[column] for column in columns) for i in range(len(manifest))]


def dropped(out):
    lines = (out / "dropped.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [tuple(found.split("\t")) for found in lines]


def test_every_recording_of_a_sentence_gets_its_translation(root, tmp_path):
    out = tmp_path / "out"
    prepare_fleurs(root, ["fr_fr", "cmn_hans_cn"], out, ["en_us"], preparation=LOOSE)
    columns = ("id", "src_text", "tgt_text", "src_lang", "tgt_lang", "speaker")
    assert rows_of(out / "dev.tsv", *columns) == [
        ("fr-21-en", "Il a dit « non ».", 'He said "no".', "fr", "en", ""),
        ("fr-22-en", "Bonjour.", "Good day.", "fr", "en", ""),
        ("fr-23-en", "Il a dit « non ».", 'He said "no".', "fr", "en", ""),
        ("cmn-31-en", "你好。", "Good day.", "cmn", "en", ""),
    ]
    assert dropped(out) == [
        ("dev", "fr-24-en", "no translation: sentence 8 is not in en_us/dev.tsv"),
        ("test", "fr-124-en", "no translation: sentence 8 is not in en_us/test.tsv"),
    ]
    ((audio, n_frames),) = rows_of(out / "test.tsv", "audio", "n_frames")[-1:]
    assert audio == str(root / "cmn_hans_cn" / "audio" / "test" / "131.wav")
    assert len(read_audio(audio, str(out))) == int(n_frames) == 3200


def test_out_of_english_one_recording_has_several_translations(root, tmp_path):
    out = tmp_path / "out"
    targets = ["fr_fr", "en_us", "cmn_hans_cn"]
    prepare_fleurs(root, ["en_us"], out, targets, ["dev"], "transcription", LOOSE)
    assert rows_of(out / "dev.tsv", "id", "src_text", "tgt_text") == [
        ("en-11-fr", "good day", "bonjour"),
        ("en-12-fr", 'he said "no"', "il a dit « non »"),
        ("en-13-fr", "he said: no", "il a dit « non »"),
        ("en-11-cmn", "good day", "你好"),
    ]
    assert [row[1] for row in dropped(out)] == ["en-12-cmn", "en-13-cmn"]
    assert not (out / "test.tsv").exists()


def test_without_targets_there_are_transcripts_alone(root, tmp_path, capsys):
    # Archives may also be unpacked beside the tables.
    for split in ("dev", "test"):
        (root / "fr_fr" / "audio" / split).rename(root / "fr_fr" / split)
    out = tmp_path / "out"
    main(["--root", str(root), "--sources", "fr_fr", "--workers", "1", "--out", str(out)])
    assert "dev: 4 rows, 0.0 min; 0 dropped" in capsys.readouterr().out
    found = rows_of(out / "dev.tsv", "id", "src_text", "tgt_text", "tgt_lang")
    assert found[3] == ("fr-24", "Seul.", "", "")


def test_bad_rows_have_reasons(root, tmp_path):
    table = root / "fr_fr" / "dev.tsv"
    good = table.read_bytes()
    bad = [
        b"7\t22.wav\tBonjour.\n",
        fleurs_line(7, "../../../../en_us/audio/dev/11", "Dehors.").encode(),
        fleurs_line(7, 25, "Muet.").encode(),
        fleurs_line(7, 26, "Vide.").encode(),
        fleurs_line(7, 21, "Encore.").encode(),
        fleurs_line(7, 24, "x").replace("x", "\udcff").encode("utf-8", "surrogateescape"),
        fleurs_line(7, 24, "").encode(),
    ]
    (root / "fr_fr" / "audio" / "dev" / "26.wav").write_bytes(b"")
    table.write_bytes(good + b"".join(bad))
    out = tmp_path / "out"
    prepare_fleurs(root, ["fr_fr"], out, ["en_us"], ["dev"], preparation=LOOSE)
    found = [(name, reason.split(": ")[0]) for _, name, reason in dropped(out)]
    assert found == [
        ("fr-24-en", "no translation"),
        ("fr_fr/dev.tsv:5-en", "wrong number of cells"),
        ("fr-../../../../en_us/audio/dev/11-en", "no name of a recording"),
        ("fr-25-en", "no audio file"),
        ("fr-26-en", "empty file"),
        ("fr-21-en", "duplicate id"),
        ("fr-24-en", "text is not UTF-8"),
    ]
    # A recording without a transcript still has its translation.
    assert rows_of(out / "dev.tsv", "id", "src_text", "tgt_text")[-1] == (
        "fr-24-en",
        "",
        "Good day.",
    )


def test_what_is_missing_is_named(root, tmp_path):
    (root / "fr_fr" / "audio" / "dev").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"fr_fr/audio/dev: .* found no such folder"):
        fleurs_corpus(root, ["fr_fr"], splits=["dev"])
    (root / "fr_fr" / "audio" / "dev.tar.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"found an archive: tar -xzf dev\.tar\.gz"):
        fleurs_corpus(root, ["fr_fr"])
    fleurs_corpus(root, ["en_us"], ["fr_fr"])  # recordings of the target are not needed
    with pytest.raises(FileNotFoundError, match=r"en_us/train\.tsv: expected a table"):
        fleurs_corpus(root, ["en_us"], splits=["train"])
    with pytest.raises(FileNotFoundError, match=r"de_de: expected tables such as test\.tsv"):
        fleurs_corpus(root, ["de_de"])
    with pytest.raises(ValueError, match="expected pairs of languages"):
        fleurs_corpus(root, ["en_us"], ["en_us"])
    with pytest.raises(ValueError, match="expected every language once"):
        fleurs_corpus(root, ["en_us", "en_us"])
    with pytest.raises(ValueError, match="found 'valid'"):
        fleurs_corpus(root, ["en_us"], splits=["valid"])
    with pytest.raises(ValueError, match="found 'gender'"):
        fleurs_corpus(root, ["en_us"], column="gender")
