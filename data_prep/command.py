"""The command line that all corpora share: its options, and what becomes of errors."""

from __future__ import annotations

import argparse
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.clips import ClipRules
from data_prep.corpus import Corpus
from data_prep.outcome import DUPLICATES, is_finished
from data_prep.preparation import Preparation, prepare_corpus
from data_prep.text_rules import TEXTS, TextRules

_EPILOG = """\
An interrupted command goes on where it was, also after a crash: run it again. --out then has manifests
SPLIT.tsv, archives SPLIT.zip of packed speech, dropped.tsv with every row that cannot be used and why,
duplicates.tsv with rows that splits share, if there are any, summary.md, summary.json. Exit status: 0 done,
1 the corpus or the disk, 2 the command line, 130 interrupted.

Many machines: run the command with --shard 0/8, --shard 1/8, … on the same --out (in a Slurm array job
--shard $SLURM_ARRAY_TASK_ID/8), then: python -m data_prep.merge_shards --out DIR
"""


def corpus_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every corpus.

    Args:
        module: of the command, such as "prep_tsv".
        description: its docstring.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep.{module}",
        description=description,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = parser.add_argument_group("options of every corpus")
    add = common.add_argument
    add("--out", required=True, metavar="DIR", help="folder to write to, of this corpus alone")
    add(
        "--pack",
        choices=("flac", "wav"),
        default="",
        help="put all speech into SPLIT.zip at 16 kHz; without it whole files stay where they are, and only "
        "segments of recordings are packed, as flac",
    )
    for name, text in (
        ("moses", "normalise punctuation as Moses does"),
        ("lowercase", "make lower case"),
        ("no-punctuation", "remove punctuation, but not the apostrophes and hyphens inside words"),
    ):
        add(
            f"--{name}",
            nargs="+",
            choices=TEXTS,
            default=[],
            help=f"{text}: transcripts, translations",
        )
    add(
        "--min-seconds",
        type=float,
        default=ClipRules.min_seconds,
        metavar="S",
        help="drop shorter utterances (%(default)s)",
    )
    add(
        "--max-seconds",
        type=float,
        default=ClipRules.max_seconds,
        metavar="S",
        help="drop longer utterances (%(default)s)",
    )
    add(
        "--headers-only",
        action="store_true",
        help="read the lengths of whole files from their headers: quick, but files that were cut short and "
        "equal speech are not found",
    )
    add(
        "--max-dropped",
        type=share,
        default=Preparation.max_dropped,
        metavar="X",
        help="fail if more of a split is unusable: 0.01 or 1%% (0.01)",
    )
    add("--workers", type=int, default=0, metavar="N", help="processes (0: one a core)")
    add(
        "--shard",
        type=shard,
        default=(0, 1),
        metavar="I/N",
        help="prepare only part I of N, 0 <= I < N; see below",
    )
    return parser


def share(text: str) -> float:
    """A share, "0.01" or "1%"."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def shard(text: str) -> tuple[int, int]:
    """A part of the work, "0/8"."""
    part, _, parts = text.partition("/")
    return int(part), int(parts)


def preparation_of(options: argparse.Namespace) -> Preparation:
    """What the common options say.

    Raises:
        ValueError: a value is out of range.
    """
    return Preparation(
        text=TextRules(
            tuple(options.moses), tuple(options.lowercase), tuple(options.no_punctuation)
        ),
        clips=ClipRules(
            options.pack, options.min_seconds, options.max_seconds, options.headers_only
        ),
        max_dropped=options.max_dropped,
        workers=options.workers,
        shard=options.shard,
    )


def where(error: Exception, out: str) -> str:
    """What an error message lacks: a full disk says so of an open file without its name."""
    return f": {out}" if isinstance(error, OSError) and error.errno and not error.filename else ""


def run_command(
    parser: argparse.ArgumentParser,
    make_corpus: Callable[[argparse.Namespace], Corpus],
    argv: Sequence[str] | None = None,
) -> None:
    """Prepares a corpus as the command line says; an error becomes one line and the exit status.

    Args:
        parser: of `corpus_parser`, with the options of the corpus.
        make_corpus: the corpus that the options describe.
        argv: the arguments, by default those of the process.
    """
    options = parser.parse_args(argv)
    try:
        preparation = preparation_of(options)
    except ValueError as error:
        parser.error(str(error))
    begin = time.monotonic()
    finished = is_finished(Path(options.out))
    try:
        summary = prepare_corpus(make_corpus(options), options.out, preparation, progress=True)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who presses again shall not see a traceback
        parser.exit(130, "interrupted: the same command goes on\n")
    except (ModuleNotFoundError, OSError, RuntimeError, ValueError) as error:
        parser.exit(1, f"error: {error}{where(error, options.out)}\n")
    for name, split in summary.splits.items():
        print(f"{name}: {split}")
    # A name that is not UTF-8 cannot be printed as it is.
    out = str(options.out).encode("utf-8", "backslashreplace").decode()
    part, parts = preparation.shard
    if finished:
        print(f"finished before, nothing was done: to prepare the corpus anew, remove {out}")
    elif parts > 1:
        print(f"part {part} of {parts}, {time.monotonic() - begin:.1f} s; when all are done:")
        print(f"python -m data_prep.merge_shards --out {shlex.quote(out)}")
    else:
        for remark in summary.remarks():
            print(remark)
        if summary.duplicates:
            print(f"{out}/{DUPLICATES} lists what splits share")
        print(f"{time.monotonic() - begin:.1f} s; {out}/summary.md has more")
