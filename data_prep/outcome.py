"""Turns a finished journal into manifests, lists of what is wrong, and the summary, all or none of them."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_prep.atomic import ReplacedFile
from data_prep.dropped import DroppedRow
from data_prep.journal import Journal, difference
from data_prep.manifest import ManifestRow, ManifestWriter
from data_prep.summary import SHARED, Summary, count_reasons

# Folder in the folder of the manifests where unfinished ones are.
WORK = ".preparation"
DROPPED, DUPLICATES = "dropped.tsv", "duplicates.tsv"


def is_finished(out: Path) -> bool:
    """Whether a preparation has come to its end."""
    return (out / "summary.json").is_file() and not (out / WORK).exists()


def find_outcome(out: Path, meta: Mapping[str, Any]) -> Summary | None:
    """The summary of an earlier run of the same preparation; None if it has not come to its end.

    Raises:
        ValueError: the folder holds another preparation, or manifests that nobody knows.
    """
    path = out / "summary.json"
    if is_finished(out):
        try:
            summary = Summary.from_json(path.read_text(encoding="utf-8"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected the summary of a preparation: {error!r}") from error
        # Where the work was parted, and what the authors state, changes nothing in the manifests.
        wanted = {**json.loads(json.dumps(meta)), "shards": 1, "published_rows": []}
        found = {**summary.meta, "shards": 1, "published_rows": []}
        if other := difference(found, wanted):
            raise ValueError(
                f"{out}: expected the preparation that is finished there, found {other}: name another --out, "
                f"or remove {out}"
            )
        for split in meta["splits"]:
            if not (out / f"{split}.tsv").exists():
                raise ValueError(
                    f"{out / f'{split}.tsv'}: expected the manifest that {path.name} describes, found no "
                    f"file: remove {path.name} and the other files of {out} to make them again"
                )
        remove_work(out)
        return summary
    for file in (f"{split}.{kind}" for split in meta["splits"] for kind in ("tsv", "zip")):
        if (out / file).exists() and not (out / WORK).exists():
            raise ValueError(
                f"{out / file}: expected a folder without manifests, found one that this "
                "preparation did not write: name another folder, or remove it"
            )
    return None


def set_work_aside(out: Path) -> None:
    """Takes the folder of unfinished work away, at once, while its journals are still locked.

    A second run of the command would otherwise find a journal that is free and complete, and write everything
    once more while this one removes it.
    """
    shutil.rmtree(out / f"{WORK}.gone", ignore_errors=True)
    os.replace(out / WORK, out / f"{WORK}.gone")


def remove_work(out: Path) -> None:
    """Removes what `set_work_aside` took away; the journals have to be closed, for network disks."""
    shutil.rmtree(out / f"{WORK}.gone", ignore_errors=True)


def check_dropped(out: Path, journal: Journal, split: str, max_dropped: float) -> None:
    """Checks that enough of a split can be used.

    Raises:
        ValueError: no row can be used, or too many cannot be; dropped.tsv lists them.
    """
    ((used, dropped),) = journal.query(
        "SELECT COALESCE(SUM(reason = ''), 0), COALESCE(SUM(reason != ''), 0) FROM rows WHERE split = ?",
        split,
    )
    if used and dropped <= max_dropped * (used + dropped):
        return
    place = f"{journal.meta['corpus']}: {split}"
    if not used + dropped:
        raise ValueError(f"{place}: expected rows, found none")
    write_dropped(out, journal)
    kinds = Counter(count_reasons(journal, split)).most_common(3)
    most = ", ".join(f"{kind} ({count})" for kind, count in kinds)
    ((row, reason),) = journal.query(
        "SELECT id, reason FROM rows WHERE split = ? AND reason != '' ORDER BY number LIMIT 1",
        split,
    )
    raise ValueError(
        f"{place}: expected rows, of which at most {max_dropped:.1%} are unusable (--max-dropped), found "
        f"{dropped} of {used + dropped}, most of them {most}; the first is {row}: {reason}; "
        f"{out / DROPPED} lists all. Give the command a higher limit, or mend the corpus and remove "
        f"{out / WORK} to begin anew"
    )


def write_dropped(out: Path, journal: Journal) -> None:
    """Writes dropped.tsv: all rows that cannot be used, and why."""
    replaced = ReplacedFile(out / DROPPED)
    with open(replaced.temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(DroppedRow._fields) + "\n")
        for split in journal.meta["splits"]:
            for row in journal.rows(split):
                if row.reason:
                    file.write("\t".join((split, row.id, " ".join(row.reason.split()))) + "\n")
    replaced.commit()


def write_duplicates(out: Path, journal: Journal) -> None:
    """Writes duplicates.tsv: the rows that splits share, a number for those that are equal."""
    replaced = ReplacedFile(out / DUPLICATES)
    with open(replaced.temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write("what\tgroup\tsplit\tid\n")
        for what, column in SHARED.items():
            for number, group in enumerate(journal.shared(column), start=1):
                file.writelines(f"{what}\t{number}\t{split}\t{row}\n" for split, row in group)
    replaced.commit()


def write_outcome(
    out: Path, journal: Journal, archives: Iterable[Path], max_dropped: float
) -> Summary:
    """Writes everything; a run that is killed in between does it again.

    Args:
        out: folder to write to.
        journal: of a preparation whose splits are all complete.
        archives: finished ones, to move there; those without files are left where they are.
        max_dropped: see `check_dropped`.

    Raises:
        ValueError: as `check_dropped` does.
    """
    for split in journal.meta["splits"]:
        check_dropped(out, journal, split, max_dropped)
    summary = Summary.of(journal)
    # summary.json says that everything is there: it goes first and comes last.
    (out / "summary.json").unlink(missing_ok=True)
    for archive in archives:
        if archive.stat().st_size > 22:  # bytes of the table of contents of an empty zip
            os.replace(archive, out / archive.name)
    write_dropped(out, journal)
    if summary.duplicates:
        write_duplicates(out, journal)
    for split in journal.meta["splits"]:
        with ManifestWriter(out / f"{split}.tsv", journal.meta["extra_columns"]) as manifest:
            for row in journal.rows(split):
                if not row.reason:
                    extra = row.extra.split("\t") if journal.meta["extra_columns"] else []
                    cells = {name: getattr(row, name) for name in ManifestRow._fields}
                    manifest.write(ManifestRow(**cells), *extra)
    for name, text in (("summary.md", summary.to_markdown()), ("summary.json", summary.to_json())):
        replaced = ReplacedFile(out / name)
        replaced.temporary.write_text(text, encoding="utf-8", newline="\n")
        replaced.commit()
    return summary
