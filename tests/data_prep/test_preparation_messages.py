"""What the commands say, to someone who does not know the code: nothing misleading, and what to do next."""

import resource

import numpy as np
import pytest
import soundfile

from data_prep import merge_shards, prep_tsv
from data_prep.prep_librispeech import prepare_librispeech
from data_prep.preparation import Preparation
from helpers.utterance_trees import librispeech


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """A function that runs the command on a table of 40 rows; gives status and lines of both streams."""
    monkeypatch.chdir(tmp_path)
    wave = np.random.default_rng(1).uniform(-0.1, 0.1, 16_000)
    soundfile.write("clip.wav", wave, 16_000)
    rows = [f"clip.wav\tuno {i}\tone {i}\n" for i in range(40)]
    (tmp_path / "t.tsv").write_text("wav\tes\ten\n" + "".join(rows), encoding="utf-8")

    def run(*arguments, columns=("--audio", "wav", "--src-text", "es", "--src-lang", "=es")):
        capsys.readouterr()
        status = 0
        try:
            prep_tsv.main(
                ["--tables", "train=t.tsv", "--out", "out", "--workers", "1", *columns, *arguments]
            )
        except SystemExit as exit_:
            status = exit_.code
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()

    return run


def test_a_finished_folder_is_not_said_to_be_prepared_again(prepare):
    _, first, _ = prepare()
    assert first[0] == "train: 40 rows, 0.7 min; 0 dropped" and first[-1].endswith(
        "out/summary.md has more"
    )
    assert prepare()[1] == [
        first[0], "finished before, nothing was done: to prepare the corpus anew, remove out",
    ]  # fmt: skip


def test_the_first_option_that_differs_is_named_alone(prepare):
    translated = ("--tgt-text", "en", "--tgt-lang")
    assert prepare("--shard", "0/2", *translated, "=en")[0] == 0
    status, _, err = prepare("--shard", "0/2", *translated, "=de")
    assert status == 1 and err[-1] == (
        "error: out/.preparation/0-of-2: expected what was begun there, found tgt_lang = '=de' instead of "
        "'=en': name another --out, or remove out/.preparation/0-of-2 to begin anew"
    )
    assert prepare("--shard", "1/2", *translated, "=en")[0] == 0
    merge_shards.main(["--out", "out"])
    status, _, err = prepare(*translated, "=en", "--max-seconds", "60")
    assert status == 1 and err[-1] == (
        "error: out: expected the preparation that is finished there, found max_seconds = 60.0 instead of "
        "120.0: name another --out, or remove out"
    )


def test_too_many_unusable_rows_are_summed_up_and_can_be_mended(prepare, tmp_path):
    (tmp_path / "clip.wav").rename("elsewhere.wav")
    with open("t.tsv", "a", encoding="utf-8") as table:
        table.write("clip.wav\n")
    status, _, err = prepare()
    assert status == 1 and err[-1].startswith(
        "error: tables: train: expected rows, of which at most 1.0% are unusable (--max-dropped), found 41 "
        "of 41, most of them no audio file (40), wrong number of cells (1); the first is train-2: no audio "
        "file: "
    )
    assert err[-1].endswith("or mend the corpus and remove out/.preparation to begin anew")
    (tmp_path / "elsewhere.wav").rename("clip.wav")
    (tmp_path / "out/.preparation").rename("removed")
    assert prepare("--max-dropped", "3%")[1][0] == "train: 40 rows, 0.7 min; 1 dropped"


def test_a_table_without_rows(prepare, tmp_path):
    (tmp_path / "t.tsv").write_text("wav\tes\ten\n", encoding="utf-8")
    assert prepare()[2][-1] == "error: tables: train: expected rows, found none"


def test_a_disk_that_is_full_is_named(prepare, tmp_path):
    soundfile.write("clip.wav", np.random.default_rng(1).uniform(-0.1, 0.1, 320_000), 16_000)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # Python ignores the signal, and writing fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limit[1]))
        status, _, err = prepare("--pack", "wav")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert status == 1 and err[-1] == "error: [Errno 27] File too large: out"
    assert prepare("--pack", "wav")[0] == 0


