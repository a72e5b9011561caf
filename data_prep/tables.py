"""Tables as corpora publish them: any quoting, lines that are broken, cells that are not UTF-8."""

from __future__ import annotations

import codecs
import csv
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

QUOTINGS = ("auto", "minimal", "none")


class BadLine(NamedTuple):
    """A line that is no row of its table; the reason is one for `data_prep.corpus.BadRow`."""

    reason: str


def read_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the lines of a text; bytes that are not UTF-8 become lone surrogates.

    Raises:
        OSError: it cannot be read.
        ValueError: it is UTF-16, as spreadsheets write "Unicode".
    """
    # As bytes, lines end at "\n" alone; text mode would end them at a lone "\r" too. Spreadsheets put a byte
    # order mark in front.
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if number == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise ValueError(
                    f"{Path(path)}: expected UTF-8, found UTF-16: iconv -f UTF-16 -t UTF-8 converts it"
                )
            encoding = "utf-8" if number else "utf-8-sig"
            yield line.decode(encoding, "surrogateescape").rstrip("\r\n")


def read_numbered(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text as `read_lines` does, with their numbers, counted from 1.

    Blank lines at the end, which editors leave there, are no lines.
    """
    blank: list[tuple[int, str]] = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield from blank
            blank.clear()
            yield number, line
        else:
            blank.append((number, line))


def check_line_count(path: Path, expected: int, what: str) -> None:
    """Checks that a text has a line for each of several things; blank lines may follow.

    Args:
        path: the text.
        expected: how many things.
        what: they are, for the message.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has more lines or fewer.
    """
    lines = written = 0
    for lines, line in enumerate(read_lines(path), start=1):
        written = lines if line.strip() else written
    if not written <= expected <= lines:
        raise ValueError(
            f"{path}: expected a line for each of the {expected} {what}, found {lines}"
        )


def read_table(
    path: str | os.PathLike[str],
    needed: Sequence[str],
    quoting: str = "none",
    separator: str = "\t",
    blank_end: bool = False,
) -> Iterator[tuple[int, dict[str, str] | BadLine]]:
    """Yields the rows of a table with a header row.

    A row is a line, whatever the quoting: a quote that is never closed costs a row, not the rest of the
    table. Bytes that are not UTF-8 become lone surrogates, as errors="surrogateescape" makes them.

    Args:
        path: the table.
        needed: columns that it has to have.
        quoting: "minimal" as spreadsheets write it, "none", or "auto", see `find_quoting`.
        separator: between cells.
        blank_end: blank lines at the end are bad lines, too, as for the readers of manifests.

    Yields:
        The number of the line, counted from 1 with the header, and its cells by column.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or there twice.
    """
    if quoting == "auto":
        quoting = find_quoting(path, separator)
    header: list[str] = []
    for number, line in enumerate(read_lines(path), 1) if blank_end else read_numbered(path):
        try:
            cells = _split(line, quoting, separator)
        except csv.Error as error:
            cells = []
            reason = f"broken quoting: line {number}: {error}"
        else:
            reason = f"wrong number of cells: expected {len(header)}, found {len(cells)}"
        if number == 1:
            header = cells
            if missing := [column for column in needed if column not in header]:
                raise ValueError(f"{Path(path)}:1: expected a column {missing[0]}, found {header}")
            if twice := [column for column in needed if header.count(column) > 1]:
                raise ValueError(f"{Path(path)}:1: expected one column {twice[0]}, found {header}")
        elif len(cells) != len(header):
            yield number, BadLine(reason)
        else:
            yield number, dict(zip(header, cells))
    if not header:
        raise ValueError(f"{Path(path)}: expected a table, found an empty file")


def find_quoting(path: str | os.PathLike[str], separator: str = "\t") -> str:
    """How a table quotes cells: "minimal" or "none".

    Common Voice's releases have both: "" for a quotation mark in cells with quotes around them, or cells as
    they are. Every cell with a quotation mark is a vote: in a table that quotes, all of them are quoted;
    where none is, such a cell is as likely to begin or end without one. Other separators than tabs are
    text as well: tables with those quote.
    """
    if separator != "\t":
        return "minimal"
    votes = 0
    with open(path, "rb") as file:
        for data in file:
            if b'"' in data:
                line = data.decode("utf-8", "surrogateescape").rstrip("\r\n")
                for cell in line.split(separator):
                    if '"' in cell:
                        inside = cell[1:-1].replace('""', "")
                        votes += 1 if _is_quoted(cell) and '"' not in inside else -1
    return "minimal" if votes > 0 else "none"


def _is_quoted(cell: str) -> bool:
    return len(cell) >= 2 and cell.startswith('"') and cell.endswith('"')


def _split(line: str, quoting: str, separator: str) -> list[str]:
    """Cells of a line; raises csv.Error."""
    if quoting == "none" or '"' not in line:
        return line.split(separator)
    rows = list(csv.reader([line], delimiter=separator, strict=True))
    return rows[0] if rows else []


def lookup(
    rows: Iterable[tuple[str, Sequence[str]]], once: str = ""
) -> Callable[[str], list[str] | None]:
    """Puts rows where they can be found by a key without being in memory: in a file that vanishes.

    Args:
        rows: key and cells; of several with one key the first is kept.
        once: what a key is, if it may occur only once, for the error message.

    Returns:
        A function: the cells of a key, or None.

    Raises:
        OSError: the folder of temporary files is full.
        ValueError: a key occurs twice and must not.
    """
    connection = sqlite3.connect("", isolation_level=None)

    def run(statement: str, *values: str) -> sqlite3.Cursor:
        try:
            return connection.execute(statement, values)
        except sqlite3.Error as error:
            raise OSError(f"temporary table ($SQLITE_TMPDIR, $TMPDIR): {error}") from error

    run("CREATE TABLE rows (key TEXT PRIMARY KEY, cells TEXT) WITHOUT ROWID")
    run("BEGIN")
    for key, cells in rows:
        # JSON writes lone surrogates as ASCII; SQLite would not take them.
        values = json.dumps(key), json.dumps(list(cells))
        added = run("INSERT OR IGNORE INTO rows VALUES (?, ?)", *values).rowcount
        if once and not added:
            raise ValueError(f"{once} {key}: expected once, found it again")

    def cells_of(key: str) -> list[str] | None:
        found = run("SELECT cells FROM rows WHERE key = ?", json.dumps(key)).fetchone()
        return json.loads(found[0]) if found else None

    return cells_of
