"""Writes manifests of MuST-C: English TED talks, translated into other languages.

    $ ls must-c/en-de/data/train/*
    must-c/en-de/data/train/txt: train.de  train.en  train.yaml
    must-c/en-de/data/train/wav: ted_1.wav  ted_10.wav …
    $ python -m data_prep.prep_mustc --root must-c --pairs en-de --out data

The layout is as fairseq's examples/speech_to_text/prep_mustc_data.py, lhotse's recipe must_c and ESPnet's
egs/must_c/st1/local/data_prep.sh read it: splits train, dev, tst-COMMON and tst-HE, and a line of text for
every entry of SPLIT.yaml, which is
`{duration: 3.5, offset: 16.08, rW: 9, uW: 0, speaker_id: spk.767, wav: ted_767.wav}`, with its keys in
another order in version 1 than in 2. Keys are read by name, so that releases need not be told apart. Features
that releases bring (folder h5) are not read.

Recordings are whole talks; their segments come into SPLIT.zip as FLAC at 16 kHz. All pairs come into one
manifest a split, the speech that they share once. Ids are recording, line and target language: ted_767_17-de.
An utterance is dropped for its length by --max-seconds alone.

Release 1, en-de, has 229,703 rows of train, 1,423 of dev, 2,641 of tst-COMMON and 600 of tst-HE, as ESPnet
counts in egs3/must_c/st/README.md. Other releases differ, so that the summary compares nothing.
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
    read_yaml_segments,
    segmented_corpus,
)
from data_prep.summary import Summary

SPLITS = ("train", "dev", "tst-COMMON", "tst-HE")


def mustc_corpus(
    root: str | os.PathLike[str], pairs: Sequence[str], splits: Sequence[str] | None = None
) -> Corpus:
    """Describes some language pairs of MuST-C.

    Args:
        root: folder of en-de, en-es, ….
        pairs: such as "en-de".
        splits: of `SPLITS`; None: those that are there.

    Raises:
        FileNotFoundError: a split or a file of it is missing.
        ValueError: a pair or split is not one of MuST-C, or texts have other lines than the list of segments.
    """
    top = Path(root).resolve()
    check_pairs(
        pairs, lambda source, target: source == "en" and target != "en", "pairs such as en-de"
    )

    def text(pair: str, split: str) -> SegmentedText:
        folder = top / pair / "data" / split
        target = pair.split("-")[1]
        return SegmentedText(
            segments=folder / "txt" / f"{split}.yaml",
            read=read_yaml_segments,
            source=folder / "txt" / f"{split}.en",
            src_lang="en",
            place=functools.partial(find_recording, folder / "wav"),
            target=folder / "txt" / f"{split}.{target}",
            tgt_lang=target,
        )

    found = find_splits({pair: (top / pair / "data").joinpath for pair in pairs}, SPLITS, splits)
    return segmented_corpus(
        "MuST-C",
        {"root": str(top), "pairs": list(pairs)},
        {split: [text(pair, split) for pair in those] for split, those in found.items()},
    )


def prepare_mustc(
    root: str | os.PathLike[str],
    pairs: Sequence[str],
    out_dir: str | os.PathLike[str],
    splits: Sequence[str] | None = None,
    preparation: Preparation = Preparation(),  # noqa: B008 - frozen
    progress: bool = False,
) -> Summary:
    """Writes `train.tsv`, `dev.tsv`, `tst-COMMON.tsv`, `tst-HE.tsv`; see `mustc_corpus`, `prepare_corpus`."""
    return prepare_corpus(mustc_corpus(root, pairs, splits), out_dir, preparation, progress)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = corpus_parser("prep_mustc", __doc__)
    add = parser.add_argument
    add("--root", required=True, metavar="DIR", help="folder of en-de, en-es, …")
    add("--pairs", nargs="+", required=True, metavar="EN-XX", help="such as en-de en-es")
    add("--splits", nargs="+", choices=SPLITS, help="only these (all that are there)")
    run_command(
        parser, lambda options: mustc_corpus(options.root, options.pairs, options.splits), argv
    )


if __name__ == "__main__":
    main()
