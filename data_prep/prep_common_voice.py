"""Writes manifests of Common Voice: transcribed speech in many languages, for the SAMU stage or recognition.

    $ ls cv-corpus-17.0/cy
    clips  dev.tsv  test.tsv  train.tsv  validated.tsv  …
    $ python -m data_prep.prep_common_voice --common-voice cv-corpus-17.0 --langs cy br --out data

All languages come into one train.tsv, dev.tsv and test.tsv, which have transcripts only: `tgt_text` and
`tgt_lang` are empty; data_prep.asr_manifest makes manifests for recognition of them. Common Voice's train.tsv
has few of its clips; --all-validated trains on all clips of validated.tsv that are neither in dev.tsv nor in
test.tsv. The summary says how many transcripts they share.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.command import corpus_parser, run_command
from data_prep.common_voice import check_folder, clip_id, clip_place, language_of, read_clips
from data_prep.corpus import BadRow, Corpus, CorpusRow
from data_prep.preparation import Preparation, prepare_corpus
from data_prep.summary import Summary
from data_prep.tables import lookup

SPLITS = ("train", "dev", "test")


def common_voice_corpus(
    root: str | os.PathLike[str], langs: Sequence[str], all_validated: bool = False
) -> Corpus:
    """Describes some languages of a release of Common Voice.

    Args:
        root: folder of the languages' folders.
        langs: their names.
        all_validated: train on all validated clips that are not held out.

    Raises:
        FileNotFoundError: a table or the clips are missing.
        ValueError: a language is named twice, or as a path.
    """
    folder = Path(root).resolve()
    # Shells complete names of folders with a slash.
    if any("/" in lang for lang in langs) or len(set(langs)) < len(langs) or not langs:
        raise ValueError(
            f"expected every language once, by the name of its folder, found {list(langs)}"
        )
    train = "validated" if all_validated else "train"
    tables = {"train": f"{train}.tsv", "dev": "dev.tsv", "test": "test.tsv"}
    for lang in langs:
        for table in tables.values():
            check_folder(folder / lang, table)

    def held_out(lang: str) -> Iterator[tuple[str, Sequence[str]]]:
        for split in ("dev", "test"):
            for cells in read_clips(folder / lang / tables[split]):
                if not isinstance(cells, BadRow):
                    yield cells["path"], ()

    def rows_of(split: str) -> Iterator[CorpusRow | BadRow]:
        for lang in langs:
            is_held_out = lookup(held_out(lang) if all_validated and split == "train" else ())
            for cells in read_clips(folder / lang / tables[split]):
                if isinstance(cells, BadRow):
                    yield cells._replace(src_lang=language_of(lang))
                elif is_held_out(cells["path"]) is None:
                    yield CorpusRow(
                        id=clip_id(cells["path"]),
                        place=clip_place(folder / lang, cells["path"]),
                        src_text=cells["sentence"],
                        src_lang=language_of(lang),
                        speaker=cells["client_id"],
                    )

    return Corpus(
        name="Common Voice",
        options={"root": str(folder), "langs": list(langs), "all_validated": all_validated},
        splits={split: functools.partial(rows_of, split) for split in SPLITS},
    )


def prepare_common_voice(
    root: str | os.PathLike[str],
    langs: Sequence[str],
    out_dir: str | os.PathLike[str],
    all_validated: bool = False,
    preparation: Preparation = Preparation(),  # noqa: B008 - frozen
    progress: bool = False,
) -> Summary:
    """Writes `train.tsv`, `dev.tsv`, `test.tsv`; see `common_voice_corpus` and `prepare_corpus`."""
    corpus = common_voice_corpus(root, langs, all_validated)
    return prepare_corpus(corpus, out_dir, preparation, progress)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = corpus_parser("prep_common_voice", __doc__)
    add = parser.add_argument
    add("--common-voice", required=True, metavar="DIR", help="a release, a folder a language")
    add("--langs", nargs="+", required=True, metavar="LANG", help="names of those folders")
    add("--all-validated", action="store_true", help="train on all clips that are not held out")
    run_command(
        parser,
        lambda options: common_voice_corpus(
            options.common_voice, options.langs, options.all_validated
        ),
        argv,
    )


if __name__ == "__main__":
    main()
