"""CoVoST 2: real rows, spoken into mp3, and a made folder with what may be wrong."""

import shutil
from pathlib import Path

import pytest

from data_prep import prep_covost2
from data_prep.prep_covost2 import covost2_corpus, prepare_covost2
from data_prep.preparation import Preparation
from data_prep.tables import find_quoting, read_table
from fairseq_samu.data.audio import audio_duration, read_audio
from fairseq_samu.data.manifest import Manifest
from helpers.spoken_clips import covost2, speak_clips

REAL = Path(__file__).resolve().parents[3] / "shared/real/covost2"
ONE = Preparation(workers=1)


@pytest.fixture
def corpus(tmp_path):
    """Four Welsh utterances, see `covost2`."""
    covost2(tmp_path / "cv4")
    return tmp_path / "cv4"


def test_splits_and_quotes_are_those_of_the_corpus(corpus, tmp_path):
    summary = prepare_covost2(corpus, ["cy_en"], tmp_path / "out", preparation=ONE)
    assert [split.rows for split in summary.splits.values()] == [2, 1, 1]
    assert [split.pairs[0].published_rows for split in summary.splits.values()] == [1241, 690, 690]
    train = Manifest(tmp_path / "out" / "train.tsv")
    row = train.row(0)
    assert (row["id"], row["speaker"]) == ("2", "anna")
    assert (row["src_text"], row["tgt_text"]) == ('Dywedodd "na" wrtho.', 'He said "no" to him.')
    assert row["audio"] == str(corpus / "cy/clips/2.mp3")
    assert len(read_audio(row["audio"])) == audio_duration(row["audio"]) == int(row["n_frames"])
    dev = Manifest(tmp_path / "out" / "dev.tsv").row(0)
    assert (dev["src_text"], dev["tgt_text"]) == ("Mae'n oer.", '"It is" cold.')


def test_what_the_published_script_loses_in_silence_is_listed(corpus, tmp_path):
    with open(corpus / "cy/covost_v2.cy_en.tsv", "ab") as file:
        file.write(b"9.mp3\tNobody.\ttrain\nbroken line\n5.mp3\tcaf\xe9\ttrain\n")
    (corpus / "cy/clips/1.mp3").unlink()
    loose = Preparation(workers=1, max_dropped=0.9)
    prepare_covost2(corpus, ["cy_en"], tmp_path / "out", preparation=loose)
    lines = (tmp_path / "out/dropped.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert [tuple(part[:16] for part in line.split("\t")) for line in lines] == [
        ("train", "1", "no audio file: /"),
        ("train", "9", "not in validated"),
        ("train", "covost_v2.cy_en.", "wrong number of "),
        ("train", "5", "text is not UTF-"),
    ]


@pytest.mark.parametrize("pairs", [["cy_de"], ["cy_en", "cy_en"], []])
def test_pairs_that_are_none(corpus, pairs):
    with pytest.raises(ValueError, match="expected"):
        covost2_corpus(corpus, pairs)


def test_the_command_and_its_errors(corpus, tmp_path, capsys):
    arguments = ["--pairs", "cy_en", "--workers", "1", "--out", str(tmp_path / "out")]
    prep_covost2.main(["--common-voice", str(corpus), *arguments])
    assert capsys.readouterr().out.splitlines()[0] == "train: 2 rows, 0.0 min; 0 dropped"
    for wrong, status, message in (
        (
            ["--common-voice", str(corpus), *arguments, "--pack", "wav"],
            1,
            "found pack = 'wav' instead of ''",
        ),
        (["--common-voice", "nowhere", *arguments], 1, "validated.tsv: expected Common Voice's"),
        (["--common-voice", str(corpus), *arguments, "--shard", "2/2"], 2, "--shard: expected i/n"),
        (["--common-voice", str(corpus), *arguments, "--max-dropped", "120%"], 2, "found 1.2"),
    ):
        with pytest.raises(SystemExit) as exit_:
            prep_covost2.main(wrong)
        assert exit_.value.code == status
        assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "lines,quoting",
    [
        (["a\tb"], "none"),
        (['a\t"b ""c"" d"'], "minimal"),
        (['a\tb "c" d'], "none"),
        (['"a" he said\tb', 'x\t"quoted as a whole"', 'said "c"\td'], "none"),
    ],
)
def test_quoting_is_found_in_the_table(tmp_path, lines, quoting):
    path = tmp_path / "table.tsv"
    path.write_text("\n".join(["x\ty", *lines]), encoding="utf-8")
    assert find_quoting(path) == quoting


def test_an_open_quote_costs_one_row(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text('x\ty\n1\t"open\n2\tb\n3\t"c"\n', encoding="utf-8")
    rows = dict(read_table(path, ["x", "y"], "minimal"))
    assert rows[2].reason.startswith("broken quoting: line 2: ")
    assert rows[3] == {"x": "2", "y": "b"} and rows[4] == {"x": "3", "y": "c"}


@pytest.mark.skipif(not REAL.is_dir(), reason="no rows of CoVoST 2 beside the repository")
def test_real_rows_of_seven_pairs(tmp_path):
    pairs = sorted(path.name for path in REAL.iterdir())
    for pair in pairs:
        source = pair.split("_")[0]
        shutil.copytree(REAL / pair / source, tmp_path / "cv" / source, dirs_exist_ok=True)
        shutil.copy(REAL / pair / f"covost_v2.{pair}.tsv", tmp_path / "cv" / source)
        table = read_table(tmp_path / "cv" / source / "validated.tsv", ["path"])
        clips = {tmp_path / "cv" / source / "clips" / cells["path"]: "a b c" for _, cells in table}
        speak_clips(clips, source)
    summary = prepare_covost2(tmp_path / "cv", pairs, tmp_path / "out", preparation=ONE)
    assert [split.rows for split in summary.splits.values()] == [2 * len(pairs)] * 3
    rows = [Manifest(tmp_path / "out/train.tsv").row(i) for i in range(2 * len(pairs))]
    by_id = {row["id"]: row for row in rows}
    assert by_id["common_voice_en_19664034-ca"]["src_text"] == (
        'These data components in turn serve as the "building blocks" of data exchanges.'
    )
    assert by_id["common_voice_en_19664034-sv"]["tgt_text"].endswith(
        "”byggstenar” i dataöverföringarna."
    )
    assert by_id["common_voice_ca_19898602"]["src_text"].startswith(
        "Els caus consten típicament d'un"
    )
    assert not any(row["src_text"].startswith('"') for row in rows)
