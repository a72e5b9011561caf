import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from data_prep import embed_text
from data_prep.embed_text import Teacher, embed_manifest, load_teacher, main, scan_column
from data_prep.manifest import ManifestRow, ManifestWriter

REPOSITORY = Path(__file__).resolve().parents[2]
DIMENSION = 8
SENTENCES = [
    "le chat dort",
    "der Hund läuft schnell",
    "日本語の文",
    "une maison",
    "le chat dort",
    "a",
]


def vector(text):
    """What the fake teacher gives: depends on the text alone, and is not normalised."""
    return np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIMENSION) * 3


class Recorder:
    """A teacher that remembers what it was asked for."""

    def __init__(self, sha256="weights"):
        self.batches = []
        self.teacher = Teacher("fake", sha256, DIMENSION, self.encode)

    def encode(self, texts):
        self.batches.append(list(texts))
        return np.array([vector(text) for text in texts], dtype=np.float32)

    @property
    def texts(self):
        return [text for batch in self.batches for text in batch]


def write_manifest(path, sources, targets=None):
    targets = targets or [f"target {i}" for i in range(len(sources))]
    with ManifestWriter(path) as writer:
        for i, (source, target) in enumerate(zip(sources, targets)):
            writer.write(ManifestRow(f"u{i}", "a.wav", 16000, target, "s", source, "fr", "en"))
    return path


@pytest.fixture
def manifest(tmp_path):
    return write_manifest(tmp_path / "train.tsv", SENTENCES)


def read_vectors(path):
    return np.load(path, allow_pickle=False).astype(np.float32)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".tsv"}


def test_rows_hold_the_normalised_vectors_of_their_texts(manifest):
    result = embed_manifest(manifest, Recorder().teacher, "labse", "src_text", batch_size=2)

    assert result.path == manifest.with_name("train.labse.npy")
    assert (result.rows, result.distinct, result.computed) == (6, 5, 5)
    vectors = np.load(result.path, allow_pickle=False)
    assert vectors.dtype == np.float16
    expected = np.stack([vector(text) / np.linalg.norm(vector(text)) for text in SENTENCES])
    np.testing.assert_allclose(vectors, expected, atol=3e-4)


def test_a_text_is_embedded_once_and_long_texts_come_first(manifest):
    recorder = Recorder()

    embed_manifest(manifest, recorder.teacher, "labse", "src_text", batch_size=2)

    assert sorted(recorder.texts) == sorted(set(SENTENCES))
    assert [len(batch) for batch in recorder.batches] == [2, 2, 1]
    lengths = [len(text.encode()) for text in recorder.texts]
    assert lengths == sorted(lengths, reverse=True)


def test_sidecar_says_what_the_vectors_are(manifest):
    embed_manifest(manifest, Recorder().teacher, "labse", "src_text")

    sidecar = json.loads(manifest.with_name("train.labse.json").read_text())
    assert sidecar == {
        "model": "fake",
        "model_sha256": "weights",
        "column": "src_text",
        "rows": 6,
        "dimension": DIMENSION,
        "dtype": "float16",
        "normalised": True,
        "texts_sha256": hashlib.sha256("".join(f"{s}\n" for s in SENTENCES).encode()).hexdigest(),
    }
    hashes = np.load(manifest.with_name("train.labse.rows.npy"), allow_pickle=False)
    assert hashes.dtype == np.uint64 and hashes.shape == (6,)
    assert hashes[0] == hashes[4] and len(set(hashes.tolist())) == 5


def test_columns_have_files_of_their_own_and_nothing_else_is_left(manifest):
    for column in ("src_text", "tgt_text"):
        embed_manifest(manifest, Recorder().teacher, "labse", column)

    assert sorted(files(manifest.parent)) == sorted(
        f"train.{name}.{end}"
        for name in ("labse", "labse-tgt")
        for end in ("json", "npy", "rows.npy")
    )
    np.testing.assert_allclose(
        read_vectors(manifest.with_name("train.labse-tgt.npy"))[3],
        vector("target 3") / np.linalg.norm(vector("target 3")),
        atol=3e-4,
    )


