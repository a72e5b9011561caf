"""Files of vectors that are written over hours: resumable, and valid only once they are whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.atomic import ReplacedFile

# How often progress is made safe on disk; what comes after it is lost when the machine goes down.
JOURNAL_SECONDS = 10.0


class VectorFiles:
    """The files of one set of vectors, and what is kept of them while they are incomplete.

    `STEM.npy` holds the vectors, float16; `STEM.rows.npy` a hash of what each was made from;
    `STEM.json` says what they are, and comes last.

    Args:
        stem: path up to the name of the model, such as `data/train.labse`.
        sidecar: what the JSON file is going to say, which also tells whose progress it is; `rows` and
            `dimension` are the shape of the vectors.
    """

    def __init__(self, stem: Path, sidecar: dict[str, Any]) -> None:
        self.vectors = stem.with_name(f"{stem.name}.npy")
        self._rows = stem.with_name(f"{stem.name}.rows.npy")
        self._json = stem.with_name(f"{stem.name}.json")
        self._work = stem.with_name(f".{stem.name}.npy.part")
        self._journal = stem.with_name(f".{stem.name}.progress.json")
        self._sidecar = sidecar
        self._shape = (sidecar["rows"], sidecar["dimension"])
        self._saved = time.monotonic()

    def is_finished(self) -> bool:
        """Whether the files are there and belong to these rows and this model."""
        return (
            self.written() == self._sidecar
            and self._rows.is_file()
            and _open_vectors(self.vectors, "r", self._shape) is not None
        )

    def written(self) -> Any:
        """What the JSON file on disk says; None without one."""
        return _read_json(self._json)

    def open(self) -> tuple[npt.NDArray[np.float16], int]:
        """The vectors (N, D), mapped from disk, and how many of them are done."""
        journal = _read_json(self._journal) or {}
        if journal.get("of") == self._sidecar:
            vectors = _open_vectors(self._work, "r+", self._shape)
            if vectors is not None:
                return vectors, journal["done"]
        self._journal.unlink(missing_ok=True)
        return np.lib.format.open_memmap(self._work, "w+", np.float16, self._shape), 0

    def save_progress(self, vectors: npt.NDArray[np.float16], done: int) -> None:
        """From time to time, makes sure that the `done` vectors that came first survive."""
        if time.monotonic() - self._saved >= JOURNAL_SECONDS:
            _sync(vectors)
            _write_json(self._journal, {"of": self._sidecar, "done": done})
            self._saved = time.monotonic()

    def finish(self, vectors: npt.NDArray[np.float16], hashes: npt.NDArray[np.uint64]) -> None:
        """Gives the files their names. The JSON file comes last: without it there is nothing."""
        _sync(vectors)
        self._json.unlink(missing_ok=True)
        rows = ReplacedFile(self._rows)
        with open(rows.temporary, "wb") as file:
            np.save(file, hashes)
        rows.commit()
        os.replace(self._work, self.vectors)
        _write_json(self._json, self._sidecar)
        self._journal.unlink(missing_ok=True)


def row_hash(content: bytes) -> int:
    """8 bytes of BLAKE2b of what a row was made from."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _open_vectors(path: Path, mode: Any, shape: tuple[int, int]) -> npt.NDArray[np.float16] | None:
    """Maps vectors; None if there is no such file or it holds something else."""
    with contextlib.suppress(OSError, ValueError):
        # Unlike np.load this neither opens zip archives nor ever unpickles.
        vectors = np.lib.format.open_memmap(path, mode)
        if vectors.shape == shape and vectors.dtype == np.float16:
            return vectors
    return None


def _sync(vectors: npt.NDArray[np.float16]) -> None:
    assert isinstance(vectors, np.memmap)
    vectors.flush()


def _read_json(path: Path) -> Any:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def _write_json(path: Path, content: Any) -> None:
    replaced = ReplacedFile(path)
    replaced.temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    replaced.commit()
