"""Which rows of a checkpoint's embedding a pruned dictionary keeps."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KeptRows:
    """Rows of an embedding.

    Attributes:
        rows: the row of every symbol of the dictionary, the special ones included.
        of: rows of the whole embedding.
    """

    rows: list[int]
    of: int


def read_kept_rows(dictionary_path: Path) -> KeptRows | None:
    """Read ``dict.rows.json`` beside ``dict.txt``, as ``data_prep.build_vocab --prune-to`` writes it.

    Args:
        dictionary_path: the dictionary.

    Returns:
        The rows, or None without such a file.

    Raises:
        ValueError: the file belongs to another dictionary.
    """
    path = dictionary_path.with_suffix(".rows.json")
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    found = hashlib.sha256(dictionary_path.read_bytes()).hexdigest()
    if content["dictionary_sha256"] != found:
        raise ValueError(
            f"{path}: expected to be written together with {dictionary_path}, found that of another "
            "dictionary; run `python -m data_prep.build_vocab --pretrained … --prune-to …` again"
        )
    return KeptRows(content["rows"], content["checkpoint_rows"])
