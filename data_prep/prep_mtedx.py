"""Writes manifests of mTEDx (OpenSLR 100): TEDx talks in eight languages, transcribed and translated.

    $ ls mtedx/es-en/data/train/*
    mtedx/es-en/data/train/txt: segments  train.en  train.es  train.yaml
    mtedx/es-en/data/train/vtt: …
    mtedx/es-en/data/train/wav: 0u7tTptBo9I.flac …
    $ python -m data_prep.prep_mtedx --root mtedx --pairs es-en fr-en --out data

The layout is as docs/README.txt of the release says and as fairseq's
examples/speech_to_text/prep_mtedx_data.py, ESPnet's egs/mtedx/st1/local/data_prep.sh and Pasero's
examples/IWSLT2023/prepare.sh read it: splits train, valid and test, and iwslt2021 from the archive
mtedx_iwslt2021 unpacked over the others; a line of text for every entry of SPLIT.yaml,
`{duration: 0.47, offset: 17.22, speaker_id: 0u7tTptBo9I, wav: 0u7tTptBo9I.wav}`, although the recording is
flac. Without a SPLIT.yaml the same is read from Kaldi's `segments`, lines of id, recording, start and end;
the recording is the speaker then. Subtitles (folder vtt) are not read.

A pair of one language, es-es, has transcripts alone: for the SAMU stage, or for recognition by way of
data_prep.asr_manifest. A translator takes no such rows: prepare them into a folder of their own.

Segments come into SPLIT.zip as FLAC at 16 kHz, all pairs into one manifest a split, the speech that they
share once. Ids are recording, line and target language: 0u7tTptBo9I_17-en. An utterance is dropped for its
length by --max-seconds alone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from data_prep.command import corpus_parser, run_command
from data_prep.corpus import Corpus
from data_prep.preparation import Preparation, prepare_corpus
from data_prep.segmented_corpus import (
    SegmentedText,
    check_pairs,
    find_recording,
    find_splits,
    read_segment_lines,
    read_yaml_segments,
    segmented_corpus,
    strip_extension,
)
from data_prep.summary import Summary

SPLITS = ("train", "valid", "test", "iwslt2021")


def mtedx_corpus(
    root: str | os.PathLike[str], pairs: Sequence[str], splits: Sequence[str] | None = None
) -> Corpus:
    """Describes some language pairs of mTEDx.

    Args:
        root: folder of es-en, es-es, ….
        pairs: such as "es-en"; "es-es" for transcripts alone.
        splits: of `SPLITS`; None: those that are there.

    Raises:
        FileNotFoundError: a split or a file of it is missing.
        ValueError: a pair or split has no such name, or texts have other lines than the list of segments.
    """
    top = Path(root).resolve()
    check_pairs(pairs, lambda source, target: True, "pairs such as es-en")

    def text(pair: str, split: str) -> SegmentedText:
        folder = top / pair / "data" / split
        txt = folder / "txt"
        source, target = pair.split("-")
        described = (txt / f"{split}.yaml").is_file() or not (txt / "segments").is_file()
        return SegmentedText(
            segments=txt / f"{split}.yaml" if described else txt / "segments",
            read=read_yaml_segments
            if described
            else functools.partial(read_segment_lines, cells=4),
            source=txt / f"{split}.{source}",
            src_lang=source,
            place=functools.partial(find_recording, folder / "wav"),
            target=txt / f"{split}.{target}" if target != source else None,
            tgt_lang=target if target != source else "",
            speaker=strip_extension,
        )

    found = find_splits({pair: (top / pair / "data").joinpath for pair in pairs}, SPLITS, splits)
    return segmented_corpus(
        "mTEDx",
        {"root": str(top), "pairs": list(pairs)},
        {split: [text(pair, split) for pair in those] for split, those in found.items()},
    )


def prepare_mtedx(
    root: str | os.PathLike[str],
    pairs: Sequence[str],
    out_dir: str | os.PathLike[str],
    splits: Sequence[str] | None = None,
    preparation: Preparation = Preparation(),  # noqa: B008 - frozen
    progress: bool = False,
) -> Summary:
    """Writes `train.tsv`, `valid.tsv`, `test.tsv`, `iwslt2021.tsv`; see `mtedx_corpus`, `prepare_corpus`."""
    return prepare_corpus(mtedx_corpus(root, pairs, splits), out_dir, preparation, progress)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = corpus_parser("prep_mtedx", __doc__)
    add = parser.add_argument
    add("--root", required=True, metavar="DIR", help="folder of es-en, es-es, …")
    add("--pairs", nargs="+", required=True, metavar="XX-YY", help="such as es-en es-es")
    add("--splits", nargs="+", choices=SPLITS, help="only these (all that are there)")
    run_command(
        parser, lambda options: mtedx_corpus(options.root, options.pairs, options.splits), argv
    )


if __name__ == "__main__":
    main()
