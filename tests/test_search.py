"""The search command: texts and paths of neighbours, and vectors of other rows refused."""

import hashlib
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from data_prep.embed_text import Teacher, embed_manifest
from data_prep.manifest import ManifestRow, ManifestWriter
from fairseq_samu import search
from fairseq_samu.search import main

DIRECTIONS = {"uno": 0, "one": 0, "due": 1, "two": 1, "tre": 2, "three": 2}


def encode(texts):
    """Words of one meaning have one vector."""
    return np.eye(4, dtype=np.float32)[[DIRECTIONS[text] for text in texts]] + 0.01


TEACHER = Teacher("some/model", "abc", 4, encode)


def write_manifest(path, pairs):
    with ManifestWriter(path) as writer:
        for i, (source, target) in enumerate(pairs):
            writer.write(ManifestRow(f"u{i}", f"{i}.wav", 16000, target, "s", source, "it", "en"))
    return path


def write_speech(path, vectors, items, **more):
    """Vectors as `fairseq_samu.embed` writes them."""
    np.save(path, np.array(vectors, np.float16))
    texts = "".join(f"{item}\n" for item in items)
    sidecar = {
        "model": "samu.pt", "model_sha256": "f00", "column": "audio", "rows": len(items),
        "dimension": 4, "dtype": "float16", "normalised": True,
        "texts_sha256": hashlib.sha256(texts.encode()).hexdigest(), **more,
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(sidecar))


@pytest.fixture
def data(tmp_path):
    """test.tsv with vectors of its texts and of its speech."""
    manifest = write_manifest(
        tmp_path / "test.tsv", [("uno", "one"), ("tre", "three"), ("due", "two")]
    )
    for column in ("src_text", "tgt_text"):
        embed_manifest(manifest, TEACHER, "labse", column)
    speech = [[1, 0, 0, 0], [0, 0.6, 0.8, 0], [0, 1, 0, 0]]
    write_speech(tmp_path / "test.samu.npy", speech, ["0.wav", "1.wav", "2.wav"])
    return tmp_path


def run(capsys, *arguments):
    main([str(argument) for argument in arguments])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "query\trank\tscore\trow\tid\ttext"
    return [line.split("\t") for line in lines]


def test_speech_finds_texts(data, capsys):
    found = run(
        capsys, "--queries", data / "test.samu.npy", "--corpus", data / "test.labse-tgt.npy",
        "--top-k", "2",
    )  # fmt: skip
    assert [line[:2] + line[3:] for line in found if line[1] == "1"] == [
        ["u0", "1", "0", "u0", "one"], ["u1", "1", "1", "u1", "three"], ["u2", "1", "2", "u2", "two"],
    ]  # fmt: skip
    assert found[3][1] == "2" and found[3][5] == "two"
    # (0.6, 0.8) and the teacher's (0.01, 1.01, 0.01, 0.01), by hand
    expected = (0.6 * 1.01 + 0.8 * 0.01) / np.sqrt(1.01**2 + 3 * 0.01**2)
    assert float(found[3][2]) == pytest.approx(expected, abs=1e-3)


def test_text_finds_speech(data, capsys, monkeypatch):
    monkeypatch.setattr(search, "load_teacher", lambda model, device: TEACHER)
    found = run(capsys, "--text", "two", "one", "--corpus", data / "test.samu.npy", "--top-k", "1")
    assert [line[:2] + line[3:] for line in found] == [
        ["two", "1", "2", "u2", "due"], ["one", "1", "0", "u0", "uno"],
    ]  # fmt: skip


def test_audio_files_and_lists_are_named(data, capsys):
    write_speech(data / "audio.samu.npy", [[0, 0, 1, 0]], ["new.wav"], audio=["new.wav"])
    (data / "clips.txt").write_text("a.wav\nb.wav\n")
    write_speech(data / "clips.samu.npy", [[1, 0, 0, 0], [0, 0.1, 1, 0]], ["a.wav", "b.wav"])
    found = run(capsys, "--queries", data / "audio.samu.npy", "--corpus", data / "clips.samu.npy")
    assert [[line[0], *line[3:]] for line in found] == [
        ["new.wav", "1", "b.wav", ""], ["new.wav", "0", "a.wav", ""],
    ]  # fmt: skip
    (data / "clips.txt").write_text("a.wav\nc.wav\n")
    fails(capsys, r"those of other lines", data / "audio.samu.npy", data / "clips.samu.npy")


