"""Finds missing audio before training starts, instead of hours into it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat

from tqdm import tqdm

from fairseq_samu.data.audio import split_slice
from fairseq_samu.data.manifest import Manifest
from fairseq_samu.data.manifest_index import ManifestError

#: A manifest with that many rows gets a progress bar, and is checked once.
MANY_ROWS = 100_000

#: Rows read from the manifest at a time.
BLOCK_ROWS = 1 << 12


def check_audio_present(manifest: Manifest, root: str) -> None:
    """Check that every row's file exists, and that its archive is long enough for its slice.

    Nothing is decoded. A manifest of many rows that passed leaves a mark beside its index and is not
    checked again until it changes: a million files take seconds to look up, in every rank.

    Args:
        manifest: the rows.
        root: folder that relative audio paths start from.

    Raises:
        ManifestError: a row without audio; the message names the first and counts them.
    """
    mark = _mark(manifest, root)
    if len(manifest) >= MANY_ROWS and os.path.exists(mark):
        return
    archives: dict[str, int] = {}  # only they come again: a million paths would be kept for nothing
    missing = 0
    first: str | None = None
    rows = len(manifest)
    with tqdm(desc="audio files", total=rows, unit="row", disable=rows < MANY_ROWS) as progress:
        for begin in range(0, rows, BLOCK_ROWS):
            end = min(begin + BLOCK_ROWS, rows)
            absent = {}
            for spec in manifest.distinct_cells("audio", begin, end):
                path, offset, length = split_slice(spec)
                path = os.path.join(root, path)
                size = archives[path] if path in archives else _size(path)
                if length > 0:
                    archives[path] = size
                needed = max(offset + length, 1)
                if size < 0:
                    absent[spec] = f"no such file: {path}"
                elif size < needed:
                    absent[spec] = f"{size} bytes in {path}, of which it needs {needed}"
            if absent:
                specs = manifest.cells("audio", begin, end)
                found = [row for row, spec in enumerate(specs) if spec in absent]
                missing += len(found)
                if first is None:
                    location, spec = manifest.location(begin + found[0]), specs[found[0]]
                    first = f"{location}: expected the audio {spec}, found {absent[spec]}"
            progress.update(end - begin)
    if first is not None:
        raise ManifestError(f"{first} ({missing} of {rows} rows have no audio)")
    with contextlib.suppress(OSError):  # a read-only folder: the check runs again next time
        os.makedirs(os.path.dirname(mark), exist_ok=True)
        with open(mark, "w", encoding="utf-8"):
            pass


def _size(path: str) -> int:
    """Bytes of a file; −1 if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _mark(manifest: Manifest, root: str) -> str:
    """File whose existence says that this version of the manifest passed with this root."""
    status = os.stat(manifest.path)
    key = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {os.path.realpath(root)}"
    folder, name = os.path.split(manifest.path)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return os.path.join(folder, f".{name}.index", f"audio_present_{digest}")
