r"""Writes manifests of LibriSpeech: read English and its transcripts, one manifest a part.

    $ ls LibriSpeech/dev-clean/84/121123
    84-121123-0000.flac  84-121123-0001.flac  …  84-121123.trans.txt
    $ python -m data_prep.prep_librispeech --root LibriSpeech --lowercase src --out data

Layout after the corpus's README.TXT (openslr.org/12): PART/READER/CHAPTER/READER-CHAPTER-UTTERANCE.flac, and
a file of transcripts a chapter, whose lines are the name of an utterance, a space and its text in capitals.
Manifests have transcripts only; data_prep.asr_manifest makes some for recognition of them.

| part | utterances | hours |
| --- | ---: | ---: |
| train-clean-100 | 28,539 | 100.6 |
| train-clean-360 | 104,014 | 363.6 |
| train-other-500 | 148,688 | 496.7 |
| dev-clean | 2,703 | 5.4 |
| dev-other | 2,864 | 5.3 |
| test-clean | 2,620 | 5.4 |
| test-other | 2,939 | 5.1 |

Hours are those of Panayotov et al. (2015), "Librispeech: an ASR corpus based on public domain audio books",
table 1, utterances those of the dataset card of openslr/librispeech_asr on Hugging Face.
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
from data_prep.tables import read_numbered

LANGUAGE = "en"
# Part → utterances, see above.
PARTS = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
}


def librispeech_corpus(root: str | os.PathLike[str], parts: Sequence[str] = ()) -> Corpus:
    """Describes LibriSpeech.

    Args:
        root: the folder LibriSpeech, with a folder a part.
        parts: of the corpus; none: those that are there.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: a part is not one of LibriSpeech.
    """
    folder = Path(root).resolve()
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"expected parts of {', '.join(PARTS)}, found {unknown[0]!r}")
    wanted = [part for part in PARTS if part in parts or not parts and (folder / part).is_dir()]
    if not wanted:
        raise FileNotFoundError(f"{folder}: expected folders such as dev-clean, found none")
    for part in wanted:
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder / part}: expected a part of LibriSpeech, found none")
    return Corpus(
        name="LibriSpeech",
        options={"root": str(folder), "parts": wanted},
        splits={part: functools.partial(_rows, folder / part) for part in wanted},
        published_rows={(part, LANGUAGE, ""): PARTS[part] for part in wanted},
    )


def _rows(part: Path) -> Iterator[CorpusRow | BadRow]:
    """Utterances of a part, chapter by chapter."""
    for reader in _folders(part):
        for chapter in _folders(reader):
            yield from _chapter(chapter, f"{reader.name}-{chapter.name}", reader.name)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _chapter(folder: Path, name: str, reader: str) -> Iterator[CorpusRow | BadRow]:
    """Utterances of a chapter: those with a transcript, then recordings without one."""
    transcripts = folder / f"{name}.trans.txt"
    spoken = {path.stem for path in folder.glob("*.flac")}
    if transcripts.is_file():
        for number, line in read_numbered(transcripts):
            utterance, _, text = line.partition(" ")
            # A name is also that of a file: it may not lead out of the folder.
            if not utterance.startswith(f"{name}-") or "/" in utterance:
                yield BadRow(
                    f"{transcripts.name}:{number}",
                    f"no name of an utterance: expected {name}-…, found {utterance!a}",
                    LANGUAGE,
                )
                continue
            spoken.discard(utterance)
            yield CorpusRow(
                id=utterance,
                place=Place(str(folder / f"{utterance}.flac")),
                src_text=text,
                src_lang=LANGUAGE,
                speaker=reader,
            )
    for utterance in sorted(spoken):
        yield BadRow(utterance, f"no transcript: {transcripts}", LANGUAGE)


def prepare_librispeech(
    root: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    parts: Sequence[str] = (),
    preparation: Preparation = Preparation(),  # noqa: B008 - frozen
    progress: bool = False,
) -> Summary:
    """Writes `PART.tsv`; see `librispeech_corpus` and `prepare_corpus`."""
    return prepare_corpus(librispeech_corpus(root, parts), out_dir, preparation, progress)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = corpus_parser("prep_librispeech", __doc__)
    add = parser.add_argument
    add("--root", required=True, metavar="DIR", help="the folder LibriSpeech")
    add("--parts", nargs="+", choices=PARTS, default=[], help="of the corpus (all that are there)")
    run_command(parser, lambda options: librispeech_corpus(options.root, options.parts), argv)


if __name__ == "__main__":
    main()
