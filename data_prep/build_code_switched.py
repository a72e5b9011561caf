r"""Makes code-switched utterances by joining whole utterances of monolingual speech.

    $ python -m data_prep.build_code_switched --manifests data/train_es.tsv data/train_fr.tsv \
        --tgt en --count 1000 --switches 1 2 --out data/train_cs.tsv
    1,000 utterances, 1.31 h, mean 4.71 s; 0 rows left out; 221 of one speaker

The language changes between sentences, never within one; transcript and translation are those of the
sentences one after the other. Speech in the target language itself takes part too: its translation is its
transcript. The manifest has the column `segment_langs` (`data_prep.language_segments`), exact to the
sample; beside it lie `train_cs.zip` and, of rows that cannot be used, `train_cs.dropped.tsv`.

What is joined was never said in one breath: neither topic, room nor, without --same-speaker, voice go on
across a switch. Make each split from the manifest of the same split, or test speech occurs in training.
"""

from __future__ import annotations

import argparse
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_prep.archive import SAMPLE_RATE
from data_prep.audio import audio_path, read_audio
from data_prep.dropped import DroppedRows
from data_prep.joined_speech import join_waves, match_levels
from data_prep.language_segments import (
    SEGMENT_LANGS,
    LanguageSegment,
    format_segments,
    matrix_language,
)
from data_prep.manifest import ManifestRow, read_rows
from data_prep.split_writer import SplitWriter

# How often a combination is drawn again that is too long.
TRIES = 100


@dataclass(frozen=True)
class Joining:
    """How utterances are joined.

    Attributes:
        switches: fewest and most changes of language in an utterance.
        gap: shortest and longest silence at a switch, in seconds; 0 for a cross-fade.
        cross_fade: seconds that two utterances overlap, or fade out and in around a gap.
        max_seconds: longer combinations are drawn again.
        same_speaker: the speaker of the first goes on, where there is an utterance of theirs.
        seed: of the draws.
    """

    switches: tuple[int, int] = (1, 2)
    gap: tuple[float, float] = (0.0, 0.3)
    cross_fade: float = 0.02
    max_seconds: float = 30.0
    same_speaker: bool = False
    seed: int = 1


class Piece(NamedTuple):
    """An utterance that may be joined to others; `place` is its manifest and line."""

    place: str
    language: str
    audio: str
    root: str
    n_frames: int
    text: str
    translation: str
    speaker: str


class Plan(NamedTuple):
    """What is joined to what; a gap of so many samples at 16 kHz after each piece but the last."""

    pieces: tuple[Piece, ...]
    gaps: tuple[int, ...]


class Report(NamedTuple):
    """What was made.

    Attributes:
        utterances: in the manifest.
        samples: of them, at 16 kHz.
        one_speaker: how many have a single, named speaker.
        left_out: rows of the given manifests that cannot be used.
    """

    utterances: int
    samples: int
    one_speaker: int
    left_out: int

    def __str__(self) -> str:
        """One line for the terminal."""
        seconds = self.samples / SAMPLE_RATE
        line = (
            f"{self.utterances:,} utterances, {seconds / 3600:.2f} h, "
            f"mean {seconds / self.utterances:.2f} s; {self.left_out:,} rows left out"
        )
        return line + (f"; {self.one_speaker:,} of one speaker" if self.one_speaker else "")


