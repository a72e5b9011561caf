"""Corpora of long recordings: a list of segments and, line by line beside it, their texts.

MuST-C, mTEDx and Europarl-ST are such. What tells them apart is where the files are and how the list is
written; here is what they share. Nothing is held in memory: list and texts are read side by side.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data_prep.clips import Place
from data_prep.corpus import BadRow, Corpus, CorpusRow
from data_prep.tables import BadLine, check_line_count, read_lines, read_numbered

# `- {duration: 3.5, offset: 16.08, speaker_id: spk.767, wav: ted_767.wav}`, without anything quoted.
_FLOW = re.compile(r"-\s+\{((?:\w+: [\w.-]+(?:, |(?=\})))+)\}")
# Makes texts of all scalars, and nothing else: a speaker 123_456 would become the number 123456.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class Segment(NamedTuple):
    """A part of a recording.

    Attributes:
        recording: as the list names it.
        start: seconds.
        duration: seconds.
        speaker: may be empty.
    """

    recording: str
    start: float
    duration: float
    speaker: str = ""


def read_yaml_segments(path: Path) -> Iterator[Segment | BadLine]:
    """Yields the segments of a YAML list of mappings with `wav`, `offset`, `duration` and `speaker_id`.

    Entry by entry: the list of MuST-C has 230,000 of them.

    Raises:
        ValueError: it is no list.
    """
    for number, entry in _yaml_entries(path):
        if flow := _FLOW.fullmatch(entry.strip()):
            cells: dict[str, Any] = dict(pair.split(": ") for pair in flow[1].split(", "))
        else:
            try:
                loaded = yaml.load(entry, Loader=_LOADER)  # noqa: S506 - makes texts only
            except (ValueError, yaml.YAMLError) as error:
                yield BadLine(f"broken YAML: line {number}: {' '.join(str(error).split())}")
                continue
            cells = loaded[0] if isinstance(loaded[0], dict) else {}
        keys = ("wav", "offset", "duration", "speaker_id")
        wav, offset, duration, speaker = (cells.get(key, "") for key in keys)
        if not all(isinstance(cells.get(key, ""), str) for key in keys) or not wav:
            yield BadLine(f"broken segment: line {number}: found {entry[:200]!r}")
            continue
        yield _segment(number, wav, offset, duration, speaker)


def _yaml_entries(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the entries of a list, in one line or several, with the number of their first line."""
    begin, entry = 0, ""
    for number, line in enumerate(read_lines(path), start=1):
        if line.startswith("- "):
            if entry:
                yield begin, entry
            begin, entry = number, line
        elif entry and line.strip():
            entry += "\n" + line
        elif line.strip() and not line.startswith(("#", "---")):
            raise ValueError(
                f"{path}:{number}: expected a list, `- {{wav: …}}`, found {line[:80]!r}"
            )
    if entry:
        yield begin, entry


def read_segment_lines(path: Path, cells: int) -> Iterator[Segment | BadLine]:
    """Yields the segments of lines that end in recording, start and end, with spaces between them.

    Args:
        path: Kaldi's `segments`, with an id in front, or Europarl-ST's `segments.lst`.
        cells: of a line.
    """
    for number, line in read_numbered(path):
        found = line.split()
        if len(found) != cells:
            yield BadLine(f"broken segment: line {number}: expected {cells} cells, found {line!r}")
            continue
        recording, start, end = found[-3:]
        yield _segment(number, recording, start, end, end_is_time=True)


def _segment(
    number: int,
    recording: str,
    start: str,
    length: str,
    speaker: str = "",
    end_is_time: bool = False,
) -> Segment | BadLine:
    """Checks the cells of a segment; `length` is the time of its end if `end_is_time`."""
    try:
        begin, duration = float(start), float(length)
    except ValueError as error:
        return BadLine(f"broken segment: line {number}: {error}")
    if end_is_time:
        duration -= begin
    if not (math.isfinite(begin) and math.isfinite(duration)):
        return BadLine(f"broken segment: line {number}: expected seconds, found {start}, {length}")
    if duration <= 0:
        return BadLine(f"segment without length: line {number}: {duration} s")
    return Segment(recording, begin, duration, speaker)