def test_parts_say_how_they_become_one(prepare, capsys):
    for part in "01":
        out = prepare("--shard", f"{part}/2")[1]
        assert out[1].startswith(f"part {part} of 2, ")
        assert out[2:] == ["python -m data_prep.merge_shards --out out"]
    for _ in range(2):  # in a script that is run again, too
        merge_shards.main(["--out", "out"])
        assert capsys.readouterr().out.splitlines() == [
            "train: 40 rows, 0.7 min; 0 dropped", "out/summary.md has more",
        ]  # fmt: skip
    assert prepare("--shard", "1/2")[1][-1].startswith("finished before, nothing was done")
    merge = prepare("--shard", "0/2", "--out", "my data")[1][-1]
    assert merge == "python -m data_prep.merge_shards --out 'my data'"


@pytest.mark.parametrize(
    "columns,message",
    [
        (["--tgt-text", "en"], "expected both --tgt-text and --tgt-lang (=en for all rows), or neither"),
        (["--src-text", "es", "--tgt-lang", "=en"], "expected both --tgt-text and --tgt-lang"),
        ([], "expected --src-text, --tgt-text or both, found neither"),
        (
            ["--src-text", "es", "--tgt-text", "en", "--tgt-lang", "en_XX"],
            "{folder}/t.tsv:1: expected a column en_XX, found ['wav', 'es', 'en']; a cell that all rows have "
            "is written =CELL",
        ),
    ],
)  # fmt: skip
def test_columns_of_which_no_row_could_be_made(prepare, tmp_path, columns, message):
    status, _, err = prepare(columns=["--audio", "wav", "--src-lang", "=es", *columns])
    assert status == 1 and err[-1].startswith(f"error: {message.format(folder=tmp_path)}")
    assert not (tmp_path / "out").exists()


def test_a_table_in_utf_16_is_called_so(prepare, tmp_path):
    table = (tmp_path / "t.tsv").read_text(encoding="utf-8")
    (tmp_path / "t.tsv").write_text(table, encoding="utf-16")
    assert "t.tsv: expected UTF-8, found UTF-16: iconv" in prepare()[2][-1]


def test_transcripts_alone_are_no_pair_of_languages(tmp_path):
    librispeech(tmp_path / "root")
    summary = prepare_librispeech(
        tmp_path / "root", tmp_path / "out", ["dev-clean"], Preparation(workers=1, max_dropped=0.5)
    )
    assert summary.remarks()[0] == "dev-clean, en: 4 rows, published 2,703"


def test_what_splits_share_is_listed_row_by_row(tmp_path):
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        wave = np.random.default_rng(seed).uniform(-0.1, 0.1, 16_000)
        soundfile.write(tmp_path / f"{name}.wav", wave, 16_000)
    tables = {
        "train": "1\ta.wav\tun\n2\tb.wav\tdau\n3\ta.wav\ttri\n4\tc.wav\tpedwar\n5\tno.wav\tpump\n",
        "dev": "6\ta.wav\tchwech\n2\tc.wav\tdau\n5\tno.wav\tpump\n",
        "test": "7\tb.wav\tsaith\n8\tb.wav\tsaith\n",
    }
    for split, rows in tables.items():
        (tmp_path / f"{split}.tsv").write_text(f"id\twav\ttext\n{rows}", encoding="utf-8")
    columns = prep_tsv.Columns("wav", "=cy", "text", id="id")
    options = Preparation(workers=1, max_dropped=0.5)
    paths = {split: tmp_path / f"{split}.tsv" for split in tables}
    summary = prep_tsv.prepare_tsv(paths, columns, tmp_path / "out", preparation=options)
    header, *lines = (tmp_path / "out/duplicates.tsv").read_text(encoding="utf-8").splitlines()
    groups = {}
    for what, group, *row in (line.split("\t") for line in lines):
        groups.setdefault((what, group), []).append(" ".join(row))
    assert header == "what\tgroup\tsplit\tid"
    # Neither what one split has twice nor what was dropped.
    assert sorted((what, rows) for (what, _), rows in groups.items()) == [
        ("id", ["dev 2", "train 2"]),
        ("speech", ["dev 2", "train 4"]),
        ("speech", ["dev 6", "train 1", "train 3"]),
        ("speech", ["test 7", "test 8", "train 2"]),
        ("transcript and translation", ["dev 2", "train 2"]),
    ]
    assert sum(found.count for found in summary.duplicates) == len(groups)
