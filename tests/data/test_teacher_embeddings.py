import json
import multiprocessing
import pickle
import zlib

import numpy as np
import pytest
import torch

from data_prep.embed_text import Teacher, embed_manifest
from data_prep.manifest import ManifestRow, ManifestWriter
from fairseq_samu.data.manifest import Manifest
from fairseq_samu.data.teacher_embeddings import TeacherEmbeddings, TeacherEmbeddingsError

DIMENSION = 8
TEXTS = [f"sentence number {i}" for i in range(10)]


def vector(text):
    raw = np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIMENSION)
    return raw / np.linalg.norm(raw)


def encode(texts):
    return np.array([vector(text) for text in texts], np.float32)


TEACHER = Teacher("some/model", "abc", DIMENSION, encode)


def write_manifest(path, texts):
    with ManifestWriter(path) as writer:
        for i, text in enumerate(texts):
            writer.write(ManifestRow(f"u{i}", "a.wav", 16000, f"target {i}", "s", text, "fr", "en"))
    return path


@pytest.fixture
def path(tmp_path):
    """A manifest that was embedded."""
    path = write_manifest(tmp_path / "train.tsv", TEXTS)
    embed_manifest(path, TEACHER, "labse", "src_text")
    return path


def open_embeddings(path, teacher="labse"):
    return TeacherEmbeddings(Manifest(path), teacher)


