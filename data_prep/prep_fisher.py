r"""Writes manifests of Fisher Spanish–English: telephone speech that switches, translated into English.

    $ python -m data_prep.prep_fisher --speech LDC2010S01 --transcripts LDC2010T04 \
        --translations fisher-callhome-corpus --out data

Four sources come together:

- LDC2010S01, the audio: conversations `NAME.sph` below `data/speech`, two channels at 8 kHz, µ-law in NIST
  SPHERE (0readme_1st.txt of LDC2010T04). Where libsndfile cannot read one, a `NAME.wav` beside it is read.
- LDC2010T04, the transcripts: `data/transcripts/NAME.tdf`, also below `fisher_spa_tr` (as Kaldi's
  fsp_data_prep.sh finds them); see `data_prep.fisher_transcripts`.
- Post et al. 2013 (github joshua-decoder/fisher-callhome-corpus): line i of `mapping/fisher_SPLIT` is
  `NAME 10_11`, the lines of the transcript that make an utterance; line i of `corpus/ldc/fisher_train.en` its
  translation, for dev, dev2 and test the first of four (`.en.0`), as Weller et al. take it.
- optional, `--split-mapping`: fisher_mapping.csv of Weller et al. 2022 (github
  apple/ml-code-switched-speech-translation, make_mapping_files.py), which parts utterances into their
  train, dev and test.

Utterances with a word in another language (`<foreign lang="English">`) come into SPLIT_cs.tsv, as Weller et
al. part them, all others into SPLIT.tsv. An utterance reaches from the start of its first line to the end of
its last (their extract-utterance-audios.py), and is cut out into SPLIT.zip at 16 kHz.

The manifests have two more columns. `token_langs` has the language of every word of `src_text`, from the
marks. `segment_langs` (`data_prep.language_segments`) can only be as exact as the transcripts, which have
times for lines, not for words: a line in one language is a segment of it, a line in several is undetermined
(`und`). For the same reason `src_lang` is the language of most words.

What cannot be used is listed in dropped.tsv with its reason. More of it than --max-dropped is an error, and
then no manifest is written.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import soundfile
from tqdm import tqdm

from data_prep.archive import SAMPLE_RATE
from data_prep.audio import open_recording, read_clip
from data_prep.dropped import DroppedRows, SplitReport
from data_prep.fisher_transcripts import ENGLISH, SPANISH, Line, matrix_language, read_transcript
from data_prep.language_segments import (
    SEGMENT_LANGS,
    UNDETERMINED,
    LanguageSegment,
    format_segments,
)
from data_prep.manifest import CONTROL_CHARACTER, ManifestRow
from data_prep.parallel_text import decoded_lines
from data_prep.split_writer import SplitWriter

TOKEN_LANGS = "token_langs"
SPLITS = ("train", "dev", "dev2", "test")


class Utterance(NamedTuple):
    """An utterance that can be used.

    Attributes:
        id: as Weller et al. call it.
        recording: file of the conversation.
        start: first frame of the recording.
        stop: frame after the last.
        lines: of the transcript.
        translation: into English.
    """

    id: str
    recording: Path
    start: int
    stop: int
    lines: tuple[Line, ...]
    translation: str


def prepare_fisher(
    speech_dir: str | os.PathLike[str],
    transcripts_dir: str | os.PathLike[str],
    translations_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    split_mapping: str | os.PathLike[str] | None = None,
    max_dropped: float = 0.01,
    progress: bool = False,
) -> dict[str, SplitReport]:
    """Writes the manifests and archives of every split, and `dropped.tsv`.

    Args:
        speech_dir: LDC2010S01.
        transcripts_dir: LDC2010T04.
        translations_dir: the repository of Post et al.
        out_dir: folder to write to, the manifests' `audio_root`.
        split_mapping: fisher_mapping.csv of Weller et al.; None for the splits of Post et al.
        max_dropped: largest share of a split's utterances that may be unusable, 0 to 1.
        progress: show a progress bar.

    Returns:
        What was made of each manifest, by its name.

    Raises:
        FileNotFoundError: a part of the corpus is missing.
        ValueError: an option or a file is wrong, files do not fit each other, or a split has too many
            unusable utterances.
    """
    out = Path(out_dir)
    dropped = DroppedRows(out / "dropped.tsv", max_dropped)
    corpus = _Corpus(Path(speech_dir), Path(transcripts_dir), Path(translations_dir))
    assigned = None if split_mapping is None else read_split_mapping(Path(split_mapping))
    utterances: dict[str, list[Utterance]] = {}
    for split in SPLITS:
        for number, (conversation, numbers, translation) in enumerate(corpus.read(split)):
            name = split
            if assigned is not None:
                place = (f"fisher_{split}", number)
                if assigned.get(place, ("", "", ""))[1:] != (conversation, numbers):
                    raise ValueError(
                        f"{split_mapping}: expected {conversation} {numbers} for line {number} of "
                        f"{place[0]}, counted from 0, found {' '.join(assigned.get(place, ())[1:])!r}"
                    )
                name = assigned[place][0]
            if name not in SPLITS:  # Weller et al. write n/a for what they do not use
                continue
            utterance, reason = corpus.utterance(
                f"fisher_{split}-utt{number + 1:06d}", conversation, numbers, translation
            )
            if utterance is None:
                dropped.add(name, f"fisher_{split}-utt{number + 1:06d}", reason)
            else:
                switched = any(
                    token.language != SPANISH for line in utterance.lines for token in line.tokens
                )
                utterances.setdefault(f"{name}_cs" if switched else name, []).append(utterance)
    dropped.write()
    for split in SPLITS:
        used = sum(len(utterances.get(name, ())) for name in (split, f"{split}_cs"))
        if used or dropped.count(split):
            dropped.check(split, used, f"{translations_dir}: {split}")

    reports = {}
    with tqdm(total=sum(map(len, utterances.values())), unit="utt", disable=not progress) as bar:
        for name, found in utterances.items():
            with SplitWriter(out / f"{name}.tsv", [SEGMENT_LANGS, TOKEN_LANGS]) as writer:
                _write(writer, found, bar)
            # Of what is dropped nobody knows whether it switches: counted once, with the plain split.
            reports[name] = SplitReport(writer.rows, writer.samples, dropped.count(name))
    return reports


class _Corpus:
    """The files of the corpus.

    Raises:
        FileNotFoundError: a folder is missing, or there are no recordings.
    """

    def __init__(self, speech: Path, transcripts: Path, translations: Path) -> None:
        self._recordings: dict[str, Path] = {}
        for pattern in (
            "*.sph",
            "*.wav",
        ):  # what was uncompressed comes before what could not be read
            self._recordings.update({path.stem: path for path in sorted(speech.rglob(pattern))})
        if not self._recordings:
            raise FileNotFoundError(f"expected recordings NAME.sph below {speech}, found none")
        self._transcripts = _folder(
            transcripts, "data/transcripts", "fisher_spa_tr/data/transcripts"
        )
        self._mapping = _folder(translations, "mapping")
        self._translations = _folder(translations, "corpus/ldc")
        self._lines: dict[str, list[Line]] = {}
        self._lengths: dict[str, tuple[int, int, int]] = {}

    def read(self, split: str) -> Iterator[tuple[str, str, str]]:
        """Yields conversation, numbers of lines (`10_11`) and translation of every utterance of a split.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a line is wrong, or the files differ in length.
        """
        mapping = self._mapping / f"fisher_{split}"
        english = self._translations / f"fisher_{split}.en{'' if split == 'train' else '.0'}"
        utterances, translations = (list(decoded_lines(path)) for path in (mapping, english))
        if len(utterances) != len(translations):
            raise ValueError(
                f"{english}: expected as many lines as {mapping}, {len(utterances)}, "
                f"found {len(translations)}"
            )
        for number, (line, translation) in enumerate(zip(utterances, translations), start=1):
            conversation, _, numbers = line.strip().partition(" ")
            if not all(part.isdecimal() and int(part) > 0 for part in numbers.split("_")):
                raise ValueError(
                    f"{mapping}:{number}: expected a conversation and numbers such as 10_11, found {line!r}"
                )
            yield conversation, numbers, " ".join(translation.split())

    def utterance(
        self, name: str, conversation: str, numbers: str, translation: str
    ) -> tuple[Utterance | None, str]:
        """An utterance, or None and why it cannot be used."""
        if not translation:
            return None, "no translation"
        if CONTROL_CHARACTER.search(translation):
            return None, f"control character in the translation: {translation!r}"
        if conversation not in self._lines:
            path = self._transcripts / f"{conversation}.tdf"
            self._lines[conversation] = read_transcript(path) if path.is_file() else []
        transcript = self._lines[conversation]
        if not transcript:
            return None, f"no transcript {conversation}.tdf"
        positions = [int(number) - 1 for number in numbers.split("_")]
        if max(positions) >= len(transcript):
            return None, f"no line {max(positions) + 1} in {conversation}.tdf"
        lines = tuple(transcript[position] for position in positions)
        words = [token.text for line in lines for token in line.tokens]
        if not words:
            return None, "no words in the transcript"
        if CONTROL_CHARACTER.search(" ".join(words)):
            return None, f"control character in the transcript: {' '.join(words)!r}"
        if len({line.channel for line in lines}) > 1:
            return None, "lines of several channels"
        if conversation not in self._recordings:
            return None, f"no audio {conversation}.sph"
        recording = self._recordings[conversation]
        try:
            rate, frames, channels = self._measure(recording)
        except (OSError, ValueError) as error:
            return None, f"{recording}: {error}"
        if not 0 <= lines[0].channel < channels:
            return None, f"no channel {lines[0].channel} in {recording.name}"
        start, stop = round(lines[0].start * rate), min(round(lines[-1].end * rate), frames)
        if not 0 <= start < stop:
            return None, f"no audio from {lines[0].start} s to {lines[-1].end} s"
        return Utterance(name, recording, start, stop, lines, translation), ""

    def _measure(self, recording: Path) -> tuple[int, int, int]:
        """Rate, frames and channels of a recording; raises as `open_recording` does."""
        if recording.stem not in self._lengths:
            with open_recording(recording) as file:
                self._lengths[recording.stem] = (file.samplerate, file.frames, file.channels)
        return self._lengths[recording.stem]


def _folder(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(
        f"expected {' or '.join(str(root / name) for name in names)}, found none"
    )


def read_split_mapping(path: Path) -> dict[tuple[str, int], tuple[str, str, str]]:
    """Reads fisher_mapping.csv.

    Returns:
        (file, line counted from 0) -> split, conversation, numbers of its lines.

    Raises:
        ValueError: a column is missing or a line's number is none.
    """
    columns = ("file", "file_line_num", "split", "audio_file", "audio_file_line_num")
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        table = csv.DictReader(file, restval="")
        if not set(columns) <= set(table.fieldnames or ()):
            raise ValueError(f"{path}:1: expected columns {columns}, found {table.fieldnames}")
        rows = list(table)
    if wrong := [row["file_line_num"] for row in rows if not row["file_line_num"].isdecimal()]:
        raise ValueError(f"{path}: expected numbers in file_line_num, found {wrong[0]!r}")
    return {
        (row["file"], int(row["file_line_num"])): (
            row["split"], row["audio_file"], row["audio_file_line_num"],
        )
        for row in rows
    }  # fmt: skip


def _write(writer: SplitWriter, utterances: Sequence[Utterance], bar: tqdm[None]) -> None:
    """Cuts utterances out and writes them; those of a conversation follow each other."""
    with ExitStack() as last:
        recording: soundfile.SoundFile | None = None
        for utterance in utterances:
            if recording is None or recording.name != str(utterance.recording):
                last.close()
                recording = last.enter_context(open_recording(utterance.recording))
            channel = utterance.lines[0].channel
            wave = read_clip(recording, channel, utterance.start, utterance.stop)
            tokens = [token for line in utterance.lines for token in line.tokens]
            language = matrix_language(tokens)
            origin = utterance.start / recording.samplerate
            row = ManifestRow(
                id=utterance.id,
                audio="",
                n_frames=0,
                tgt_text=utterance.translation,
                speaker=f"{utterance.recording.stem}-{'AB'[channel] if channel < 2 else channel}",
                src_text=" ".join(token.text for token in tokens),
                src_lang=language,
                tgt_lang=ENGLISH,
            )
            segments = line_segments(utterance.lines, origin, wave.size)
            known = {segment.language for segment in segments} == {language}
            cell = "" if known else format_segments(segments, wave.size)
            writer.write(wave, row, cell, " ".join(token.language for token in tokens))
            bar.update()


def line_segments(lines: Sequence[Line], origin: float, n_frames: int) -> list[LanguageSegment]:
    """Languages of the lines of an utterance.

    Args:
        lines: of the transcript; one without words belongs to no language.
        origin: where the utterance starts, in seconds of the recording.
        n_frames: its length in samples at 16 kHz.

    Returns:
        A segment for every line with words, of its language, or undetermined if it has several. Where lines
        overlap, the later one begins at the end of the earlier.
    """
    segments: list[LanguageSegment] = []
    end = 0
    for line in lines:
        start = max(end, round((line.start - origin) * SAMPLE_RATE))
        stop = min(n_frames, round((line.end - origin) * SAMPLE_RATE))
        languages = {token.language for token in line.tokens}
        if languages and start < stop:
            language = languages.pop() if len(languages) == 1 else UNDETERMINED
            segments.append(LanguageSegment(language, start, stop))
            end = stop
    return segments


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.prep_fisher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    for name, text in (
        ("--speech", "LDC2010S01"),
        ("--transcripts", "LDC2010T04"),
        ("--translations", "repository of Post et al."),
        ("--out", "folder to write to"),
    ):
        add(name, required=True, type=Path, metavar="DIR", help=text)
    add(
        "--split-mapping",
        type=Path,
        metavar="CSV",
        help="fisher_mapping.csv of Weller et al. (the splits of Post et al.)",
    )
    add(
        "--max-dropped",
        type=float,
        default=0.01,
        metavar="X",
        help="largest share of a split's utterances that may be unusable (0.01)",
    )
    return parser


def main() -> None:
    """Runs the command."""
    parser = build_parser()
    options = parser.parse_args()
    try:
        reports = prepare_fisher(
            options.speech,
            options.transcripts,
            options.translations,
            options.out,
            options.split_mapping,
            options.max_dropped,
            progress=True,
        )
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: what is there is whole, the same command begins anew\n")
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    for name, report in reports.items():
        print(f"{name}: {report}")


if __name__ == "__main__":
    main()
