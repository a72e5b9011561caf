"""Retrieval between languages: by hand, against scikit-learn, and the files that are written."""

import hashlib
import json
import re

import numpy as np
import pytest

from data_prep.embed_text import Teacher, embed_manifest
from data_prep.manifest import ManifestRow, ManifestWriter
from fairseq_samu.data.manifest import Manifest
from fairseq_samu.retrieval_matrix import heat_map, main, row_meanings

DIMENSION = 16


def write_manifest(path, rows):
    with ManifestWriter(path) as writer:
        for i, (source, source_lang, target, target_lang) in enumerate(rows):
            writer.write(
                ManifestRow(
                    f"u{i}", f"{i}.wav", 16000, target, "s", source, source_lang, target_lang
                )
            )
    return path


def write_speech(manifest, vectors, name="samu"):
    """Vectors as `fairseq_samu.embed` writes them."""
    path = manifest.with_name(f"{manifest.stem}.{name}.npy")
    np.save(path, vectors.astype(np.float16))
    audio = "".join(f"{i}.wav\n" for i in range(len(vectors)))
    path.with_suffix(".json").write_text(json.dumps({
        "model": "samu.pt", "model_sha256": "f00", "column": "audio", "rows": len(vectors),
        "dimension": vectors.shape[1], "dtype": "float16", "normalised": True,
        "texts_sha256": hashlib.sha256(audio.encode()).hexdigest(),
    }))  # fmt: skip


def run(manifest, *arguments):
    out = manifest.parent / "out"
    main(["--manifest", str(manifest), "--speech", "samu", "--out", str(out), *arguments])
    return json.loads((out / "retrieval.json").read_text())["cells"]


