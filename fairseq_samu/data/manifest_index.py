"""Checks a manifest and finds its cells, vectorised, so that a million rows take seconds once."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Columns that every manifest has.
COLUMNS = ("id", "audio", "n_frames", "tgt_text", "speaker", "src_text", "src_lang", "tgt_lang")

#: Columns whose cells are never empty; ``tgt_lang`` may be where ``tgt_text`` is.
FILLED_COLUMNS = ("id", "audio", "n_frames", "src_lang")

#: First number of a stored index; another layout gets another number.
FORMAT = 0x53414D5500000001

#: Bytes of the manifest in memory at a time while its index is built.
BLOCK_BYTES = 1 << 23

#: Bytes in which a header row has to end.
MAX_HEADER_BYTES = 1 << 16

#: Longest ``n_frames`` in digits: over a year of speech, and far from overflowing int64.
MAX_DIGITS = 12

_TAB, _NEWLINE, _RETURN, _ZERO = (ord(character) for character in "\t\n\r0")


class ManifestError(ValueError):
    """A manifest that breaks its format; the message is ``FILE:LINE: … expected …, found …``."""


@dataclass
class ManifestIndex:
    """Where the cells of a manifest are, and what training needs to know without reading them.

    Attributes:
        size: bytes of the manifest.
        mtime_ns: its modification time in nanoseconds.
        first_rows: (P,) first row of every language pair.
        offsets: (columns + 1, N) where the cells of a row begin; a cell ends one byte before the
            next one.
        n_frames: (N,) length in 16 kHz samples.
        pair_codes: (N,) position of the row's language pair in ``first_rows``.
    """

    size: int
    mtime_ns: int
    first_rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    n_frames: NDArray[np.int64]
    pair_codes: NDArray[np.int64]

    def save(self, path: str) -> None:
        """Write one flat int64 array: the sizes, every field, and a checksum of all that."""
        columns, rows = self.offsets.shape
        sizes = [FORMAT, self.size, self.mtime_ns, columns - 1, rows, len(self.first_rows)]
        fields = (self.first_rows, self.offsets.ravel(), self.n_frames, self.pair_codes)
        flat = np.concatenate([np.array(sizes), *fields, [0]])
        flat[-1] = zlib.crc32(flat[:-1].data)
        with open(path, "xb") as file:
            np.save(file, flat, allow_pickle=False)

    @classmethod
    def load(cls, path: str, fd: int, columns: int) -> ManifestIndex | None:
        """Memory-map a stored index.

        Args:
            path: file that :meth:`save` wrote.
            fd: the manifest, open for reading.
            columns: number of its columns.

        Returns:
            None if there is no index, or if it is damaged or does not belong to this manifest.
        """
        status = os.fstat(fd)
        key = [FORMAT, status.st_size, status.st_mtime_ns, columns]
        try:
            # Unlike np.load this neither opens zip archives nor ever unpickles.
            flat = np.asarray(np.lib.format.open_memmap(path, mode="r"))
            if flat.dtype != np.int64 or flat.ndim != 1 or flat[:4].tolist() != key:
                return None
            if _checksum(path, flat.nbytes - 8) != flat[-1]:
                return None
        except (OSError, ValueError):
            return None
        rows, pairs = (int(number) for number in flat[4:6])
        first_rows, cells, n_frames, pair_codes = np.split(
            flat[6:-1], np.cumsum([pairs, (columns + 1) * rows, rows])
        )
        offsets = cells.reshape(columns + 1, rows)
        return cls(status.st_size, status.st_mtime_ns, first_rows, offsets, n_frames, pair_codes)


def _checksum(path: str, size: int) -> int:
    """CRC-32 of the ``size`` bytes before the last number of a stored index."""
    checksum = 0
    # Read in pieces: going through the memory map would make all of it resident.
    with open(path, "rb") as file:
        file.seek(-size - 8, os.SEEK_END)
        while size > 0 and (piece := file.read(min(size, 1 << 20))):
            checksum = zlib.crc32(piece, checksum)
            size -= len(piece)
    return checksum


def read_header(fd: int, path: str) -> tuple[list[str], int]:
    """Column names of an open manifest, and the byte after the header row.

    Raises:
        ManifestError: empty file, not UTF-8, a column missing or named twice.
    """
    line = os.pread(fd, MAX_HEADER_BYTES, 0).partition(b"\n")[0]
    try:
        # Spreadsheets put a byte order mark in front, which is not part of the first name.
        names = line.decode("utf-8-sig").rstrip("\r").split("\t")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}:1: expected UTF-8, found {line[:16]!r}") from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        found = f"only {names}" if line else "nothing"
        raise ManifestError(
            f"{path}:1: expected a header row with the columns {' '.join(COLUMNS)}, separated by "
            f"tabs, found {found[:200]} (missing: {' '.join(missing)})"
        )
    if len(set(names)) < len(names):
        raise ManifestError(f"{path}:1: expected every column once, found {names}")
    return names, len(line) + 1


def build_index(fd: int, path: str, columns: Sequence[str], body: int) -> ManifestIndex:
    """Scan a manifest and check every row.

    Args:
        fd: the manifest, open for reading.
        path: its name, for messages.
        columns: its columns, from :func:`read_header`.
        body: where its first row begins, from there too.

    Raises:
        ManifestError: wrong number of cells, an empty cell that has to be filled, ``n_frames`` that
            is not a positive whole number, an id used twice, a language with spaces, text that is
            not UTF-8, no rows, or a file that changes meanwhile.
    """
    status = os.fstat(fd)
    scan = _Scan(path, list(columns))
    for begin, block in _blocks(fd, body):
        scan.add(begin, block)
    if scan.rows == 0:
        raise ManifestError(f"{path}:2: expected at least one row below the header, found none")
    scan.check_ids(fd)
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise ManifestError(f"{path}: expected a finished file, found that it changes while read")
    return ManifestIndex(
        status.st_size,
        status.st_mtime_ns,
        np.array(scan.first_rows, dtype=np.int64),
        np.concatenate(scan.offsets, axis=1),
        np.concatenate(scan.n_frames),
        np.concatenate(scan.pair_codes),
    )


def _blocks(fd: int, begin: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines from ``begin`` on: where they are, and their text, which ends with a newline."""
    rest = b""
    while data := os.pread(fd, BLOCK_BYTES, begin + len(rest)):
        block = rest + data
        end = block.rfind(b"\n") + 1
        if end:
            yield begin, block[:end]
        begin, rest = begin + end, block[end:]
    if rest:
        yield begin, rest + b"\n"