def test_finished_files_are_kept_until_texts_or_model_change(manifest):
    embed_manifest(manifest, Recorder().teacher, "labse", "src_text")
    again = Recorder()
    assert embed_manifest(manifest, again.teacher, "labse", "src_text").computed == 0
    assert again.texts == []

    other_model = Recorder("other weights")
    assert embed_manifest(manifest, other_model.teacher, "labse", "src_text").computed == 5

    write_manifest(manifest, ["another text", *SENTENCES[1:]])
    assert embed_manifest(manifest, other_model.teacher, "labse", "src_text").computed == 6
    assert np.allclose(
        read_vectors(manifest.with_name("train.labse.npy"))[0],
        vector("another text") / np.linalg.norm(vector("another text")),
        atol=3e-4,
    )


def test_lines_that_end_with_a_carriage_return_hold_the_same_texts(manifest, tmp_path):
    columns = ("id", "audio", "tgt_text", "src_text")  # the text stands last, before the "\r"
    rows = [columns, *((f"u{i}", "a.wav", "t", text) for i, text in enumerate(SENTENCES))]
    windows = tmp_path / "windows.tsv"
    windows.write_bytes("".join("\t".join(row) + "\r\n" for row in rows).encode())
    recorder = Recorder()

    embed_manifest(windows, recorder.teacher, "labse", "src_text")
    embed_manifest(manifest, recorder.teacher, "labse", "src_text")

    assert files(tmp_path)["windows.labse.npy"] == files(tmp_path)["train.labse.npy"]
    assert files(tmp_path)["windows.labse.json"] == files(tmp_path)["train.labse.json"]


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from data_prep import embed_text, vector_files
from test_embed_text import Recorder

vector_files.JOURNAL_SECONDS = 0.0
recorder = Recorder()

def slow(texts):
    time.sleep(0.02)
    return recorder.encode(texts)

