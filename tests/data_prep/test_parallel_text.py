"""Files of parallel text."""

import gzip

import pytest

from data_prep.parallel_text import count_sentences, find_parallel_texts, read_lines
from data_prep.train_teacher import read_text_files


def write(folder, **files):
    for name, content in files.items():
        (folder / name.replace("__", ".").replace("_to_", "-")).write_text(
            content, encoding="utf-8"
        )


def test_files_of_a_pair_come_before_shared_ones(tmp_path):
    write(tmp_path, train__es="a\n", train__en="b\n", train__fr="c\n")
    shared, *rest = find_parallel_texts(tmp_path, "train", ["es"], ["en", "fr"])
    assert rest == []
    assert shared.name == "es"
    assert [(lang, path.name) for lang, path in shared.targets] == [
        ("en", "train.en"),
        ("fr", "train.fr"),
    ]
    write(tmp_path, train__es_to_en__es="d\n", train__es_to_en__en="e\n")
    pair, shared = find_parallel_texts(tmp_path, "train", ["es"], ["en", "fr"])
    assert [pair.name, shared.name] == ["es-en", "es"]
    assert list(map(next, map(read_lines, pair.paths))) == ["d", "e"]
    assert list(map(next, map(read_lines, shared.paths))) == ["a", "c"]


def test_compressed_files(tmp_path):
    (tmp_path / "train.es.gz").write_bytes(gzip.compress(b"uno\ndos\n"))
    write(tmp_path, train__en="one \r\n two\n")
    (text,) = find_parallel_texts(tmp_path, "train", ["es"], ["en"])
    assert count_sentences(text) == 2
    assert [list(read_lines(path)) for path in text.paths] == [["uno", "dos"], ["one", "two"]]


@pytest.mark.parametrize(
    "files, message",
    [
        ({"train__es": "a\n"}, r"expected .*train\.en or .*train\.es-en\.en \(or \.gz\)"),
        ({"train__es_to_en__es": "a\n"}, r"expected .*train\.es-en\.en \(or \.gz\) beside"),
    ],
)
def test_a_missing_file_is_named(tmp_path, files, message):
    write(tmp_path, **files)
    with pytest.raises(FileNotFoundError, match=message):
        find_parallel_texts(tmp_path, "train", ["es"], ["en"])


@pytest.mark.parametrize(
    "source, target, message",
    [
        ("a\nb\n", "a\n", r"train\.en: expected as many lines as .*train\.es, found 1"),
        ("a\n", "a\nb\n", r"train\.es: expected as many lines as .*train\.en, found 1"),
        ("a\n \nb\n", "a\nb\nc\n", r"train\.es:2: expected a sentence, found an empty line"),
        ("a\n", "\n", r"train\.en:1: expected a sentence, found an empty line"),
        ("a\nb\tc\n", "a\nb\n", r"train\.es:2: expected one sentence, found 'b\\tc'"),
        ("a\n?!\n", "a\nb\n", r"train\.es:2: expected something to speak, found '\?!'"),
        ("", "", r"train\.es: expected sentences, found an empty file"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, source, target, message):
    write(tmp_path, train__es=source, train__en=target)
    (text,) = find_parallel_texts(tmp_path, "train", ["es"], ["en"])
    with pytest.raises(ValueError, match=message):
        count_sentences(text)


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "train.es").write_bytes(b"a\n\xe9\n")
    with pytest.raises(ValueError, match=r"train\.es:2: expected UTF-8"):
        list(read_lines(tmp_path / "train.es"))


def test_byte_order_mark_is_not_spoken(tmp_path):
    (tmp_path / "train.es").write_bytes(b"\xef\xbb\xbfhola\r\nadios\r\n")
    assert list(read_lines(tmp_path / "train.es")) == ["hola", "adios"]


@pytest.mark.parametrize("damage", [lambda data: b"text", lambda data: data[:-9]])
def test_damaged_compressed_text_is_an_error_that_names_it(tmp_path, damage):
    path = tmp_path / "train.es.gz"
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(b"hello\n" * 100))
    path.write_bytes(damage(gzip.compress(b"hola\n" * 100)))
    with pytest.raises(ValueError, match=r"train\.es\.gz: expected a whole gzip file, found: "):
        list(read_lines(path))
    with pytest.raises(ValueError, match=r"train\.es\.gz: expected a whole gzip file"):
        read_text_files([path, path.with_name("train.en.gz")])
