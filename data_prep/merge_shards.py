r"""Makes one corpus of the parts that `--shard` prepared.

    $ for i in 0 1 2 3; do python -m data_prep.prep_tsv … --out data --shard $i/4 & done; wait
    $ python -m data_prep.merge_shards --out data

The rows come in the order of the corpus, as without parts. Archives stay apart, SPLIT.I-of-N.zip: hundreds of
gigabytes need not be copied.
"""

from __future__ import annotations

import argparse
import heapq
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from data_prep.command import share, where
from data_prep.journal import Journal, Progress
from data_prep.outcome import (
    DUPLICATES,
    WORK,
    is_finished,
    remove_work,
    set_work_aside,
    write_outcome,
)
from data_prep.preparation import Preparation
from data_prep.summary import Summary


def merge_shards(
    out_dir: str | os.PathLike[str], max_dropped: float = Preparation.max_dropped
) -> Summary:
    """Writes manifests, dropped.tsv and summary of all parts, which then are gone; once more changes nothing.

    Args:
        out_dir: `--out` of the parts.
        max_dropped: largest share of a split's rows that may be unusable, 0 to 1.

    Raises:
        FileNotFoundError: there are no parts, or some are missing.
        ValueError: parts are incomplete or of different preparations, or too many rows are unusable; the
            share is out of range.
    """
    out = Path(out_dir)
    Preparation(max_dropped=max_dropped)
    found = {path.parent.name for path in (out / WORK).glob("*-of-*/journal.sqlite")}
    if not found and is_finished(out):
        return Summary.from_json((out / "summary.json").read_text(encoding="utf-8"))
    if not found:
        raise FileNotFoundError(f"{out}: expected parts that --shard prepared, found none")
    count = max(int(name.split("-of-")[1]) for name in found)
    names = [f"{i}-of-{count}" for i in range(count)]
    if missing := [name for name in names if name not in found]:
        raise FileNotFoundError(
            f"{out}: expected {count} parts, found none of {', '.join(missing)}: run them first"
        )
    with ExitStack() as stack:
        shards = [
            stack.enter_context(Journal(out / WORK / name / "journal.sqlite")) for name in names
        ]
        # In a file that vanishes: a merge that is interrupted begins anew.
        merged = stack.enter_context(Journal("", shards[0].meta))
        for name, shard in zip(names, shards):
            if shard.meta != merged.meta:
                raise ValueError(
                    f"{out / WORK / name}: expected the preparation of part 0, found another one"
                )
            for split in merged.meta["splits"]:
                if not shard.progress(split).complete:
                    raise ValueError(
                        f"{out / WORK / name}: expected a complete part, {split} is not: run it again"
                    )
        for split in merged.meta["splits"]:
            # Named tuples compare by their first field, the number, which no two rows share.
            for row in heapq.merge(*(shard.rows(split) for shard in shards)):
                merged.add(split, merged.checked(split, row))
            merged.commit(split, Progress(complete=True))
        summary = write_outcome(out, merged, (out / WORK).glob("*/*.zip"), max_dropped)
        set_work_aside(out)
    remove_work(out)
    return summary


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.merge_shards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the parts")
    parser.add_argument(
        "--max-dropped",
        type=share,
        default=Preparation.max_dropped,
        metavar="X",
        help="fail if more of a split is unusable: 0.01 or 1%% (0.01)",
    )
    options = parser.parse_args(argv)
    try:
        summary = merge_shards(options.out, options.max_dropped)
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: the same command begins anew, the parts are there\n")
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}{where(error, options.out)}\n")
    for name, split in summary.splits.items():
        print(f"{name}: {split}")
    for remark in summary.remarks():
        print(remark)
    if summary.duplicates:
        print(f"{options.out}/{DUPLICATES} lists what splits share")
    print(f"{options.out}/summary.md has more")


if __name__ == "__main__":
    main()
