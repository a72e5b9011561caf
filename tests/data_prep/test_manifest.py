"""The manifest writer."""

import csv

import pytest

from data_prep.manifest import COLUMNS, ManifestRow, ManifestWriter, read_column

ROW = ManifestRow("a1", "a.zip:0:9", 16000, "Das „Haus“", "f2", 'La "casa"', "es", "de")


def test_columns_and_cells_as_written(tmp_path):
    path = tmp_path / "train.tsv"
    with ManifestWriter(path) as manifest:
        manifest.write(ROW)
        manifest.write(ROW._replace(id="a2", speaker="", src_text=""))
        manifest.write(ROW._replace(id="a3", tgt_text="", tgt_lang=""))
    assert manifest.rows == 3
    assert b"\r" not in path.read_bytes()
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert tuple(rows[0]) == COLUMNS
    assert " ".join(COLUMNS) == "id audio n_frames tgt_text speaker src_text src_lang tgt_lang"
    assert rows[1] == [str(cell) for cell in ROW]
    assert rows[2][0] == "a2"
    assert rows[3][0] == "a3" and rows[3][3:] == ["", "f2", 'La "casa"', "es", ""]


@pytest.mark.parametrize(
    "column, cell, message",
    [
        ("tgt_text", "a\tb", "control character in tgt_text"),
        ("src_text", "a\nb", "control character in src_text"),
        ("speaker", "a\rb", "control character in speaker"),
        ("id", "", "expected a id, found an empty cell"),
        ("tgt_text", "", "expected a tgt_text, found an empty cell"),
        ("tgt_lang", "", "expected a tgt_lang, found an empty cell"),
        ("audio", "", "expected a audio, found an empty cell"),
        ("n_frames", 0, "expected n_frames > 0 samples, found 0"),
    ],
)
def test_wrong_cells_are_refused_and_nothing_is_left(tmp_path, column, cell, message):
    path = tmp_path / "train.tsv"
    with pytest.raises(ValueError, match=message) as error, ManifestWriter(path) as manifest:
        manifest.write(ROW)
        manifest.write(ROW._replace(**{column: cell}))
    assert str(path) in str(error.value)
    assert "row 2" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_older_manifest_survives_an_error(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("old")
    with pytest.raises(KeyError), ManifestWriter(path) as manifest:
        manifest.write(ROW)
        raise KeyError
    assert path.read_text() == "old"
    with ManifestWriter(path) as manifest:
        assert path.read_text() == "old"
        manifest.write(ROW)
    assert list(read_column(path, "src_text")) == ['La "casa"']


def test_read_column_knows_only_newlines_and_tabs(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_bytes("id\ttgt_text\r\n1\ta\u2028b\x0bc\r\n2\t\n".encode())
    assert list(read_column(path, "tgt_text")) == ["a\u2028b\x0bc", ""]


def test_read_column_passes_over_the_mark_that_spreadsheets_write(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_bytes(b"\xef\xbb\xbftgt_text\tid\n\xef\xbb\xbfa\t1\n")
    assert list(read_column(path, "tgt_text")) == ["\ufeffa"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"id\ttext\n", r"m.tsv:1: expected a column tgt_text, found \['id', 'text'\]"),
        (b"id\ttgt_text\n1\ta\n2\n", "m.tsv:3: expected 2 cells, found 1"),
        (b"id\ttgt_text\n1\t\xff\n", "m.tsv:2: expected UTF-8"),
        (b"", "m.tsv: expected a manifest, found an empty file"),
    ],
)
def test_read_column_says_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "m.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_column(path, "tgt_text"))
