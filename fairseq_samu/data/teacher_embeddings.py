"""Sentence embeddings of a manifest's rows, computed beforehand: by a teacher, or by our encoder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairseq_samu.data.manifest import Manifest

#: Entries of a sidecar and their types.
SIDECAR = {
    "model": str,
    "model_sha256": str,
    "column": str,
    "rows": int,
    "dimension": int,
    "normalised": bool,
    "texts_sha256": str,
}

#: By how much the length of a normalised vector may differ from 1; float16 rounds less.
LENGTH_TOLERANCE = 0.01

#: Vectors read at a time when all are checked.
CHECKED_ROWS = 1 << 14


class TeacherEmbeddingsError(ValueError):
    """Embeddings that do not fit the manifest; names the file, the row, expected and found."""


class TeacherEmbeddings:
    """The teacher's vector of every row, read from disk when it is asked for.

    ``python -m data_prep.embed_text`` writes them, and ``python -m fairseq_samu.embed`` those of the
    utterances, whose column is ``audio``. They lie beside ``NAME.tsv``: ``NAME.<teacher>.npy`` with
    the vectors, ``NAME.<teacher>.rows.npy`` with a hash of every text and ``NAME.<teacher>.json``
    with what they were made from. That the manifest still has those texts is checked here, by
    hashing all of them: two or three seconds for a million rows.

    Args:
        manifest: the manifest ``NAME.tsv``.
        teacher: name of the teacher in the file names, such as ``labse`` for transcripts, or
            ``labse-tgt`` for target texts; or the ``.npy`` file, where it lies elsewhere.

    Attributes:
        path: ``NAME.<teacher>.npy``.
        dim: length D of a vector.
        model_name: name or folder of the model.
        model_sha256: hash of its weights; splits that train together have the same one.
        column: the column whose texts were embedded.

    Raises:
        TeacherEmbeddingsError: a file is missing or damaged, or the texts are not those that were
            embedded.
    """

    def __init__(self, manifest: Manifest, teacher: str) -> None:
        if not manifest.path.endswith(".tsv"):
            raise TeacherEmbeddingsError(f"{manifest.path}: expected a manifest NAME.tsv")
        beside = f"{manifest.path[: -len('.tsv')]}.{teacher}.npy"
        self.path = teacher if teacher.endswith(".npy") else beside
        sidecar = self._read_sidecar(manifest, teacher)
        self.dim: int = sidecar["dimension"]
        self.model_name: str = sidecar["model"]
        self.model_sha256: str = sidecar["model_sha256"]
        self.column: str = sidecar["column"]
        self._vectors = self._open()
        shape = (sidecar["rows"], self.dim)
        if self._vectors.shape != shape or self._vectors.dtype != np.float16:
            raise TeacherEmbeddingsError(
                f"{self.path}: expected float16 vectors of shape {shape} as its .json says, "
                f"found {self._vectors.dtype} of shape {self._vectors.shape}"
            )
        self._check_texts(manifest, sidecar["rows"], sidecar["texts_sha256"])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._vectors)

    @property
    def vectors(self) -> NDArray[np.float16]:
        """All vectors, memory-mapped, shape (rows, D)."""
        return self._vectors

    def check_same_teacher(self, other: TeacherEmbeddings) -> None:
        """Check that another split's vectors lie in the same space: one model's, of one width.

        Raises:
            TeacherEmbeddingsError: they do not.
        """
        found, expected = (
            (embeddings.model_sha256, embeddings.dim) for embeddings in (self, other)
        )
        if found != expected:
            raise TeacherEmbeddingsError(
                f"{self.path}: expected the teacher of {other.path}, {other.model_name} (SHA-256 "
                f"{expected[0][:12]}, width {expected[1]}), found {self.model_name} (SHA-256 "
                f"{found[0][:12]}, width {found[1]}); embed both with one model"
            )

    def __getitem__(self, row: int) -> Tensor:
        """Vector of a row, shape (D,) float32, of length 1 up to the rounding of float16.

        Raises:
            TeacherEmbeddingsError: the file holds another one in its place.
        """
        vector = self._vectors[row].astype(np.float32)
        self._check_lengths(vector[None], row)
        return torch.from_numpy(vector)

    def check_vectors(self) -> None:
        """Read all vectors and refuse one whose length is not 1 (``TeacherEmbeddingsError``)."""
        for start in range(0, len(self), CHECKED_ROWS):
            block = self._vectors[start : start + CHECKED_ROWS].astype(np.float32)
            self._check_lengths(block, start)

    def _check_lengths(self, vectors: NDArray[np.float32], first: int) -> None:
        lengths: NDArray[np.float32] = np.linalg.norm(vectors, axis=1)
        wrong = ~(np.abs(lengths - 1) < LENGTH_TOLERANCE)  # NaN too
        if wrong.any():
            row = int(wrong.argmax())
            raise TeacherEmbeddingsError(
                f"{self.path}: row {first + row}: expected a vector of length 1, found one of length "
                f"{lengths[row]}; embed again what it was made from"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the vectors out, which pickle would copy from disk to the last one."""
        return {name: value for name, value in vars(self).items() if name != "_vectors"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the vectors again; the texts were checked by the process that pickled this."""
        vars(self).update(state)
        self._vectors = self._open()

    def _read_sidecar(self, manifest: Manifest, teacher: str) -> dict[str, Any]:
        path = Path(self.path).with_suffix(".json")
        try:
            sidecar = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise TeacherEmbeddingsError(
                f"{path}: expected the embeddings of {manifest.path} by the teacher {teacher!r}, "
                f"found no such file; make them with `python -m data_prep.embed_text --manifests "
                f"{manifest.path} …`, those of speech with `python -m fairseq_samu.embed` (see --help)"
            ) from error
        except (OSError, ValueError) as error:
            raise TeacherEmbeddingsError(f"{path}: expected JSON, found: {error}") from error
        for name, kind in SIDECAR.items():
            if not isinstance(sidecar, dict) or type(sidecar.get(name)) is not kind:
                found = sidecar.get(name) if isinstance(sidecar, dict) else sidecar
                raise TeacherEmbeddingsError(
                    f"{path}: expected {name!r} to be of type {kind.__name__}, found {found!r}"
                )
        if not sidecar["normalised"]:
            raise TeacherEmbeddingsError(f"{path}: expected normalised vectors, found others")
        if sidecar["column"] not in manifest.columns:
            raise TeacherEmbeddingsError(
                f"{path}: expected a column of {manifest.path}, found {sidecar['column']!r}"
            )
        return dict(sidecar)

    def _open(self) -> NDArray[np.float16]:
        try:
            # Unlike np.load this neither opens zip archives nor ever unpickles.
            return np.asarray(np.lib.format.open_memmap(self.path, mode="r"))
        except (OSError, ValueError) as error:
            raise TeacherEmbeddingsError(
                f"{self.path}: expected vectors in a .npy file, found: {error}"
            ) from error

    def _check_texts(self, manifest: Manifest, rows: int, expected: str) -> None:
        digest = hashlib.sha256()
        for row in range(len(manifest)):
            digest.update(manifest.cell(row, self.column).encode() + b"\n")
        if digest.hexdigest() == expected and len(manifest) == rows:
            return
        changed = self._first_change(manifest)
        place, text = manifest.path, "texts that end earlier"
        if changed is not None:
            place = manifest.location(changed)
            text = f"another text first in this row: {manifest.cell(changed, self.column)!r}"
        raise TeacherEmbeddingsError(
            f"{place}: expected the {self.column} of {rows} rows that {self.path} was made from, "
            f"found {len(manifest)} rows and {text}; embed them again"
        )

    def _first_change(self, manifest: Manifest) -> int | None:
        """First row whose text was not embedded for it; None if there is none, or no telling."""
        path = f"{self.path[: -len('.npy')]}.rows.npy"
        try:
            hashes = np.asarray(np.lib.format.open_memmap(path, mode="r"))
        except (OSError, ValueError):
            return None
        for row in range(len(manifest)):
            text = manifest.cell(row, self.column).encode()
            found = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
            if row >= len(hashes) or found != hashes[row]:
                return row
        return None
