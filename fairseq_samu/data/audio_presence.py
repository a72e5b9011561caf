"""Finds missing audio before training starts, instead of hours into it."""

from __future__ import annotations

import contextlib
import hashlib
import os

from tqdm import tqdm

from fairseq_samu.data.audio import split_slice
from fairseq_samu.data.manifest import Manifest
from fairseq_samu.data.manifest_index import ManifestError

#: A manifest with that many rows gets a progress bar, and is checked once.
MANY_ROWS = 100_000


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
    sizes: dict[str, int] = {}
    missing = 0
    first: str | None = None
    rows = range(len(manifest))
    for row in tqdm(rows, desc="audio files", unit="row", disable=len(rows) < MANY_ROWS):
        spec = manifest.cell(row, "audio")
        path, offset, length = split_slice(spec)
        path = os.path.join(root, path)
        if path not in sizes:
            sizes[path] = os.path.getsize(path) if os.path.isfile(path) else -1
        needed = offset + length
        if sizes[path] < max(needed, 1):
            missing += 1
            if first is None:
                found = (
                    f"no such file: {path}"
                    if sizes[path] < 0
                    else f"{sizes[path]} bytes in {path}, of which it needs {max(needed, 1)}"
                )
                first = f"{manifest.location(row)}: expected the audio {spec}, found {found}"
        if length == 0:
            # Only archives come again; a million paths would be kept for nothing.
            del sizes[path]
    if first is not None:
        raise ManifestError(f"{first} ({missing} of {len(manifest)} rows have no audio)")
    with contextlib.suppress(OSError):  # a read-only folder: the check runs again next time
        os.makedirs(os.path.dirname(mark), exist_ok=True)
        with open(mark, "w", encoding="utf-8"):
            pass


def _mark(manifest: Manifest, root: str) -> str:
    """File whose existence says that this version of the manifest passed with this root."""
    status = os.stat(manifest.path)
    key = f"{status.st_size} {status.st_mtime_ns} {os.path.realpath(root)}"
    folder, name = os.path.split(manifest.path)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return os.path.join(folder, f".{name}.index", f"audio_present_{digest}")
