"""Writes manifests of How2: English speech of instructional videos, translated into Portuguese.

    $ ls how2/audio_data/train how2/text_data/train
    how2/audio_data/train:  UTTERANCE.wav …
    how2/text_data/train:   text.id.en  text.id.pt
    $ python -m data_prep.prep_how2 --how2 how2 --out data

A line of `text.id.LANG` is `UTTERANCE text`. The corpus calls its splits train, val and dev5; their
manifests are train.tsv, dev.tsv and test.tsv.

Other target languages are files of the same form that you put there, such as machine translations of
text.id.en: `--tgt de` reads text.id.de. `--tgt en` makes the transcript the target, for recognition.
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
from data_prep.summary import Summary
from data_prep.tables import lookup, read_numbered

# Names of How2's splits → names of their manifests.
SPLITS = {"train": "train", "val": "dev", "dev5": "test"}
SOURCE = "en"


def how2_corpus(how2_dir: str | os.PathLike[str], target: str = "pt") -> Corpus:
    """Describes How2.

    Args:
        how2_dir: folder of `audio_data` and `text_data`.
        target: language of `text.id.LANG`; "en" for the transcript.

    Raises:
        FileNotFoundError: a text file is missing.
    """
    how2 = Path(how2_dir).resolve()
    for split in SPLITS:
        for lang in (SOURCE, target):
            path = how2 / "text_data" / split / f"text.id.{lang}"
            if not path.is_file():
                raise FileNotFoundError(f"{path}: expected lines 'UTTERANCE text', found no file")
    return Corpus(
        name="How2",
        options={"how2": str(how2), "target": target},
        splits={
            name: functools.partial(_rows, how2, split, target) for split, name in SPLITS.items()
        },
    )


def _rows(how2: Path, split: str, target: str) -> Iterator[CorpusRow | BadRow]:
    """Yields the utterances of either language: those with a transcript, then the others."""
    texts, audio = how2 / "text_data" / split, how2 / "audio_data" / split
    source_file, target_file = texts / f"text.id.{SOURCE}", texts / f"text.id.{target}"
    transcript_of, translation_of = (
        lookup(
            ((name, [text]) for _, name, text in read_texts(file) if name),
            once=f"{file}: utterance",
        )
        for file in (source_file, target_file)
    )
    for number, name, transcript in read_texts(source_file):
        if not name:
            yield BadRow(f"{source_file.name}:{number}", "empty line", SOURCE, target)
            continue
        translation = (translation_of(name) or [""])[0]
        if not transcript or not translation:
            missing = target_file if transcript else source_file
            yield BadRow(name, f"no text in {missing.name}", SOURCE, target)
            continue
        yield CorpusRow(
            id=name,
            place=Place(str(audio / f"{name}.wav")),
            src_text=transcript,
            src_lang=SOURCE,
            tgt_text=translation,
            tgt_lang=target,
        )
    for number, name, _ in read_texts(target_file):
        if not name and target_file != source_file:
            yield BadRow(f"{target_file.name}:{number}", "empty line", SOURCE, target)
        elif name and transcript_of(name) is None:
            yield BadRow(name, f"no text in {source_file.name}", SOURCE, target)


def read_texts(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yields number, utterance and text of `UTTERANCE text` lines; of an empty line both are empty."""
    for number, line in read_numbered(path):
        name, *text = line.strip().split(maxsplit=1) or [""]
        yield number, name, "".join(text)


def prepare_how2(
    how2_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    target: str = "pt",
    preparation: Preparation = Preparation(),  # noqa: B008 - frozen
    progress: bool = False,
) -> Summary:
    """Writes `train.tsv`, `dev.tsv`, `test.tsv`; see `how2_corpus` and `prepare_corpus`."""
    return prepare_corpus(how2_corpus(how2_dir, target), out_dir, preparation, progress)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = corpus_parser("prep_how2", __doc__)
    add = parser.add_argument
    add("--how2", required=True, metavar="DIR", help="the corpus, with audio_data and text_data")
    add(
        "--tgt",
        default="pt",
        metavar="LANG",
        help="target language, of text.id.LANG (pt); en: the transcript",
    )
    run_command(parser, lambda options: how2_corpus(options.how2, options.tgt), argv)


if __name__ == "__main__":
    main()
