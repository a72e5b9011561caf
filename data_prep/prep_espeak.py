"""Speech out of nothing: speaks parallel text with espeak-ng and writes manifests.

Every utterance gets a voice, a rate and a pitch of its own, drawn by seed, split and line, so the
output is the same bytes whatever the number of workers.

    $ cat text/train.es-en.es
    El rey busca una llave.
    $ cat text/train.es-en.en
    The king looks for a key.
    $ python -m data_prep.prep_espeak --text-dir text --splits train --src es --tgt en --out speech
    train: 1 rows, 1 utterances, 0.00 h, mean 1.04 s
    $ ls speech
    train.tsv  train.zip

`train.tsv` is the manifest; `train.zip`, which its column `audio` points into, holds 16 kHz FLAC.
Several sources and targets may be given; the text is in `{split}.{src}-{tgt}.{lang}` for each pair,
or in `{split}.{lang}` where pairs share their sentences; either may be compressed (`.gz`).

A source `es+fr` is code-switched text: marks say what language its words are in,
`{es}El rey busca {fr}une clé.` One speaker says all of it, in the voice of one language after the other. The
manifest then has the column `segment_langs` (`data_prep.language_segments`), exact to the sample, and as
`src_lang` the language that most samples are in.
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_prep.archive import SAMPLE_RATE, FlacArchive, encode_flac
from data_prep.delivery import Delivery, check_delivery, draw_manner, finish_wave
from data_prep.espeak import Espeak, Request
from data_prep.language_marks import MarkedPhrase, split_marked, strip_marks
from data_prep.language_segments import (
    SEGMENT_LANGS,
    LanguageSegment,
    format_segments,
    matrix_language,
)
from data_prep.manifest import ManifestRow, ManifestWriter
from data_prep.parallel_text import (
    ParallelText,
    count_sentences,
    find_parallel_texts,
    read_lines,
)
from data_prep.speakers import speak_all

# Joins the languages of code-switched text in the name of its source, "es+fr".
MIX = "+"
# Marks that end a phrase, written or spoken; other phrases are spoken with a comma at their end.
FINAL = ".,;:!?…。，？！"


class Phrase(NamedTuple):
    """A stretch of speech in one language, as the user writes it, and what espeak-ng is asked for."""

    language: str
    request: Request


@dataclass(frozen=True)
class Utterance:
    """One sentence and how to speak it.

    Attributes:
        place: file and line, for error messages.
        name: of the audio, unique in a run.
        text: the transcript.
        phrases: of one language each, to be spoken one after the other by the same speaker.
        translations: (id of the manifest's row, target language, sentence).
    """

    place: str
    name: str
    text: str
    phrases: tuple[Phrase, ...]
    translations: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        """What error messages show."""
        return f"{self.place}: {self.text!r}"


@dataclass
class SplitReport:
    """What was made of a split.

    Attributes:
        rows: of the manifest.
        utterances: audio files; fewer than rows where one has several translations.
        samples: of all utterances, at 16 kHz.
        left_out: utterances longer than the limit.
    """

    rows: int = 0
    utterances: int = 0
    samples: int = 0
    left_out: int = 0

    def __str__(self) -> str:
        """One line for the terminal."""
        seconds = self.samples / SAMPLE_RATE
        line = (
            f"{self.rows} rows, {self.utterances} utterances, {seconds / 3600:.2f} h, "
            f"mean {seconds / self.utterances:.2f} s"
        )
        return line + (f", {self.left_out} left out as too long" if self.left_out else "")


def prepare_espeak(
    text_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    splits: Sequence[str],
    sources: Sequence[str],
    targets: Sequence[str],
    delivery: Delivery = Delivery(),  # noqa: B008 (immutable)
    workers: int = 1,
    progress: bool = False,
) -> dict[str, SplitReport]:
    """Speaks the source side of parallel text; writes `{split}.zip` and `{split}.tsv`.

    All text and options are checked before anything is spoken. A split appears whole or not at all.

    Args:
        text_dir: folder of the text, see `data_prep.parallel_text`.
        out_dir: folder to write to, the manifests' `audio_root`.
        splits: names, such as "train".
        sources: languages to speak, codes of espeak-ng.
        targets: languages of the translations.
        delivery: how to speak.
        workers: how many processes speak.
        progress: show a progress bar.

    Returns:
        What was made of each split.

    Raises:
        FileNotFoundError: a text file is missing.
        ValueError: an option or a line is wrong; a language or voice is unknown (lists the valid
            ones); a split has no utterance short enough.
        RuntimeError: an utterance cannot be spoken; names file and line.
    """
    espeak = Espeak()
    _check_options(espeak, delivery, sources, workers)
    for given in (splits, sources, targets):
        if not given or len(set(given)) < len(given):
            raise ValueError(f"expected names given once each, found {list(given)}")
    for split in splits:
        if Path(split).name != split:
            raise ValueError(f"expected names of splits without folders, found {split!r}")
    texts = {
        split: find_parallel_texts(Path(text_dir), split, sources, targets) for split in splits
    }
    total = 0
    for text in (text for split in splits for text in texts[split]):
        total += count_sentences(text)
        if MIX in text.source:
            for _ in _marked_lines(text):
                pass

    reports = {}
    with tqdm(total=total, unit="utt", disable=not progress) as bar:
        for split in splits:
            utterances = _utterances(split, texts[split], delivery)
            spoken = speak_all(
                ((each, phrase.request) for each in utterances for phrase in each.phrases), workers
            )
            columns = [SEGMENT_LANGS] if any(MIX in source for source in sources) else []
            reports[split] = _write_split(
                Path(out_dir), split, columns, spoken, delivery.max_seconds, bar
            )
    return reports


def _check_options(
    espeak: Espeak, delivery: Delivery, sources: Sequence[str], workers: int
) -> None:
    for source in sources:
        for language in source.split(MIX):
            if language.lower() not in espeak.voices:
                valid = " ".join(espeak.voices)
                raise ValueError(f"expected a language of espeak-ng ({valid}), found {language!r}")
    check_delivery(delivery, espeak)
    if workers < 1:
        raise ValueError(f"expected at least one worker, found {workers}")


def _utterances(
    split: str, texts: Sequence[ParallelText], delivery: Delivery
) -> Iterator[Utterance]:
    for text in texts:
        lines = zip(_marked_lines(text), *map(read_lines, text.paths))
        for number, (marked, sentence, *translations) in enumerate(lines, start=1):
            name = f"{split}_{text.name}_{number:07d}"
            variant, rate, pitch = draw_manner(name, delivery)
            yield Utterance(
                place=f"{text.source_path}:{number}",
                name=name,
                text=strip_marks(sentence) if MIX in text.source else sentence,
                phrases=tuple(
                    Phrase(
                        language,
                        Request(
                            words,
                            language.lower(),
                            variant,
                            rate,
                            pitch,
                            # Silence at the edges, trimmed later, does not count.
                            max_seconds=delivery.max_seconds + 1,
                        ),
                    )
                    for language, words in _with_intonation(marked)
                ),
                translations=tuple(
                    (f"{split}_{text.source}-{target}_{number:07d}", target, translation)
                    for (target, _), translation in zip(text.targets, translations)
                ),
            )


def _marked_lines(text: ParallelText) -> Iterator[list[MarkedPhrase]]:
    """Yields the phrases of every source sentence: one, or those of its marks if it is code-switched."""
    languages = text.source.split(MIX)
    for number, line in enumerate(read_lines(text.source_path), start=1):
        if len(languages) == 1:
            yield [MarkedPhrase(text.source, line)]
        else:
            yield split_marked(line, languages, f"{text.source_path}:{number}")


def _with_intonation(phrases: Sequence[MarkedPhrase]) -> Iterator[MarkedPhrase]:
    """Ends all phrases but the last with a comma, lest every phrase sound like the end of a sentence."""
    for number, (language, words) in enumerate(phrases, start=1):
        ends = number == len(phrases) or words[-1] in FINAL
        yield MarkedPhrase(language, words if ends else f"{words},")


def _write_split(
    out_dir: Path,
    split: str,
    extra_columns: Sequence[str],
    spoken: Iterable[tuple[Utterance, bytes]],
    max_seconds: float,
    bar: tqdm[NoReturn],
) -> SplitReport:
    """Writes archive and manifest of a split."""
    report = SplitReport()
    manifest_path, archive_path = out_dir / f"{split}.tsv", out_dir / f"{split}.zip"
    with (
        ManifestWriter(manifest_path, extra_columns) as manifest,
        FlacArchive(archive_path) as archive,
    ):
        for utterance, phrases in groupby(spoken, key=lambda pair: pair[0]):
            waves = [finish_wave(np.frombuffer(samples, np.int16)) for _, samples in phrases]
            if not all(wave.size for wave in waves):
                raise RuntimeError(f"{utterance}: espeak-ng found nothing to speak")
            wave = np.concatenate(waves)
            segments = _segments(utterance, waves)
            if wave.size > max_seconds * SAMPLE_RATE:
                report.left_out += 1
            else:
                audio = archive.add(f"{utterance.name}.flac", encode_flac(wave))
                for row in _rows(utterance, audio, wave.size, matrix_language(segments)):
                    switched = format_segments(segments, wave.size) if len(segments) > 1 else ""
                    manifest.write(row, *[switched for _ in extra_columns])
                report.utterances += 1
                report.samples += wave.size
            bar.update()
        if report.utterances == 0:
            raise ValueError(
                f"{split}: expected utterances of at most {max_seconds} s, found "
                f"{report.left_out} longer ones"
            )
        # The archive takes its place before the manifest does: until then there is none, since an
        # older manifest would point to wrong places in the new archive.
        manifest_path.unlink(missing_ok=True)
    report.rows = manifest.rows
    return report


def _segments(
    utterance: Utterance, waves: Sequence[npt.NDArray[np.float32]]
) -> list[LanguageSegment]:
    """The stretches of one language, when the waves of its phrases follow each other."""
    segments: list[LanguageSegment] = []
    end = 0
    for (language, _), wave in zip(utterance.phrases, waves):
        start, end = end, end + wave.size
        if segments and segments[-1].language == language:
            start = segments.pop().start
        segments.append(LanguageSegment(language, start, end))
    return segments


def _rows(utterance: Utterance, audio: str, n_frames: int, language: str) -> Iterator[ManifestRow]:
    for row_id, target, translation in utterance.translations:
        yield ManifestRow(
            id=row_id,
            audio=audio,
            n_frames=n_frames,
            tgt_text=translation,
            speaker=utterance.phrases[0].request.variant or "default",
            src_text=utterance.text,
            src_lang=language,
            tgt_lang=target,
        )


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    default = Delivery()
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.prep_espeak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--text-dir", required=True, type=Path, metavar="DIR", help="folder of the parallel text")
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    add(
        "--splits",
        nargs="+",
        default=["train", "dev", "test"],
        metavar="NAME",
        help="splits to speak (train dev test)",
    )
    add(
        "--src",
        nargs="+",
        required=True,
        metavar="LANG",
        help="languages to speak: codes of espeak-ng, such as es or pt-br; es+fr for text that switches",
    )
    add("--tgt", nargs="+", required=True, metavar="LANG", help="languages of the translations")
    add(
        "--voices",
        nargs="+",
        default=list(default.voices),
        metavar="VARIANT",
        help='espeak-ng\'s voice variants, "" for the plain voice ("" +m3 +f2)',
    )
    add(
        "--rate",
        type=int,
        default=default.rate,
        metavar="N",
        help=f"words a minute ({default.rate})",
    )
    add(
        "--rate-jitter",
        type=float,
        default=default.rate_jitter,
        metavar="X",
        help=f"share by which the rate varies to both sides ({default.rate_jitter})",
    )
    add(
        "--pitch",
        type=int,
        nargs=2,
        default=default.pitch,
        metavar=("LOW", "HIGH"),
        help="range of the pitch, 0 to 100 ({} {})".format(*default.pitch),
    )
    add(
        "--max-seconds",
        type=float,
        default=default.max_seconds,
        metavar="X",
        help=f"longer utterances are left out ({default.max_seconds:g})",
    )
    add(
        "--seed", type=int, default=default.seed, metavar="N", help=f"of the draws ({default.seed})"
    )
    add(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that speak (one a core)",
    )
    return parser


def main() -> None:
    """Runs the command."""
    parser = build_parser()
    options = parser.parse_args()
    delivery = Delivery(
        voices=tuple(options.voices),
        rate=options.rate,
        rate_jitter=options.rate_jitter,
        pitch=tuple(options.pitch),
        max_seconds=options.max_seconds,
        seed=options.seed,
    )
    try:
        reports = prepare_espeak(
            options.text_dir,
            options.out,
            options.splits,
            options.src,
            options.tgt,
            delivery,
            options.workers,
            progress=True,
        )
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: what is there is whole, the same command begins anew\n")
    except (EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
        parser.exit(1, f"error: {error}\n")
    for split, report in reports.items():
        print(f"{split}: {report}")


if __name__ == "__main__":
    main()
