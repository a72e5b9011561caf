"""The speech synthesiser espeak-ng, called through ctypes.

Library and voices come with the package `espeakng-loader`; nothing else has to be installed.
Source of names and numbers: espeak-ng 1.52, `src/include/espeak-ng/speak_lib.h`.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

import espeakng_loader
import numpy as np
import numpy.typing as npt

AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
POS_CHARACTER = 1
PARAMETER_RATE, PARAMETER_VOLUME, PARAMETER_PITCH = 1, 2, 3

# Words a minute that espeak-ng accepts.
MIN_RATE, MAX_RATE = 80, 450
# Of 100, espeak-ng's usual volume, which a few voices clip at.
VOLUME = 75
# espeak-ng cuts longer paths to its data off (N_PATH_HOME) and then looks in other folders.
MAX_DATA_PATH = 150

_SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


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
        sample_rate: of the waves, in Hz.
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

        self.sample_rate: int = self._library.espeak_Initialize(
            AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), INITIALIZE_DONT_EXIT
        )
        if self.sample_rate <= 0:
            raise RuntimeError(f"espeak-ng cannot be initialised with the data in {data}")
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

    def speak(
        self, text: str, language: str, variant: str, rate: int, pitch: int, max_seconds: float
    ) -> npt.NDArray[np.int16]:
        """Speaks a text.

        Args:
            text: what to say, without the character NUL.
            language: a key of `voices`.
            variant: one of `variants`, or "" for the voice as it is.
            rate: words a minute.
            pitch: 0 to 100; 50 is usual.
            max_seconds: what lasts longer is cut off somewhat later.

        Returns:
            The wave, shape (S,) at `sample_rate`.

        Raises:
            RuntimeError: espeak-ng refuses.
        """
        voice = self.voices[language] + (f"+{variant}" if variant else "")
        self._chunks.clear()
        self._room = round(max_seconds * self.sample_rate)
        self._check(self._library.espeak_SetVoiceByName(voice.encode()), f"voice {voice}")
        for parameter, value in (
            (PARAMETER_RATE, rate),
            (PARAMETER_VOLUME, VOLUME),
            (PARAMETER_PITCH, pitch),
        ):
            status = self._library.espeak_SetParameter(parameter, value, 0)
            self._check(status, f"parameter {parameter} = {value}")
        # Breath and noise; seeded with the time otherwise.
        self._library.espeak_ng_SetRandSeed(1)
        data = text.encode()
        status = self._library.espeak_Synth(
            data, len(data) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None
        )
        if self._room >= 0:  # otherwise stopped on purpose
            self._check(status, "speaking")
        return np.frombuffer(b"".join(self._chunks), np.int16)

    def _check(self, status: int, action: str) -> None:
        if status != 0:
            raise RuntimeError(f"espeak-ng: {action} failed with status {status}")
