"""MuST-C, mTEDx and Europarl-ST: miniature trees in the published layouts become manifests."""

import numpy as np
import pytest
import yaml

from data_prep.clips import ClipRules
from data_prep.prep_europarl_st import europarl_st_corpus, prepare_europarl_st
from data_prep.prep_europarl_st import main as europarl_st_main
from data_prep.prep_mtedx import mtedx_corpus, prepare_mtedx
from data_prep.prep_mustc import main as mustc_main
from data_prep.prep_mustc import mustc_corpus, prepare_mustc
from data_prep.preparation import Preparation
from data_prep.segmented_corpus import Segment, read_yaml_segments
from data_prep.tables import BadLine
from fairseq_samu.data.audio import read_audio
from fairseq_samu.data.manifest import Manifest
from helpers.segmented_trees import SPEECH, TIMES, europarl_st, mtedx, must_c, write

STRICT = Preparation(max_dropped=0, workers=1)
LOOSE = Preparation(max_dropped=0.9, workers=1)


def dropped(out):
    lines = (out / "dropped.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [tuple(line.split("\t")) for line in lines]


def check_waves(manifest, out, wave, times=TIMES):
    for i, (start, duration) in enumerate(times):
        begin, end = round(start * 16_000), round((start + duration) * 16_000)
        assert np.array_equal(read_audio(manifest.cell(i, "audio"), str(out)), wave[begin:end])
        assert int(manifest.cell(i, "n_frames")) == end - begin


@pytest.mark.parametrize("version", [1, 2])
def test_must_c(tmp_path, version):
    waves = must_c(tmp_path / "must-c", version=version)
    out = tmp_path / "out"
    summary = prepare_mustc(tmp_path / "must-c", ["en-de"], out, preparation=STRICT)
    assert {name: split.rows for name, split in summary.splits.items()} == {
        "train": 3, "dev": 3, "tst-COMMON": 3, "tst-HE": 3,
    }  # fmt: skip
    for i, split in enumerate(waves):
        manifest = Manifest(out / f"{split}.tsv")
        assert manifest.pairs == [("en", "de")]
        row = manifest.row(1)
        assert (row["id"], row["speaker"]) == (f"ted_{i}_2-de", f"spk.{i}")
        assert (row["src_text"], row["tgt_text"]) == ("One 1 “two”", "Eins 1, zwei")
        check_waves(manifest, out, waves[split])


def test_pairs_of_must_c_share_their_speech(tmp_path):
    for target in ("de", "es"):
        must_c(tmp_path / "must-c", target)
    mustc_main([
        "--root", str(tmp_path / "must-c"), "--pairs", "en-de", "en-es", "--splits", "dev",
        "--out", str(tmp_path / "out"), "--workers", "1",
    ])  # fmt: skip
    manifest = Manifest(tmp_path / "out" / "dev.tsv")
    assert len(manifest) == 6 and not (tmp_path / "out" / "train.tsv").exists()
    assert manifest.cell(0, "audio") == manifest.cell(3, "audio")
    assert [manifest.cell(i, "id") for i in (0, 3)] == ["ted_1_1-de", "ted_1_1-es"]


def test_rows_of_must_c_that_cannot_be_used(tmp_path):
    root, times = tmp_path / "must-c", (*TIMES, (2.0, 9.0), (1.0, 0.0), (1.0, 0.5), (1.0, 0.5))
    must_c(root, times=times)
    txt = root / "en-de" / "data" / "train" / "txt"
    lines = (txt / "train.yaml").read_text().splitlines()
    lines[5] = lines[5].replace("ted_0.wav", "gone.wav")
    lines[6] = "- {duration: soon, offset: 1.0, speaker_id: spk.0, wav: ted_0.wav}"
    (txt / "train.yaml").write_text("\n".join(lines))
    (txt / "train.de").write_bytes((txt / "train.de").read_bytes().replace(b"Eins 2", b"\xff"))
    prepare_mustc(root, ["en-de"], tmp_path / "out", ["train"], LOOSE)
    kinds = {name: reason.split(": ")[0] for _, name, reason in dropped(tmp_path / "out")}
    assert kinds == {
        "ted_0_3-de": "text is not UTF-8",
        "ted_0_4-de": "segment outside the recording",
        "train.yaml:5-de": "segment without length",
        "gone_6-de": "no audio file",
        "train.yaml:7-de": "broken segment",
    }
    assert len(Manifest(tmp_path / "out" / "train.tsv")) == 2


@pytest.mark.parametrize("name", ["train.en", "train.de"])
def test_texts_with_a_line_too_few_belong_to_nothing(tmp_path, name):
    must_c(tmp_path)
    path = tmp_path / "en-de" / "data" / "train" / "txt" / name
    path.write_text("only one\n")
    with pytest.raises(ValueError, match=rf"{name}: expected a line for each of the 3 .* found 1"):
        mustc_corpus(tmp_path, ["en-de"])


def test_blank_lines_after_the_last_belong_to_nothing(tmp_path):
    must_c(tmp_path)
    txt = tmp_path / "en-de" / "data" / "train" / "txt"
    for name in ("train.en", "train.de", "train.yaml"):
        with open(txt / name, "a", encoding="utf-8") as file:
            file.write("\n\n")
    assert mustc_corpus(tmp_path, ["en-de"]).rows_of("train") == 3
    # The last segment may have no text; one before it without text is no reason to end there.
    (txt / "train.de").write_text("eins\n\n\n", encoding="utf-8")
    rows = list(mustc_corpus(tmp_path, ["en-de"]).splits["train"]())
    assert [row.tgt_text for row in rows] == ["eins", "", ""]


def test_what_is_not_there_is_named(tmp_path):
    must_c(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected the split train of en-fr"):
        mustc_corpus(tmp_path, ["en-de", "en-fr"])
    for pairs in ([], ["de-en"], ["en"], ["en-de", "en-de"]):
        with pytest.raises(ValueError, match="expected"):
            mustc_corpus(tmp_path, pairs)
    with pytest.raises(ValueError, match="expected splits of train, dev"):
        mustc_corpus(tmp_path, ["en-de"], ["valid"])
    (tmp_path / "en-de" / "data" / "dev" / "txt" / "dev.de").unlink()
    with pytest.raises(FileNotFoundError, match=r"dev\.de"):
        mustc_corpus(tmp_path, ["en-de"])


ENTRIES = [
    {"duration": "0.5", "offset": "1", "speaker_id": "123_456", "wav": "a.wav", "uW": "0"},
    {"duration": "2", "offset": "0.25", "speaker_id": "spk: 1, 'x'", "wav": "-é b.wav"},
    {"duration": "1e-1", "offset": "3", "speaker_id": "null", "wav": "12:30.wav"},
]


@pytest.mark.parametrize("style", [True, False, None])
@pytest.mark.parametrize("width", [40, 1000])
def test_lists_in_yaml_however_they_are_written(tmp_path, style, width):
    text = yaml.safe_dump(ENTRIES, default_flow_style=style, width=width, allow_unicode=True)
    if style:  # a list of mappings, not a list in brackets
        text = "".join(
            yaml.safe_dump([entry], default_flow_style=None, width=width) for entry in ENTRIES
        )
    (tmp_path / "train.yaml").write_text(f"# a comment\n---\n{text}", encoding="utf-8")
    assert list(read_yaml_segments(tmp_path / "train.yaml")) == [
        Segment("a.wav", 1.0, 0.5, "123_456"),
        Segment("-é b.wav", 0.25, 2.0, "spk: 1, 'x'"),
        Segment("12:30.wav", 3.0, 0.1, "null"),
    ]


@pytest.mark.parametrize(
    "entry",
    [
        "- {wav: a.wav, offset: 1.0}",
        "- {wav: [a], offset: 1.0, duration: 1.0}",
        "- {wav: a.wav, offset: 1.0, duration: .inf}",
        "- {wav: a.wav, offset: nan, duration: 1.0}",
        "- {wav: a.wav, offset: 1.0, duration: 1.0",
        "- !!python/object/apply:os.system [touch here]",
        "- {wav: !!python/name:os.system a, offset: *no, duration: 1.0}",
        "- {wav: \udcff'a', offset: 1.0, duration: 1.0}",
    ],
)
def test_a_broken_entry_costs_itself(tmp_path, entry):
    good = "- {wav: a.wav, offset: 1.0, duration: 1.0}"
    path = tmp_path / "train.yaml"
    path.write_text(f"{good}\n{entry}\n{good}\n", encoding="utf-8", errors="surrogateescape")
    first, bad, last = read_yaml_segments(path)
    assert first == last == Segment("a.wav", 1.0, 1.0)
    assert isinstance(bad, BadLine) and bad.reason.startswith("broken ")
    assert "line 2" in bad.reason


def test_yaml_that_is_no_list_is_named(tmp_path):
    (tmp_path / "train.yaml").write_text("segments:\n- {wav: a}\n")
    with pytest.raises(ValueError, match=r"train\.yaml:1: expected a list"):
        list(read_yaml_segments(tmp_path / "train.yaml"))


@pytest.mark.parametrize("listed", [("yaml", "segments"), ("segments",)])
def test_mtedx(tmp_path, listed):
    waves = mtedx(tmp_path / "mtedx", listed=listed)
    out = tmp_path / "out"
    summary = prepare_mtedx(tmp_path / "mtedx", ["es-en"], out, preparation=STRICT)
    assert list(summary.splits) == list(waves)
    for i, (split, wave) in enumerate(waves.items()):
        manifest = Manifest(out / f"{split}.tsv")
        row = manifest.row(0)
        assert (row["id"], row["speaker"]) == (f"{i}u7tT-_Bo9I_1-en", f"{i}u7tT-_Bo9I")
        assert (row["src_text"], row["tgt_text"]) == ("¡Uno!", "One!")
        check_waves(manifest, out, wave)


def test_transcripts_of_mtedx_beside_translations(tmp_path):
    mtedx(tmp_path / "mtedx", "es-es", ["train"])
    mtedx(tmp_path / "mtedx", "es-en", ["train", "valid"])
    prepare_mtedx(tmp_path / "mtedx", ["es-es", "es-en"], tmp_path / "out", preparation=STRICT)
    manifest = Manifest(tmp_path / "out" / "train.tsv")
    assert [manifest.row(i)["id"][-4:] for i in (0, 3)] == ["9I_1", "1-en"]
    assert manifest.row(0)["tgt_lang"] == manifest.row(0)["tgt_text"] == ""
    assert len(Manifest(tmp_path / "out" / "valid.tsv")) == 3
    with pytest.raises(FileNotFoundError, match="expected the split valid of es-es"):
        mtedx_corpus(tmp_path / "mtedx", ["es-es", "es-en"], ["valid"])


def test_rows_of_mtedx_that_cannot_be_used(tmp_path):
    mtedx(tmp_path / "mtedx", splits=["train"], listed=("segments",))
    txt = tmp_path / "mtedx" / "es-en" / "data" / "train" / "txt"
    write(txt, segments=["a_0 0u7tT-_Bo9I 0.5 0.75", "a_1 0u7tT-_Bo9I 1.0", "a_2 b 1.0 0.5"])
    prepare_mtedx(tmp_path / "mtedx", ["es-en"], tmp_path / "out", preparation=LOOSE)
    assert [(name, reason.split(": ")[0]) for _, name, reason in dropped(tmp_path / "out")] == [
        ("segments:2-en", "broken segment"),
        ("segments:3-en", "segment without length"),
    ]


@pytest.mark.parametrize("extension", ["flac", "wav"])
def test_europarl_st(tmp_path, extension):
    waves = europarl_st(tmp_path / "v1.1", extension)
    out = tmp_path / "out"
    prepare_europarl_st(tmp_path / "v1.1", ["en-de"], out, preparation=STRICT)
    for i, (split, wave) in enumerate(waves.items()):
        manifest = Manifest(out / f"{split}.tsv")
        row = manifest.row(0)
        assert (row["id"], row["speaker"]) == (f"{SPEECH}{i}_1-de", f"MEP_{i + 10}")
        assert (row["src_text"], row["tgt_text"]) == ("Madam President,", "Frau Präsidentin,")
        assert (row["src_lang"], row["tgt_lang"]) == ("en", "de")
        check_waves(manifest, out, wave)


def test_europarl_st_is_resampled_and_packed_as_wav_when_asked(tmp_path):
    europarl_st(tmp_path / "v1.1", "wav", rate=44_100)
    options = Preparation(max_dropped=0, workers=1, clips=ClipRules(pack="wav"))
    prepare_europarl_st(tmp_path / "v1.1", ["en-de"], tmp_path / "out", ["dev"], options)
    manifest = Manifest(tmp_path / "out" / "dev.tsv")
    assert [int(manifest.cell(i, "n_frames")) for i in range(3)] == [4000, 24_000, 12_000]


def test_recordings_of_europarl_st_have_to_be_converted(tmp_path, capsys):
    europarl_st(tmp_path / "v1.1")
    audios = tmp_path / "v1.1" / "en" / "audios"
    (audios / f"{SPEECH}0.flac").rename(audios / f"{SPEECH}0.m4a")
    with pytest.raises(ValueError, match=r"train: .* recording not converted: .*0\.m4a"):
        prepare_europarl_st(tmp_path / "v1.1", ["en-de"], tmp_path / "out", preparation=LOOSE)
    for path in audios.glob("*.flac"):
        path.rename(path.with_name(f"{path.name[:-5]}.m4a"))
    with pytest.raises(SystemExit) as stopped:
        europarl_st_main([
            "--root", str(tmp_path / "v1.1"), "--pairs", "en-de", "--out", str(tmp_path / "new"),
        ])  # fmt: skip
    assert stopped.value.code == 1
    assert "found .m4a; libsndfile does not read m4a, convert them: " in capsys.readouterr().err


def test_speakers_of_europarl_st_have_to_be_those_of_the_speeches(tmp_path):
    europarl_st(tmp_path)
    write(tmp_path / "en" / "de" / "dev", speakers__lst=["MEP_1"])
    with pytest.raises(ValueError, match=r"speakers\.lst: expected .* 2 speeches .* found 1"):
        europarl_st_corpus(tmp_path, ["en-de"])
    with pytest.raises(ValueError, match="expected pairs such as en-de, of de, en"):
        europarl_st_corpus(tmp_path, ["en-xx"])
