"""The way from any corpus to manifests, the same for all: see `prepare_corpus`."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from data_prep.archive import ContinuedArchive
from data_prep.clips import Clip, ClipReader, ClipRules, digest_key
from data_prep.corpus import BadRow, Corpus, CorpusRow
from data_prep.journal import FinishedRow, Journal, Progress
from data_prep.manifest import CONTROL_CHARACTER
from data_prep.outcome import (
    WORK,
    check_dropped,
    find_outcome,
    remove_work,
    set_work_aside,
    write_outcome,
)
from data_prep.pool import Block, Pool, available_cores, blocks_of
from data_prep.summary import Summary
from data_prep.text_rules import TextRules

# Seconds between commits of the journal, each of which waits for the disk.
COMMIT_EVERY = 1.0
# Whoever unpacks an archive shall not be led out of the folder by an id such as ../../x.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]|^\.+")
# de, pt-BR, fr_XX, zho_Hant, roa-tara: a cell of another column is none.
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*")


@dataclass(frozen=True)
class Preparation:
    """How a corpus is prepared.

    Attributes:
        text: rules for texts.
        clips: rules for speech.
        max_dropped: largest share of a split's rows that may be unusable, 0 to 1.
        workers: processes; 0 for as many as there are cores.
        shard: (i, n): only the i-th of n parts, counted from 0.
    """

    text: TextRules = field(default_factory=TextRules)
    clips: ClipRules = field(default_factory=ClipRules)
    max_dropped: float = 0.01
    workers: int = 0
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        """Checks the values."""
        if not 0 <= self.max_dropped < 1:
            raise ValueError(
                f"--max-dropped: expected at least 0 and less than 1, found {self.max_dropped}"
            )
        # All of them start at once; no machine has more cores.
        if not 0 <= self.workers <= 1000:
            raise ValueError(f"--workers: expected 0 to 1000, found {self.workers}")
        if not 0 <= self.shard[0] < self.shard[1]:
            raise ValueError(f"--shard: expected i/n with 0 <= i < n, found {self.shard}")


def prepare_corpus(
    corpus: Corpus,
    out_dir: str | os.PathLike[str],
    preparation: Preparation = Preparation(),  # noqa: B008 - frozen
    progress: bool = False,
) -> Summary:
    """Writes SPLIT.tsv, SPLIT.zip where speech is packed, dropped.tsv, duplicates.tsv, summary.json and .md.

    They appear when all splits are done. Until then everything is in `.preparation` there, and the same call
    goes on where it was interrupted, with the same bytes in the end. Called once more it changes nothing.
    A shard leaves its part there for `data_prep.merge_shards`.

    Args:
        corpus: what to prepare.
        out_dir: folder to write to, the manifests' `audio_root`; paths of whole files are absolute.
        preparation: how.
        progress: show a progress bar.

    Returns:
        The summary.

    Raises:
        OSError: a file of the corpus as a whole is missing, or the disk is full.
        RuntimeError: worker processes die whatever they do.
        ValueError: the corpus as a whole is wrong or changed since the interruption, the folder holds another
            preparation, or too many rows of a split are unusable; dropped.tsv lists them then.
    """
    out = Path(out_dir)
    shard, shards = preparation.shard
    meta = {
        "corpus": corpus.name,
        "options": dict(corpus.options),
        "splits": list(corpus.splits),
        "text": {key: list(value) for key, value in asdict(preparation.text).items()},
        "clips": asdict(preparation.clips),
        "extra_columns": list(corpus.extra_columns),
        "published_rows": [[*key, rows] for key, rows in corpus.published_rows.items()],
        "shards": shards,
    }
    if outcome := find_outcome(out, meta):
        return outcome
    work = out / WORK / f"{shard}-of-{shards}"
    for other in (out / WORK).glob("*-of-*"):
        if other.name.split("-of-")[1] != str(shards):
            raise ValueError(
                f"{other}: expected a preparation in {shards} part(s), found one begun in "
                f"{other.name.split('-of-')[1]}: go on with that, or remove the folder"
            )
    work.mkdir(parents=True, exist_ok=True)
    with Journal(work / "journal.sqlite", meta) as journal:
        # Whoever had the journal before may have finished while this process waited for it.
        if outcome := find_outcome(out, meta):
            return outcome
        with Pool(preparation.workers or available_cores()) as pool:
            for split in corpus.splits:
                _prepare_split(corpus, split, journal, work, preparation, pool, progress)
                if shards == 1:
                    check_dropped(out, journal, split, preparation.max_dropped)
        if shards > 1:
            return Summary.of(journal)
        archives = [path for path in work.glob("*.zip") if path.stem in corpus.splits]
        summary = write_outcome(out, journal, archives, preparation.max_dropped)
        set_work_aside(out)
    remove_work(out)
    return summary


def _prepare_split(
    corpus: Corpus,
    split: str,
    journal: Journal,
    work: Path,
    preparation: Preparation,
    pool: Pool,
    progress: bool,
) -> None:
    """Does what is left of a split."""
    done = journal.progress(split)
    if done.complete:
        return
    shard, shards = preparation.shard
    name = f"{split}.zip" if shards == 1 else f"{split}.{shard}-of-{shards}.zip"
    archive = ContinuedArchive(work / name, done.archive)
    bar = tqdm(
        desc=split, unit="row", disable=not progress,
        total=corpus.rows_of(split) // shards if progress else None,
    )  # fmt: skip
    digest, rows, committed = "", 0, time.monotonic()
    changed = f"{work}: expected the corpus as it was when the preparation began, found"

    def blocks() -> Iterator[Block]:
        """What is left for this shard, each with the digest of all rows up to its end."""
        digest, end = "", 0
        for number, block in enumerate(blocks_of(corpus.splits[split]())):
            digest = _digest(digest, block)
            end = block.start + len(block.rows)
            if block.start < done.rows <= end and (end, digest) != (done.rows, done.digest):
                raise ValueError(
                    f"{changed} others among the first {end} rows of {split}; remove the folder to "
                    "start again"
                )
            if end > done.rows and number % shards == shard:
                yield block._replace(digest=digest)
            elif number % shards == shard:
                bar.update(len(block.rows))
        if end < done.rows:
            raise ValueError(
                f"{changed} {end} instead of at least {done.rows} rows of {split}; remove the folder to "
                "start again"
            )

    work_on = functools.partial(_finish_block, preparation.text, preparation.clips)
    try:
        for block, finished in pool.map(work_on, blocks()):
            for row, clip in finished:
                _note(journal, archive, split, name, row, clip, preparation.clips.pack or "flac")
            rows, digest = block.start + len(block.rows), block.digest
            bar.update(len(block.rows))
            if time.monotonic() - committed >= COMMIT_EVERY:
                archive.flush()
                journal.commit(split, Progress(rows, digest, archive.size))
                committed = time.monotonic()
        archive.flush()
        if rows == 0:
            rows, digest = done.rows, done.digest
        archive_size = archive.size
        archive.finish(journal.members(split))
        journal.commit(split, Progress(rows, digest, archive_size, True))
    finally:
        archive.close()
        bar.close()


def _digest(before: str, block: Block) -> str:
    """Digest of all rows up to the end of a block."""
    state = hashlib.blake2b(before.encode(), digest_size=16)
    for row in block.rows:
        # Rows are tuples of texts and numbers.
        state.update(repr(row).encode("utf-8", "surrogateescape"))
    return state.hexdigest()


# By process: a fork would share the position in the open recording with its parent.
_readers: dict[tuple[int, ClipRules], ClipReader] = {}


def _finish_block(
    text: TextRules, clips: ClipRules, block: Block
) -> list[tuple[FinishedRow, bytes]]:
    """Does a block, in a worker, whose open recording outlives it."""
    reader = _readers.setdefault((os.getpid(), clips), ClipReader(clips))
    return [finish_row(block.start + i, row, text, reader) for i, row in enumerate(block.rows)]


def finish_row(
    number: int, row: CorpusRow | BadRow, text: TextRules, reader: ClipReader
) -> tuple[FinishedRow, bytes]:
    """Does one row: its texts, then its speech.

    Returns:
        The row, and the encoded file that is to go into the archive; empty for a recording used as it is.
    """
    finished = FinishedRow(
        number,
        _printable(row.id),
        src_lang=_printable(row.src_lang),
        tgt_lang=_printable(row.tgt_lang),
    )
    if isinstance(row, BadRow):
        return finished._replace(reason=_printable(row.reason) or "no reason given"), b""
    try:
        finished = _with_texts(finished, row, text)
        clip: Clip = reader.read(row.place)
    except ValueError as error:
        return FinishedRow(
            number, finished.id, _printable(str(error)),
            src_lang=finished.src_lang, tgt_lang=finished.tgt_lang,
        ), b""  # fmt: skip
    audio = "" if clip.encoded else os.path.abspath(row.place.audio)
    return finished._replace(audio=audio, n_frames=clip.n_frames, audio_key=clip.key), clip.encoded


def _with_texts(finished: FinishedRow, row: CorpusRow, text: TextRules) -> FinishedRow:
    """Adds the texts and names; raises ValueError with the reason why they cannot be used."""
    for what, cell in (
        ("id", row.id), ("speaker", row.speaker), ("source language", row.src_lang),
        ("target language", row.tgt_lang), *(("extra column", cell) for cell in row.extra),
        ("path", row.place.audio),
    ):  # fmt: skip
        if CONTROL_CHARACTER.search(cell) or cell != _printable(cell):
            raise ValueError(f"control character in the {what}, or not UTF-8: {cell!a}")
    if not row.id or not row.src_lang:
        raise ValueError(f"no {'source language' if row.id else 'id'}")
    for lang in filter(None, (row.src_lang, row.tgt_lang)):
        if not _LANGUAGE.fullmatch(lang):
            raise ValueError(f"no language tag: {lang!r}")
    if bool(row.tgt_text) > bool(row.tgt_lang):
        raise ValueError("translation without target language")
    src_text, src_changes = text.apply(row.src_text, "src", row.src_lang)
    tgt_text, tgt_changes = text.apply(row.tgt_text, "tgt", row.tgt_lang)
    if row.tgt_lang and not tgt_text:
        raise ValueError("no translation")
    if not src_text and not tgt_text or row.src_text and not src_text:
        raise ValueError("no transcript")
    return finished._replace(
        tgt_text=tgt_text,
        speaker=row.speaker,
        src_text=src_text,
        extra="\t".join(row.extra),
        changes=" ".join(
            [f"{name}:src" for name in src_changes] + [f"{name}:tgt" for name in tgt_changes]
        ),
        characters=len(src_text or tgt_text),
        text_key=digest_key(f"{src_text}\t{tgt_text}".encode()),
    )


def _note(
    journal: Journal,
    archive: ContinuedArchive,
    split: str,
    name: str,
    row: FinishedRow,
    encoded: bytes,
    container: str,
) -> None:
    """Writes a row into the journal and its speech, if need be, into the archive."""
    row = journal.checked(split, row)
    if encoded and not row.reason:
        # One utterance in several target languages is packed once.
        audio = journal.place_of(split, row.audio_key)
        if not audio:
            safe = _UNSAFE.sub("_", row.id)[:200]
            if safe != row.id:
                safe = f"{safe}.{row.number}"
            member, offset = archive.add(f"{safe}.{container}", encoded)
            journal.add_member(split, member)
            audio = f"{name}:{offset}:{len(encoded)}"
        row = row._replace(audio=audio)
    journal.add(split, row)


def _printable(text: str) -> str:
    """A text for one cell of a table in UTF-8."""
    return CONTROL_CHARACTER.sub(" ", text).encode("utf-8", "backslashreplace").decode()