def build_code_switched(
    manifests: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    target: str,
    count: int,
    proportions: Mapping[str, float] | None = None,
    joining: Joining = Joining(),  # noqa: B008 (immutable)
    audio_root: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Report:
    """Writes `NAME.tsv`, `NAME.zip` and `NAME.dropped.tsv`; the first two appear whole or not at all.

    Args:
        manifests: of speech in one language a row, with transcripts.
        out: the manifest to write, `NAME.tsv`.
        target: language of the translations.
        count: how many utterances to make.
        proportions: how often each language is drawn, relative to the others; None for all equally.
            An utterance never follows one of its own language, which evens the shares out.
        joining: how to join.
        audio_root: folder that paths of audio start from; None for each manifest's own folder.
        progress: show a progress bar.

    Returns:
        What was made.

    Raises:
        ValueError: an option, a manifest or a recording is wrong, or what can be used has fewer than two
            languages or no combination that is short enough.
    """
    _check_options(count, proportions, joining)
    out = Path(out)
    if out.suffix != ".tsv":
        raise ValueError(f"--out: expected NAME.tsv, found {out}")
    dropped = DroppedRows(out.with_name(f"{out.stem}.dropped.tsv"), 0)
    fade = round(joining.cross_fade * SAMPLE_RATE)
    pieces: list[Piece] = []
    for path in manifests:
        root = Path(path).parent if audio_root is None else audio_root
        pieces += read_pieces(path, root, target, joining.max_seconds, fade, dropped, out.stem)
    kept = {Path(path).resolve() for path in manifests}
    audio = {os.path.join(piece.root, audio_path(piece.audio)) for piece in pieces}
    kept |= {Path(path).resolve() for path in audio}
    if taken := kept & {out.resolve(), out.with_suffix(".zip").resolve()}:
        raise ValueError(f"--out {out}: expected another name, it would overwrite {taken.pop()}")
    dropped.write()
    found = sorted({piece.language for piece in pieces})
    weights = dict(proportions or dict.fromkeys(found, 1.0))
    if len(weights) < 2 or not set(weights) <= set(found):
        raise ValueError(
            f"expected utterances with transcript and translation into {target} in two languages or more"
            f"{': ' * bool(proportions)}{' '.join(proportions or ())}, found {' '.join(found) or 'none'}; "
            f"{dropped.count(out.stem)} rows are listed in {dropped.path}"
        )
    pieces = [piece for piece in pieces if piece.language in weights]

    plans = draw_plans(pieces, weights, joining)
    one_speaker = 0
    with SplitWriter(out, [SEGMENT_LANGS]) as split:
        for number in tqdm(range(1, count + 1), unit="utt", disable=not progress):
            plan = next(plans)
            waves = match_levels([_read(piece, fade) for piece in plan.pieces])
            wave, ranges = join_waves(waves, plan.gaps, fade)
            segments = [
                LanguageSegment(piece.language, *ends) for piece, ends in zip(plan.pieces, ranges)
            ]
            speakers = list(dict.fromkeys(piece.speaker for piece in plan.pieces))
            row = ManifestRow(
                id=f"{out.stem}_{number:07d}",
                audio="",
                n_frames=0,
                tgt_text=" ".join(piece.translation for piece in plan.pieces),
                speaker="+".join(speakers) if all(speakers) else "",
                src_text=" ".join(piece.text for piece in plan.pieces),
                src_lang=matrix_language(segments),
                tgt_lang=target,
            )
            split.write(wave, row, format_segments(segments, wave.size))
            one_speaker += len(speakers) == 1 and bool(speakers[0])
    return Report(split.rows, split.samples, one_speaker, dropped.count(out.stem))


def _check_options(count: int, proportions: Mapping[str, float] | None, joining: Joining) -> None:
    if count < 1:
        raise ValueError(f"--count: expected at least 1, found {count}")
    if not 1 <= joining.switches[0] <= joining.switches[1]:
        raise ValueError(f"--switches: expected 1 <= low <= high, found {joining.switches}")
    if not joining.max_seconds > 0:
        raise ValueError(f"--max-seconds: expected more than 0, found {joining.max_seconds}")
    if not 0 <= joining.gap[0] <= joining.gap[1] < joining.max_seconds:
        raise ValueError(
            f"--gap: expected 0 <= low <= high < {joining.max_seconds:g} seconds, found {joining.gap}"
        )
    if not 0 <= joining.cross_fade <= 1:
        raise ValueError(f"--cross-fade: expected 0 to 1 second, found {joining.cross_fade}")
    for language, weight in (proportions or {}).items():
        if not 0 < weight < math.inf:
            raise ValueError(f"--languages: expected {language} above 0, found {weight}")


def read_pieces(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str],
    target: str,
    max_seconds: float,
    fade: int,
    dropped: DroppedRows,
    split: str,
) -> Iterator[Piece]:
    """Yields the utterances of a manifest that can be joined, each once; drops the others with the reason.

    Args:
        path: the manifest.
        root: folder that its paths of audio start from.
        target: language of the translations.
        max_seconds: longest.
        fade: samples; the shortest is twice as long.
        dropped: where the others go, under the name `split`.
        split: see there.

    Raises:
        ValueError: the manifest is wrong.
    """
    seen: set[str] = set()
    for number, row in enumerate(read_rows(path), start=2):
        place = f"{Path(path)}:{number}"
        if not row["n_frames"].isdecimal():
            raise ValueError(f"{place}: expected n_frames in samples, found {row['n_frames']!r}")
        n_frames = int(row["n_frames"])
        language, translation = row["src_lang"], row["tgt_text"]
        if language == target:
            translation = row["src_text"]
        elif row["tgt_lang"] != target:
            translation = ""
        if row.get(SEGMENT_LANGS):
            reason = "code-switched already"
        elif not row["src_text"]:
            reason = "no transcript"
        elif not translation:
            reason = f"no translation into {target}"
        elif n_frames > max_seconds * SAMPLE_RATE:
            reason = f"longer than {max_seconds:g} s"
        elif n_frames < max(2 * fade, 1):
            reason = "shorter than two cross-fades"
        else:
            reason = ""
        if reason:
            dropped.add(split, row["id"], reason)
        elif row["audio"] not in seen:
            # Other rows of the same recording are its translations into other languages.
            seen.add(row["audio"])
            yield Piece(
                place, language, row["audio"], str(root), n_frames, row["src_text"], translation,
                row["speaker"],
            )  # fmt: skip


