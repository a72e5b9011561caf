r"""Writes manifests of any table of audio paths and texts, whose columns you name.

    $ head -2 train.csv
    file,text,english
    clips/1.mp3,"Dydd da, bawb.","Good day, all."
    $ python -m data_prep.prep_tsv --tables train=train.csv dev=dev.csv --separator comma --quoting minimal \
        --audio file --src-text text --src-lang =cy --tgt-text english --tgt-lang =en --out data

An option names a column, or after an equals sign gives the cell of all rows. Paths start from --audio-root,
by default the table's folder; `archive.zip:offset:length` is read too. --start and --duration (seconds) cut
an utterance out of a recording.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.clips import Place
from data_prep.command import corpus_parser, run_command
from data_prep.corpus import BadRow, Corpus, CorpusRow
from data_prep.outcome import DROPPED, DUPLICATES
from data_prep.preparation import Preparation, prepare_corpus
from data_prep.summary import Summary
from data_prep.tables import QUOTINGS, BadLine, read_table

SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";"}
# dropped.tsv and duplicates.tsv are other files; a slash would lead out of the output folder.
_NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Columns:
    """Where the cells of a manifest come from: names of columns, or "=CELL" for all rows.

    Attributes:
        audio: path of a recording.
        src_lang: source language.
        src_text: transcript; empty if there is none.
        tgt_text: translation; empty if there is none.
        tgt_lang: target language; empty if there is none.
        id: of the utterance; empty: SPLIT-LINE.
        speaker: empty if unknown.
        start: seconds; empty: from the beginning.
        duration: seconds; empty: to the end.
    """

    audio: str
    src_lang: str
    src_text: str = ""
    tgt_text: str = ""
    tgt_lang: str = ""
    id: str = ""
    speaker: str = ""
    start: str = ""
    duration: str = ""


def tsv_corpus(
    tables: Mapping[str, str | os.PathLike[str]],
    columns: Columns,
    audio_root: str | os.PathLike[str] | None = None,
    separator: str = "\t",
    quoting: str = "auto",
) -> Corpus:
    """Describes tables.

    Args:
        tables: name of a manifest → table.
        columns: their columns.
        audio_root: folder that relative paths of audio start from; None: the table's.
        separator: between cells.
        quoting: see `data_prep.tables.read_table`.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: a manifest would be called as no file of the output folder can be, columns of texts or
            languages are not named, or a table lacks one.
    """
    if bool(columns.tgt_text) != bool(columns.tgt_lang):
        raise ValueError(
            f"expected both --tgt-text and --tgt-lang (=en for all rows), or neither, found "
            f"{columns.tgt_text!r} and {columns.tgt_lang!r}"
        )
    if not columns.src_text and not columns.tgt_text:
        raise ValueError("expected --src-text, --tgt-text or both, found neither")
    for split in tables:
        if not _NAME.fullmatch(split) or f"{split}.tsv" in (DROPPED, DUPLICATES):
            raise ValueError(f"expected the name of a manifest, such as train, found {split!r}")
    paths = {split: Path(table).resolve() for split, table in tables.items()}
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a table, found no such file")
    named = asdict(columns)
    needed = [column for column in named.values() if column and not column.startswith("=")]
    for path in paths.values():
        try:
            next(read_table(path, needed, quoting, separator), None)
        except ValueError as error:
            raise ValueError(f"{error}; a cell that all rows have is written =CELL") from error

    def rows_of(split: str) -> Iterator[CorpusRow | BadRow]:
        path = paths[split]
        root = path.parent if audio_root is None else Path(audio_root).resolve()
        for number, cells in read_table(path, needed, quoting, separator):
            if isinstance(cells, BadLine):
                yield BadRow(f"{path.name}:{number}", cells.reason)
                continue
            value = {
                what: column[1:] if column.startswith("=") else cells[column] if column else ""
                for what, column in named.items()
            }
            name = value["id"] if columns.id else f"{split}-{number}"
            try:
                start = _seconds(value["start"]) if columns.start else 0.0
                duration = _seconds(value["duration"]) if columns.duration else None
            except ValueError as error:
                yield BadRow(name, f"no time in seconds: {error}")
                continue
            if not value["audio"]:
                yield BadRow(name, "no path of audio")
                continue
            yield CorpusRow(
                id=name,
                place=Place(os.path.join(root, value["audio"]), start, duration),
                src_text=value["src_text"],
                src_lang=value["src_lang"],
                tgt_text=value["tgt_text"],
                tgt_lang=value["tgt_lang"],
                speaker=value["speaker"],
            )

    return Corpus(
        name="tables",
        options={
            "tables": {split: str(path) for split, path in paths.items()},
            "columns": named,
            "audio_root": str(Path(audio_root).resolve()) if audio_root else "",
            "separator": separator,
            "quoting": quoting,
        },
        splits={split: functools.partial(rows_of, split) for split in paths},
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not math.isfinite(seconds):
        raise ValueError(text)
    return seconds


def prepare_tsv(
    tables: Mapping[str, str | os.PathLike[str]],
    columns: Columns,
    out_dir: str | os.PathLike[str],
    audio_root: str | os.PathLike[str] | None = None,
    separator: str = "\t",
    quoting: str = "auto",
    preparation: Preparation = Preparation(),  # noqa: B008 - frozen
    progress: bool = False,
) -> Summary:
    """Writes a manifest for every table; see `tsv_corpus` and `prepare_corpus`."""
    corpus = tsv_corpus(tables, columns, audio_root, separator, quoting)
    return prepare_corpus(corpus, out_dir, preparation, progress)


def _named_table(text: str) -> tuple[str, str]:
    """Splits "train=FILE"; without a name it is the file's own."""
    name, equals, path = text.partition("=")
    return (name, path) if equals else (Path(text).stem, text)


def _unique_tables(tables: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Tables by name; raises ValueError if two have the same."""
    names = [name for name, _ in tables]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--tables: expected every name once, found {twice[0]} again")
    return dict(tables)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = corpus_parser("prep_tsv", __doc__)
    add = parser.add_argument
    add(
        "--tables",
        nargs="+",
        required=True,
        type=_named_table,
        metavar="SPLIT=FILE",
        help="names of manifests and the tables they come from",
    )
    for name, required, text in (
        ("audio", True, "path of the recording"),
        ("src-lang", True, "source language"),
        ("src-text", False, "transcript"),
        ("tgt-text", False, "translation"),
        ("tgt-lang", False, "target language"),
        ("id", False, "id of the utterance (SPLIT-LINE)"),
        ("speaker", False, "speaker"),
        ("start", False, "where the utterance begins, in seconds (0)"),
        ("duration", False, "its length in seconds (to the end)"),
    ):
        add(f"--{name}", required=required, default="", metavar="COLUMN", help=text)
    add("--audio-root", metavar="DIR", help="folder that paths start from (the table's)")
    add("--separator", choices=SEPARATORS, default="tab", help="between cells (tab)")
    add("--quoting", choices=QUOTINGS, default="auto", help="of cells (auto: what the table has)")
    run_command(
        parser,
        lambda options: tsv_corpus(
            _unique_tables(options.tables),
            Columns(**{name: getattr(options, name) for name in Columns.__dataclass_fields__}),
            options.audio_root,
            SEPARATORS[options.separator],
            options.quoting,
        ),
        argv,
    )


if __name__ == "__main__":
    main()
