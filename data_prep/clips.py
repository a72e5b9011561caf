"""The speech of a corpus's rows: found, checked, cut out, resampled and encoded, in a worker process."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile

from data_prep.archive import SAMPLE_RATE, encode_audio
from data_prep.audio import audio_path, read_bytes, to_16_khz
from data_prep.mp3 import count_frames

# Seconds that a segment may reach beyond the end of its recording: timestamps are rounded.
OVERHANG = 0.5
# Of these, a sample does not depend on those before it. After a jump, mp3, Vorbis and Opus decode otherwise:
# wrong at first, in Vorbis at times from another place, and by what was read before, so that an interrupted
# run, or one with other workers, would end in other bytes. Such a recording is opened anew for each segment.
_EXACT = re.compile("PCM_|FLOAT|DOUBLE|ULAW|ALAW")
# Seconds that are decoded before such a segment: the bit reservoir of mp3 reaches back less than a quarter.
RUN_UP = 0.5
# libsndfile's note on a wav whose header promises more than there is.
_CUT_WAV = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)


class Place(NamedTuple):
    """Where the speech of a row is.

    Attributes:
        audio: path of a recording, or `archive:offset:length`.
        start: seconds.
        duration: seconds; None: to the end.
        channel: counted from 0; None: the mean of all.
    """

    audio: str
    start: float = 0.0
    duration: float | None = None
    channel: int | None = None

    @property
    def whole(self) -> bool:
        """Whether a reader that only knows files finds the same."""
        return self.start == 0 and self.duration is None and self.channel is None


@dataclass(frozen=True)
class ClipRules:
    """What becomes of the speech.

    Attributes:
        pack: "flac" or "wav" puts all of it into archives; "" only what is no whole file.
        min_seconds: shorter utterances are dropped.
        max_seconds: longer ones are dropped.
        headers_only: lengths of whole files come from their headers, nothing is decoded.
    """

    pack: str = ""
    min_seconds: float = 0.1
    max_seconds: float = 120.0
    headers_only: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.pack not in ("", "flac", "wav"):
            raise ValueError(f"expected to pack as flac or wav, found {self.pack!r}")
        if not 0 < self.min_seconds < self.max_seconds:
            raise ValueError(
                f"expected 0 < shortest < longest, found {self.min_seconds} s and {self.max_seconds} s"
            )


class Clip(NamedTuple):
    """An utterance that can be used.

    Attributes:
        n_frames: samples at 16 kHz.
        key: equal for equal speech; with `headers_only` for equal places.
        encoded: the file for the archive; empty if the recording is used as it is.
    """

    n_frames: int
    key: int
    encoded: bytes


class UnusableAudio(ValueError):
    """The message is a reason for dropped.tsv: a kind of trouble, then ": " and details."""


class ClipReader:
    """Reads clips one after the other; the recording of the last stays open.

    Args:
        rules: what becomes of the speech.
    """

    def __init__(self, rules: ClipRules) -> None:
        """Opens nothing yet."""
        self._rules = rules
        self._path = ""
        self._recording: soundfile.SoundFile | None = None

    def read(self, place: Place) -> Clip:
        """Reads one.

        Raises:
            UnusableAudio: it cannot be used.
        """
        packed = bool(self._rules.pack) or not place.whole
        path = audio_path(place.audio)
        sliced = path != place.audio
        # A pipe or device would never end.
        if os.path.exists(path) and not os.path.isfile(path):
            raise UnusableAudio(f"unreadable audio: {path}: no regular file")
        try:
            if self._rules.headers_only and not packed and not sliced:
                return self._measured(place)
            wave = self._whole(place) if place.whole else self._segment(place)
        except FileNotFoundError as error:
            raise UnusableAudio(f"no audio file: {error.filename}") from error
        # An offset or length in an archive may be any number.
        except (OSError, OverflowError) as error:
            raise UnusableAudio(f"unreadable audio: {error}") from error
        # soundfile raises TypeError for `NAME.raw`, which has no header to tell the rate.
        except (soundfile.SoundFileError, TypeError) as error:
            found = str(getattr(error, "error_string", error))
            # libsndfile says so of an mp3 in which it finds no frame.
            if found.startswith("File does not exist"):
                found = "no format that libsndfile knows, or cut short"
            raise UnusableAudio(f"unreadable audio: {place.audio}: {found}") from error
        self._check_length(len(wave))
        if not np.isfinite(wave).all():
            raise UnusableAudio(f"samples that are not finite: {place.audio}")
        encoded = encode_audio(wave, (self._rules.pack or "flac").upper()) if packed else b""
        return Clip(len(wave), digest_key(wave.tobytes()), encoded)

    def _check_length(self, n_frames: float) -> None:
        """Checks a length in samples at 16 kHz."""
        if not n_frames:
            raise UnusableAudio("audio without samples")
        seconds = n_frames / SAMPLE_RATE
        if seconds < self._rules.min_seconds:
            raise UnusableAudio(
                f"too short: {seconds:.3f} s, expected at least {self._rules.min_seconds} s"
            )
        if seconds > self._rules.max_seconds:
            raise UnusableAudio(
                f"too long: {seconds:.1f} s, expected at most {self._rules.max_seconds} s"
            )

    def _measured(self, place: Place) -> Clip:
        size = os.path.getsize(place.audio) if os.path.exists(place.audio) else None
        if size == 0:
            raise UnusableAudio(f"empty file: {place.audio}")
        with open(place.audio, "rb") as file, soundfile.SoundFile(file) as recording:
            # Halves go up, as in soxr.
            rate = recording.samplerate
            n_frames = (2 * _frames(recording, place.audio) * SAMPLE_RATE + rate) // (2 * rate)
        self._check_length(n_frames)
        return Clip(n_frames, digest_key(os.path.realpath(place.audio).encode()), b"")

    def _whole(self, place: Place) -> npt.NDArray[np.float32]:
        data = read_bytes(place.audio)
        if not data:
            raise UnusableAudio(f"empty file: {place.audio}")
        _check_ogg(data, place.audio)
        with soundfile.SoundFile(_Data(data)) as recording:
            _check_wav(recording, place.audio)
            _check_mp3(recording, data, place.audio)
            promised = _frames(recording, place.audio)
            # Before any of it is decoded: a day of silence takes little room in a file.
            self._check_length(promised * SAMPLE_RATE / recording.samplerate)
            frames = recording.read(dtype="float32", always_2d=True)
            # Some formats only estimate their length.
            if promised - len(frames) > recording.samplerate // 10:
                raise UnusableAudio(
                    f"truncated audio: {place.audio}: expected {promised} frames, found {len(frames)}"
                )
            return to_16_khz(frames.mean(axis=1), recording.samplerate)

    def _segment(self, place: Place) -> npt.NDArray[np.float32]:
        reused = self._recording is not None and self._path == place.audio
        try:
            recording = self._open(place.audio)
            try:
                return self._cut_out(recording, place)
            finally:
                if not _EXACT.match(recording.subtype):
                    self._close()
        except soundfile.SoundFileError:
            # Where it failed once, libsndfile finds no other place in the recording either.
            self._close()
            if not reused:
                raise
            return self._segment(place)

    def _cut_out(self, recording: soundfile.SoundFile, place: Place) -> npt.NDArray[np.float32]:
        """A segment of an open recording."""
        rate = recording.samplerate
        if place.channel is not None and not 0 <= place.channel < recording.channels:
            raise UnusableAudio(
                f"no such channel: {place.channel} of {recording.channels} in {place.audio}"
            )
        # Times that no recording has, such as 1e308 s, would not fit into a number of frames.
        longest = 1e9
        start = round(min(place.start, longest) * rate)
        wanted = (
            _frames(recording, place.audio)
            if place.duration is None
            else round(min(place.duration, longest) * rate) + start
        )
        stop = min(wanted, recording.frames)
        if not 0 <= start < stop or wanted - stop > OVERHANG * rate:
            raise UnusableAudio(
                f"segment outside the recording: {start / rate:.3f} s to {wanted / rate:.3f} s of "
                f"{recording.frames / rate:.3f} s in {place.audio}"
            )
        self._check_length((stop - start) * SAMPLE_RATE / rate)
        begin = start if _EXACT.match(recording.subtype) else max(0, start - round(RUN_UP * rate))
        recording.seek(begin)
        frames = recording.read(stop - begin, dtype="float32", always_2d=True)[start - begin :]
        if len(frames) < stop - start:
            raise UnusableAudio(
                f"truncated audio: {place.audio}: expected {stop - start} frames from {start}, "
                f"found {len(frames)}"
            )
        channel = frames.mean(axis=1) if place.channel is None else frames[:, place.channel].copy()
        return to_16_khz(channel, rate)

    def _open(self, audio: str) -> soundfile.SoundFile:
        """The recording, the open one if it is the same."""
        if self._recording is None or self._path != audio:
            self._close()
            if audio_path(audio) != audio:
                return soundfile.SoundFile(_Data(read_bytes(audio)))
            if not os.path.isfile(audio):
                raise UnusableAudio(f"no audio file: {audio}")
            self._recording, self._path = soundfile.SoundFile(audio), audio
        return self._recording

    def _close(self) -> None:
        """Closes the open recording, if there is one."""
        if self._recording is not None:
            self._recording.close()
            self._recording = None


class _Data(io.BytesIO):
    """Bytes that libsndfile reads: where a broken header leads to before their beginning, nothing happens.

    BytesIO would raise, and soundfile print that with a traceback, besides the error that it raises itself.
    """

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves, if there is such a place; returns where it is then."""
        with contextlib.suppress(ValueError):
            return super().seek(offset, whence)
        return self.tell()


