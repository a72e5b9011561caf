r"""Writes manifests of FLEURS: sentences of FLoRes read aloud in 102 languages, joined to translations.

    $ ls fleurs/data/fr_fr fleurs/data/fr_fr/audio
    fleurs/data/fr_fr: audio  dev.tsv  test.tsv  train.tsv
    fleurs/data/fr_fr/audio: dev  dev.tar.gz  test  test.tar.gz  train  train.tar.gz
    $ python -m data_prep.prep_fleurs --root fleurs/data --sources fr_fr sw_ke --targets en_us \
        --max-dropped 20% --out data

Layout as dataset google/fleurs on Hugging Face publishes it and its script fleurs.py reads it: a folder a
language, in it SPLIT.tsv and audio/SPLIT.tar.gz. The archives have to be unpacked (tar -xzf), where they are
or beside the tables. Tables have no header and no quoting; their columns are id, file_name,
raw_transcription, transcription, the same in single characters, num_samples, gender.

An id is that of a sentence, in all languages; usually several people read it. Every recording of a sentence
is paired with the sentence's text in the target language and the same split. Not every sentence was recorded
in every language: recordings without a translation are in dropped.tsv, hence --max-dropped. Without
--targets there are transcripts alone.

Text is raw_transcription, with case and punctuation, or --column transcription, without. Language tags are
the names of the folders up to the first underscore: fr, sw, cmn, yue. FLEURS (Conneau et al., 2022,
arXiv:2205.12446) has 2,009 sentences and about 12 hours of speech a language; it does not name its speakers.
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_prep.clips import Place
from data_prep.command import corpus_parser, run_command
from data_prep.corpus import BadRow, Corpus, CorpusRow
from data_prep.preparation import Preparation, prepare_corpus
from data_prep.summary import Summary
from data_prep.tables import BadLine, lookup, read_numbered

SPLITS = ("train", "dev", "test")
COLUMNS = (
    "id", "file_name", "raw_transcription", "transcription", "characters", "num_samples", "gender",
)  # fmt: skip
TEXT_COLUMNS = ("raw_transcription", "transcription")


def fleurs_corpus(
    root: str | os.PathLike[str],
    sources: Sequence[str],
    targets: Sequence[str] = (),
    splits: Sequence[str] = (),
    column: str = "raw_transcription",
) -> Corpus:
    """Describes some language pairs of FLEURS.

    Args:
        root: folder of the languages' folders.
        sources: languages of the speech, such as "fr_fr".
        targets: languages of the translations; a language is not paired with itself.
        splits: of `SPLITS`; none: those that the first source has.
        column: of `TEXT_COLUMNS`, for transcripts and translations.

    Raises:
        FileNotFoundError: a table is missing, or recordings are not unpacked.
        ValueError: there is no pair, a language is named twice, or a split or column is unknown.
    """
    folder = Path(root).resolve()
    for names in (sources, targets):
        # Shells complete names of folders with a slash.
        if len(set(names)) < len(names) or any("/" in name for name in names):
            raise ValueError(
                f"expected every language once, by the name of its folder, found {list(names)}"
            )
    pairs = [(source, target) for target in targets for source in sources if source != target]
    pairs = pairs or [(source, "") for source in sources if not targets]
    if not pairs:
        raise ValueError(f"expected pairs of languages, found {list(sources)} and {list(targets)}")
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"expected splits of {', '.join(SPLITS)}, found {unknown[0]!r}")
    if column not in TEXT_COLUMNS:
        raise ValueError(f"expected a column of {', '.join(TEXT_COLUMNS)}, found {column!r}")
    first = folder / sources[0]
    wanted = [
        split
        for split in SPLITS
        if split in splits or not splits and (first / f"{split}.tsv").is_file()
    ]
    if not wanted:
        raise FileNotFoundError(f"{first}: expected tables such as test.tsv, found none")
    for split in wanted:
        for language in {*sources, *targets}:
            table = folder / language / f"{split}.tsv"
            if not table.is_file():
                raise FileNotFoundError(f"{table}: expected a table of FLEURS, found no file")
        for source in sources:
            _recordings(folder / source, split)
    return Corpus(
        name="FLEURS",
        options={
            "root": str(folder),
            "sources": list(sources),
            "targets": list(targets),
            "splits": wanted,
            "column": column,
        },
        splits={split: functools.partial(_rows, folder, pairs, split, column) for split in wanted},
    )


def language_tag(folder: str) -> str:
    """The language of a folder: "fr" of "fr_fr"."""
    return folder.partition("_")[0]


def _recordings(language: Path, split: str) -> Path:
    """The folder of a split's recordings; raises FileNotFoundError."""
    for folder in (language / "audio" / split, language / split):
        if folder.is_dir():
            return folder
    archive = language / "audio" / f"{split}.tar.gz"
    found = f"an archive: tar -xzf {archive.name}" if archive.is_file() else "no such folder"
    raise FileNotFoundError(
        f"{language / 'audio' / split}: expected unpacked recordings, found {found}"
    )


