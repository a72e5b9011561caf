"""Reads speech that a manifest's column `audio` names, as 16 kHz mono waves."""

from __future__ import annotations

import io
import os
import re

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from data_prep.archive import SAMPLE_RATE
from data_prep.interrupt import held_back

_SLICE = re.compile(r"(?P<path>.+):(?P<offset>\d+):(?P<length>\d+)")


def read_audio(spec: str, root: str | os.PathLike[str] = "") -> npt.NDArray[np.float32]:
    """Reads one utterance.

    Args:
        spec: path of an audio file, or `archive:offset:length` in bytes for a whole one in an archive.
        root: folder that a relative path starts from.

    Returns:
        The wave, shape (S,), at 16 kHz; channels averaged, full scale = 1.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no audio.
    """
    return decode_audio(read_bytes(spec, root), spec)


def read_bytes(spec: str, root: str | os.PathLike[str] = "") -> bytes:
    """Reads the encoded audio that a spec stands for, as in `read_audio`.

    Raises:
        OSError: the file cannot be read, or ends before the slice does.
    """
    match = _SLICE.fullmatch(spec)
    path = os.path.join(root, match["path"] if match else spec)
    with open(path, "rb") as file:
        if match:
            file.seek(int(match["offset"]))
        data = file.read(int(match["length"]) if match else -1)
    if match and len(data) < int(match["length"]):
        raise OSError(f"{spec}: expected {match['length']} bytes of the archive, found {len(data)}")
    return data


def audio_path(spec: str) -> str:
    """The file that `spec` is in, as `read_audio` takes it."""
    match = _SLICE.fullmatch(spec)
    return match["path"] if match else spec


def decode_audio(data: bytes, name: str) -> npt.NDArray[np.float32]:
    """Decodes a whole audio file, as `read_audio` does; `name` is for error messages."""
    try:
        with held_back():
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", error)
        raise ValueError(f"{name}: expected audio, found: {reason}") from error
    return to_16_khz(samples.mean(axis=1), rate)


def to_16_khz(wave: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    """Resamples a wave, shape (S,), of `rate` samples a second."""
    if rate == SAMPLE_RATE:
        return wave
    resampled: npt.NDArray[np.float32] = soxr.resample(wave, rate, SAMPLE_RATE)
    return resampled


def open_recording(path: str | os.PathLike[str]) -> soundfile.SoundFile:
    """Opens a recording to read clips of it.

    Raises:
        ValueError: it cannot be read; of shortened NIST SPHERE the message says what to do.
    """
    with open(path, "rb") as file:
        header = file.read(1024)
    if header.startswith(b"NIST_1A") and b"shorten" in header:
        raise ValueError(
            "compressed with shorten, which libsndfile does not read: uncompress it with "
            f"'sph2pipe -f wav {os.path.basename(path)} NAME.wav' into the same folder"
        )
    try:
        return soundfile.SoundFile(path)
    except soundfile.SoundFileError as error:
        raise ValueError(f"unreadable audio: {getattr(error, 'error_string', error)}") from error


def read_clip(
    recording: soundfile.SoundFile, channel: int, start: int, stop: int
) -> npt.NDArray[np.float32]:
    """Reads a clip of one channel, frames `start` to `stop` of the recording, as 16 kHz samples (S,).

    Raises:
        ValueError: the recording ends before, or is damaged there.
    """
    try:
        recording.seek(start)
        frames = recording.read(stop - start, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", error)
        raise ValueError(
            f"{recording.name}: expected audio in frames {start} to {stop}, found: {reason}; "
            "is the file whole?"
        ) from error
    return to_16_khz(frames[:, channel].copy(), recording.samplerate)