@dataclass(frozen=True)
class SegmentedText:
    """The segments of a split in one language pair.

    Attributes:
        segments: the list.
        read: reads it; what is no segment is a `BadLine`.
        source: transcripts, a line a segment.
        src_lang: their language.
        place: recording as the list names it → file, or the reason why there is none.
        target: translations, a line a segment; None where there are only transcripts.
        tgt_lang: their language.
        speaker: recording → speaker, where the list has none.
    """

    segments: Path
    read: Callable[[Path], Iterator[Segment | BadLine]]
    source: Path
    src_lang: str
    place: Callable[[str], Path | BadLine]
    target: Path | None = None
    tgt_lang: str = ""
    speaker: Callable[[str], str] = str

    def count(self) -> int:
        """How many segments there are.

        Raises:
            OSError: a file is missing.
            ValueError: the files do not have as many segments as lines: nobody knows what belongs to what.
        """
        segments = sum(1 for _ in self.read(self.segments))
        for path in filter(None, (self.source, self.target)):
            check_line_count(path, segments, f"segments of {self.segments}")
        return segments

    def rows(self) -> Iterator[CorpusRow | BadRow]:
        """Yields the segments with their texts; the number in an id is that of the texts' line."""
        languages = self.src_lang, self.tgt_lang
        targets = read_lines(self.target) if self.target else itertools.repeat("")
        suffix = f"-{self.tgt_lang}" if self.tgt_lang else ""
        aligned = zip(self.read(self.segments), read_lines(self.source), targets)
        for number, (segment, source, target) in enumerate(aligned, start=1):
            if isinstance(segment, BadLine):
                yield BadRow(f"{self.segments.name}:{number}{suffix}", segment.reason, *languages)
                continue
            name = f"{strip_extension(segment.recording)}_{number}{suffix}"
            path = self.place(segment.recording)
            if isinstance(path, BadLine):
                yield BadRow(name, path.reason, *languages)
                continue
            yield CorpusRow(
                id=name,
                place=Place(str(path), segment.start, segment.duration),
                src_text=source,
                src_lang=self.src_lang,
                tgt_text=target,
                tgt_lang=self.tgt_lang,
                speaker=segment.speaker or self.speaker(segment.recording),
            )


def strip_extension(recording: str) -> str:
    """A recording's name without .wav or .flac; other dots belong to it."""
    return re.sub(r"\.(wav|flac)$", "", recording)


def find_recording(folder: Path, recording: str) -> Path:
    """The file of a recording, which may be flac where its list says wav; it need not be there."""
    name = strip_extension(recording)
    listed, *others = (folder / file for file in (recording, f"{name}.flac", f"{name}.wav"))
    return next((path for path in (listed, *others) if path.is_file()), listed)


def check_pairs(pairs: Sequence[str], known: Callable[[str, str], bool], expected: str) -> None:
    """Checks the names of language pairs, such as "en-de".

    Raises:
        ValueError: none is given, one is given twice, or one is not of the corpus.
    """
    if not pairs or len(set(pairs)) < len(pairs):
        raise ValueError(f"expected language pairs, every one once, found {list(pairs)}")
    for pair in pairs:
        # One hyphen, and no slash as shells complete it.
        source, _, target = pair.partition("-")
        if not re.fullmatch(r"\w+-\w+", pair) or not known(source, target):
            raise ValueError(f"expected {expected}, found {pair!r}")


def find_splits(
    folders: Mapping[str, Callable[[str], Path]],
    known: Sequence[str],
    splits: Sequence[str] | None,
) -> dict[str, list[str]]:
    """Finds the splits of language pairs.

    Args:
        folders: pair → the folder of a split.
        known: names that splits have.
        splits: those that every pair has to have; None: whatever there is.

    Returns:
        Split → pairs that have it.

    Raises:
        FileNotFoundError: a split is missing, or a pair has none.
        ValueError: a split is not a known one.
    """
    if splits is not None and (unknown := [split for split in splits if split not in known]):
        raise ValueError(f"expected splits of {', '.join(known)}, found {unknown[0]!r}")
    found: dict[str, list[str]] = {}
    for pair, folder in folders.items():
        present = [split for split in known if folder(split).is_dir()]
        missing = [split for split in splits or known if split not in present]
        if missing and (splits is not None or not present):
            raise FileNotFoundError(
                f"{folder(missing[0])}: expected the split {missing[0]} of {pair}, found no such folder"
            )
        for split in present if splits is None else splits:
            found.setdefault(split, []).append(pair)
    return {split: found[split] for split in known if split in found}


def segmented_corpus(
    name: str, options: Mapping[str, object], texts: Mapping[str, Sequence[SegmentedText]]
) -> Corpus:
    """Describes a corpus of segments.

    Args:
        name: of the corpus.
        options: see `Corpus`.
        texts: split → its language pairs.

    Raises:
        OSError: a file is missing.
        ValueError: lists and texts do not have equally many lines.
    """
    counts = {split: sum(text.count() for text in parts) for split, parts in texts.items()}

    def rows_of(split: str) -> Iterator[CorpusRow | BadRow]:
        for text in texts[split]:
            yield from text.rows()

    return Corpus(
        name=name,
        options=options,
        splits={split: functools.partial(rows_of, split) for split in texts},
        count=counts.__getitem__,
    )