def _check_ogg(data: bytes, name: str) -> None:
    """Raises if an Ogg file ends within a page: no length in its header would tell.

    Source: RFC 3533, section 6: 27 bytes, of which the last counts the segments, their lengths, the segments.
    """
    if not data.startswith(b"OggS"):
        return
    page = data[data.rfind(b"OggS") :]
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) < 27 or len(page) < 27 + page[26] + sum(lengths):
        raise UnusableAudio(f"truncated audio: {name}: its last page is not whole")


def _check_wav(recording: soundfile.SoundFile, name: str) -> None:
    """Raises if a wav was cut short: fewer samples than its header says."""
    if recording.format in ("WAV", "WAVEX") and (cut := _CUT_WAV.search(recording.extra_info)):
        promised, there = map(int, cut.groups())
        # Who writes a wav to a pipe cannot know its length and promises the largest.
        if there < promised < 0x7FFF0000:
            raise UnusableAudio(
                f"truncated audio: {name}: expected {promised} bytes of samples, found {there}"
            )


def _frames(recording: soundfile.SoundFile, name: str) -> int:
    """How many frames a file has by its header; raises UnusableAudio if libsndfile cannot tell."""
    if recording.frames > 1 << 60:
        raise UnusableAudio(
            f"audio without a length: {name}: {recording.format} written to a pipe? encode it into a file"
        )
    return recording.frames


def _check_mp3(recording: soundfile.SoundFile, data: bytes, name: str) -> None:
    """Raises if an mp3 without a length ends within a frame, or if libsndfile's guess of it is wrong.

    It reads no more than it guessed; training refuses files that have less.
    """
    length = count_frames(data) if recording.format == "MP3" else None
    if length and length.cut:
        raise UnusableAudio(f"truncated audio: {name}: its last frame is not whole")
    if length and abs(length.samples - recording.frames) > recording.samplerate // 10:
        raise UnusableAudio(
            f"audio without a length: {name}: its rate varies, libsndfile expects {recording.frames} "
            f"samples of {length.samples}; encode it again"
        )


def digest_key(data: bytes) -> int:
    """A number of 64 bits, with sign, for SQLite's integers, equal for equal data."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)
