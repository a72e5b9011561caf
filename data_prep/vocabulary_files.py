"""Writes a tokenizer and the dictionary that belongs to it, both or neither."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece

from data_prep.atomic import ReplacedFile

# The symbols that every fairseq dictionary begins with and that are not in its file.
SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
# No published vocabulary comes near; a mistyped number would fill the memory.
MAX_SYMBOLS = 10_000_000


class Vocabulary(NamedTuple):
    """What was written.

    Attributes:
        model_path: SentencePiece model.
        dictionary_path: fairseq dictionary.
        pieces: of the model, the special symbols included.
        symbols: lines of the dictionary: pieces without the special symbols, and language tags.
        tags: the language tags.
    """

    model_path: Path
    dictionary_path: Path
    pieces: int
    symbols: int
    tags: tuple[str, ...]

    def __str__(self) -> str:
        """One line for the terminal."""
        return (
            f"{self.model_path}: {self.pieces} pieces; {self.dictionary_path}: {self.symbols} "
            f"symbols, {len(self.tags)} of them language tags"
        )


class KeptRows(NamedTuple):
    """Rows of a checkpoint's embedding that a pruned dictionary keeps.

    Attributes:
        rows: row of every symbol, the special ones included.
        of: rows of the whole embedding.
    """

    rows: list[int]
    of: int


def write_vocabulary(
    out_dir: Path, infix: str, model: bytes, symbols: Sequence[str], kept: KeptRows | None = None
) -> tuple[Path, Path]:
    """Writes `spm<infix>.model` and `dict<infix>.txt`, for a pruned dictionary `dict<infix>.rows.json`.

    Args:
        out_dir: folder to write to.
        infix: in the names of the files.
        model: the SentencePiece model.
        symbols: of the dictionary, without the special ones.
        kept: which rows of a checkpoint's embedding the symbols have; None for all, as they come.

    Returns:
        Paths of model and dictionary.

    Raises:
        FileExistsError: the folder has another model or dictionary of that name.
        ValueError: a symbol that fairseq would read back as another.
    """
    model_file = ReplacedFile(out_dir / f"spm{infix}.model")
    dictionary_file = ReplacedFile(out_dir / f"dict{infix}.txt")
    rows_file = ReplacedFile(out_dir / f"dict{infix}.rows.json")
    try:
        model_file.temporary.write_bytes(model)
        _keep_other(model_file, "model")
        lines = "".join(f"{symbol} 1\n" for symbol in symbols).encode()
        dictionary_file.temporary.write_bytes(lines)
        # A piece that fairseq would read back as another symbol must not go unnoticed.
        if load_dictionary(dictionary_file.temporary) != [*SPECIAL_SYMBOLS, *symbols]:
            raise ValueError("the dictionary does not read back with the numbers of the model")
        _keep_other(dictionary_file, "dictionary")
        # Whenever a run is killed, a dictionary that is there belongs to the other files.
        dictionary_file.path.unlink(missing_ok=True)
        rows_file.path.unlink(missing_ok=True)
        if kept is not None:
            digest = hashlib.sha256(lines).hexdigest()
            content = {"dictionary_sha256": digest, "checkpoint_rows": kept.of, "rows": kept.rows}
            rows_file.temporary.write_text(json.dumps(content), encoding="utf-8")
            rows_file.commit()
        model_file.commit()
        dictionary_file.commit()
    finally:
        for file in (model_file, dictionary_file, rows_file):
            file.discard()
    return model_file.path, dictionary_file.path


def write_numbered_vocabulary(
    model_path: Path, model: bytes, symbols: Sequence[str], special: Mapping[str, int]
) -> Path:
    """Writes a tokenizer and, beside it, `dict.json`, whose special symbols have numbers of their own.

    Args:
        model_path: the tokenizer to write.
        model: its content.
        symbols: of the dictionary, all of them.
        special: numbers of bos, eos, pad and unk.

    Returns:
        Path of the dictionary.

    Raises:
        FileExistsError: the folder has another tokenizer or dictionary of that name.
    """
    model_file = ReplacedFile(model_path)
    dictionary_file = ReplacedFile(model_path.with_name("dict.json"))
    try:
        model_file.temporary.write_bytes(model)
        _keep_other(model_file, "model")
        content = json.dumps({"symbols": symbols, **special}, ensure_ascii=False)
        dictionary_file.temporary.write_text(content, encoding="utf-8")
        _keep_other(dictionary_file, "dictionary")
        # Whenever a run is killed, a dictionary that is there belongs to the other file.
        dictionary_file.path.unlink(missing_ok=True)
        model_file.commit()
        dictionary_file.commit()
    finally:
        model_file.discard()
        dictionary_file.discard()
    return dictionary_file.path


def _keep_other(file: ReplacedFile, what: str) -> None:
    """Refuses to put another file in the place of one that checkpoints may have been trained with.

    Args:
        file: of the vocabulary, written under its hidden name.
        what: it is, for the error.

    Raises:
        FileExistsError: another one is there.
    """
    if file.path.exists() and file.path.read_bytes() != file.temporary.read_bytes():
        raise FileExistsError(
            f"{file.path}: expected no {what} of another vocabulary, found one, which "
            "what was trained with it needs: give another --out, or remove it if nothing was"
        )


def load_sentencepiece(path: Path) -> tuple[bytes, sentencepiece.SentencePieceProcessor]:
    """Reads a SentencePiece model: its file as it is, and the model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no SentencePiece model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a SentencePiece model, found no file")
    serialized = path.read_bytes()
    if not serialized:  # which the library takes for a model
        raise ValueError(f"{path}: not a SentencePiece model (an empty file)")
    try:
        return serialized, sentencepiece.SentencePieceProcessor(model_proto=serialized)
    except RuntimeError as error:
        raise ValueError(f"{path}: not a SentencePiece model ({error})") from error


def load_dictionary(path: Path) -> list[str]:
    """Reads a dictionary as fairseq does; the index in the result is fairseq's number."""
    symbols = list(SPECIAL_SYMBOLS)
    with open(path, encoding="utf-8") as file:
        for line in file:
            symbols.append(line.rstrip().rsplit(" ", 1)[0])
    return symbols


def read_number(folder: Path, config: dict[str, Any], name: str, behind: int = MAX_SYMBOLS) -> int:
    """Reads a number of `config.json`, from 0 on and below `behind`; raises `ValueError` of another."""
    found = config.get(name)
    if not isinstance(found, int) or not 0 <= found < behind:
        raise ValueError(
            f"{folder / 'config.json'}: expected {name}, a number from 0 to {behind - 1}, found {found!r}"
        )
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of the model, found none")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