teacher = embed_text.Teacher("fake", "weights", 8, slow)
embed_text.embed_manifest(Path({manifest!r}), teacher, "labse", "src_text", batch_size=4)
"""


@pytest.mark.parametrize("changed", [False, True])
def test_killed_run_goes_on_and_gives_the_same_bytes(tmp_path, changed):
    sentences = [f"sentence {i % 300} {'x' * (i % 3)}" for i in range(1000)]
    whole = write_manifest(tmp_path / "whole" / "train.tsv", sentences)
    killed = write_manifest(tmp_path / "killed" / "train.tsv", sentences)
    distinct = embed_manifest(whole, Recorder().teacher, "labse", "src_text", 4).distinct

    code = KILLED.format(tests=str(Path(__file__).parent), manifest=str(killed))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.PIPE)
    journal = killed.with_name(".train.labse.progress.json")
    deadline = time.monotonic() + 60
    done = 0
    while done < 100 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
        if journal.is_file():
            done = json.loads(journal.read_text())["done"]
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert 100 <= done < distinct
    assert not killed.with_name("train.labse.npy").exists()
    assert not killed.with_name("train.labse.json").exists()

    if changed:  # what is there belongs to other texts: it must not be used
        for manifest in (whole, killed):
            write_manifest(manifest, [*sentences[:-1], "a new one"])
        embed_manifest(whole, Recorder().teacher, "labse", "src_text", 4)
    result = embed_manifest(killed, Recorder().teacher, "labse", "src_text", batch_size=4)

    assert result.computed == (distinct + 1 if changed else distinct - done)
    assert files(killed.parent) == files(whole.parent)


def test_old_json_is_gone_before_new_vectors_come(manifest, monkeypatch):
    embed_manifest(manifest, Recorder("old").teacher, "labse", "src_text")

    def killed(source, destination):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            embed_manifest(manifest, Recorder("new").teacher, "labse", "src_text")
    assert not manifest.with_name("train.labse.json").exists()
    assert embed_manifest(manifest, Recorder("old").teacher, "labse", "src_text").computed == 5


def test_row_without_text_is_an_error_that_names_it(tmp_path):
    manifest = write_manifest(tmp_path / "train.tsv", ["one", "", "three"])
    with pytest.raises(
        ValueError, match=r"train\.tsv:3: expected a text in src_text, found an empty"
    ):
        embed_manifest(manifest, Recorder().teacher, "labse", "src_text")


def test_blank_text_and_text_that_is_not_utf8_are_errors_that_name_the_row(tmp_path):
    manifest = write_manifest(tmp_path / "train.tsv", ["one", " ", "three"])
    with pytest.raises(
        ValueError, match=r"train\.tsv:3: expected a text in src_text, found an emp"
    ):
        scan_column(manifest, "src_text")
    whole = write_manifest(tmp_path / "train.tsv", ["one", "café"]).read_text("utf-8")
    manifest.write_bytes(whole.encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.tsv:3: expected UTF-8, found .* byte 0xe9"):
        scan_column(manifest, "src_text")
    manifest.write_bytes(whole.replace("speaker", "spéaker").encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.tsv:1: expected UTF-8"):
        scan_column(manifest, "src_text")


def test_row_with_too_few_cells_is_an_error_that_names_it(manifest):
    with open(manifest, "a", encoding="utf-8") as file:
        file.write("u6\ta.wav\n")
    with pytest.raises(ValueError, match=r"train\.tsv:8: expected 8 cells, found 2"):
        embed_manifest(manifest, Recorder().teacher, "labse", "src_text")


def test_missing_column_is_an_error(tmp_path):
    manifest = tmp_path / "train.tsv"
    manifest.write_text("id\ttgt_text\nu1\thello\n")
    with pytest.raises(ValueError, match=r"train\.tsv:1: expected a column src_text, found \['id'"):
        embed_manifest(manifest, Recorder().teacher, "labse", "src_text")


def test_manifest_without_rows_is_an_error(tmp_path):
    manifest = write_manifest(tmp_path / "train.tsv", [])
    with pytest.raises(ValueError, match="expected at least one row, found none"):
        embed_manifest(manifest, Recorder().teacher, "labse", "src_text")


def test_other_file_names_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"train\.txt: expected a manifest NAME\.tsv"):
        embed_manifest(tmp_path / "train.txt", Recorder().teacher, "labse", "src_text")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_vector_without_direction_is_an_error_that_names_the_row(manifest, value):
    def encode(texts):
        return np.array(
            [np.full(2, value if text == "une maison" else 1.0) for text in texts], np.float32
        )

    with pytest.raises(ValueError, match=r"train\.tsv:5: expected a vector .* 'une maison'"):
        embed_manifest(manifest, Teacher("fake", "w", 2, encode), "labse", "src_text")


def test_text_changed_meanwhile_is_an_error(manifest):
    def encode(texts):
        data = manifest.read_bytes()
        manifest.write_bytes(data.replace(b"une maison", b"une raison"))
        return Recorder().encode(texts)

    with pytest.raises(ValueError, match=r"train\.tsv:5: changed while it was being embedded"):
        embed_manifest(manifest, Teacher("fake", "w", DIMENSION, encode), "t", "src_text", 1)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("sentence-transformers/LaBSE", "labse"),
        ("out/teacher/", "teacher"),
        ("org/all-MiniLM-L6.v2", "all-minilm-l6-v2"),
    ],
)
def test_files_are_called_after_the_model(model, name):
    assert embed_text.default_teacher_name(model) == name


def test_without_sentence_transformers_the_error_names_the_extra(manifest, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fairseq-samu\[teacher\]'"):
        load_teacher("sentence-transformers/LaBSE")
    with pytest.raises(SystemExit, match=r"error: .*fairseq-samu\[teacher\]"):
        main(["--manifests", str(manifest)])


@pytest.fixture(scope="module")
def labse(tmp_path_factory):
    """LaBSE's own modules with tiny random weights: folder and underlying BERT with its pooler."""
    pytest.importorskip("sentence_transformers", reason="needs the extra `teacher`")
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from tokenizers import Tokenizer, processors
    from tokenizers.models import WordPiece

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("labse")
    letters = sorted(set("".join(SENTENCES) + "target 0123456789"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    tokenizer = Tokenizer(
        WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    bert = transformers.BertModel(config).eval()
    with torch.no_grad():  # larger than at initialisation, so that vectors differ between texts
        for parameter in bert.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    bert.save_pretrained(folder / "bert")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=64,
    ).save_pretrained(folder / "bert")  # fmt: skip
    dense = modules.Dense(16, 16, activation_function=torch.nn.Tanh())
    dense.linear.load_state_dict(bert.pooler.dense.state_dict())
    model = SentenceTransformer(
        modules=[
            modules.Transformer(str(folder / "bert")),
            modules.Pooling(16, pooling_mode="cls"),
            dense,
            modules.Normalize(),
        ],
        device="cpu",
    )
    model.save(str(folder / "LaBSE"))
    return folder / "LaBSE", bert


def test_vectors_are_the_normalised_pooler_output_of_labse(labse, manifest):
    import torch
    from transformers import AutoTokenizer

    folder, bert = labse
    main(["--manifests", str(manifest), "--model", str(folder), "--device", "cpu"])

    tokenizer = AutoTokenizer.from_pretrained(str(folder.parent / "bert"))
    with torch.no_grad():
        expected = torch.cat(
            [bert(**tokenizer(text, return_tensors="pt")).pooler_output for text in SENTENCES]
        )
    expected = torch.nn.functional.normalize(expected).numpy()
    # Texts differ by more than the tolerance below.
    assert np.abs(expected[0] - expected[1:4]).max(axis=1).min() > 0.02
    found = read_vectors(manifest.with_name("train.labse.npy"))
    np.testing.assert_allclose(found, expected, atol=5e-4)


def test_vectors_are_those_of_sentence_transformers(labse, manifest, capsys):
    from sentence_transformers import SentenceTransformer

    folder, _ = labse
    main(
        ["--manifests", str(manifest), "--model", str(folder), "--column", "both",
         "--teacher-name", "small", "--device", "cpu", "--batch-size", "4"]
    )  # fmt: skip

    model = SentenceTransformer(str(folder), device="cpu")
    targets = [f"target {i}" for i in range(6)]
    for name, texts in (("small", SENTENCES), ("small-tgt", targets)):
        found = read_vectors(manifest.with_name(f"train.{name}.npy"))
        np.testing.assert_allclose(found, model.encode(texts), atol=5e-4)
    assert "train.small.npy: 6 rows, 5 distinct texts (5 embedded now), 16 numbers" in (
        capsys.readouterr().out
    )


def test_other_weights_in_the_same_folder_are_noticed(labse, manifest, tmp_path):
    import torch
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "teacher"
    model = SentenceTransformer(str(labse[0]), device="cpu")
    model.save(str(folder))
    before = load_teacher(str(folder), "cpu")
    assert before.sha256 == load_teacher(str(labse[0]), "cpu").sha256
    embed_manifest(manifest, before, "teacher", "src_text")

    with torch.no_grad():
        model[2].linear.bias[0] += 1
    model.save(str(folder))
    after = load_teacher(str(folder), "cpu")
    assert embed_manifest(manifest, after, "teacher", "src_text").computed == 5


def test_folder_that_is_no_sentence_transformers_model_is_an_error(labse):
    with pytest.raises(
        ValueError, match="bert: expected a sentence-transformers model, found no mod"
    ):
        load_teacher(str(labse[0].parent / "bert"))


def test_folder_that_is_not_there_is_an_error(labse, tmp_path):
    with pytest.raises(ValueError, match="nothing: cannot load the teacher"):
        load_teacher(str(tmp_path / "nothing"))


@pytest.mark.parametrize("damaged", ["model.safetensors", "tokenizer.json"])
def test_damaged_teacher_is_an_error_that_names_it(labse, tmp_path, damaged):
    folder = shutil.copytree(labse[0], tmp_path / "teacher")
    path = next(folder.rglob(damaged))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="teacher: cannot load the teacher"):
        load_teacher(str(folder), "cpu")


def test_device_that_is_not_there_is_an_error(labse):
    with pytest.raises(ValueError, match="expected a device that torch can use .* found 'no-such'"):
        load_teacher(str(labse[0]), "no-such")
