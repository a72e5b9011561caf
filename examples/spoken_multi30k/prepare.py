"""Divide the captions of Multi30k into what is spoken in which language.

    python examples/spoken_multi30k/prepare.py --multi30k multi30k --out text

Reads `{train,val,test_2016_flickr}.{de,fr,cs,en}`, one caption a line, compressed (`.gz`) or not, and
writes the text that `python -m data_prep.prep_espeak` speaks:

    train.{de,fr,cs}-en.*  two of the three languages of every line, so that nothing is spoken that a
                           listener could line up in all three
    dev.*                  the first lines of val, in all languages
    test.*                 test_2016_flickr, in all languages
    test_unseen_voices.*   the same again, for other voices
"""

import argparse
import gzip
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

SOURCES = ("de", "fr", "cs")
TARGET = "en"


def read_captions(folder: Path, split: str) -> Dict[str, List[str]]:
    """Read a split in all four languages, with one space for any white space inside a caption.

    Args:
        folder: where the files lie.
        split: their name without the language.

    Returns:
        Language → captions, equal numbers being translations of each other.

    Raises:
        FileNotFoundError: a language is missing.
        ValueError: an empty line, or files of different lengths.
    """
    captions: Dict[str, List[str]] = {}
    for language in (*SOURCES, TARGET):
        path = folder / f"{split}.{language}"
        compressed = path.with_name(f"{path.name}.gz")
        if not path.is_file() and not compressed.is_file():
            raise FileNotFoundError(f"expected {path} or {compressed}, found neither")
        text = path.read_bytes() if path.is_file() else gzip.decompress(compressed.read_bytes())
        # Lines end at "\n" alone: captions hold tabs and other spaces.
        lines = text.decode("utf-8").rstrip("\n").split("\n")
        captions[language] = [" ".join(line.split()) for line in lines]
        if "" in captions[language]:
            number = captions[language].index("") + 1
            raise ValueError(f"{path}:{number}: expected a caption, found an empty line")
    if len({len(lines) for lines in captions.values()}) > 1:
        found = ", ".join(f"{language} {len(lines)}" for language, lines in captions.items())
        raise ValueError(f"{folder}: expected {split} with as many lines a language, found {found}")
    return captions


def prepare_multi30k(multi30k: Path, out: Path, dev_lines: int, test_lines: int) -> None:
    """Write the text of all splits.

    Args:
        multi30k: folder of the captions.
        out: folder to write to.
        dev_lines: how many lines of ``val`` make ``dev``.
        test_lines: how many lines of ``test_2016_flickr`` make the test splits.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: captions that do not go together.
    """
    out.mkdir(parents=True, exist_ok=True)
    train = read_captions(multi30k, "train")
    for place, source in enumerate(SOURCES):
        spoken = [
            i
            for i, caption in enumerate(train[source])
            # One German caption is "@@", which nobody can speak.
            if i % len(SOURCES) != place and any(map(str.isalnum, caption))
        ]
        for language in (source, TARGET):
            lines = [train[language][i] for i in spoken]
            _write(out / f"train.{source}-{TARGET}.{language}", lines)
    dev = read_captions(multi30k, "val")
    test = read_captions(multi30k, "test_2016_flickr")
    for language in (*SOURCES, TARGET):
        _write(out / f"dev.{language}", dev[language][:dev_lines])
        for split in ("test", "test_unseen_voices"):
            _write(out / f"{split}.{language}", test[language][:test_lines])


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--multi30k", type=Path, required=True, help="folder of the captions")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--dev-lines", type=int, default=200, help="lines of val (200)")
    parser.add_argument(
        "--test-lines", type=int, default=1000, help="lines of test_2016_flickr (1000, all)"
    )
    args = parser.parse_args(argv)
    try:
        prepare_multi30k(args.multi30k, args.out, args.dev_lines, args.test_lines)
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
