"""Mp3 files that do not say how long they are: libsndfile guesses by the first frame and the file's size."""

from __future__ import annotations

from typing import NamedTuple

# By the two bits of a header's version: MPEG 1, 2, 2.5.
_RATES = {
    3: (44_100, 48_000, 32_000),
    2: (22_050, 24_000, 16_000),
    0: (11_025, 12_000, 8_000),
}
# kbit/s of layer III; 0 is a free format.
_MPEG_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
# A first frame with one of these has the length, and nothing has to be counted.
_LENGTHS = (b"Xing", b"Info", b"VBRI")


class Mp3Length(NamedTuple):
    """What the frames of an mp3 say.

    Attributes:
        samples: of its whole frames, at its own rate.
        cut: it ends within a frame.
    """

    samples: int
    cut: bool


def count_frames(data: bytes) -> Mp3Length | None:
    """Counts the frames of an mp3 that does not say how many it has.

    Source: ISO/IEC 11172-3, section 2.4.1.3, and 13818-3 for lower rates; ID3v2.4.0, section 3.1.

    Args:
        data: the file.

    Returns:
        None if the file says it, or if something else is among the frames, such as a tag at the end.
    """
    position = 0
    if data.startswith(b"ID3"):
        size = 0
        for byte in data[6:10]:
            size = size << 7 | byte & 0x7F
        position = 10 + size
    if any(mark in data[position : position + 200] for mark in _LENGTHS):
        return None
    samples = 0
    while position + 4 <= len(data):
        header = int.from_bytes(data[position : position + 4], "big")
        version, layer, kbits, rate = (
            header >> 19 & 3,
            header >> 17 & 3,
            header >> 12 & 15,
            header >> 10 & 3,
        )
        if header >> 21 != 0x7FF or version == 1 or layer != 1 or kbits in (0, 15) or rate == 3:
            return None
        bits = 1000 * (_MPEG_1 if version == 3 else _MPEG_2)[kbits]
        position += (144 if version == 3 else 72) * bits // _RATES[version][rate] + (
            header >> 9 & 1
        )
        if position > len(data):
            return Mp3Length(samples, True)
        samples += 1152 if version == 3 else 576
    return Mp3Length(samples, False)
