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
"""

from __future__ import annotations

import argparse
import math
import os
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import soxr
from tqdm import tqdm

from data_prep.archive import SAMPLE_RATE, FlacArchive, encode_flac
from data_prep.espeak import ESPEAK_RATE, MAX_RATE, MIN_RATE, Espeak, Request
from data_prep.manifest import ManifestRow, ManifestWriter
from data_prep.parallel_text import (
    ParallelText,
    count_sentences,
    find_parallel_texts,
    read_lines,
)
from data_prep.speakers import speak_all

# Quieter than this share of the loudest sample (-50 dB) is silence where it lies at the edges.
SILENCE = 10 ** (-50 / 20)
# Seconds left of it, so that no consonant's onset is cut.
EDGE = 0.01


@dataclass(frozen=True)
class Delivery:
    """How text is spoken; each utterance draws from these.

    Attributes:
        voices: espeak-ng's voice variants ("f2"; a leading "+" is ignored; "" for none), which act
            as the speakers and combine with every language.
        rate: words a minute.
        rate_jitter: the rate is drawn between `rate` times 1 - jitter and 1 + jitter.
        pitch: lowest and highest, 0 to 100.
        max_seconds: longer utterances are left out.
        seed: of the draws.
    """

    voices: tuple[str, ...] = ("", "m3", "f2")
    rate: int = 230
    rate_jitter: float = 0.1
    pitch: tuple[int, int] = (40, 60)
    max_seconds: float = 30.0
    seed: int = 1


@dataclass(frozen=True)
class Utterance:
    """One sentence and how to speak it.

    Attributes:
        place: file and line, for error messages.
        name: of the audio, unique in a run.
        language: of the text, as the user writes it.
        request: what espeak-ng is asked for.
        translations: (id of the manifest's row, target language, sentence).
    """

    place: str
    name: str
    language: str
    request: Request
    translations: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        """What error messages show."""
        return f"{self.place}: {self.request.text!r}"


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
    total = sum(count_sentences(text) for split in splits for text in texts[split])

    reports = {}
    with tqdm(total=total, unit="utt", disable=not progress) as bar:
        for split in splits:
            utterances = _utterances(split, texts[split], delivery)
            spoken = speak_all(((each, each.request) for each in utterances), workers)
            reports[split] = _write_split(Path(out_dir), split, spoken, delivery.max_seconds, bar)
    return reports


def _check_options(
    espeak: Espeak, delivery: Delivery, sources: Sequence[str], workers: int
) -> None:
    for language in sources:
        if language.lower() not in espeak.voices:
            valid = " ".join(espeak.voices)
            raise ValueError(f"expected a language of espeak-ng ({valid}), found {language!r}")
    if not delivery.voices:
        raise ValueError("expected at least one voice, found none")
    for voice in delivery.voices:
        if voice and voice.lstrip("+") not in espeak.variants:
            valid = " ".join(espeak.variants)
            raise ValueError(f"expected a voice variant of espeak-ng ({valid}), found {voice!r}")
    slowest = delivery.rate * (1 - delivery.rate_jitter)
    fastest = delivery.rate * (1 + delivery.rate_jitter)
    if not MIN_RATE <= slowest <= fastest <= MAX_RATE:
        raise ValueError(
            f"expected rates between {MIN_RATE} and {MAX_RATE} words a minute, found rate "
            f"{delivery.rate} and jitter {delivery.rate_jitter}: {slowest:.0f} to {fastest:.0f}"
        )
    if not 0 <= delivery.pitch[0] <= delivery.pitch[1] <= 100:
        raise ValueError(f"expected pitches 0 <= low <= high <= 100, found {delivery.pitch}")
    if not 0 < delivery.max_seconds < math.inf:
        raise ValueError(f"expected max_seconds > 0, found {delivery.max_seconds}")
    if workers < 1:
        raise ValueError(f"expected at least one worker, found {workers}")


def _utterances(
    split: str, texts: Sequence[ParallelText], delivery: Delivery
) -> Iterator[Utterance]:
    for text in texts:
        lines = zip(*map(read_lines, text.paths))
        for number, (sentence, *translations) in enumerate(lines, start=1):
            name = f"{split}_{text.name}_{number:07d}"
            variant, rate, pitch = draw_manner(name, delivery)
            yield Utterance(
                place=f"{text.source_path}:{number}",
                name=name,
                language=text.source,
                request=Request(
                    sentence,
                    text.source.lower(),
                    variant,
                    rate,
                    pitch,
                    # Silence at the edges, trimmed later, does not count.
                    max_seconds=delivery.max_seconds + 1,
                ),
                translations=tuple(
                    (f"{split}_{text.source}-{target}_{number:07d}", target, translation)
                    for (target, _), translation in zip(text.targets, translations)
                ),
            )


def draw_manner(name: str, delivery: Delivery) -> tuple[str, int, int]:
    """Draws how one utterance is spoken.

    Args:
        name: of the utterance; it and the seed decide.
        delivery: what to draw from.

    Returns:
        Voice variant without "+", rate in words a minute, pitch.
    """
    # Only random(), whose numbers for a seed are the same in every version of Python.
    draw = random.Random(f"{delivery.seed} {name}").random
    variant = delivery.voices[int(draw() * len(delivery.voices))].lstrip("+")
    rate = round(delivery.rate * (1 + delivery.rate_jitter * (2 * draw() - 1)))
    low, high = delivery.pitch
    return variant, rate, low + int(draw() * (high - low + 1))


def finish_wave(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Resamples what espeak-ng speaks to 16 kHz and cuts silence off both ends.

    Args:
        samples: shape (S,), at espeak-ng's 22,050 Hz.

    Returns:
        The wave, shape (S',), in the range [-1, 1]; of silence alone nothing is left.
    """
    scaled = samples.astype(np.float32) / np.float32(32_768)
    wave: npt.NDArray[np.float32] = soxr.resample(scaled, ESPEAK_RATE, SAMPLE_RATE)
    level = np.abs(wave)
    loud = np.flatnonzero(level > SILENCE * level.max(initial=0.0))
    if loud.size == 0:
        return wave[:0]
    edge = round(EDGE * SAMPLE_RATE)
    return wave[max(0, loud[0] - edge) : loud[-1] + 1 + edge]


def _write_split(
    out_dir: Path,
    split: str,
    spoken: Iterable[tuple[Utterance, bytes]],
    max_seconds: float,
    bar: tqdm[NoReturn],
) -> SplitReport:
    """Writes archive and manifest of a split."""
    report = SplitReport()
    manifest_path, archive_path = out_dir / f"{split}.tsv", out_dir / f"{split}.zip"
    with ManifestWriter(manifest_path) as manifest, FlacArchive(archive_path) as archive:
        for utterance, samples in spoken:
            wave = finish_wave(np.frombuffer(samples, np.int16))
            if wave.size == 0:
                raise RuntimeError(f"{utterance}: espeak-ng found nothing to speak")
            if wave.size > max_seconds * SAMPLE_RATE:
                report.left_out += 1
            else:
                audio = archive.add(f"{utterance.name}.flac", encode_flac(wave))
                for row in _rows(utterance, audio, wave.size):
                    manifest.write(row)
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


def _rows(utterance: Utterance, audio: str, n_frames: int) -> Iterator[ManifestRow]:
    for row_id, target, translation in utterance.translations:
        yield ManifestRow(
            id=row_id,
            audio=audio,
            n_frames=n_frames,
            tgt_text=translation,
            speaker=utterance.request.variant or "default",
            src_text=utterance.request.text,
            src_lang=utterance.language,
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
        help="languages to speak: codes of espeak-ng, such as es or pt-br",
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
    except (EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
        parser.exit(1, f"error: {error}\n")
    for split, report in reports.items():
        print(f"{split}: {report}")


if __name__ == "__main__":
    main()
