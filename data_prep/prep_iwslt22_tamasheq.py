r"""Writes manifests of IWSLT 2022's Tamasheq–French: radio news in Tamasheq with French translations.

    $ git clone https://github.com/mzboito/IWSLT2022_Tamasheq_data
    $ ls IWSLT2022_Tamasheq_data/taq_fra_clean/train IWSLT2022_Tamasheq_data/taq_fra_clean/train/txt
    IWSLT2022_Tamasheq_data/taq_fra_clean/train: txt  wav
    IWSLT2022_Tamasheq_data/taq_fra_clean/train/txt: segments  train.fra  train.yaml …
    $ python -m data_prep.prep_iwslt22_tamasheq --root IWSLT2022_Tamasheq_data --train full --out data

Layout as in that repository, and as ESPnet's egs2/iwslt22_low_resource/st1/local/preprocess.py and
SpeechBrain's recipes/IWSLT22_lowresource read it. SPLIT.yaml has an entry an utterance,
`{duration: 8.9, offset: 0.0, speaker_id: …, wav: clean_JOURNAL_TAMASHEQ_2019_01_11_id_74}`; its recording is
wav/NAME.wav as a whole, its translation the same line of SPLIT.fra. The repository's README counts 17 hours
in taq_fra_clean, and 2 more in taq_fra_full, which annotators found potentially noisy; valid and test of
taq_fra_clean belong to both (Boito et al., 2022, arXiv:2201.05051).

There are no transcripts: src_text is empty. Translations have spaces around punctuation and entities such as
&quot; as published.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.clips import Place
from data_prep.command import corpus_parser, run_command
from data_prep.corpus import BadRow, Corpus, CorpusRow
from data_prep.preparation import Preparation, prepare_corpus
from data_prep.segmented_corpus import read_yaml_segments
from data_prep.summary import Summary
from data_prep.tables import BadLine, check_line_count, read_lines

LANGUAGES = ("taq", "fr")
TRAIN_SETS = ("clean", "full")


def tamasheq_corpus(root: str | os.PathLike[str], train: str = "clean") -> Corpus:
    """Describes the corpus.

    Args:
        root: the repository.
        train: of `TRAIN_SETS`.

    Raises:
        FileNotFoundError: a file or folder of a split is missing.
        ValueError: the training set is unknown, or a split does not have as many translations as recordings.
    """
    folder = Path(root).resolve()
    if train not in TRAIN_SETS:
        raise ValueError(f"expected a training set of {', '.join(TRAIN_SETS)}, found {train!r}")
    splits = {
        "train": folder / f"taq_fra_{train}" / "train",
        "valid": folder / "taq_fra_clean" / "valid",
        "test": folder / "taq_fra_clean" / "test",
    }
    counts = {split: _count(place, split) for split, place in splits.items()}
    return Corpus(
        name="IWSLT 2022 Tamasheq–French",
        options={"root": str(folder), "train": train},
        splits={split: functools.partial(_rows, place, split) for split, place in splits.items()},
        count=counts.__getitem__,
    )


def _count(folder: Path, split: str) -> int:
    """How many recordings a split has; raises as `tamasheq_corpus` does."""
    listed, translations = folder / "txt" / f"{split}.yaml", folder / "txt" / f"{split}.fra"
    for path in (listed, translations, folder / "wav"):
        if not path.exists():
            raise FileNotFoundError(f"{path}: expected a part of the corpus, found nothing")
    recordings = sum(1 for _ in read_yaml_segments(listed))
    check_line_count(translations, recordings, f"entries of {listed}")
    return recordings


def _rows(folder: Path, split: str) -> Iterator[CorpusRow | BadRow]:
    """Recordings of a split with their translations."""
    segments = read_yaml_segments(folder / "txt" / f"{split}.yaml")
    translations = read_lines(folder / "txt" / f"{split}.fra")
    for number, (segment, text) in enumerate(zip(segments, translations), start=1):
        if isinstance(segment, BadLine):
            yield BadRow(f"{split}.yaml:{number}", segment.reason, *LANGUAGES)
        elif "/" in segment.recording:
            reason = f"no name of a recording: {segment.recording!a}"
            yield BadRow(f"{split}.yaml:{number}", reason, *LANGUAGES)
        elif segment.start != 0:
            # Nobody says where such an utterance would end in its file.
            yield BadRow(
                segment.recording, f"no whole recording: from {segment.start} s", *LANGUAGES
            )
        else:
            yield CorpusRow(
                id=segment.recording,
                place=Place(str(folder / "wav" / f"{segment.recording}.wav")),
                src_text="",
                src_lang=LANGUAGES[0],
                tgt_text=text,
                tgt_lang=LANGUAGES[1],
                speaker=segment.speaker,
            )


def prepare_tamasheq(
    root: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    train: str = "clean",
    preparation: Preparation = Preparation(),  # noqa: B008 - frozen
    progress: bool = False,
) -> Summary:
    """Writes `train.tsv`, `valid.tsv`, `test.tsv`; see `tamasheq_corpus` and `prepare_corpus`."""
    return prepare_corpus(tamasheq_corpus(root, train), out_dir, preparation, progress)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = corpus_parser("prep_iwslt22_tamasheq", __doc__)
    add = parser.add_argument
    add("--root", required=True, metavar="DIR", help="the repository IWSLT2022_Tamasheq_data")
    add("--train", choices=TRAIN_SETS, default="clean", help="training set: 17 or 19 hours (clean)")
    run_command(parser, lambda options: tamasheq_corpus(options.root, options.train), argv)


if __name__ == "__main__":
    main()
