"""Reads speech from audio files and from slices of archives, as 16 kHz mono waveforms."""

from __future__ import annotations

import io
import os
import re

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray

#: Samples per second of every waveform in this project.
SAMPLE_RATE = 16_000

#: Quality of the band-limited interpolation, in soxr's names.
RESAMPLER = "HQ"

_SLICE = re.compile(r"(?P<path>.+):(?P<offset>\d+):(?P<length>\d+)")


class AudioError(ValueError):
    """Audio that cannot be used; the message names it and says what is wrong."""


def read_audio(spec: str, root: str | None = None) -> NDArray[np.float32]:
    """Read one utterance.

    Args:
        spec: path of a wav, flac, ogg, opus or mp3 file, or ``archive:offset:length`` in bytes for
            one such file that lies uncompressed in an archive (zip, tar).
        root: folder that a relative path starts from.

    Returns:
        Waveform (S,) at 16 kHz: channels averaged, full scale = 1.

    Raises:
        AudioError: no such file, a slice outside the archive, or audio that is undecodable, cut
            short, empty or not finite.
    """
    try:
        with _open(spec, root) as file:
            declared, rate = file.frames, file.samplerate
            # libsndfile takes twice as long to make numbers between −1 and 1 of 16 bits.
            if file.subtype == "PCM_16":
                samples = file.read(dtype="int16") * np.float32(2**-15)
            else:
                samples = file.read(dtype="float32")
    except soundfile.SoundFileError as error:
        raise _undecodable(spec, error) from error
    # A tenth of a second for formats that only estimate their length (mp3 without a Xing frame).
    if declared - len(samples) > rate // 10:
        raise AudioError(
            f"{spec}: truncated audio, expected {declared} frames, found {len(samples)}"
        )
    wave: NDArray[np.float32] = samples if samples.ndim == 1 else samples.mean(axis=1)
    if not np.isfinite(wave).all():
        bad = int(np.argmin(np.isfinite(wave)))
        raise AudioError(f"{spec}: expected finite samples, found {wave[bad]} at sample {bad}")
    if rate != SAMPLE_RATE:
        wave = soxr.resample(wave, rate, SAMPLE_RATE, quality=RESAMPLER)
    if len(wave) == 0:
        raise AudioError(f"{spec}: expected audio, found no samples")
    return wave


def audio_duration(spec: str, root: str | None = None) -> int:
    """Length of an utterance in 16 kHz samples, from its header.

    Args:
        spec: as in :func:`read_audio`.
        root: folder that a relative path starts from.

    Raises:
        AudioError: no such file, offset outside the archive, not an audio file, or empty.
    """
    try:
        with _open(spec, root) as file:
            frames, rate = file.frames, file.samplerate
    except soundfile.SoundFileError as error:
        raise _undecodable(spec, error) from error
    # Halves go up, as in soxr.
    samples = (2 * frames * SAMPLE_RATE + rate) // (2 * rate)
    if samples == 0:
        raise AudioError(f"{spec}: expected audio, found no samples")
    return int(samples)


def change_speed(wave: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Play an utterance faster (factor > 1) or slower, which moves its pitch too.

    Args:
        wave: waveform (S,).
        factor: speed; S samples become S / factor, rounded.

    Source: Ko et al. 2015, "Audio augmentation for speech recognition", Section 2; sox's ``speed``.
    """
    faster: NDArray[np.float32] = soxr.resample(wave, factor, 1.0, quality=RESAMPLER)
    return faster


def normalize_utterance(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shift and scale an utterance to zero mean and unit variance, as XLS-R was pre-trained.

    The variance gets 1e-5 before the square root, as in fairseq's ``F.layer_norm`` over the
    samples: silence stays silence.

    Args:
        wave: waveform (S,).
    """
    # That function itself; numpy takes three times as long.
    normalised = torch.nn.functional.layer_norm(torch.from_numpy(wave), wave.shape)
    scaled: NDArray[np.float32] = normalised.numpy()
    return scaled


def _undecodable(spec: str, error: Exception) -> AudioError:
    reason = getattr(error, "error_string", str(error))
    hint = (
        " (a slice has to hold a whole audio file, stored in the archive without compression)"
        if _SLICE.fullmatch(spec)
        else ""
    )
    return AudioError(f"{spec}: expected wav, flac, ogg, opus or mp3, found: {reason}{hint}")


def split_slice(spec: str) -> tuple[str, int, int]:
    """Path, offset and length of an audio spec; offset and length are 0 for a whole file."""
    match = _SLICE.fullmatch(spec)
    return (match["path"], int(match["offset"]), int(match["length"])) if match else (spec, 0, 0)


def read_bytes(spec: str, root: str | None = None) -> bytes:
    """Encoded audio that a spec stands for.

    Args:
        spec: as in :func:`read_audio`.
        root: folder that a relative path starts from.

    Raises:
        AudioError: no such file, or a slice outside the archive.
    """
    match = _SLICE.fullmatch(spec)
    path = _path(spec, root)
    try:
        with open(path, "rb") as file:
            if match is None:
                return file.read()
            offset, length = int(match["offset"]), int(match["length"])
            size = os.fstat(file.fileno()).st_size
            if length == 0 or offset + length > size:
                raise AudioError(
                    f"{spec}: expected at least one byte within the {size} of the archive, "
                    f"found {length} from {offset}"
                )
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise AudioError(f"{spec}: expected a readable file, found: {error}") from error


def _path(spec: str, root: str | None) -> str:
    """File that a spec is, or is a slice of."""
    path = os.path.join(root or "", split_slice(spec)[0])
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "no such file"
        raise AudioError(
            f"{spec}: expected an audio file or archive:offset:length, found {found}: {path}"
        )
    return path


def _open(spec: str, root: str | None) -> soundfile.SoundFile:
    """Open audio that a spec stands for."""
    if _SLICE.fullmatch(spec):
        return soundfile.SoundFile(io.BytesIO(read_bytes(spec, root)))
    path = _path(spec, root)
    try:
        # By number: what libsndfile reads through Python takes it half as long again.
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise AudioError(f"{spec}: expected a readable file, found: {error}") from error
    return soundfile.SoundFile(descriptor, closefd=True)
