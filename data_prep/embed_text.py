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
import hashlib
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_prep.extras import needs_extra
from data_prep.manifest import decode_line
from data_prep.teacher_model import check_device
from data_prep.vector_files import VectorFiles, row_hash

LABSE = "sentence-transformers/LaBSE"
# What a column adds to the teacher's name in file names.
COLUMN_SUFFIX = {"src_text": "", "tgt_text": "-tgt"}
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
        ValueError: it cannot be loaded, or not there.
    """
    check_device(device)
    with needs_extra("teacher", "embedding text"):
        import torch
        from sentence_transformers import SentenceTransformer
    # sentence-transformers would pool any other model by the mean, which for LaBSE itself is wrong.
    if Path(model).is_dir() and not Path(model, "modules.json").is_file():
        raise ValueError(f"{model}: expected a sentence-transformers model, found no modules.json")
    try:
        network = SentenceTransformer(model, device=device)
    except Exception as error:  # those of safetensors and tokenizers have no class in common
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
        ValueError: no such column, a row with another number of cells, or a row without a text or
            with one that is not UTF-8.
    """
    offsets, lengths, hashes = array("q"), array("i"), array("Q")
    digest = hashlib.sha256()
    with open(manifest, "rb") as file:
        line = next(file, b"")
        header = _decode(line, manifest, 1).rstrip("\r\n").split("\t")
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
            if not _decode(text, manifest, number).strip():
                raise ValueError(
                    f"{manifest}:{number}: expected a text in {column}, found an empty cell"
                )
            offsets.append(begin + sum(map(len, cells[:position])) + position)
            lengths.append(len(text))
            hashes.append(row_hash(text))
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


def _decode(content: bytes, manifest: Path, number: int) -> str:
    try:
        return decode_line(content, number)
    except UnicodeDecodeError as error:
        raise ValueError(f"{manifest}:{number}: expected UTF-8, found {error}") from error


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

    output = VectorFiles(manifest.with_name(name), sidecar)
    if output.is_finished():
        return Embedded(output.vectors, len(first_row), len(order), 0)
    vectors, done = output.open()
    bar = tqdm(total=len(order), initial=done, desc=name, unit="text")
    with bar, open(manifest, "rb") as file:
        for start in range(done, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = [_read_text(file.fileno(), manifest, texts, int(row)) for row in rows]
            vectors[rows] = _normalise(teacher.encode(batch), manifest, rows, batch)
            bar.update(len(rows))
            output.save_progress(vectors, start + len(rows))
    for start in range(0, len(first_row), COPY_ROWS):
        vectors[start : start + COPY_ROWS] = vectors[first_row[start : start + COPY_ROWS]]
    output.finish(vectors, texts.hashes)
    return Embedded(output.vectors, len(first_row), len(order), len(order) - done)


def _read_text(fd: int, manifest: Path, texts: TextColumn, row: int) -> str:
    text = os.pread(fd, int(texts.lengths[row]), int(texts.offsets[row]))
    if row_hash(text) != texts.hashes[row]:
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


def default_teacher_name(model: str) -> str:
    """`labse` for `sentence-transformers/LaBSE`, `teacher` for `out/teacher/`."""
    name = re.sub(r"[^a-z0-9_]+", "-", Path(model).resolve().name.lower()).strip("-")
    return name or "teacher"


def vectors_name(text: str) -> str:
    """Checks a name that files of vectors are called after, for argparse."""
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
        "--teacher-name", type=vectors_name, metavar="NAME",
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