def edit_sidecar(path, **changes):
    sidecar = path.with_name("train.labse.json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))


def test_rows_are_the_vectors_of_their_texts(path):
    embeddings = open_embeddings(path)

    assert len(embeddings) == 10
    assert (embeddings.dim, embeddings.model_name) == (DIMENSION, "some/model")
    assert (embeddings.model_sha256, embeddings.column) == ("abc", "src_text")
    for row, text in enumerate(TEXTS):
        assert embeddings[row].dtype == torch.float32 and embeddings[row].shape == (DIMENSION,)
        assert torch.allclose(embeddings[row].double(), torch.from_numpy(vector(text)), atol=3e-4)
    assert open_embeddings(path).path == str(path.with_name("train.labse.npy"))


def test_target_texts_are_another_teacher(path):
    embed_manifest(path, TEACHER, "labse", "tgt_text")
    embeddings = open_embeddings(path, "labse-tgt")
    assert embeddings.column == "tgt_text"
    assert np.allclose(embeddings[3], vector("target 3"), atol=3e-4)


def test_texts_count_and_nothing_else(path):
    text = path.read_text().replace("a.wav", "b.flac")
    path.write_text(text.replace("\n", "\r\n"), newline="")
    assert len(open_embeddings(path)) == 10


@pytest.mark.parametrize("value", [0, np.nan, np.inf, 0.5])
def test_a_vector_of_another_length_is_an_error(path, value):
    vectors = np.load(path.with_name("train.labse.npy"))
    vectors[4] = value
    np.save(path.with_name("train.labse.npy"), vectors)
    embeddings = open_embeddings(path)
    message = r"train\.labse\.npy: row 4: expected a vector of length 1, found one of length"
    with pytest.raises(TeacherEmbeddingsError, match=message):
        embeddings[4]
    with pytest.raises(TeacherEmbeddingsError, match=message):
        embeddings.check_vectors()
    assert len(embeddings[3]) == DIMENSION


def test_vectors_stay_on_disk(path):
    embeddings = open_embeddings(path)
    assert isinstance(embeddings._vectors.base, np.memmap)
    embeddings[0][0] = 100.0  # a copy: neither refused nor written
    assert open_embeddings(path)[0][0] < 1.1


def _norm_in_worker(embeddings, queue):
    queue.put(float(embeddings[4].norm()))


def test_forked_worker_reads_it(path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_norm_in_worker, args=(open_embeddings(path), queue))
    worker.start()
    assert abs(queue.get(timeout=30) - 1) < 1e-3
    worker.join()


def test_spawned_worker_gets_the_path_and_no_vectors(path):
    embeddings = open_embeddings(path)
    pickled = pickle.dumps(embeddings)
    assert b"numpy" not in pickled
    assert torch.equal(pickle.loads(pickled)[4], embeddings[4])


def test_changed_text_is_an_error_that_names_row_and_file(path):
    write_manifest(path, [*TEXTS[:6], "something else", *TEXTS[7:]])
    with pytest.raises(TeacherEmbeddingsError) as error:
        open_embeddings(path)
    message = str(error.value)
    assert message.startswith(f"{path}:8: expected the src_text of 10 rows that ")
    assert "train.labse.npy was made from, found 10 rows and another text" in message
    assert "'something else'" in message


def test_swapped_rows_are_an_error(path):
    write_manifest(path, [TEXTS[1], TEXTS[0], *TEXTS[2:]])
    with pytest.raises(TeacherEmbeddingsError, match=r"train\.tsv:2: .*'sentence number 1'"):
        open_embeddings(path)


def test_missing_row_is_an_error_that_names_where(path):
    write_manifest(path, [*TEXTS[:3], *TEXTS[4:]])
    with pytest.raises(TeacherEmbeddingsError, match=r"train\.tsv:5: .* of 10 rows .*found 9 rows"):
        open_embeddings(path)


def test_missing_last_row_is_an_error(path):
    write_manifest(path, TEXTS[:-1])
    with pytest.raises(
        TeacherEmbeddingsError, match=r"of 10 rows .*found 9 rows and texts that end"
    ):
        open_embeddings(path)


def test_additional_row_is_an_error_that_names_it(path):
    write_manifest(path, [*TEXTS, "one more"])
    with pytest.raises(TeacherEmbeddingsError, match=r"train\.tsv:12: .*found 11 rows.*'one more'"):
        open_embeddings(path)


def test_text_ends_cannot_move_unnoticed(path):
    """A hash of texts without separators would agree here."""
    write_manifest(path, [f"{TEXTS[0]}s", TEXTS[1][1:], *TEXTS[2:]])
    with pytest.raises(TeacherEmbeddingsError, match=r"train\.tsv:2:"):
        open_embeddings(path)


def test_changed_text_is_an_error_without_hashes_too(path):
    path.with_name("train.labse.rows.npy").unlink()
    write_manifest(path, ["x", *TEXTS[1:]])
    with pytest.raises(TeacherEmbeddingsError, match=r"expected the src_text of 10 rows"):
        open_embeddings(path)


def test_vectors_of_another_model_are_an_error(path):
    np.save(path.with_name("train.labse.npy"), np.ones((10, 16), np.float16))
    with pytest.raises(TeacherEmbeddingsError) as error:
        open_embeddings(path)
    assert "train.labse.npy: expected float16 vectors of shape (10, 8)" in str(error.value)
    assert "found float16 of shape (10, 16)" in str(error.value)


def test_vectors_of_another_type_are_an_error(path):
    np.save(path.with_name("train.labse.npy"), np.ones((10, 8), np.float32))
    with pytest.raises(TeacherEmbeddingsError, match="found float32"):
        open_embeddings(path)


def test_truncated_vectors_are_an_error(path):
    vectors = path.with_name("train.labse.npy")
    vectors.write_bytes(vectors.read_bytes()[:-1])
    with pytest.raises(TeacherEmbeddingsError, match=r"train\.labse\.npy: expected vectors"):
        open_embeddings(path)


def test_pickled_arrays_are_refused(path):
    np.save(path.with_name("train.labse.npy"), np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(TeacherEmbeddingsError, match=r"train\.labse\.npy: expected vectors"):
        open_embeddings(path)


@pytest.mark.parametrize("name", ["train.labse.json", "train.labse.npy"])
def test_missing_file_is_an_error_that_names_it(path, name):
    path.with_name(name).unlink()
    with pytest.raises(TeacherEmbeddingsError, match=f"{name}: expected"):
        open_embeddings(path)


def test_teacher_without_embeddings_tells_how_to_make_them(path):
    with pytest.raises(
        TeacherEmbeddingsError, match=r"data_prep\.embed_text --manifests .*train\.tsv"
    ):
        open_embeddings(path, "sonar")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": "10"}, "expected 'rows' to be of type int, found '10'"),
        ({"texts_sha256": None}, "expected 'texts_sha256' to be of type str, found None"),
        ({"normalised": False}, "expected normalised vectors"),
        ({"column": "text"}, "expected a column of .*, found 'text'"),
        ({"rows": 9}, r"expected float16 vectors of shape \(9, 8\)"),
    ],
)
def test_damaged_sidecar_is_an_error(path, changes, message):
    edit_sidecar(path, **changes)
    with pytest.raises(TeacherEmbeddingsError, match=message):
        open_embeddings(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\ud800"])
def test_sidecar_that_is_no_json_object_is_an_error(path, text):
    path.with_name("train.labse.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(TeacherEmbeddingsError, match=r"train\.labse\.json: expected"):
        open_embeddings(path)


def test_other_file_names_are_an_error(tmp_path):
    with pytest.raises(TeacherEmbeddingsError, match=r"train\.txt: expected a manifest NAME\.tsv"):
        open_embeddings(write_manifest(tmp_path / "train.txt", TEXTS))