@pytest.fixture
def parallel(tmp_path):
    """40 sentences in it, fr (two voices) and de, with one English translation; noisy vectors."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40, DIMENSION))
    rows, meaning, speech = [], [], []
    for lang, noise in (("it", 0.4), ("fr", 0.8), ("fr", 0.8), ("de", 1.2)):
        for i in rng.permutation(40).tolist():
            rows.append((f"{lang} {i}", lang, f"en {i}", "en"))
            meaning.append(i)
            speech.append(truth[i] + noise * rng.normal(size=DIMENSION))
    speech = np.array(speech)
    manifest = write_manifest(tmp_path / "test.tsv", rows)
    write_speech(manifest, speech / np.linalg.norm(speech, axis=1, keepdims=True))

    def encode(texts):
        found = [
            truth[int(text.split()[1])]
            + 0.2 * np.random.default_rng(list(text.encode())).normal(size=DIMENSION)
            for text in texts
        ]
        return np.array(found, np.float32)

    for column in ("src_text", "tgt_text"):
        embed_manifest(manifest, Teacher("t", "abc", DIMENSION, encode), "labse", column)
    langs = np.array([row[1] for row in rows])
    return manifest, langs, np.array(meaning)


def test_cells_equal_scikit_learn(parallel, capsys):
    neighbors = pytest.importorskip("sklearn.neighbors")
    manifest, langs, meaning = parallel
    cells = run(manifest, "--against", "text", "--teacher", "labse", "labse-tgt")
    assert list(cells) == ["de", "fr", "it"] and list(cells["it"]) == ["de", "en", "fr", "it"]
    read = {
        name: np.load(manifest.with_name(f"test.{name}.npy")).astype(np.float64)
        for name in ("samu", "labse", "labse-tgt")
    }
    for lang in cells:
        for other, cell in cells[lang].items():
            file = "labse-tgt" if other == "en" else "labse"
            # any row that has the text has its vector
            mine = np.flatnonzero(langs == ("it" if other == "en" else other))
            _, first = np.unique(meaning[mine], return_index=True)
            mine = mine[first]
            index = neighbors.NearestNeighbors(n_neighbors=40, metric="cosine").fit(
                read[file][mine]
            )
            found = index.kneighbors(read["samu"][langs == lang], return_distance=False)
            ranks = 1 + (meaning[mine][found] == meaning[langs == lang][:, None]).argmax(axis=1)
            assert cell["r1"] == pytest.approx(100 * (ranks == 1).mean())
            assert cell["r5"] == pytest.approx(100 * (ranks <= 5).mean())
            assert cell["mrr"] == pytest.approx((1 / ranks).mean(), abs=1e-6)
            assert (cell["queries"], cell["candidates"]) == ((langs == lang).sum(), 40)
    assert 10 < cells["de"]["fr"]["r1"] < cells["fr"]["it"]["r1"] <= 100, (
        "neither trivial nor hopeless"
    )
    assert f"| de | {cells['de']['de']['r1']:.1f} |" in capsys.readouterr().out


def test_speech_against_speech_does_not_find_itself(parallel, capsys):
    neighbors = pytest.importorskip("sklearn.neighbors")
    manifest, langs, meaning = parallel
    cells = run(manifest, "--against", "speech")
    speech = np.load(manifest.with_name("test.samu.npy")).astype(np.float64)[langs == "fr"]
    index = neighbors.NearestNeighbors(n_neighbors=2, metric="cosine").fit(speech)
    found = index.kneighbors(speech, return_distance=False)[:, 1]  # the first is itself
    right = meaning[langs == "fr"][found] == meaning[langs == "fr"]
    assert cells["fr"]["fr"]["r1"] == pytest.approx(100 * right.mean())
    assert cells["it"]["it"] is None, "every sentence is said once"
    assert (cells["it"]["fr"]["queries"], cells["it"]["fr"]["candidates"]) == (40, 80)
    assert "– no utterance of this language has the meaning of another" in capsys.readouterr().out


def test_languages_without_common_meanings_have_an_empty_cell(tmp_path, capsys):
    """it and fr share one sentence of two; it and de none. By hand."""
    rows = [
        ("uno", "it", "one", "en"), ("due", "it", "two", "en"),
        ("deux", "fr", "two", "en"), ("trois", "fr", "three", "en"), ("vier", "de", "four", "en"),
    ]  # fmt: skip
    manifest = write_manifest(tmp_path / "test.tsv", rows)
    texts = {row[0]: vector for row, vector in zip(rows, np.eye(5)[[0, 1, 1, 2, 3]])}

    def encode(found):
        return np.array([texts[text] for text in found], np.float32)

    embed_manifest(manifest, Teacher("t", "abc", 5, encode), "labse", "src_text")
    write_speech(manifest, np.eye(5)[[0, 1, 2, 2, 3]])
    cells = run(manifest, "--teacher", "labse")
    assert cells["it"]["fr"] == {"r1": 100, "r5": 100, "mrr": 1, "queries": 1, "candidates": 2}
    # "deux" is said like "trois": the right text ties with the other language's remaining one
    assert cells["fr"]["it"] == {"r1": 0, "r5": 100, "mrr": 0.5, "queries": 1, "candidates": 2}
    assert cells["it"]["de"] is None and cells["de"]["fr"] is None
    assert cells["de"]["de"]["queries"] == 1
    table = capsys.readouterr().out
    assert "| it | – | 100.0 | 100.0 | 100.0 |" in table
    assert "– no utterance of this language has the meaning of a text" in table
    markdown = (tmp_path / "out" / "retrieval.md").read_text()
    assert markdown.startswith(table) and "mean reciprocal rank" in markdown


def test_meanings_are_joined_by_either_text(tmp_path):
    manifest = write_manifest(tmp_path / "test.tsv", [
        ("gatto", "it", "cat", "en"), ("cat", "en", "chat", "fr"), ("chat", "fr", "Katze", "de"),
        ("pain", "fr", "bread", "en"), ("pain", "en", "dolore", "it"), ("", "xx", "bread", "en"),
        ("", "xx", "other", "en"),
    ])  # fmt: skip
    found = row_meanings(Manifest(manifest)).tolist()
    assert len(set(found[:3])) == 1, "over English and French"
    assert len({found[0], found[3], found[4], found[6]}) == 4, (
        "pain is not pain, nothing not nothing"
    )
    assert found[5] == found[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "text"], "--teacher go together"),
        (["--against", "text", "--teacher", "samu"], "expected vectors of texts, found audio"),
        (
            ["--speech", "labse", "--against", "speech"],
            "expected vectors of speech, found src_text",
        ),
        (["--teacher", "labse", "other"], "expected the teacher of .*test.labse.npy"),
        (["--speech", "gone", "--against", "speech"], "test.gone.json: .*fairseq_samu.embed"),
    ],
)
def test_other_vectors_are_errors(parallel, capsys, arguments, message):
    manifest, *_ = parallel
    other = Teacher(
        "t", "xyz", DIMENSION, lambda texts: np.ones((len(texts), DIMENSION), np.float32)
    )
    embed_manifest(manifest, other, "other", "src_text")
    with pytest.raises(SystemExit):
        run(manifest, *arguments)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["samu", "labse"])
def test_vectors_without_a_direction_are_errors(parallel, capsys, name):
    manifest, *_ = parallel
    path = manifest.with_name(f"test.{name}.npy")
    vectors = np.load(path)
    vectors[7] = np.nan if name == "samu" else 0
    np.save(path, vectors)
    with pytest.raises(SystemExit):
        run(manifest, "--teacher", "labse")
    found = (
        rf"test\.{name}\.npy: row 7: expected a vector of length 1, found one of length (nan|0\.0)"
    )
    assert re.search(found, capsys.readouterr().err)


def test_the_heat_map_shows_every_cell(parallel):
    pytest.importorskip("matplotlib")
    manifest, *_ = parallel
    cells = run(manifest, "--against", "speech")
    axes, bar = heat_map(cells, "speech").axes
    shown = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    for y, lang in enumerate(cells):
        for x, cell in enumerate(cells[lang].values()):
            assert shown[x, y] == (f"{cell['r1']:.0f}" if cell else "–")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(cells)
    assert axes.get_xlabel() and axes.get_ylabel() and bar.get_ylabel() == "R@1 in %"
    assert (manifest.parent / "out" / "retrieval.png").read_bytes().startswith(b"\x89PNG")
