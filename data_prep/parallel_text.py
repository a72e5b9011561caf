"""Parallel text: files of one sentence per line; equal line numbers are translations.

`{split}.{source}-{target}.{language}` holds the sentences of one language pair,
`{split}.{language}` sentences that every pair shares; either may be compressed (`.gz`).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from data_prep.manifest import CONTROL_CHARACTER, decode_line


class ParallelText(NamedTuple):
    """The sentences of one source language and their translations.

    Attributes:
        name: what tells it from the others of its split, "es-en" or, if shared, "es".
        source: source language.
        source_path: file of the source sentences.
        targets: (target language, file) of every translation.
    """

    name: str
    source: str
    source_path: Path
    targets: tuple[tuple[str, Path], ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, the source's first."""
        return (self.source_path, *(path for _, path in self.targets))


def find_parallel_texts(
    folder: Path, split: str, sources: Sequence[str], targets: Sequence[str]
) -> list[ParallelText]:
    """Finds the files of a split.

    Files of a pair are taken before shared ones. Several targets of a source that has shared files
    become one text, so that each of its sentences is spoken once.

    Raises:
        FileNotFoundError: a language has no file.
    """
    texts = []
    for source in sources:
        shared = []
        for target in targets:
            pair = f"{source}-{target}"
            source_path = _existing(folder / f"{split}.{pair}.{source}")
            target_path = _existing(folder / f"{split}.{pair}.{target}")
            if source_path and target_path:
                texts.append(ParallelText(pair, source, source_path, ((target, target_path),)))
            elif source_path or target_path:
                missing = target if source_path else source
                raise FileNotFoundError(
                    f"expected {folder / f'{split}.{pair}.{missing}'} (or .gz) beside "
                    f"{source_path or target_path}, found no such file"
                )
            else:
                shared.append(target)
        if shared:
            found = [_existing(folder / f"{split}.{language}") for language in (source, *shared)]
            for language, path in zip((source, *shared), found):
                if path is None:
                    raise FileNotFoundError(
                        f"expected {folder / f'{split}.{language}'} or "
                        f"{folder / f'{split}.{source}-{shared[0]}.{language}'} (or .gz), "
                        "found no such file"
                    )
            source_path, *target_paths = (path for path in found if path)
            texts.append(
                ParallelText(source, source, source_path, tuple(zip(shared, target_paths)))
            )
    return texts


def _existing(path: Path) -> Path | None:
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.is_file():
            return candidate
    return None


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text file, compressed or not, without spaces at their ends.

    Raises:
        ValueError: a line is empty, is not UTF-8 or holds a control character.
    """
    for number, line in enumerate(decoded_lines(path), start=1):
        text = line.strip()
        if not text:
            raise ValueError(f"{path}:{number}: expected a sentence, found an empty line")
        if CONTROL_CHARACTER.search(text):
            raise ValueError(f"{path}:{number}: expected one sentence, found {text!r}")
        yield text


def decoded_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text file, compressed or not, as they are.

    Raises:
        ValueError: a line is not UTF-8, or the file is no whole gzip file.
    """
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield decode_line(line, number)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: expected UTF-8, found {error}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip file, found: {error}") from error


def count_sentences(text: ParallelText) -> int:
    """Reads all files once.

    Returns:
        How many sentences each has.

    Raises:
        ValueError: a line is wrong, see `read_lines`; the files differ in length or are empty; or a
            source sentence has neither letter nor digit, which no voice can speak.
    """
    count = 0
    for count, lines in enumerate(zip_longest(*map(read_lines, text.paths)), start=1):
        if None in lines:
            ended = text.paths[lines.index(None)]
            others = [str(path) for path, line in zip(text.paths, lines) if line is not None]
            raise ValueError(
                f"{ended}: expected as many lines as {', '.join(others)}, found {count - 1}"
            )
        if not any(character.isalnum() for character in lines[0]):
            raise ValueError(
                f"{text.source_path}:{count}: expected something to speak, found {lines[0]!r}"
            )
    if count == 0:
        raise ValueError(f"{text.source_path}: expected sentences, found an empty file")
    return count
