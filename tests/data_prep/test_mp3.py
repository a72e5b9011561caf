"""Mp3 files without a length in their header: what is cut, and what libsndfile would not read to the end."""

import io

import numpy as np
import pytest
import soundfile

from data_prep.clips import ClipReader, ClipRules, Place, UnusableAudio
from data_prep.mp3 import Mp3Length, count_frames
from fairseq_samu.data.audio import AudioError, read_audio

# Headers and lengths in bytes by ISO/IEC 11172-3 and 13818-3: 144 or 72 x bits / rate, and padding.
FRAMES = {
    "MPEG 1, 32 kbit/s, 48 kHz": (bytes.fromhex("fffb14c4"), 96, 1152),
    "MPEG 1, 64 kbit/s, 44.1 kHz, padded": (bytes.fromhex("fffb52c4"), 209, 1152),
    "MPEG 2, 48 kbit/s, 24 kHz": (bytes.fromhex("fff364c4"), 144, 576),
    "MPEG 2.5, 8 kbit/s, 8 kHz": (bytes.fromhex("ffe318c4"), 72, 576),
}


def silence(name, frames):
    """Frames without anything in them, all of one size."""
    header, length, _ = FRAMES[name]
    return (header + bytes(length - 4)) * frames


def speech(seconds, begin=0.0, end=0.2):
    """Noise that is louder and louder, in an mp3 of varying rate, and where its second frame begins."""
    random = np.random.default_rng(1)
    wave = random.normal(0, 1, seconds * 48_000) * np.linspace(begin, end, seconds * 48_000) ** 2
    file = io.BytesIO()
    soundfile.write(file, wave, 48_000, format="MP3")
    data = file.getvalue()
    assert b"Xing" in data[:100]
    return data, data.index(data[:2], 4)


@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_counted(name):
    data = silence(name, 50)
    _, length, samples = FRAMES[name]
    assert count_frames(data) == Mp3Length(50 * samples, False)
    assert count_frames(data[:-1]) == Mp3Length(49 * samples, True)
    assert count_frames(data[: 20 * length + 5]) == Mp3Length(20 * samples, True)
    tag = b"ID3\4\0\0" + bytes([0, 0, 1, 72]) + bytes(200)  # 1 x 128 + 72 bytes
    assert count_frames(tag + data) == Mp3Length(50 * samples, False)


@pytest.mark.parametrize("more", [b"TAG" + bytes(125), bytes(500), b"\xff\xfb\xf4\xc4"])
def test_what_else_lies_behind_the_frames_is_no_verdict(more):
    assert count_frames(silence("MPEG 1, 32 kbit/s, 48 kHz", 50) + more) is None


def test_a_file_that_says_its_length_is_not_counted():
    assert count_frames(speech(1)[0]) is None


def test_speech_that_was_cut_or_would_be_read_in_part(tmp_path):
    def read(data):
        (tmp_path / "clip.mp3").write_bytes(data)
        return ClipReader(ClipRules()).read(Place(str(tmp_path / "clip.mp3"))).n_frames

    whole, second = speech(4)
    assert read(whole) == 4 * 16_000
    with pytest.raises(
        UnusableAudio, match=r"audio without a length: .*expects 4\d{5} samples of 19"
    ):
        read(whole[second:])
    with pytest.raises(AudioError, match=r"truncated audio, expected 4\d{5} frames, found 19"):
        read_audio(str(tmp_path / "clip.mp3"))  # as training does
    with pytest.raises(UnusableAudio, match=r"truncated audio: .*its last frame is not whole"):
        read(whole[second:-7])
    fading, second = speech(4, 0.2, 0.0)
    with pytest.raises(
        UnusableAudio, match=r"audio without a length: .*expects \d{5} samples of 19"
    ):
        read(fading[second:])
    steady = silence("MPEG 1, 32 kbit/s, 48 kHz", 100)
    assert abs(read(steady) - 100 * 1152 / 3) < 1152
    with pytest.raises(UnusableAudio, match=r"truncated audio: .*its last frame is not whole"):
        read(steady[: len(steady) // 2 + 10])
