"""Vectors with what they stand for: rows of a manifest, lines of a text file, audio files."""

import hashlib
import json
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Sequence

import numpy as np
from numpy.typing import NDArray

from fairseq_samu.data.manifest import Manifest
from fairseq_samu.data.teacher_embeddings import TeacherEmbeddings
from fairseq_samu.utterances import AUDIO_COLUMN, read_list


class Label(NamedTuple):
    """What a vector stands for; either may be empty."""

    id: str
    text: str


class LabelledVectors(NamedTuple):
    """Vectors and their labels.

    Attributes:
        vectors: shape (N, E), mapped from disk.
        label: row → what it stands for.
        column: what was embedded: ``audio`` or a column of texts; empty if unknown.
        model_sha256: hash of what made the vectors; empty if unknown.
    """

    vectors: NDArray[Any]
    label: Callable[[int], Label]
    column: str
    model_sha256: str


def open_labelled(path: Path, rows: Optional[Path] = None) -> LabelledVectors:
    """Open a ``.npy`` file and the rows that it belongs to.

    Those of ``NAME.<model>.npy`` are, unless given, ``NAME.tsv`` or ``NAME.txt`` beside it, or the
    files that ``fairseq_samu.embed --audio`` noted. With a sidecar ``NAME.<model>.json`` it is
    checked that the vectors were made from these rows.

    Args:
        path: the vectors.
        rows: a manifest (``.tsv``) or a text file with one item a line.

    Raises:
        OSError: no such file.
        ValueError: no vectors, or vectors of other rows.
    """
    vectors = _map_vectors(path)
    sidecar = _read_sidecar(path.with_suffix(".json"))
    noted = sidecar.get("audio")
    if rows is None and not noted:
        beside = [path.with_name(path.name.rsplit(".", 2)[0] + end) for end in (".tsv", ".txt")]
        rows = next((file for file in beside if file.is_file()), None)
    column, sha256 = str(sidecar.get("column", "")), str(sidecar.get("model_sha256", ""))
    label: Callable[[int], Label]
    if rows is not None and rows.suffix == ".tsv":
        manifest = Manifest(rows)
        if sidecar:
            TeacherEmbeddings(manifest, str(path))
        _check_count(path, vectors, rows, len(manifest))
        label = _manifest_label(manifest, column)
    elif rows is not None or noted:
        items = read_list(rows) if rows is not None else noted
        _check_count(path, vectors, rows or path.with_suffix(".json"), len(items))
        if sidecar and _texts_sha256(items) != sidecar.get("texts_sha256"):
            raise ValueError(
                f"{path}: expected the vectors of {rows}, found those of other lines; embed them again"
            )
        label = _list_label(items, column == AUDIO_COLUMN)
    else:
        label = _no_label
    return LabelledVectors(vectors, label, column, sha256)


def _map_vectors(path: Path) -> NDArray[Any]:
    try:
        # Unlike np.load this neither opens zip archives nor ever unpickles.
        vectors = np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except ValueError as error:
        raise ValueError(f"{path}: expected vectors in a .npy file, found: {error}") from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) == 0:
        raise ValueError(
            f"{path}: expected vectors of numbers, shape (rows, dimension), found {vectors.dtype} of "
            f"shape {vectors.shape}"
        )
    return vectors


def _read_sidecar(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found: {error}") from error
    if not isinstance(sidecar, dict):
        raise ValueError(f"{path}: expected the description of vectors, found {sidecar!r}")
    return sidecar


def _check_count(path: Path, vectors: NDArray[Any], rows: Path, count: int) -> None:
    if len(vectors) != count:
        raise ValueError(
            f"{path}: expected a vector for each of the {count} rows of {rows}, found {len(vectors)}"
        )


def _texts_sha256(items: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{item}\n" for item in items).encode()).hexdigest()


def _manifest_label(manifest: Manifest, column: str) -> Callable[[int], Label]:
    """Id and text of a row: the text that was embedded, or what was said."""

    def label(row: int) -> Label:
        cells = manifest.row(row)
        if column in ("", AUDIO_COLUMN):
            return Label(cells["id"], cells["src_text"] or cells["tgt_text"])
        return Label(cells["id"], cells[column])

    return label


def _list_label(items: Sequence[str], is_audio: bool) -> Callable[[int], Label]:
    return lambda row: Label(items[row], "") if is_audio else Label("", items[row])


def _no_label(row: int) -> Label:
    return Label("", "")
