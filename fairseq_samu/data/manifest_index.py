"""Checks a manifest and finds its cells, vectorised, so that a million rows take seconds once."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairseq_samu.data.cell_hashes import first_of_each, hash_cells, number_cells

#: Columns that every manifest has.
COLUMNS = ("id", "audio", "n_frames", "tgt_text", "speaker", "src_text", "src_lang", "tgt_lang")

#: Columns whose cells are never empty; ``tgt_lang`` may be where ``tgt_text`` is.
FILLED_COLUMNS = ("id", "audio", "n_frames", "src_lang")

#: First number of a stored index; another layout gets another number.
FORMAT = 0x53414D5500000004

#: Numbers in front of the fields of an index.
HEAD = 8

#: Bytes of the manifest in memory at a time while its index is built; what is made of them stays in the
#: processor's cache.
BLOCK_BYTES = 1 << 20

#: Bytes in which a header row has to end.
MAX_HEADER_BYTES = 1 << 16

#: Bytes of the longest row, which is read at once.
MAX_ROW_BYTES = 1 << 24

#: Longest ``n_frames`` in digits: over a year of speech, and far from overflowing int64.
MAX_DIGITS = 12

#: Most language pairs: their numbers have 16 bits.
MAX_PAIRS = (1 << 15) - 1

_TAB, _NEWLINE, _RETURN, _ZERO = (ord(character) for character in "\t\n\r0")


class ManifestError(ValueError):
    """A manifest that breaks its format; the message is ``FILE:LINE: … expected …, found …``."""


@dataclass
class ManifestIndex:
    """Where the cells of a manifest are, and what training needs to know without reading them.

    All of it lies in one array, which is memory-mapped when it was stored: a process holds the pages
    alone that it looks at, and shares them with the others.

    Attributes:
        flat: HEAD numbers (FORMAT, bytes of the manifest, when its content and when its inode changed, in
            ns, columns C, rows N, language pairs P, bytes of a cell's end), then the fields below and a
            checksum of all that, int64.
        starts: (N,) where rows begin, in bytes of the manifest.
        n_frames: (N,) length in 16 kHz samples.
        cell_ends: (C, N) bytes from a row's beginning to where the next cell begins; a cell ends one
            byte before it. 32 bits each if a row needs them, else 16.
        pair_ids: (N,) number of the row's language pair, in sorted order of pairs.
        first_rows: (P,) first row of every language pair.
    """

    flat: NDArray[np.int64]
    starts: NDArray[np.int64]
    n_frames: NDArray[np.int64]
    cell_ends: NDArray[np.uint16] | NDArray[np.uint32]
    pair_ids: NDArray[np.int16]
    first_rows: NDArray[np.int64]

    @classmethod
    def empty(cls, status: os.stat_result, columns: int, rows: int, width: int) -> ManifestIndex:
        """Room for so many rows, and for the most language pairs."""
        cells = _words(width * columns * rows) + _words(2 * rows)
        flat = np.zeros(HEAD + 2 * rows + cells + MAX_PAIRS + 1, dtype=np.int64)
        flat[:HEAD] = *_key(status, columns), rows, MAX_PAIRS, width
        return cls.of(flat)

    @classmethod
    def of(cls, flat: NDArray[np.int64]) -> ManifestIndex:
        """Fields of an array whose HEAD is filled in."""
        columns, rows, pairs, width = (int(number) for number in flat[4:HEAD])
        sizes = [rows, rows, _words(width * columns * rows), _words(2 * rows), pairs]
        parts = np.split(flat[HEAD:-1], np.cumsum(sizes))
        starts, n_frames, cell_ends, pair_ids, first_rows = parts[:5]
        return cls(
            flat,
            starts,
            n_frames,
            cell_ends.view(f"u{width}")[: columns * rows].reshape(columns, rows),
            pair_ids.view(np.int16)[:rows],
            first_rows,
        )

    def save(self, path: str) -> None:
        """Write the array, with its checksum."""
        self.flat[-1] = zlib.crc32(self.flat[:-1].data)
        with open(path, "xb") as file:
            file.write(self.flat.data)

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
        try:
            # Plain numbers: the header of a .npy file is parsed as Python, with any error if it is damaged.
            flat = np.asarray(np.memmap(path, dtype=np.int64, mode="r"))
            if flat[:5].tolist() != _key(os.fstat(fd), columns):
                return None
            if _checksum(path, flat.nbytes - 8) != flat[-1]:
                return None
        except (OSError, ValueError):
            return None
        return cls.of(flat)


def _key(status: os.stat_result, columns: int) -> list[int]:
    """First numbers of the index of a manifest in its present state."""
    # Archives and copies can give two files of one size the same modification time, but not both times.
    return [FORMAT, status.st_size, status.st_mtime_ns, status.st_ctime_ns, columns]


def _words(size: int) -> int:
    """64-bit words that hold so many bytes."""
    return (size + 7) // 8


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
        ManifestError: empty file, a row that is too long, not UTF-8, a column missing or named twice.
    """
    line, _, _ = os.pread(fd, MAX_HEADER_BYTES, 0).partition(b"\n")
    if len(line) == MAX_HEADER_BYTES:
        raise ManifestError(
            f"{path}:1: expected a header row of less than {len(line)} bytes, found more"
        )
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
            is not a positive whole number, an id used twice, a language with spaces, a row of more than
            MAX_ROW_BYTES, text that is not UTF-8 or has NUL bytes, no rows, or a file that changes
            meanwhile.
    """
    status = os.fstat(fd)
    scan = _Scan(path, list(columns), status, _count_rows(fd, body))
    for begin, block in _blocks(fd, body):
        scan.add(begin, block)
    scan.check_ids(fd)
    if not scan.is_whole(os.fstat(fd)):
        raise ManifestError(f"{path}: expected a finished file, found that it changes while read")
    return scan.finish()


def _count_rows(fd: int, begin: int) -> int:
    """Number of lines from ``begin`` on."""
    lines, last = 0, b"\n"
    while data := os.pread(fd, BLOCK_BYTES, begin):
        lines += int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8) == _NEWLINE))
        begin, last = begin + len(data), data[-1:]
    return lines + (last != b"\n")


def _blocks(fd: int, begin: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines from ``begin`` on: where they are, and their text, which ends with a newline.

    The text of a row of more than MAX_ROW_BYTES is cut off, and does not end with one.
    """
    size = BLOCK_BYTES
    while block := os.pread(fd, size, begin):
        end = block.rfind(b"\n") + 1
        if end > 0:
            block = block[:end]
        elif len(block) < size:
            block += b"\n"  # the last row
        elif size <= MAX_ROW_BYTES:
            size *= 2  # once more, with more of a long row
            continue
        yield begin, block
        begin, size = begin + len(block), BLOCK_BYTES


class _Numbers(dict[bytes, int]):
    """Numbers of texts, given in the order in which they turn up."""

    def __missing__(self, text: bytes) -> int:
        self[text] = len(self)
        return self[text]


class _Scan:
    """Fills the index of a manifest block by block."""

    def __init__(self, path: str, columns: list[str], status: os.stat_result, rows: int) -> None:
        if rows == 0:
            raise ManifestError(f"{path}:2: expected at least one row below the header, found none")
        self.path = path
        self.columns = columns
        self.status = status
        self.rows = 0  # seen so far
        self.index = ManifestIndex.empty(status, len(columns), rows, width=2)
        self._pairs = _Numbers()  # both languages with a tab between them
        self._id_hashes = np.empty(rows, dtype=np.uint64)

    def add(self, begin: int, block: bytes) -> None:
        """Take in the lines of a block that starts ``begin`` bytes into the file."""
        if not block.endswith(b"\n"):
            raise self._row_too_long(0, f"more than {len(block)}")
        data = np.frombuffer(block, dtype=np.uint8)
        self._check_utf8(block)
        bounds = self._find_cells(data, block)
        rows = slice(self.rows, self.rows + bounds.shape[1])
        if rows.stop > len(self._id_hashes):
            raise ManifestError(
                f"{self.path}: expected a finished file, found that it changes while read"
            )
        cells = {
            name: (bounds[i], bounds[i + 1] - 1)
            for i, name in enumerate(self.columns)
            if name in COLUMNS
        }
        for name in (*FILLED_COLUMNS, "tgt_lang"):
            empty = cells[name][0] == cells[name][1]
            if name == "tgt_lang" and empty.any():
                empty &= cells["tgt_text"][0] != cells["tgt_text"][1]
            if empty.any():
                raise self._error(int(empty.argmax()), f"expected a value in {name}, found none")
        self.index.n_frames[rows] = self._parse_lengths(data, block, *cells["n_frames"])
        self.index.pair_ids[rows] = self._encode_pairs(block, cells["src_lang"], cells["tgt_lang"])
        self._id_hashes[rows] = hash_cells(block, *cells["id"])
        self.index.starts[rows] = bounds[0] + begin
        ends = bounds[1:] - bounds[0]
        if ends[-1].max() > np.iinfo(self.index.cell_ends.dtype).max:
            self._widen()
        self.index.cell_ends[:, rows] = ends
        self.rows = rows.stop

    def check_ids(self, fd: int) -> None:
        """Refuse an id that two rows have."""
        hashes = np.sort(self._id_hashes[: self.rows])
        twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        column = self.columns.index("id")
        first: dict[bytes, int] = {}
        for row in np.flatnonzero(np.isin(self._id_hashes[: self.rows], twice)).tolist():
            start = int(self.index.starts[row])
            begin = int(self.index.cell_ends[column - 1, row]) if column else 0
            end = int(self.index.cell_ends[column, row]) - 1
            name = os.pread(fd, end - begin, start + begin)
            if name in first:
                raise ManifestError(
                    f"{self.path}:{row + 2}: expected an id of its own, "
                    f"found {name.decode()!r} as in line {first[name] + 2}"
                )
            first[name] = row

    def is_whole(self, now: os.stat_result) -> bool:
        """Whether all rows were seen of a file that is still the same."""
        version = [now.st_size, now.st_mtime_ns]
        return self.rows == len(self._id_hashes) and self.index.flat[1:3].tolist() == version

    def finish(self) -> ManifestIndex:
        """The index, with pairs in sorted order."""
        pairs = [pair.decode().split("\t") for pair in self._pairs]
        order = sorted(range(len(pairs)), key=pairs.__getitem__)
        self.index.pair_ids[:] = np.argsort(order).astype(np.int16)[self.index.pair_ids]
        self.index.first_rows[: len(order)] = self.index.first_rows[order]
        flat = self.index.flat
        flat[6] = len(order)
        return ManifestIndex.of(flat[: len(flat) - MAX_PAIRS + len(order)])

    def _widen(self) -> None:
        """Move what was found to an index for longer rows."""
        narrow, count = self.index, len(self._id_hashes)
        self.index = ManifestIndex.empty(self.status, len(self.columns), count, width=4)
        for name in ("starts", "n_frames", "cell_ends", "pair_ids", "first_rows"):
            getattr(self.index, name)[:] = getattr(narrow, name)

    def _error(self, row: int, message: str) -> ManifestError:
        """Error in a row of the current block."""
        return ManifestError(f"{self.path}:{self.rows + row + 2}: {message}")

    def _row_too_long(self, row: int, found: str) -> ManifestError:
        return self._error(row, f"expected a row of {MAX_ROW_BYTES} bytes at most, found {found}")

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
        # Tabs, newlines and, in hardly any text, the control characters below them: one comparison a byte.
        separators = np.flatnonzero(data <= _NEWLINE)
        characters = data[separators]
        if (characters < _TAB).any():
            if (characters == 0).any():
                row = block.count(b"\n", 0, block.index(0))
                raise self._error(row, "expected text, found a NUL byte")
            is_separator = characters >= _TAB
            separators, characters = separators[is_separator], characters[is_separator]
        ends = np.flatnonzero(characters == _NEWLINE)
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
        longest = bounds[-1] - bounds[0]
        if longest.max() > MAX_ROW_BYTES:
            row = int(longest.argmax())
            raise self._row_too_long(row, f"{longest[row]}")
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
            # Below "0" unsigned numbers wrap around to large ones.
            digits = data.take(begin + step, mode="clip") - np.uint8(_ZERO)
            values = np.where(inside, values * 10 + digits, values)
            good &= ~inside | (digits <= 9)
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
    ) -> NDArray[np.int16]:
        """Number of every row's language pair, counted in the order in which pairs turn up."""
        known = len(self._pairs)
        hashes = hash_cells(block, *target, after=hash_cells(block, *source))
        rows = first_of_each(hashes)
        texts = (_texts(block, begin[rows], end[rows]) for begin, end in (source, target))
        some = np.array([self._pairs[b"\t".join(pair)] for pair in zip(*texts)])
        numbers = number_cells(hashes, rows, some)
        for number, pair in enumerate(list(self._pairs)[known:], start=known):
            row = int((numbers == number).argmax())
            for lang in filter(None, pair.decode().split("\t")):
                if lang.split() != [lang]:
                    expected = "expected languages without spaces"
                    raise self._error(row, f"{expected}, found {lang!r}")
            if number == MAX_PAIRS:
                expected = f"expected {MAX_PAIRS} language pairs at most"
                raise self._error(row, f"{expected}, found one more")
            self.index.first_rows[number] = self.rows + row
        return numbers.astype(np.int16)


def _texts(block: bytes, begin: NDArray[np.int64], end: NDArray[np.int64]) -> list[bytes]:
    """Cells of a block, from their bounds."""
    return [block[a:b] for a, b in zip(begin.tolist(), end.tolist())]
