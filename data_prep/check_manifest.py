r"""Checks manifests, whoever wrote them: every row, every recording, language tags, the teacher's vectors.

    $ python -m data_prep.check_manifest data/train.tsv data/dev.tsv --dict data/dict.txt --teachers labse
    data/train.tsv:17: truncated audio: clips/16.mp3: expected 132300 frames, found 66096
    …

Every recording is decoded, as training will. The summary is that of `data_prep.prep_*`; "text changed by"
counts texts that are not in Unicode's form NFC, or with spaces that nobody needs. Exit status: 0 if all is
well, 1 if not, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data_prep.build_vocab import parse_tag_map
from data_prep.clips import ClipReader, ClipRules, Place
from data_prep.corpus import BadRow, CorpusRow
from data_prep.embed_text import COLUMN_SUFFIX, scan_column
from data_prep.journal import FinishedRow, Journal, Progress
from data_prep.language_segments import SEGMENT_LANGS, check_segments, parse_segments
from data_prep.manifest import COLUMNS
from data_prep.outcome import DROPPED, DUPLICATES
from data_prep.pool import Block, Pool, available_cores, blocks_of
from data_prep.preparation import Preparation, finish_row
from data_prep.summary import Summary, count_reasons
from data_prep.tables import BadLine, read_table
from data_prep.text_rules import TextRules
from data_prep.vocabulary_files import load_dictionary

# Samples by which n_frames may be off: rounding of resamplers.
TOLERANCE = 16
# Problems that the command prints of each manifest.
SHOWN = 20
_ANY_LENGTH = ClipRules(min_seconds=1e-9, max_seconds=float("inf"))


@dataclass(frozen=True)
class Tags:
    """Language tags that a vocabulary has.

    Attributes:
        symbols: of the vocabulary.
        template: of a tag, "<lang:{}>".
        mapping: names of languages in tags where they differ.
    """

    symbols: frozenset[str]
    template: str
    mapping: Mapping[str, str]

    def reason_against(self, lang: str) -> str:
        """Why a target language cannot be used; empty if it can."""
        tag = self.template.replace("{}", self.mapping.get(lang, lang))
        return f"no tag in the dictionary: {tag} of {lang}" if tag not in self.symbols else ""


class Problem(NamedTuple):
    """What is wrong with a manifest; `str` is a line for the terminal."""

    manifest: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.manifest}:{self.line}: {self.reason}"


def check_manifests(
    manifests: Sequence[Path],
    audio_root: str | os.PathLike[str] | None = None,
    tags: Tags | None = None,
    teachers: Sequence[str] = (),
    workers: int = 0,
    progress: bool = False,
) -> tuple[Summary, list[Problem]]:
    """Checks manifests that are used together.

    Args:
        manifests: NAME.tsv of different names.
        audio_root: folder that relative paths start from; None: the manifest's.
        tags: what target languages need; None: not checked.
        teachers: names of teachers whose vectors lie beside the manifests.
        workers: processes; 0 for as many as there are cores.
        progress: show a progress bar.

    Returns:
        The summary, and what is wrong: at most `SHOWN` rows of each manifest, then how many more there are.

    Raises:
        OSError: a manifest cannot be read.
        RuntimeError: worker processes die whatever they do.
        ValueError: a column is missing, two manifests have the same name, or there is none.
    """
    names = [manifest.stem for manifest in manifests]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected manifests of different names, found {names or 'none'}")
    workers = Preparation(workers=workers).workers or available_cores()
    meta = {"corpus": "manifests", "splits": names, "published_rows": [], "extra_columns": []}
    problems = []
    with Journal("", meta) as journal, Pool(workers) as pool:
        for manifest in manifests:
            root = manifest.parent if audio_root is None else Path(audio_root)
            rows = read_manifest(manifest, root)
            with tqdm(desc=manifest.name, unit="row", disable=not progress) as bar:
                for block, finished in pool.map(functools.partial(_check, tags), blocks_of(rows)):
                    for row in finished:
                        journal.add(manifest.stem, journal.checked(manifest.stem, row))
                    bar.update(len(block.rows))
            journal.commit(manifest.stem, Progress(complete=True))
            if not journal.query("SELECT 1 FROM rows WHERE split = ? LIMIT 1", manifest.stem):
                problems.append(Problem(manifest, 1, "no rows"))
            found = journal.query(
                "SELECT number, reason FROM rows WHERE split = ? AND reason != '' ORDER BY number LIMIT ?",
                manifest.stem, SHOWN + 1,
            )  # fmt: skip
            for number, reason in found[:SHOWN]:
                problems.append(Problem(manifest, number + 2, reason))
            if found[SHOWN:]:
                more = sum(count_reasons(journal, manifest.stem).values()) - SHOWN
                problems.append(
                    Problem(manifest, found[SHOWN][0] + 2, f"and {more:,} more rows from here on")
                )
            for teacher in teachers:
                problems += check_teacher(manifest, teacher)
        return Summary.of(journal), problems


def read_manifest(manifest: Path, root: Path) -> Iterator[CorpusRow | BadRow]:
    """Yields the rows of a manifest; the extra cells are `n_frames` and the language segments."""
    for number, cells in read_table(manifest, COLUMNS, blank_end=True):
        if isinstance(cells, BadLine):
            yield BadRow(f"{manifest.name}:{number}", cells.reason)
        else:
            yield CorpusRow(
                id=cells["id"],
                place=Place(os.path.join(root, cells["audio"])),
                src_text=cells["src_text"],
                src_lang=cells["src_lang"],
                tgt_text=cells["tgt_text"],
                tgt_lang=cells["tgt_lang"],
                speaker=cells["speaker"],
                extra=(cells["n_frames"], cells.get(SEGMENT_LANGS, "")),
            )


def _check(tags: Tags | None, block: Block) -> list[FinishedRow]:
    """Checks a block, in a worker."""
    reader = ClipReader(_ANY_LENGTH)
    checked = []
    for i, row in enumerate(block.rows):
        finished, _ = finish_row(block.start + i, row, TextRules(), reader)
        if isinstance(row, CorpusRow) and not finished.reason:
            reason = _reason_against_length(row.extra[0], finished.n_frames)
            reason = reason or _reason_against_segments(row.extra[1], finished.n_frames)
            if not reason and tags and row.tgt_lang:
                reason = tags.reason_against(row.tgt_lang)
            finished = finished._replace(reason=reason, extra="")
        checked.append(finished)
    return checked


def _reason_against_length(cell: str, found: int) -> str:
    # As training reads it: neither other alphabets' digits nor thousands of them.
    if not re.fullmatch("[0-9]{1,12}", cell) or abs(int(cell) - found) > TOLERANCE:
        return f"wrong n_frames: expected {found} samples at 16 kHz, found {cell[:40]!r}"
    return ""


def _reason_against_segments(cell: str, n_frames: int) -> str:
    try:
        check_segments(parse_segments(cell), n_frames)
    except ValueError as error:
        return f"wrong {SEGMENT_LANGS}: {error}"
    return ""


def check_teacher(manifest: Path, teacher: str) -> Iterator[Problem]:
    """Yields why a teacher's vectors do not belong to a manifest; see `data_prep.embed_text`."""
    column = "tgt_text" if teacher.endswith(COLUMN_SUFFIX["tgt_text"]) else "src_text"
    stem = f"{manifest.stem}.{teacher}"
    try:
        sidecar = json.loads(manifest.with_name(f"{stem}.json").read_text(encoding="utf-8"))
        hashes = np.load(manifest.with_name(f"{stem}.rows.npy"), mmap_mode="r", allow_pickle=False)
        vectors = np.load(manifest.with_name(f"{stem}.npy"), mmap_mode="r", allow_pickle=False)
        texts = scan_column(manifest, column)
        if sidecar["texts_sha256"] != texts.sha256:
            rows = min(len(hashes), len(texts.hashes))
            changed = np.flatnonzero(hashes[:rows] != texts.hashes[:rows])
            line = int(changed[0]) + 2 if len(changed) else rows + 2
            yield Problem(manifest, line, f"{column} changed since {stem}.npy was computed")
        elif vectors.shape != (sidecar["rows"], sidecar["dimension"]):
            yield Problem(
                manifest, 1,
                f"{stem}.npy: expected {sidecar['rows']} × {sidecar['dimension']}, found {vectors.shape}",
            )  # fmt: skip
    except (KeyError, OSError, TypeError, ValueError) as error:
        yield Problem(manifest, 1, f"no usable vectors of {teacher}: {error}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.check_manifest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "manifests",
        nargs="+",
        type=Path,
        metavar="MANIFEST",
        help="SPLIT.tsv; dropped.tsv and duplicates.tsv among them are left out",
    )
    add("--audio-root", metavar="DIR", help="folder that paths start from (the manifest's)")
    add(
        "--dict",
        type=Path,
        metavar="FILE",
        help="dict.txt that has to have a tag of every target language",
    )
    add("--lang-tag-template", default="<lang:{}>", metavar="TAG", help="of tags (%(default)s)")
    add("--lang-tag-map", default="", metavar="L=N,…", help="names in tags, fr=fr_XX,en=en_XX")
    add(
        "--teachers",
        nargs="+",
        default=[],
        metavar="NAME",
        help="whose vectors lie beside the manifests",
    )
    add("--workers", type=int, default=0, metavar="N", help="processes (0: one a core)")
    options = parser.parse_args(argv)
    try:
        tags = None
        if options.dict:
            symbols = frozenset(load_dictionary(options.dict))
            tags = Tags(symbols, options.lang_tag_template, parse_tag_map(options.lang_tag_map))
        summary, problems = check_manifests(
            [path for path in options.manifests if path.name not in (DROPPED, DUPLICATES)],
            options.audio_root,
            tags,
            options.teachers,
            options.workers,
            True,
        )
    except KeyboardInterrupt:
        parser.exit(130, "interrupted\n")
    except (OSError, RuntimeError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    for problem in problems:
        print(problem)
    print(summary.to_markdown("wrong"), end="")
    parser.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
