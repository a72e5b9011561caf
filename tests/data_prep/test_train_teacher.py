import gzip
import itertools
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from data_prep import embed_text, train_teacher
from data_prep.manifest import ManifestRow, ManifestWriter
from data_prep.train_teacher import (
    Recipe,
    main,
    measure_retrieval,
    read_manifests,
    read_text_files,
)

WORDS = {
    "en": ["cat dog man girl bird", "eats sees wants finds buys", "bread water milk fish soup",
           "today tomorrow here there never"],
    "es": ["gato perro hombre niña pájaro", "come ve quiere encuentra compra",
           "pan agua leche pescado sopa", "hoy mañana aquí allí nunca"],
    "de": ["Katze Hund Mann Mädchen Vogel", "isst sieht will findet kauft",
           "Brot Wasser Milch Fisch Suppe", "heute morgen hier dort nie"],
}  # fmt: skip
#: 625 meanings in three languages.
MEANINGS = [
    {language: " ".join(sentence[language]) for language in WORDS}
    for choice in itertools.product(range(5), repeat=4)
    for sentence in [
        {name: [part.split()[i] for part, i in zip(words, choice)] for name, words in WORDS.items()}
    ]
]
RECIPE = Recipe(vocab_size=120, dimension=32, updates=60, batch_size=32, learning_rate=0.02)


def write_manifest(path, rows):
    with ManifestWriter(path) as writer:
        for i, (src_lang, src_text, tgt_lang, tgt_text) in enumerate(rows):
            writer.write(
                ManifestRow(f"u{i}", "a.wav", 16000, tgt_text, "s", src_text, src_lang, tgt_lang)
            )
    return path


def write_lines(path, lines):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_rows_with_one_target_text_are_translations_of_each_other(tmp_path):
    first = write_manifest(
        tmp_path / "a.tsv",
        [
            ("es", "hola", "en", "hello"),
            ("de", "hallo", "en", "hello"),
            ("es", "pan", "en", "bread"),
        ],
    )
    second = write_manifest(
        tmp_path / "b.tsv",
        [
            ("es", "buenas", "en", "hello"),
            ("en", "hello", "en", "hello"),
            ("en", "a", "fr", "hello"),
        ],
    )
    assert read_manifests([first, second]) == [
        {"en": "hello", "es": "hola", "de": "hallo"},
        {"en": "bread", "es": "pan"},
        {"fr": "hello", "en": "a"},
    ]


def test_row_without_transcript_is_an_error_that_names_it(tmp_path):
    path = write_manifest(
        tmp_path / "a.tsv", [("es", "hola", "en", "hello"), ("es", "", "en", "x")]
    )
    with pytest.raises(ValueError, match=r"a\.tsv:3: expected a text in src_text, found an empty"):
        read_manifests([path])


def test_manifest_without_translations_is_an_error(tmp_path):
    path = write_manifest(tmp_path / "a.tsv", [("en", "hello", "en", "hello")])
    with pytest.raises(ValueError, match=r"a\.tsv: expected sentences in two languages"):
        read_manifests([path])


def test_lines_with_one_number_are_translations_of_each_other(tmp_path):
    paths = [
        write_lines(tmp_path / "train.en", ["one ", "two", "three\tand"]),
        write_lines(tmp_path / "train.de.gz", ["eins", "", "drei"]),
        write_lines(tmp_path / "train.fr", ["un", "deux", ""]),
        write_lines(tmp_path / "more.en-x.en", ["four"]),
        write_lines(tmp_path / "more.en-x.de", ["vier"]),
    ]
    assert read_text_files(paths) == [
        {"en": "one", "de": "eins", "fr": "un"},
        {"en": "two", "fr": "deux"},
        {"en": "three and", "de": "drei"},
        {"en": "four", "de": "vier"},
    ]


def test_text_files_of_different_lengths_are_an_error(tmp_path):
    paths = [write_lines(tmp_path / "a.en", "xyz"), write_lines(tmp_path / "a.de", "xy")]
    with pytest.raises(ValueError, match=r"a\.de: expected as many lines as .*a, found 2"):
        read_text_files(paths)