def draw_plans(
    pieces: Sequence[Piece], weights: Mapping[str, float], joining: Joining
) -> Iterator[Plan]:
    """Yields combinations without end; every utterance of a language is used before one is used again.

    Args:
        pieces: utterances of all languages.
        weights: language -> how often it is drawn, relative to the others.
        joining: how to join.

    Raises:
        ValueError: no combination is short enough.
    """
    # Only random(), whose numbers for a seed are the same in every version of Python.
    draw = random.Random(joining.seed).random
    groups: dict[tuple[str, str], list[Piece]] = defaultdict(list)
    for piece in pieces:
        groups[piece.language, ""].append(piece)
        if joining.same_speaker and piece.speaker:
            groups[piece.language, piece.speaker].append(piece)
    decks = {key: _deal(group, draw) for key, group in groups.items()}
    low, high = joining.switches
    while True:
        for _ in range(TRIES):
            plan: list[Piece] = []
            gaps: list[int] = []
            for _ in range(1 + low + int(draw() * (high - low + 1))):
                language = _draw_language(weights, plan[-1].language if plan else "", draw)
                speaker = plan[0].speaker if plan else ""
                plan.append(next(decks.get((language, speaker)) or decks[language, ""]))
                gaps.append(round(SAMPLE_RATE * _between(*joining.gap, draw())))
            samples = sum(piece.n_frames for piece in plan) + sum(gaps[:-1])
            if samples <= joining.max_seconds * SAMPLE_RATE:
                break
        else:
            raise ValueError(
                f"expected combinations of at most {joining.max_seconds:g} s, found none in {TRIES} draws: "
                "ask for fewer switches or longer utterances"
            )
        yield Plan(tuple(plan), tuple(gaps[:-1]))


def _between(low: float, high: float, share: float) -> float:
    return low + share * (high - low)


