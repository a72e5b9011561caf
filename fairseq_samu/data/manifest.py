"""Manifests: tab-separated tables of utterances, opened without reading their text."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
import weakref

import numpy as np
from numpy.typing import NDArray

from fairseq_samu.data.cell_hashes import first_of_each, hash_cells
from fairseq_samu.data.manifest_index import ManifestError, ManifestIndex, build_index, read_header

logger = logging.getLogger(__name__)


class Manifest:
    """Rows of a manifest, read from disk when they are asked for.

    A manifest is UTF-8 text with one header row and one utterance a line, its cells separated by
    tabs and never quoted. It needs the columns of
    :data:`~fairseq_samu.data.manifest_index.COLUMNS`, in any order, and may have others. Every row
    is checked when the manifest is first opened.

    Opening it scans the file once and keeps where the cells are, the lengths and the language pairs
    in ``.NAME.tsv.index/index.bin`` beside it. Later opens, in every rank, memory-map that:
    milliseconds for a million rows. The index is rebuilt when the manifest's size or the time of its
    last change is another.

    Args:
        path: the manifest.

    Attributes:
        path: the manifest.
        columns: names of its columns, in the order of the file.
        pairs: (source language, target language) of every pair that occurs, sorted; the target language
            is empty where there are only transcripts.
        n_frames: (N,) length of every utterance in 16 kHz samples.
        pair_ids: (N,) position of every row's language pair in ``pairs``.

    Raises:
        ManifestError: no such file, or a row that breaks the format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            # Rows are read with pread. Unlike a shared file position it is safe in forked workers;
            # unlike a memory map it survives that someone cuts the file short.
            self._fd = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._fd)
            self.columns, body = read_header(self._fd, self.path)
        except OSError as error:
            raise ManifestError(
                f"{self.path}: expected a manifest, found: {error.strerror}"
            ) from error
        self._version = _version(self._fd)
        self._column = {name: i for i, name in enumerate(self.columns)}
        index = self._open_index(body)
        self._starts, self._cell_ends = index.starts, index.cell_ends
        self.n_frames: NDArray[np.int64] = index.n_frames
        self.pair_ids: NDArray[np.int16] = index.pair_ids
        self.pairs: list[tuple[str, str]] = [
            (self.cell(row, "src_lang"), self.cell(row, "tgt_lang"))
            for row in index.first_rows.tolist()
        ]

    def __len__(self) -> int:
        """Number of utterances."""
        return len(self.n_frames)

    def __reduce__(self) -> tuple[type[Manifest], tuple[str]]:
        """Pickle as the path: a worker process opens the file and the index again."""
        return Manifest, (self.path,)

    def cell(self, row: int, column: str) -> str:
        """Text of one cell.

        Args:
            row: row number, counted from 0 without the header.
            column: column name.
        """
        i = self._column[column]
        begin = int(self._cell_ends[i - 1, row]) if i else 0
        return self._read(row, begin, int(self._cell_ends[i, row]) - 1)

    def cells(self, column: str, begin: int, end: int) -> list[str]:
        """Texts of one column in the rows from ``begin`` to before ``end``, read at once."""
        return _texts(*self._block(column, begin, end))

    def distinct_cells(self, column: str, begin: int, end: int) -> list[str]:
        """What :meth:`cells` returns, without (most of) what comes again; no slower where nothing does."""
        block, begins, ends = self._block(column, begin, end)
        rows = first_of_each(hash_cells(block, begins, ends))
        return _texts(block, begins[rows], ends[rows])

    def row(self, row: int) -> dict[str, str]:
        """All cells of a row by column name."""
        line = self._read(row, 0, int(self._cell_ends[-1, row]) - 1)
        return dict(zip(self.columns, line.split("\t")))

    def byte_lengths(self, column: str) -> NDArray[np.int32]:
        """Lengths (N,) of a column's cells in UTF-8 bytes, which bound the number of pieces."""
        i = self._column[column]
        begins = self._cell_ends[i - 1] if i else 0
        lengths: NDArray[np.int32] = (self._cell_ends[i] - begins - 1).astype(np.int32)
        return lengths

    def location(self, row: int) -> str:
        """``FILE:LINE`` of a row, for messages."""
        return f"{self.path}:{row + 2}"

    def _block(
        self, column: str, begin: int, end: int
    ) -> tuple[bytes, NDArray[np.int64], NDArray[np.int64]]:
        """Some rows as they are in the file, and where a column's cells begin and end there."""
        i = self._column[column]
        first = int(self._starts[begin])
        starts = self._starts[begin:end] - first
        block = self._read_bytes(begin, first, int(starts[-1] + self._cell_ends[-1, end - 1]))
        begins = starts + self._cell_ends[i - 1, begin:end] if i else starts
        return block, begins, starts + self._cell_ends[i, begin:end] - 1

    def _read(self, row: int, begin: int, end: int) -> str:
        """Text of some bytes of a row, counted from where it begins."""
        return self._read_bytes(row, int(self._starts[row]) + begin, end - begin).decode("utf-8")

    def _read_bytes(self, row: int, begin: int, size: int) -> bytes:
        """Bytes of the manifest; ``row`` is where they are, for messages."""
        data = os.pread(self._fd, size, begin)
        if _version(self._fd) != self._version:
            raise ManifestError(
                f"{self.location(row)}: expected the file that was opened, found that it was written to "
                "since; to change a manifest in use, write another file and move it into its place"
            )
        return data

    def _open_index(self, body: int) -> ManifestIndex:
        """The stored index if it fits the file, else a new one, stored for the next time."""
        folder, name = os.path.split(self.path)
        cache = os.path.join(folder, f".{name}.index", "index.bin")
        index = ManifestIndex.load(cache, self._fd, len(self.columns))
        if index is not None:
            return index
        index = build_index(self._fd, self.path, self.columns, body)
        temporary = f"{cache}.{uuid.uuid4().hex}.tmp"
        try:
            os.makedirs(os.path.dirname(cache), exist_ok=True)
            # Ranks that build at the same time write files of their own; the last one stays.
            index.save(temporary)
            os.replace(temporary, cache)
        except OSError as error:
            logger.warning("%s: its index stays in memory, cannot store it: %s", self.path, error)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return ManifestIndex.load(cache, self._fd, len(self.columns)) or index


def _version(fd: int) -> tuple[int, int]:
    """Size and modification time of an open file, which tell that it was written to."""
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


def _texts(block: bytes, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> list[str]:
    cells = [block[a:b] for a, b in zip(begins.tolist(), ends.tolist())]
    return b"\n".join(cells).decode("utf-8").split("\n")  # one call in place of one a row


def pair_name(pair: tuple[str, str]) -> str:
    """Name of a language pair in logs: ``es-en``, or ``es`` for transcripts without translations."""
    return "-".join(filter(None, pair))
