"""Embeds the texts of manifests with a sentence-embedding model: the teacher of SAMU-XLS-R.

    python -m data_prep.embed_text --manifests data/train.tsv data/dev.tsv

Beside every NAME.tsv it writes, for a teacher called `labse`,

    NAME.labse.npy       (rows, dimension) float16, L2-normalised; row i is that of manifest row i
    NAME.labse.rows.npy  (rows,) a hash of every text, which tells which row was changed later
    NAME.labse.json      model, dimension, and the SHA-256 of the texts: what training checks

and with `--column tgt_text` the same with `labse-tgt` in place of `labse`. Every distinct text is
embedded once. A run that was killed goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_prep.atomic import ReplacedFile
from data_prep.extras import needs_extra

LABSE = "sentence-transformers/LaBSE"
# What a column adds to the teacher's name in file names.
COLUMN_SUFFIX = {"src_text": "", "tgt_text": "-tgt"}
# How often progress is made safe on disk; what comes after it is lost when the machine goes down.
JOURNAL_SECONDS = 10.0
# Rows whose vectors are copied to rows with the same text at a time.
COPY_ROWS = 1 << 16
# Shorter vectors have no direction worth keeping.
MIN_NORM = 1e-6


@dataclass(frozen=True)
class Teacher:
    """A sentence-embedding model.

    Attributes:
        model: name or folder it was loaded from.
        sha256: of its weights, since a folder keeps its name when another model is put into it.
        dimension: length of its vectors.
        encode: B texts -> (B, dimension) float32, of any length.
    """

    model: str
    sha256: str
    dimension: int
    encode: Callable[[list[str]], npt.NDArray[np.float32]]


class Embedded(NamedTuple):
    """The file written for a manifest, its rows, its distinct texts, those embedded just now."""

    path: Path
    rows: int
    distinct: int
    computed: int


class TextColumn(NamedTuple):
    """One column of a manifest, without its texts.

    Attributes:
        offsets: (N,) where every text begins in the file, in bytes.
        lengths: (N,) bytes of every text.
        hashes: (N,) 8 bytes of BLAKE2b of every text. Two different ones of a million texts agree
            with a probability of 3e-8.
        sha256: of all texts in row order, each followed by a newline.
    """

    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    hashes: npt.NDArray[np.uint64]
    sha256: str


def load_teacher(model: str, device: str | None = None) -> Teacher:
    """Loads a sentence-transformers model.

    Args:
        model: its name, or a folder that `SentenceTransformer.save` wrote.
        device: such as `cuda:0`; a GPU if there is one by default.

    Raises:
        ModuleNotFoundError: sentence-transformers is not installed.
        ValueError: it cannot be loaded.
    """
    with needs_extra("teacher", "embedding text"):
        import torch
        from sentence_transformers import SentenceTransformer
    # sentence-transformers would pool any other model by the mean, which for LaBSE itself is wrong.
    if Path(model).is_dir() and not Path(model, "modules.json").is_file():
        raise ValueError(f"{model}: expected a sentence-transformers model, found no modules.json")
    try:
        network = SentenceTransformer(model, device=device)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{model}: cannot load the teacher; expected the folder of a sentence-transformers "
            f"model, or the name of one that can be downloaded: {error}"
        ) from error
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def encode(texts: list[str]) -> npt.NDArray[np.float32]:
        vectors = network.encode(texts, batch_size=len(texts), show_progress_bar=False)
        return np.asarray(vectors, np.float32)

    return Teacher(model, digest.hexdigest(), encode(["a"]).shape[1], encode)


def scan_column(manifest: Path, column: str) -> TextColumn:
    """Finds and hashes the texts of a column, one line in memory at a time.

    Raises:
        ValueError: no such column, a row with another number of cells, or a row without a text.
    """
    offsets, lengths, hashes = array("q"), array("i"), array("Q")
    digest = hashlib.sha256()
    with open(manifest, "rb") as file:
        line = next(file, b"")
        header = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
        if column not in header:
            raise ValueError(f"{manifest}:1: expected a column {column}, found {header}")
        position = header.index(column)
        begin = len(line)
        for number, line in enumerate(file, start=2):
            cells = line.rstrip(b"\n").split(b"\t")
            if len(cells) != len(header):
                raise ValueError(
                    f"{manifest}:{number}: expected {len(header)} cells, found {len(cells)}"
                )
            text = cells[position]
            if position == len(header) - 1 and text.endswith(b"\r"):
                text = text[:-1]
            if not text:
                raise ValueError(
                    f"{manifest}:{number}: expected a text in {column}, found an empty cell"
                )
            offsets.append(begin + sum(map(len, cells[:position])) + position)
            lengths.append(len(text))
            hashes.append(_hash(text))
            digest.update(text + b"\n")
            begin += len(line)
    if not offsets:
        raise ValueError(f"{manifest}: expected at least one row, found none")
    return TextColumn(
        np.frombuffer(offsets, np.int64),
        np.frombuffer(lengths, np.int32),
        np.frombuffer(hashes, np.uint64),
        digest.hexdigest(),
    )


def embed_manifest(
    manifest: Path, teacher: Teacher, teacher_name: str, column: str, batch_size: int = 64
) -> Embedded:
    """Writes the teacher's vectors of one column beside a manifest, unless they are there.

    Memory grows by about 50 bytes a row: texts and vectors stay on disk.

    Args:
        manifest: `NAME.tsv`.
        teacher: what embeds.
        teacher_name: what the files are called after.
        column: `src_text` or `tgt_text`.
        batch_size: texts embedded at a time. Batches hold texts of about the same length, the
            longest first, so that memory runs out at the start or not at all.

    Raises:
        ValueError: a row without a text, or one that the teacher has no vector for.
    """
    if manifest.suffix != ".tsv":
        raise ValueError(f"{manifest}: expected a manifest NAME.tsv")
    texts = scan_column(manifest, column)
    name = f"{manifest.stem}.{teacher_name}{COLUMN_SUFFIX[column]}"
    sidecar = {
        "model": teacher.model,
        "model_sha256": teacher.sha256,
        "column": column,
        "rows": len(texts.offsets),
        "dimension": teacher.dimension,
        "dtype": "float16",
        "normalised": True,
        "texts_sha256": texts.sha256,
    }
    _, first, inverse = np.unique(texts.hashes, return_index=True, return_inverse=True)
    first_row = first[inverse]  # (N,) the first row with the same text
    order = first[np.lexsort((first, -texts.lengths[first]))]

    output = _Output(manifest.with_name(name), sidecar)
    if output.is_finished():
        return Embedded(output.vectors, len(first_row), len(order), 0)
    vectors, done = output.open()
    with tqdm(total=len(order), initial=done, desc=name, unit="text") as bar:
        saved = time.monotonic()
        with open(manifest, "rb") as file:
            for start in range(done, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = [_read_text(file.fileno(), manifest, texts, int(row)) for row in rows]
                vectors[rows] = _normalise(teacher.encode(batch), manifest, rows, batch)
                bar.update(len(rows))
                if time.monotonic() - saved >= JOURNAL_SECONDS:
                    output.save_progress(vectors, start + len(rows))
                    saved = time.monotonic()
    for start in range(0, len(first_row), COPY_ROWS):
        vectors[start : start + COPY_ROWS] = vectors[first_row[start : start + COPY_ROWS]]
    output.finish(vectors, texts.hashes)
    return Embedded(output.vectors, len(first_row), len(order), len(order) - done)


class _Output:
    """The files of one column, and what is kept of them while they are incomplete.

    Args:
        stem: their path up to the name of the teacher.
        sidecar: what the JSON file is going to say, which also tells whose progress it is.
    """

    def __init__(self, stem: Path, sidecar: dict[str, Any]) -> None:
        self.vectors = stem.with_name(f"{stem.name}.npy")
        self._rows = stem.with_name(f"{stem.name}.rows.npy")
        self._json = stem.with_name(f"{stem.name}.json")
        self._work = stem.with_name(f".{stem.name}.npy.part")
        self._journal = stem.with_name(f".{stem.name}.progress.json")
        self._sidecar = sidecar
        self._shape = (sidecar["rows"], sidecar["dimension"])

    def is_finished(self) -> bool:
        """Whether the files are there and belong to these texts and this model."""
        return (
            _read_json(self._json) == self._sidecar
            and self._rows.is_file()
            and _open_vectors(self.vectors, "r", self._shape) is not None
        )

    def open(self) -> tuple[npt.NDArray[np.float16], int]:
        """The vectors (N, D), mapped from disk, and how many distinct texts are done."""
        journal = _read_json(self._journal) or {}
        if journal.get("of") == self._sidecar:
            vectors = _open_vectors(self._work, "r+", self._shape)
            if vectors is not None:
                return vectors, journal["done"]
        self._journal.unlink(missing_ok=True)
        return np.lib.format.open_memmap(self._work, "w+", np.float16, self._shape), 0

    def save_progress(self, vectors: npt.NDArray[np.float16], done: int) -> None:
        """Makes sure that the vectors of the first `done` distinct texts survive."""
        _sync(vectors)
        _write_json(self._journal, {"of": self._sidecar, "done": done})

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


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _read_text(fd: int, manifest: Path, texts: TextColumn, row: int) -> str:
    text = os.pread(fd, int(texts.lengths[row]), int(texts.offsets[row]))
    if _hash(text) != texts.hashes[row]:
        raise ValueError(f"{manifest}:{row + 2}: changed while it was being embedded")
    return text.decode("utf-8")


def _normalise(
    vectors: npt.NDArray[np.float32], manifest: Path, rows: npt.NDArray[np.int64], texts: list[str]
) -> npt.NDArray[np.float32]:
    """Vectors (B, D) of length 1."""
    norms: npt.NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~(np.isfinite(norms) & (norms > MIN_NORM))
    if bad.any():
        i = int(bad.argmax())
        raise ValueError(
            f"{manifest}:{rows[i] + 2}: expected a vector with a direction from the teacher, "
            f"found one of length {norms[i, 0]} for {texts[i]!r}"
        )
    return vectors / norms


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


def default_teacher_name(model: str) -> str:
    """`labse` for `sentence-transformers/LaBSE`, `teacher` for `out/teacher/`."""
    name = re.sub(r"[^a-z0-9_]+", "-", Path(model).resolve().name.lower()).strip("-")
    return name or "teacher"


def _teacher_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, - and _, found {text!r}")
    return text


def _columns(choice: str) -> Iterator[str]:
    return iter(COLUMN_SUFFIX) if choice == "both" else iter([choice])


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.embed_text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--manifests", nargs="+", type=Path, required=True, metavar="NAME.tsv",
        help="manifests whose texts to embed",
    )  # fmt: skip
    parser.add_argument(
        "--model", default=LABSE,
        help="sentence-transformers model: its name or its folder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--column", choices=[*COLUMN_SUFFIX, "both"], default="src_text",
        help="embed transcripts (src_text), target texts or both (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--teacher-name", type=_teacher_name, metavar="NAME",
        help="what the files are called after (default: the last part of --model, lower case)",
    )  # fmt: skip
    parser.add_argument(
        "--device",
        help="where the model runs, such as cuda:1 or cpu (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, help="texts at a time (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch-size: expected at least 1, found {args.batch_size}")
    teacher_name = args.teacher_name or default_teacher_name(args.model)
    try:
        teacher = load_teacher(args.model, args.device)
        for manifest in args.manifests:
            for column in _columns(args.column):
                done = embed_manifest(manifest, teacher, teacher_name, column, args.batch_size)
                how = f"{done.computed} embedded now" if done.computed else "already there"
                print(
                    f"{done.path}: {done.rows} rows, {done.distinct} distinct texts ({how}), "
                    f"{teacher.dimension} numbers each"
                )
    except (ModuleNotFoundError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