def _draw_language(weights: Mapping[str, float], before: str, draw: Callable[[], float]) -> str:
    """Draws a language other than the one before."""
    others = [language for language in weights if language != before]
    point = draw() * sum(weights[language] for language in others)
    for language in others:
        point -= weights[language]
        if point < 0:
            return language
    return others[-1]


def _deal(pieces: Sequence[Piece], draw: Callable[[], float]) -> Iterator[Piece]:
    """Yields the pieces in random order, again and again in another."""
    while True:
        yield from sorted(pieces, key=lambda _: draw())


def _read(piece: Piece, fade: int) -> npt.NDArray[np.float32]:
    try:
        wave = read_audio(piece.audio, piece.root)
    except (OSError, ValueError) as error:
        raise ValueError(f"{piece.place}: {error}") from error
    if wave.size < max(2 * fade, 1) or not np.isfinite(wave).all():
        raise ValueError(
            f"{piece.place}: expected about {piece.n_frames} finite samples in {piece.audio}, found "
            f"{wave.size}{', some not finite' * (not np.isfinite(wave).all())}"
        )
    return wave


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    default = Joining()
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.build_code_switched",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--manifests", nargs="+", required=True, type=Path, metavar="TSV",
        help="of speech in one language a row",
    )  # fmt: skip
    add("--out", required=True, type=Path, metavar="TSV", help="manifest to write")
    add("--tgt", required=True, metavar="LANG", help="language of the translations")
    add("--count", required=True, type=int, metavar="N", help="utterances to make")
    add(
        "--languages", nargs="+", type=_proportion, metavar="LANG[=X]",
        help="languages to join, and how often each is drawn relative to the others (all, equally)",
    )  # fmt: skip
    add(
        "--switches",
        type=int,
        nargs=2,
        default=default.switches,
        metavar=("LOW", "HIGH"),
        help="changes of language in an utterance ({} {})".format(*default.switches),
    )
    add(
        "--gap",
        type=float,
        nargs=2,
        default=default.gap,
        metavar=("LOW", "HIGH"),
        help="seconds of silence at a switch; 0 0: only cross-fades ({:g} {:g})".format(
            *default.gap
        ),
    )
    add(
        "--cross-fade", type=float, default=default.cross_fade, metavar="X",
        help=f"seconds of it, or of fading around a gap ({default.cross_fade})",
    )  # fmt: skip
    add(
        "--max-seconds", type=float, default=default.max_seconds, metavar="X",
        help=f"longest utterance ({default.max_seconds:g})",
    )  # fmt: skip
    add("--same-speaker", action="store_true", help="one speaker an utterance where possible")
    add(
        "--audio-root",
        type=Path,
        metavar="DIR",
        help="folder that paths of audio start from (each manifest's own)",
    )
    add(
        "--seed", type=int, default=default.seed, metavar="N", help=f"of the draws ({default.seed})"
    )
    return parser


def _proportion(text: str) -> tuple[str, float]:
    language, equals, weight = text.partition("=")
    try:
        return language, float(weight) if equals else 1.0
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected LANG or LANG=NUMBER, found {text!r}") from error


def main() -> None:
    """Runs the command."""
    parser = build_parser()
    options = parser.parse_args()
    joining = Joining(
        switches=tuple(options.switches),
        gap=tuple(options.gap),
        cross_fade=options.cross_fade,
        max_seconds=options.max_seconds,
        same_speaker=options.same_speaker,
        seed=options.seed,
    )
    proportions = dict(options.languages or ())
    if len(proportions) < len(options.languages or ()):
        parser.error("--languages: expected every language once")
    try:
        report = build_code_switched(
            options.manifests,
            options.out,
            options.tgt,
            options.count,
            proportions or None,
            joining,
            options.audio_root,
            progress=True,
        )
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: what is there is whole, the same command begins anew\n")
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    print(report)


if __name__ == "__main__":
    main()
