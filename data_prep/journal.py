"""What a preparation has done so far, on disk: an interrupted one goes on from here."""

from __future__ import annotations

import itertools
import json
import operator
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.archive import Member

_SCHEMA = """
CREATE TABLE meta (json TEXT);
CREATE TABLE progress (split TEXT PRIMARY KEY, rows INTEGER, digest TEXT, archive INTEGER, complete INTEGER);
CREATE TABLE rows (
    split TEXT, number INTEGER, id TEXT, reason TEXT, audio TEXT, n_frames INTEGER, tgt_text TEXT,
    speaker TEXT, src_text TEXT, src_lang TEXT, tgt_lang TEXT, extra TEXT, changes TEXT,
    characters INTEGER, audio_key INTEGER, text_key INTEGER, PRIMARY KEY (split, number)
) WITHOUT ROWID;
CREATE UNIQUE INDEX ids ON rows (split, id) WHERE reason = '';
CREATE INDEX speech ON rows (split, audio_key) WHERE reason = '';
CREATE TABLE members (
    split TEXT, header INTEGER, name TEXT, length INTEGER, crc INTEGER, PRIMARY KEY (split, header)
) WITHOUT ROWID;
"""


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first thing in which two preparations differ, for error messages; empty if there is none.

    Args:
        before: what was prepared and how, as JSON reads it.
        now: the same, of the other.
    """
    for key in now:
        old, new = before.get(key), now[key]
        if (
            old != new
            and isinstance(old, dict)
            and isinstance(new, dict)
            and old.keys() == new.keys()
        ):
            return difference(old, new)
        if old != new:
            return f"{key} = {new!r} instead of {old!r}"
    return ""


class FinishedRow(NamedTuple):
    """A row of the corpus that needs no more work.

    Attributes:
        number: its position in the split, counted from 0.
        id: of the utterance.
        reason: why it cannot be used; empty if it can.
        audio: cell of the manifest; empty until the speech is in the archive.
        n_frames: samples at 16 kHz.
        tgt_text: translation.
        speaker: name.
        src_text: transcript.
        src_lang: source language.
        tgt_lang: target language.
        extra: cells of extra columns, with tabs between them.
        changes: what the text rules changed, with spaces between the names.
        characters: of the transcript, or of the translation where there is none.
        audio_key: equal for equal speech.
        text_key: equal for equal transcript and translation.
    """

    number: int
    id: str
    reason: str = ""
    audio: str = ""
    n_frames: int = 0
    tgt_text: str = ""
    speaker: str = ""
    src_text: str = ""
    src_lang: str = ""
    tgt_lang: str = ""
    extra: str = ""
    changes: str = ""
    characters: int = 0
    audio_key: int = 0
    text_key: int = 0


class Progress(NamedTuple):
    """How far a split is.

    Attributes:
        rows: how many of the corpus's rows are done.
        digest: of those rows, to find that the corpus changed.
        archive: bytes of the archive.
        complete: all rows are done.
    """

    rows: int = 0
    digest: str = ""
    archive: int = 0
    complete: bool = False


class Journal:
    """A journal, for one process at a time.

    Args:
        path: its file; "" for one that vanishes with the process.
        meta: what is prepared and how; a journal of something else is refused.

    Attributes:
        meta: the same, as the journal has it.

    Raises:
        ValueError: the journal belongs to another preparation, is in use, or is no journal.
    """

    def __init__(self, path: str | os.PathLike[str], meta: Mapping[str, Any] | None = None) -> None:
        self._path = Path(path)
        # Transactions begin and end where this class says so.
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=1)
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: journal: {error}") from error
        try:
            # The lock of the first transaction is kept: nobody else may write, or read half of it.
            self._run("PRAGMA locking_mode = EXCLUSIVE")
            self._run("BEGIN EXCLUSIVE")
            if not self._run("SELECT name FROM sqlite_master").fetchone():
                if meta is None:
                    raise OSError(f"{self._path}: empty, its preparation was killed as it began")
                for statement in _SCHEMA.split(";"):
                    self._run(statement)
                self._run("INSERT INTO meta VALUES (?)", json.dumps(meta))
            self._run("COMMIT")
            self._run("BEGIN")
            self.meta: dict[str, Any] = json.loads(self._run("SELECT json FROM meta").fetchone()[0])
        except OSError as error:
            self._connection.close()
            raise ValueError(
                f"{error}: expected a journal that no other process uses; if it is broken, remove "
                f"{self._path.parent} to start again"
            ) from error
        if meta is not None and not self._run("SELECT 1 FROM progress").fetchone():
            # Nothing is done yet: a run that failed at once may be given again with better options.
            self.meta = json.loads(json.dumps(meta))
            self._run("UPDATE meta SET json = ?", json.dumps(meta))
            self._run("COMMIT")
            self._run("BEGIN")
        if meta is not None and self.meta != json.loads(json.dumps(meta)):
            self.close()
            raise ValueError(
                f"{self._path.parent}: expected what was begun there, found "
                f"{difference(self.meta, json.loads(json.dumps(meta)))}: name another --out, or remove "
                f"{self._path.parent} to begin anew"
            )

    def progress(self, split: str) -> Progress:
        """How far a split is."""
        found = self._run(
            "SELECT rows, digest, archive, complete FROM progress WHERE split = ?", split
        ).fetchone()
        return Progress(found[0], found[1], found[2], bool(found[3])) if found else Progress()

    def checked(self, split: str, row: FinishedRow) -> FinishedRow:
        """The row, dropped if one before it in the split has its id."""
        if row.reason:
            return row
        first = self._run(
            "SELECT number FROM rows WHERE split = ? AND id = ? AND reason = ''", split, row.id
        ).fetchone()
        if not first:
            return row
        return row._replace(reason=f"duplicate id: row {first[0] + 1} of the split has it too")

    def add(self, split: str, row: FinishedRow) -> None:
        """Notes a row that is `checked`."""
        self._run(f"INSERT INTO rows VALUES (?{', ?' * len(row)})", split, *row)

    def add_member(self, split: str, member: Member) -> None:
        """Notes a file of a split's archive."""
        self._run("INSERT INTO members VALUES (?, ?, ?, ?, ?)", split, *member)

    def place_of(self, split: str, audio_key: int) -> str:
        """Where speech already is in the split, cell `audio`; empty if it is not."""
        found = self._run(
            "SELECT audio FROM rows WHERE split = ? AND audio_key = ? AND reason = '' LIMIT 1",
            split, audio_key,
        ).fetchone()  # fmt: skip
        return found[0] if found else ""

    def commit(self, split: str, progress: Progress) -> None:
        """Makes everything since the last commit lasting, together with the progress."""
        self._run("INSERT OR REPLACE INTO progress VALUES (?, ?, ?, ?, ?)", split, *progress)
        self._run("COMMIT")
        self._run("BEGIN")

    def rows(self, split: str) -> Iterator[FinishedRow]:
        """Yields the rows of a split in order, those that cannot be used too."""
        for row in self._run("SELECT * FROM rows WHERE split = ? ORDER BY number", split):
            yield FinishedRow(*row[1:])

    def members(self, split: str) -> Iterator[Member]:
        """Yields the files of a split's archive in order."""
        query = "SELECT header, name, length, crc FROM members WHERE split = ? ORDER BY header"
        for row in self._run(query, split):
            yield Member(*row)

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of a SELECT statement, of which there are few."""
        return self._run(statement, *values).fetchall()

    def shared(self, column: str) -> Iterator[list[tuple[str, str]]]:
        """Yields groups of good rows, equal in a column and not all of one split: their splits and ids."""
        statement = (
            f"SELECT {column}, split, id FROM rows WHERE reason = '' AND {column} IN (SELECT {column} "
            "FROM rows WHERE reason = '' GROUP BY 1 HAVING COUNT(DISTINCT split) > 1) "
            f"ORDER BY {column}, split, number"
        )
        for _, group in itertools.groupby(self._run(statement), key=operator.itemgetter(0)):
            yield [(split, utterance) for _, split, utterance in group]

    def close(self) -> None:
        """Closes the file; what was not committed is lost."""
        self._connection.close()

    def remove(self) -> None:
        """Closes and removes the file."""
        self.close()
        self._path.unlink()

    def __enter__(self) -> Journal:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self.close()

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        """Runs a statement; raises OSError if the disk is full or the file broken."""
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: journal: {error}") from error