def _read(table: Path) -> Iterator[tuple[int, dict[str, str] | BadLine]]:
    """Yields the lines of a table, counted from 1, and their cells by column."""
    for number, line in read_numbered(table):
        cells = line.split("\t")
        if len(cells) == len(COLUMNS):
            yield number, dict(zip(COLUMNS, cells))
        else:
            reason = f"wrong number of cells: expected {len(COLUMNS)}, found {len(cells)}"
            yield number, BadLine(reason)


def _rows(
    root: Path, pairs: Sequence[tuple[str, str]], split: str, column: str
) -> Iterator[CorpusRow | BadRow]:
    """Recordings of a split, pair by pair; pairs with one target are neighbours."""
    for target, group in itertools.groupby(pairs, key=operator.itemgetter(1)):
        translation = _texts(root / target / f"{split}.tsv", column) if target else None
        for source, _ in group:
            yield from _pair(root / source, split, column, target, translation)


def _texts(table: Path, column: str) -> Callable[[str], list[str] | None]:
    """Sentences of a language by id; of several readings the first with a text counts."""
    return lookup(
        (cells["id"], (cells[column],))
        for _, cells in _read(table)
        if not isinstance(cells, BadLine) and cells[column].strip()
    )


def _pair(
    source: Path,
    split: str,
    column: str,
    target: str,
    translation: Callable[[str], list[str] | None] | None,
) -> Iterator[CorpusRow | BadRow]:
    """Recordings of a language with their translations into another."""
    src_lang, tgt_lang = language_tag(source.name), language_tag(target)
    suffix = f"-{tgt_lang}" if target else ""
    folder = _recordings(source, split)
    for number, cells in _read(source / f"{split}.tsv"):
        if isinstance(cells, BadLine):
            place = f"{source.name}/{split}.tsv:{number}{suffix}"
            yield BadRow(place, cells.reason, src_lang, tgt_lang)
            continue
        file_name = cells["file_name"]
        name = f"{src_lang}-{file_name.removesuffix('.wav')}{suffix}"
        text = translation(cells["id"]) if translation else [""]
        if "/" in file_name or not file_name.endswith(".wav"):
            reason = f"no name of a recording: expected NAME.wav, found {file_name!a}"
        elif text is None:
            reason = f"no translation: sentence {cells['id']} is not in {target}/{split}.tsv"
        else:
            yield CorpusRow(
                id=name,
                place=Place(str(folder / file_name)),
                src_text=cells[column],
                src_lang=src_lang,
                tgt_text=text[0],
                tgt_lang=tgt_lang,
            )
            continue
        yield BadRow(name, reason, src_lang, tgt_lang)


def prepare_fleurs(
    root: str | os.PathLike[str],
    sources: Sequence[str],
    out_dir: str | os.PathLike[str],
    targets: Sequence[str] = (),
    splits: Sequence[str] = (),
    column: str = "raw_transcription",
    preparation: Preparation = Preparation(),  # noqa: B008 - frozen
    progress: bool = False,
) -> Summary:
    """Writes `train.tsv`, `dev.tsv`, `test.tsv`; see `fleurs_corpus` and `prepare_corpus`."""
    corpus = fleurs_corpus(root, sources, targets, splits, column)
    return prepare_corpus(corpus, out_dir, preparation, progress)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = corpus_parser("prep_fleurs", __doc__)
    add = parser.add_argument
    add("--root", required=True, metavar="DIR", help="folder of the languages' folders")
    add(
        "--sources", nargs="+", required=True, metavar="LANG", help="languages of the speech: fr_fr"
    )
    add(
        "--targets",
        nargs="+",
        default=[],
        metavar="LANG",
        help="languages of the translations: en_us",
    )
    add("--splits", nargs="+", choices=SPLITS, default=[], help="only these (all that are there)")
    add("--column", choices=TEXT_COLUMNS, default="raw_transcription", help="of the texts")
    run_command(
        parser,
        lambda options: fleurs_corpus(
            options.root, options.sources, options.targets, options.splits, options.column
        ),
        argv,
    )


if __name__ == "__main__":
    main()
