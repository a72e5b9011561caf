"""Writes manifests of NTUML2021: lectures in Mandarin with English terms, translated into English.

    $ ls ML2021_ASR_ST/data
    dev-00000-of-00001-….parquet  test-00000-of-00009-….parquet …  train-00000-of-00013-….parquet …
    $ python -m data_prep.prep_ntuml2021 --corpus ML2021_ASR_ST --out data

The corpus is the dataset ky552/ML2021_ASR_ST on Hugging Face (Yang et al. 2024, arXiv 2401.00273). Its card
says what is read here: Parquet files `data/SPLIT-*` for train, dev and test with the columns `audio` (16
kHz), `transcription` and `translation`. That audio is a struct with the `bytes` of a whole file says the
documentation of `datasets`, feature Audio. The column `file` is not described, and not read.

The corpus does not say which words are English, nor when they are spoken: an utterance whose transcript has
Latin letters is undetermined as a whole (`und`) in the column `segment_langs`
(`data_prep.language_segments`), all others are Mandarin. `src_lang` is `zh` everywhere. The speech comes into
SPLIT.zip as FLAC.

What cannot be used is listed in dropped.tsv with its reason. More of it than --max-dropped is an error, and
then no manifest of that split is written. Needs the extra `parquet`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_prep.audio import decode_audio
from data_prep.dropped import DroppedRows, SplitReport
from data_prep.extras import needs_extra
from data_prep.language_segments import (
    SEGMENT_LANGS,
    UNDETERMINED,
    LanguageSegment,
    format_segments,
)
from data_prep.manifest import CONTROL_CHARACTER, ManifestRow
from data_prep.split_writer import SplitWriter

SPLITS = ("train", "dev", "test")
SOURCE, TARGET = "zh", "en"
COLUMNS = ("audio", "transcription", "translation")

_LATIN = re.compile(r"[A-Za-zＡ-Ｚａ-ｚ]")


def prepare_ntuml2021(
    corpus_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    max_dropped: float = 0.01,
    progress: bool = False,
) -> dict[str, SplitReport]:
    """Writes `train.tsv`, `dev.tsv`, `test.tsv`, their archives and `dropped.tsv`.

    Args:
        corpus_dir: folder of `data`.
        out_dir: folder to write to, the manifests' `audio_root`.
        max_dropped: largest share of a split's utterances that may be unusable, 0 to 1.
        progress: show a progress bar.

    Returns:
        What was made of each split.

    Raises:
        FileNotFoundError: a split has no files.
        ModuleNotFoundError: pyarrow is not installed.
        ValueError: an option or a file is wrong, or a split has too many unusable utterances.
    """
    corpus, out = Path(corpus_dir), Path(out_dir)
    dropped = DroppedRows(out / "dropped.tsv", max_dropped)
    files = {split: sorted((corpus / "data").glob(f"{split}-*.parquet")) for split in SPLITS}
    for split, paths in files.items():
        if not paths:
            raise FileNotFoundError(f"expected {corpus / 'data' / split}-*.parquet, found none")
    reports = {}
    try:
        for split, paths in files.items():
            with SplitWriter(out / f"{split}.tsv", [SEGMENT_LANGS]) as writer:
                examples = tqdm(read_examples(paths), split, unit="utt", disable=not progress)
                for number, example in enumerate(examples, start=1):
                    name = f"{split}_{number:07d}"
                    reason = _write(writer, name, example)
                    if reason:
                        dropped.add(split, name, reason)
                dropped.check(split, writer.rows, f"{corpus}: {split}")
            reports[split] = SplitReport(writer.rows, writer.samples, dropped.count(split))
    finally:
        dropped.write()
    return reports


def read_examples(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yields the rows of Parquet files, a few of them in memory at a time.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
        ValueError: a file is no Parquet or lacks a column.
    """
    with needs_extra("parquet", "reading Parquet files"):
        import pyarrow
        from pyarrow import parquet
    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                if not set(COLUMNS) <= set(names):
                    raise ValueError(f"{path}: expected columns {COLUMNS}, found {names}")
                for batch in file.iter_batches(batch_size=64, columns=list(COLUMNS)):
                    yield from batch.to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path}: expected a Parquet file, found: {error}") from error


def _write(writer: SplitWriter, name: str, example: Mapping[str, Any]) -> str:
    """Writes an utterance, or returns why it cannot be used."""
    for key in COLUMNS[1:]:
        if not isinstance(example[key] or "", str):
            return f"expected text as {key}, found {example[key]!r}"
    transcript, translation = (" ".join((example[key] or "").split()) for key in COLUMNS[1:])
    for text, what in ((transcript, "transcription"), (translation, "translation")):
        if not text:
            return f"no {what}"
        if CONTROL_CHARACTER.search(text):
            return f"control character in the {what}: {text!r}"
    wave, reason = _decode(example["audio"], name)
    if reason:
        return reason
    row = ManifestRow(
        id=name,
        audio="",
        n_frames=0,
        tgt_text=translation,
        speaker="",
        src_text=transcript,
        src_lang=SOURCE,
        tgt_lang=TARGET,
    )
    mixed = [LanguageSegment(UNDETERMINED, 0, wave.size)] if _LATIN.search(transcript) else []
    writer.write(wave, row, format_segments(mixed, wave.size))
    return ""


def _decode(audio: Any, name: str) -> tuple[npt.NDArray[np.float32], str]:
    """The wave, and why it cannot be used; empty if it can."""
    empty = np.zeros(0, np.float32)
    if not isinstance(audio, Mapping) or not audio.get("bytes"):
        return empty, "no audio in the file"
    try:
        wave = decode_audio(audio["bytes"], name)
    except ValueError as error:
        return empty, str(error)
    if wave.size == 0 or not np.isfinite(wave).all():
        return empty, "audio without samples, or with some that are not finite"
    return wave, ""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.prep_ntuml2021",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--corpus", required=True, type=Path, metavar="DIR", help="folder of the corpus, with data")
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
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
        reports = prepare_ntuml2021(options.corpus, options.out, options.max_dropped, progress=True)
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: what is there is whole, the same command begins anew\n")
    except (ModuleNotFoundError, OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    for split, report in reports.items():
        print(f"{split}: {report}")


if __name__ == "__main__":
    main()