class _Scan:
    """Collects the index of a manifest block by block."""

    def __init__(self, path: str, columns: list[str]) -> None:
        self.path = path
        self.columns = columns
        self.rows = 0
        self.offsets: list[NDArray[np.int64]] = []
        self.n_frames: list[NDArray[np.int64]] = []
        self.pair_codes: list[NDArray[np.int64]] = []
        self.first_rows: list[int] = []
        self._codes: dict[tuple[bytes, bytes], int] = {}
        self._id_hashes: list[NDArray[np.int64]] = []

    def add(self, begin: int, block: bytes) -> None:
        """Take in the lines of a block that starts ``begin`` bytes into the file."""
        data = np.frombuffer(block, dtype=np.uint8)
        self._check_utf8(block)
        bounds = self._find_cells(data, block)
        cells = {
            name: (bounds[i], bounds[i + 1] - 1)
            for i, name in enumerate(self.columns)
            if name in COLUMNS
        }
        is_empty = {name: begin == end for name, (begin, end) in cells.items()}
        is_empty["tgt_lang"] &= ~is_empty["tgt_text"]
        for name in (*FILLED_COLUMNS, "tgt_lang"):
            empty = is_empty[name]
            if empty.any():
                raise self._error(int(empty.argmax()), f"expected a value in {name}, found none")
        self.n_frames.append(self._parse_lengths(data, block, *cells["n_frames"]))
        self.pair_codes.append(self._encode_pairs(block, cells["src_lang"], cells["tgt_lang"]))
        ids = zip(*(bound.tolist() for bound in cells["id"]))
        self._id_hashes.append(np.array([hash(block[a:b]) for a, b in ids], dtype=np.int64))
        self.offsets.append(bounds + begin)
        self.rows += bounds.shape[1]

    def check_ids(self, fd: int) -> None:
        """Refuse an id that two rows have."""
        hashes = np.concatenate(self._id_hashes)
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(np.diff(hashes[order]) == 0)
        if len(same) == 0:
            return
        offsets = np.concatenate(self.offsets, axis=1)
        column = self.columns.index("id")
        first: dict[bytes, int] = {}
        for row in np.unique(order[np.concatenate([same, same + 1])]).tolist():
            begin, end = offsets[column, row], offsets[column + 1, row] - 1
            name = os.pread(fd, int(end - begin), int(begin))
            if name in first:
                raise ManifestError(
                    f"{self.path}:{row + 2}: expected an id of its own, "
                    f"found {name.decode()!r} as in line {first[name] + 2}"
                )
            first[name] = row

    def _error(self, row: int, message: str) -> ManifestError:
        """Error in a row of the current block."""
        return ManifestError(f"{self.path}:{self.rows + row + 2}: {message}")

    def _check_utf8(self, block: bytes) -> None:
        try:
            block.decode("utf-8")
        except UnicodeDecodeError as error:
            row = block.count(b"\n", 0, error.start)
            bad = block[error.start : error.start + 4]
            raise self._error(row, f"expected UTF-8, found the bytes {bad!r}") from error

    def _find_cells(self, data: NDArray[np.uint8], block: bytes) -> NDArray[np.int64]:
        """Where cells begin in a block, shape (columns + 1, rows of the block)."""
        columns = len(self.columns)
        separators = np.flatnonzero((data == _TAB) | (data == _NEWLINE))
        is_newline = data[separators] == _NEWLINE
        ends = np.flatnonzero(is_newline)
        counts = np.diff(ends, prepend=-1)
        if (counts != columns).any():
            row = int((counts != columns).argmax())
            line = block.split(b"\n", row + 1)[row].decode("utf-8")
            found = f"{counts[row]}: {line[:80]!r}" if line.strip() else "an empty line"
            raise self._error(row, f"expected {columns} cells separated by tabs, found {found}")
        bounds = np.empty((columns + 1, len(ends)), dtype=np.int64)
        bounds[1:] = separators.reshape(-1, columns).T + 1
        bounds[0, 0] = 0
        bounds[0, 1:] = bounds[-1, :-1]
        # "\r\n": the last cell ends before the "\r".
        bounds[-1] -= data[np.maximum(bounds[-1] - 2, 0)] == _RETURN
        return bounds

    def _parse_lengths(
        self,
        data: NDArray[np.uint8],
        block: bytes,
        begin: NDArray[np.int64],
        end: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Values of ``n_frames``, all rows at once: one step a digit."""
        values = np.zeros(len(begin), dtype=np.int64)
        good = end - begin <= MAX_DIGITS
        for step in range(min(int((end - begin).max()), MAX_DIGITS)):
            inside = begin + step < end
            digits = data[np.minimum(begin + step, end)].astype(np.int64) - _ZERO
            values = np.where(inside, values * 10 + digits, values)
            good &= ~inside | ((digits >= 0) & (digits <= 9))
        good &= values > 0
        if not good.all():
            row = int((~good).argmax())
            cell = block[begin[row] : end[row]].decode("utf-8")
            expected = f"n_frames = 16 kHz samples, a whole number from 1 of ≤ {MAX_DIGITS} digits"
            raise self._error(row, f"expected {expected}, found {cell!r}")
        return values

    def _encode_pairs(
        self,
        block: bytes,
        source: tuple[NDArray[np.int64], NDArray[np.int64]],
        target: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> NDArray[np.int64]:
        """Number of every row's language pair, counted in the order in which pairs turn up."""
        codes = []
        bounds = zip(*(bound.tolist() for bound in (*source, *target)))
        for row, (a, b, c, d) in enumerate(bounds):
            pair = block[a:b], block[c:d]
            code = self._codes.get(pair)
            if code is None:
                for lang in filter(None, pair):
                    if lang.split() != [lang]:
                        found = lang.decode()
                        raise self._error(
                            row, f"expected languages without spaces, found {found!r}"
                        )
                code = self._codes[pair] = len(self._codes)
                self.first_rows.append(self.rows + row)
            codes.append(code)
        return np.array(codes, dtype=np.int64)