def test_text_in_one_language_is_an_error(tmp_path):
    path = write_lines(tmp_path / "a.en", "xyz")
    with pytest.raises(ValueError, match=r"a: expected files of two languages .*\['en'\]"):
        read_text_files([path])


def test_name_without_language_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"corpus\.gz: expected a file name NAME\.LANG"):
        read_text_files([tmp_path / "corpus.gz"])


def test_text_that_is_not_utf8_is_an_error_that_names_the_line(tmp_path):
    english = write_lines(tmp_path / "a.en", "xy")
    (tmp_path / "a.de").write_bytes(b"gut\n\xff\n")
    with pytest.raises(ValueError, match=r"a\.de:2: expected UTF-8"):
        read_text_files([english, tmp_path / "a.de"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 0}, "expected updates > 0, found 0"),
        ({"scale": -1.0}, "expected scale > 0"),
        ({"learning_rate": math.nan}, "expected learning_rate > 0, found nan"),
        ({"margin": math.nan}, "expected a margin between cosines, found nan"),
        ({"seed": -1}, "expected a seed ≥ 0, found -1"),
    ],
)
def test_recipe_that_cannot_be_is_an_error(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_teacher.train_teacher(MEANINGS, tmp_path / "out", replace(RECIPE, **changes))


@pytest.mark.parametrize("held_out", [-1, 624])
def test_too_few_meanings_are_an_error(tmp_path, held_out):
    with pytest.raises(ValueError, match=f"found 625 of which {held_out} are held out"):
        train_teacher.train_teacher(MEANINGS, tmp_path / "out", RECIPE, held_out)


def test_existing_folder_is_never_touched(tmp_path):
    with pytest.raises(FileExistsError, match="expected a new folder"):
        train_teacher.train_teacher(MEANINGS, tmp_path, RECIPE)


def test_text_files_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.en").write_bytes(b"\xef\xbb\xbfa cat\r\n")
    (tmp_path / "a.de").write_bytes(b"eine Katze\n")
    found = train_teacher.read_text_files([tmp_path / "a.en", tmp_path / "a.de"])
    assert found == [{"en": "a cat", "de": "eine Katze"}]


def test_learning_rate_of_zero_is_not_taken_for_none(tmp_path):
    paths = [write_lines(tmp_path / f"a.{name}", "xyz") for name in ("en", "de")]
    options = ["--out", str(tmp_path / "out"), "--learning-rate", "0"]
    with pytest.raises(SystemExit, match="error: expected learning_rate > 0, found 0.0"):
        main(["--text-files", *map(str, paths), *options])


def test_what_cannot_be_written_or_used_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(train_teacher, "build_model", lambda *_: pytest.fail("trains"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        train_teacher.train_teacher(MEANINGS, tmp_path / "file" / "out", RECIPE)
    with pytest.raises(ValueError, match="expected a device that torch can use .* found 'no-such'"):
        train_teacher.train_teacher(MEANINGS, tmp_path / "out", RECIPE, device="no-such")


def test_training_that_diverges_writes_nothing(tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the extra `teacher`")
    recipe = replace(RECIPE, learning_rate=1e30, updates=5)
    with pytest.raises(
        ValueError, match=r"expected a finite loss, found nan in update \d+: a lower"
    ):
        train_teacher.train_teacher(MEANINGS, tmp_path / "out", recipe, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_without_sentence_transformers_the_command_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    paths = [write_lines(tmp_path / f"a.{name}", "xyz") for name in ("en", "de")]
    with pytest.raises(SystemExit, match=r"error: training a teacher needs .*samu\[teacher\]"):
        main(["--text-files", *map(str, paths), "--out", str(tmp_path / "out")])


class FixedVectors:
    """Stands for a model."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, texts, show_progress_bar):
        return np.array([self.vectors[text] for text in texts], np.float32)


def test_retrieval_counts_translations_that_are_the_nearest():
    vectors = {"a": [1, 0], "b": [0.8, 0.6], "A": [0.8, 0.6], "B": [0, 1]}
    meanings = [{"en": "a", "de": "A"}, {"en": "b", "de": "B"}, {"en": "b"}]
    # A and B are both nearest to b; but a is nearest to A, b to A.
    found = measure_retrieval(FixedVectors(vectors), meanings, "en")
    assert found == {"de": (2, 0.5, 0.5, pytest.approx((0.8 + 0.6) / 2))}
    # Both are nearest to b still, and b is nearest to B.
    vectors["A"], vectors["B"] = [0.9, 0.436], [0.75, 0.661]
    found = measure_retrieval(FixedVectors(vectors), meanings, "en")
    assert (found["de"].to_pivot, found["de"].from_pivot) == (0.5, 1.0)
    # A is nearest to a now.
    vectors["A"] = [0.96, 0.28]
    found = measure_retrieval(FixedVectors(vectors), meanings, "en")
    assert (found["de"].to_pivot, found["de"].from_pivot) == (1.0, 1.0)


def test_retrieval_is_that_of_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    rng = np.random.default_rng(0)
    english = rng.normal(size=(50, 4))
    german = english + rng.normal(size=(50, 4))
    vectors = {
        f"{name}{i}": row / np.linalg.norm(row)
        for name, rows in (("en", english), ("de", german))
        for i, row in enumerate(rows)
    }
    meanings = [{"de": f"de{i}", "en": f"en{i}"} for i in range(50)]

    def recall(queries, documents):
        index = neighbors.NearestNeighbors(n_neighbors=1, metric="cosine").fit(documents)
        return (index.kneighbors(queries)[1][:, 0] == np.arange(50)).mean()

    found = measure_retrieval(FixedVectors(vectors), meanings, "en")["de"]
    assert found.to_pivot == pytest.approx(recall(german, english))
    assert found.from_pivot == pytest.approx(recall(english, german))
    assert found.to_pivot != found.from_pivot


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained teacher: its folder and its retrieval."""
    pytest.importorskip("sentence_transformers", reason="needs the extra `teacher`")
    folder = tmp_path_factory.mktemp("teacher") / "bag"
    return folder, train_teacher.train_teacher(MEANINGS, folder, RECIPE, device="cpu")


class TestWithSentenceTransformers:
    @pytest.fixture(autouse=True)
    def torch(self):
        pytest.importorskip("sentence_transformers", reason="needs the extra `teacher`")
        import torch

        return torch

    def test_held_out_translations_are_found(self, trained):
        _, retrieval = trained
        assert retrieval.keys() == {"de", "es"}
        for found in retrieval.values():
            assert found.sentences == 62
            assert min(found.to_pivot, found.from_pivot) >= 0.95

    def test_folder_is_a_sentence_transformers_model_and_a_record(self, trained):
        from sentence_transformers import SentenceTransformer

        folder, retrieval = trained
        vectors = SentenceTransformer(str(folder), device="cpu").encode(
            [text for meaning in MEANINGS[:100] for text in meaning.values()]
        )
        cosines = vectors @ vectors.T
        translations = [cosines[3 * i, 3 * i + 1] for i in range(100)]
        others = [cosines[3 * i, 3 * i + 4] for i in range(99)]
        assert np.mean(translations) > np.mean(others) + 0.1
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        assert record["recipe"]["vocab_size"] == 120
        assert (record["meanings"], record["sentences"], record["pivot"]) == (563, 1689, "en")
        assert record["retrieval"]["de"]["to_pivot"] == retrieval["de"].to_pivot

    @pytest.mark.parametrize("architecture", ["bag", "transformer"])
    def test_same_seed_gives_the_same_bytes(self, torch, tmp_path, architecture):
        recipe = replace(RECIPE, architecture=architecture, updates=3)
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            torch.rand(1)  # what else a process draws must not matter
            train_teacher.train_teacher(
                MEANINGS, tmp_path / name, replace(recipe, seed=seed), device="cpu"
            )
        assert files(tmp_path / "a") == files(tmp_path / "b")
        weights = "model.safetensors"
        assert files(tmp_path / "a")[weights] != files(tmp_path / "c")[weights]

    def test_transformer_learns(self, tmp_path):
        recipe = replace(RECIPE, architecture="transformer", learning_rate=2e-3)
        found = train_teacher.train_teacher(MEANINGS, tmp_path / "out", recipe, 100, "cpu")
        assert min(found["de"][1:3] + found["es"][1:3]) >= 0.9

    def test_leftovers_of_a_killed_run_are_no_part_of_the_folder(self, tmp_path):
        leftover = tmp_path / ".out.tmp" / "rubbish"
        leftover.parent.mkdir()
        leftover.touch()
        train_teacher.train_teacher(MEANINGS, tmp_path / "out", replace(RECIPE, updates=1))
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert "rubbish" not in files(tmp_path / "out")

    def test_command_trains_what_embed_text_embeds_with(self, tmp_path, capsys):
        rows = [
            (source, meaning[source], "en", meaning["en"])
            for i, meaning in enumerate(MEANINGS)
            for source in (("es", "de")[i % 2],)
        ]
        manifest = write_manifest(tmp_path / "train.tsv", rows)
        out = tmp_path / "small"
        main(
            ["--manifests", str(manifest), "--out", str(out), "--vocab-size", "120",
             "--dimension", "32", "--updates", "60", "--batch-size", "32",
             "--learning-rate", "0.02", "--held-out", "60", "--device", "cpu"]
        )  # fmt: skip
        printed = capsys.readouterr().out
        assert f"{out}: 625 meanings, " in printed
        assert "  de → en " in printed and "  en → es " in printed

        embed_text.main(["--manifests", str(manifest), "--model", str(out), "--column", "both"])
        source, target = (
            np.load(tmp_path / f"train.{name}.npy").astype(np.float32)
            for name in ("small", "small-tgt")
        )
        nearest = (source @ target.T).argmax(axis=1)
        assert (nearest == np.arange(625)).mean() > 0.9

    def test_loss_by_hand(self, torch):
        from data_prep.teacher_model import ranking_loss

        first, second = torch.eye(2), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
        found = ranking_loss(first, second, torch.eye(2).bool(), margin=0.3, scale=10.0)
        # Scores: [[8-3, 0], [6, 10-3]]; softmax over rows, then over columns.
        rows = [np.log(1 + np.exp(0 - 5)), np.log(1 + np.exp(6 - 7))]
        columns = [np.log(1 + np.exp(6 - 5)), np.log(1 + np.exp(0 - 7))]
        assert found.item() == pytest.approx((np.mean(rows) + np.mean(columns)) / 2, rel=1e-5)

    def test_loss_without_margin_is_that_of_sentence_transformers(self, torch):
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        from data_prep.teacher_model import ranking_loss

        torch.manual_seed(0)
        first, second = torch.nn.functional.normalize(torch.randn(2, 7, 5), dim=-1)
        reference = MultipleNegativesRankingLoss(
            None, scale=20.0, directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        )  # fmt: skip
        expected = reference.compute_loss_from_embeddings([first, second], torch.empty(0))
        found = ranking_loss(first, second, torch.eye(7).bool(), margin=0.0, scale=20.0)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_a_sentence_that_occurs_twice_is_no_wrong_answer(self, torch):
        from data_prep.teacher_model import ranking_loss

        texts = ["one", "one", "two"]
        same = torch.from_numpy(train_teacher._equal(texts))
        assert same.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
        first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        loss = ranking_loss(first, first, same, margin=0.0, scale=50.0)
        assert loss.item() == pytest.approx(0.0, abs=1e-6)
        assert ranking_loss(first, first, torch.eye(3).bool(), 0.0, 50.0).item() > 0.4
