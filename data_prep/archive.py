"""Audio archives: encoded files side by side in one uncompressed zip, read by offset and length.

Hundreds of thousands of small files are slow to list, copy and delete; one archive is not, and any
zip program still opens it. Readers need no zip code: `archive.zip:offset:length` names the bytes of
one whole audio file.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile

from data_prep.atomic import ReplacedFile
from data_prep.interrupt import held_back

SAMPLE_RATE = 16_000
# The earliest time a zip can hold, for the same bytes whenever the archive is made.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def encode_flac(wave: npt.NDArray[np.float32]) -> bytes:
    """Encodes speech as FLAC, see `encode_audio`."""
    return encode_audio(wave, "FLAC")


def encode_audio(wave: npt.NDArray[np.float32], container: str) -> bytes:
    """Encodes speech without loss, 16 bits.

    Args:
        wave: shape (S,), one channel at 16 kHz in the range [-1, 1]; what exceeds it is clipped.
        container: "FLAC" or "WAV".

    Raises:
        ValueError: the wave is empty, has channels, or holds something else than finite numbers.
    """
    if wave.ndim != 1 or wave.size == 0:
        raise ValueError(f"expected a wave of shape (S,), S > 0, found shape {wave.shape}")
    if not np.isfinite(wave).all():
        raise ValueError("expected finite samples, found NaN or infinity")
    samples = np.clip(np.rint(wave * 32_768.0), -32_768, 32_767).astype(np.int16)
    buffer = io.BytesIO()
    with held_back():
        soundfile.write(buffer, samples, SAMPLE_RATE, format=container, subtype="PCM_16")
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
        member = _zip_info(name)
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


class Member(NamedTuple):
    """What the table of contents says of a file; `header` is where its zip header starts."""

    header: int
    name: str
    length: int
    crc: int


class ContinuedArchive:
    """An archive that an interrupted run goes on with; its table of contents is kept elsewhere.

    Args:
        path: the growing file.
        size: bytes of it that are known to be good; what follows is removed.

    Raises:
        ValueError: the file has fewer bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Opens it for appending."""
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        found = self._file.seek(0, os.SEEK_END)
        if found < size:
            self._file.close()
            raise ValueError(f"{path}: expected at least {size} bytes, found {found}")
        self._file.truncate(size)
        self.size = self._file.seek(size)

    def add(self, name: str, data: bytes) -> tuple[Member, int]:
        """Appends a file.

        Args:
            name: ASCII; its name for people who unpack it.
            data: a whole encoded file.

        Returns:
            Its entry in the table of contents, and the offset of its first byte.
        """
        member = Member(self.size, name, len(data), zlib.crc32(data))
        header = _zip_info(name)
        header.CRC = member.crc
        header.file_size = header.compress_size = len(data)
        written = header.FileHeader(zip64=False)
        self._file.write(written)
        self._file.write(data)
        self.size += len(written) + len(data)
        return member, member.header + len(written)

    def flush(self) -> None:
        """Hands everything to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, members: Iterable[Member]) -> None:
        """Writes the table of contents and closes the file.

        Source: PKWARE's APPNOTE.TXT, sections 4.3.12 to 4.3.16 and 4.5.3.
        """
        count, start = 0, self.size
        for member in members:
            count += 1
            name = member.name.encode("ascii")
            large = member.header >= 0xFFFFFFFF
            extra = struct.pack("<HHQ", 1, 8, member.header) if large else b""
            entry = struct.pack(
                "<4s4B4H3L5H2L", b"PK\x01\x02", 45 if large else 20, 3, 45 if large else 20, 0,
                0, 0, 0, 0x21, member.crc, member.length, member.length,
                len(name), len(extra), 0, 0, 0,
                0o644 << 16, 0xFFFFFFFF if large else member.header,
            )  # fmt: skip
            self._file.write(entry + name + extra)
        end = self._file.tell()
        if count >= 0xFFFF or end >= 0xFFFFFFFF:
            self._file.write(
                struct.pack(
                    "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, end - start, start
                )
            )
            self._file.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1))
        few, size, offset = min(count, 0xFFFF), min(end - start, 0xFFFFFFFF), min(start, 0xFFFFFFFF)
        self._file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, few, few, size, offset, 0))
        self.flush()
        self.close()

    def close(self) -> None:
        """Closes the file as it is."""
        self._file.close()


def _zip_info(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, date_time=ZIP_TIME)
    member.create_system = 3  # otherwise the byte depends on the operating system
    member.external_attr = 0o644 << 16
    return member
