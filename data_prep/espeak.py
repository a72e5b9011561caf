"""The speech synthesiser espeak-ng, called through ctypes.

Library and voices come with the package `espeakng-loader`; nothing else has to be installed.
Source of names and numbers: espeak-ng 1.52, `src/include/espeak-ng/speak_lib.h`.

Run as a program, this file speaks requests from standard input, each in a fork of its own (see
`Espeak`). It imports nothing of the package and no numpy: the smaller the process, the faster the
fork, here 1 ms instead of 5.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import espeakng_loader

AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
POS_CHARACTER = 1
PARAMETER_RATE, PARAMETER_VOLUME, PARAMETER_PITCH = 1, 2, 3

# Samples a second of every voice.
ESPEAK_RATE = 22_050
# Words a minute that espeak-ng accepts.
MIN_RATE, MAX_RATE = 80, 450
# Half of espeak-ng's usual volume, at which some voices clip.
VOLUME = 50
# espeak-ng cuts longer paths to its data off (N_PATH_HOME) and then looks in other folders.
MAX_DATA_PATH = 150

_SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Request(NamedTuple):
    """What to speak and how.

    Attributes:
        text: what to say, without the character NUL.
        language: a key of `Espeak.voices`.
        variant: one of `Espeak.variants`, or "" for the voice as it is.
        rate: words a minute.
        pitch: 0 to 100; 50 is usual.
        max_seconds: speech is cut off here.
    """

    text: str
    language: str
    variant: str
    rate: int
    pitch: int
    max_seconds: float


class _Voice(ctypes.Structure):
    """`espeak_VOICE`."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


class Espeak:
    """The library, loaded and initialised; it keeps its state in globals, so have one a process.

    espeak-ng carries state over from one utterance to the next (the phase of its pitch flutter, for
    one), which neither setting the voice again nor initialising again resets. The same call gives
    the same samples only in a process that has not spoken yet: fork one per utterance.

    Attributes:
        voices: language code (lower case) -> espeak-ng's identifier of the voice, such as
            "pt-br" -> "roa/pt-BR".
        variants: names of the speakers that each voice can be turned into, such as "f2".
    """

    def __init__(self) -> None:
        """Loads the library.

        Raises:
            RuntimeError: espeak-ng cannot be initialised.
        """
        data = espeakng_loader.get_data_path()
        if len(os.fsencode(data)) > MAX_DATA_PATH:
            # Held as an attribute, since voices are read from it when they are first used.
            self._short_path = tempfile.TemporaryDirectory(prefix="espeak")
            link = os.path.join(self._short_path.name, "data")
            os.symlink(data, link)
            data = link
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_Initialize.argtypes = [
            ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int,
        ]  # fmt: skip
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint,
            ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self._library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._library.espeak_ListVoices.argtypes = [ctypes.c_void_p]
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))

        rate = self._library.espeak_Initialize(
            AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), INITIALIZE_DONT_EXIT
        )
        if rate != ESPEAK_RATE:
            raise RuntimeError(
                f"espeak-ng: expected {ESPEAK_RATE} Hz from the data in {data}, found {rate} Hz"
            )
        self.variants = sorted(os.listdir(Path(data, "voices", "!v")))
        self.voices = self._list_voices()

        self._chunks: list[bytes] = []
        self._room = 0
        # Held as an attribute: ctypes keeps no reference to a callback that C code calls.
        self._callback = _SynthCallback(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _list_voices(self) -> dict[str, str]:
        best: dict[str, tuple[int, str]] = {}
        for voice in self._library.espeak_ListVoices(None):
            if not voice:  # the list ends with a null pointer
                break
            identifier = voice[0].identifier.decode()
            # A sequence of (one byte of priority, small is good; zero-terminated code), ended by 0.
            position = voice[0].languages
            while priority := ctypes.string_at(position, 1)[0]:
                code = ctypes.string_at(position + 1)
                position += len(code) + 2
                language = code.decode().lower()
                if language not in best or priority < best[language][0]:
                    best[language] = (priority, identifier)
        return {language: identifier for language, (_, identifier) in sorted(best.items())}

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _: object) -> int:
        """Keeps a piece of the wave; returns 1, which stops the synthesis, once it is full."""
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
            self._room -= count
        return int(self._room < 0)

    def speak(self, request: Request) -> bytes:
        """Speaks a text.

        Returns:
            The wave: 16-bit samples in the machine's byte order, at `ESPEAK_RATE`.

        Raises:
            RuntimeError: espeak-ng refuses.
        """
        voice = self.voices[request.language] + (f"+{request.variant}" if request.variant else "")
        self._chunks.clear()
        self._room = round(request.max_seconds * ESPEAK_RATE)
        self._check(self._library.espeak_SetVoiceByName(voice.encode()), f"voice {voice}")
        for parameter, value in (
            (PARAMETER_RATE, request.rate),
            (PARAMETER_VOLUME, VOLUME),
            (PARAMETER_PITCH, request.pitch),
        ):
            status = self._library.espeak_SetParameter(parameter, value, 0)
            self._check(status, f"parameter {parameter} = {value}")
        # Breath and noise; seeded with the time otherwise.
        self._library.espeak_ng_SetRandSeed(1)
        data = request.text.encode()
        status = self._library.espeak_Synth(
            data, len(data) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None
        )
        if self._room >= 0:  # otherwise stopped on purpose
            self._check(status, "speaking")
        return b"".join(self._chunks)

    def _check(self, status: int, action: str) -> None:
        if status != 0:
            raise RuntimeError(f"espeak-ng: {action} failed with status {status}")


def serve() -> None:
    """Answers one `Request` a line, as a JSON list, until standard input ends.

    The answer is a line, `{"bytes": N}`, and N bytes of the wave; or `{"error": "..."}`.
    """
    # Ctrl-C is the business of the program at the other end of the pipes, which then closes them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    espeak = Espeak()
    gc.freeze()
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            _answer(espeak, line)
        _, status = os.waitpid(child, 0)
        if status != 0:
            _send({"error": f"espeak-ng crashed (wait status {status})"})


def _answer(espeak: Espeak, line: bytes) -> None:
    """Speaks in a child process and ends it."""
    # os._exit whatever happens: the child must not go on where its parent was.
    try:
        try:
            wave = espeak.speak(Request(*json.loads(line)))
            _send({"bytes": len(wave)}, wave)
        except Exception as error:
            _send({"error": f"{type(error).__name__}: {error}"})
        os._exit(0)
    finally:
        os._exit(1)


def _send(header: dict[str, object], wave: bytes = b"") -> None:
    message = json.dumps(header).encode() + b"\n" + wave
    while message:
        message = message[os.write(1, message) :]


if __name__ == "__main__":
    serve()