def test_bare_vectors_have_row_numbers_or_the_lines_of_a_file(data, capsys):
    np.save(data / "bare.npy", np.eye(4)[[2, 0]])
    found = run(capsys, "--queries", data / "bare.npy", "--corpus", data / "bare.npy", "--exact")
    assert [[line[0], *line[3:]] for line in found if line[1] == "1"] == [
        ["0", "0", "", ""], ["1", "1", "", ""],
    ]  # fmt: skip
    (data / "words.txt").write_text("drei\neins\n")
    found = run(
        capsys, "--queries", data / "test.samu.npy", "--corpus", data / "bare.npy",
        "--corpus-rows", data / "words.txt", "--top-k", "1",
    )  # fmt: skip
    assert [line[5] for line in found][:2] == ["eins", "drei"]


def fails(capsys, message, queries, corpus, *more):
    with pytest.raises(SystemExit) as stopped:
        main(["--queries", str(queries), "--corpus", str(corpus), *map(str, more)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_vectors_that_do_not_belong_are_errors(data, capsys):
    speech, text = data / "test.samu.npy", data / "test.labse.npy"
    other = write_manifest(data / "other.tsv", [("uno", "one"), ("due", "two")])
    fails(capsys, r"other\.tsv: expected the audio of 3", speech, text, "--query-rows", other)
    np.save(data / "bare.npy", np.eye(4))
    fails(
        capsys, r"each of the 2 rows of .*other\.tsv, found 4", data / "bare.npy", text,
        "--query-rows", other,
    )  # fmt: skip
    np.save(data / "wide.npy", np.eye(5))
    fails(capsys, r"queries' width 5, found 4", data / "wide.npy", text)
    embed_manifest(data / "test.tsv", Teacher("x", "other", 4, encode), "mine", "src_text")
    fails(capsys, r"expected texts embedded by the teacher", data / "test.mine.npy", text)
    (data / "no.npy").write_bytes(b"nothing")
    fails(capsys, r"no\.npy: expected vectors", data / "no.npy", text)
    write_manifest(data / "test.tsv", [("uno", "one"), ("due", "two"), ("tre", "three")])
    fails(capsys, r"test\.tsv:3: expected the src_text", text, data / "wide.npy")


def test_a_line_with_tabs_is_one_cell(data, capsys):
    (data / "words.txt").write_bytes(b"\xef\xbb\xbfeins\tund\r\nzwei\r\n")
    np.save(data / "bare.npy", np.eye(4)[[0, 1]])
    found = run(
        capsys, "--queries", data / "bare.npy", "--corpus", data / "bare.npy", "--corpus-rows",
        data / "words.txt", "--query-rows", data / "words.txt", "--top-k", "1",
    )  # fmt: skip
    assert [[line[0], *line[3:]] for line in found] == [
        ["eins und", "0", "", "eins und"], ["zwei", "1", "", "zwei"],
    ]  # fmt: skip


def test_a_reader_that_has_enough_ends_it_without_a_word(data):
    np.save(data / "many.npy", np.ones((600, 4)))
    command = shlex.join(
        [sys.executable, "-W", "ignore", "-m", "fairseq_samu.search", "--top-k", "600", "--exact",
         "--queries", str(data / "many.npy"), "--corpus", str(data / "many.npy")]
    )  # fmt: skip
    ended = subprocess.run(f"{command} | head -1", shell=True, capture_output=True, text=True)
    assert ended.stdout.startswith("query") and "Error" not in ended.stderr


def test_faiss_is_used_where_it_is_installed(data, capsys, monkeypatch):
    calls = []

    def knn(queries, corpus, k, metric):
        calls.append(metric)
        scores = queries @ corpus.T
        rows = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, rows, 1), rows

    module = type(sys)("faiss")
    module.knn, module.METRIC_INNER_PRODUCT = knn, 0
    module.__spec__ = type("Spec", (), {})()
    monkeypatch.setitem(sys.modules, "faiss", module)
    arguments = ["--queries", data / "test.samu.npy", "--corpus", data / "test.labse.npy"]
    found = run(capsys, *arguments)
    assert calls == [0]
    assert run(capsys, *arguments, "--exact") == found and calls == [0]
