"""Audio archives: FLAC files side by side in one uncompressed zip, read by offset and length.

Hundreds of thousands of small files are slow to list, copy and delete; one archive is not, and any
zip program still opens it. Readers need no zip code: `archive.zip:offset:length` names the bytes of
one whole FLAC file.
"""

from __future__ import annotations

import io
import os
import zipfile
from types import TracebackType

import numpy as np
import numpy.typing as npt
import soundfile

from data_prep.atomic import ReplacedFile

SAMPLE_RATE = 16_000
# The earliest time a zip can hold, for the same bytes whenever the archive is made.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def encode_flac(wave: npt.NDArray[np.float32]) -> bytes:
    """Encodes speech as FLAC, 16 bits.

    Args:
        wave: shape (S,), one channel at 16 kHz in the range [-1, 1]; what exceeds it is clipped.

    Raises:
        ValueError: the wave is empty, has channels, or holds something else than finite numbers.
    """
    if wave.ndim != 1 or wave.size == 0:
        raise ValueError(f"expected a wave of shape (S,), S > 0, found shape {wave.shape}")
    if not np.isfinite(wave).all():
        raise ValueError("expected finite samples, found NaN or infinity")
    samples = np.clip(np.rint(wave * 32_768.0), -32_768, 32_767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


class FlacArchive:
    """Writes an archive member by member; it appears when the `with` block ends without an error.

    The same members give the same bytes. It may grow beyond 4 GB (zip64). The table of contents
    stays in memory until the end: about 400 bytes a member.

    Args:
        path: the file to write, `NAME.zip`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens a temporary file beside `path`."""
        self._replaced = ReplacedFile(path)
        self._zip = zipfile.ZipFile(self._replaced.temporary, "w", zipfile.ZIP_STORED)

    def add(self, name: str, flac: bytes) -> str:
        """Appends one encoded file.

        Args:
            name: its name in the archive, for people who unpack it.
            flac: a whole encoded file, see `encode_flac`.

        Returns:
            `NAME.zip:offset:length`, where `offset` is that of the first byte of the FLAC file, not
            of its zip header.
        """
        member = zipfile.ZipInfo(name, date_time=ZIP_TIME)
        member.create_system = 3  # otherwise the byte depends on the operating system
        member.external_attr = 0o644 << 16
        member.file_size = len(flac)
        self._zip.writestr(member, flac)
        offset = member.header_offset + len(member.FileHeader(zip64=False))
        return f"{self._replaced.path.name}:{offset}:{len(flac)}"

    def __enter__(self) -> FlacArchive:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keeps the archive, or removes it after an error."""
        try:
            self._zip.close()
            if kind is None:
                self._replaced.commit()
        finally:
            self._replaced.discard()
