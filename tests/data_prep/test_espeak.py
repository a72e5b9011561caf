"""The synthesiser and the processes that it runs in."""

import os
import shutil
import sys
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from data_prep.espeak import ESPEAK_RATE, Espeak, Request
from data_prep.speakers import speak_all

REQUESTS = [
    Request(text, language, variant, rate, pitch, 30.0)
    for text, language in (
        ("el gato negro come una manzana.", "es"),
        ("le petit chat a mangé la pomme.", "fr"),
        ("der alte Mann sieht zwei Hunde.", "de"),
    )
    for variant in ("", "m3", "f2", "whisper", "klatt4")
    for rate, pitch in ((200, 40), (250, 60))
]


def spoken(requests, workers=1):
    return [wave for _, wave in speak_all(((each, each) for each in requests), workers)]


@pytest.fixture(scope="module")
def waves():
    return spoken(REQUESTS)


def test_what_was_spoken_before_changes_no_sample(waves):
    order = np.random.default_rng(1).permutation(len(REQUESTS))
    again = spoken([REQUESTS[i] for i in order], workers=3)
    assert [waves[i] for i in order] == again
    assert spoken(REQUESTS[-1:]) == waves[-1:]


def test_voice_rate_and_pitch_matter(waves):
    assert len(set(waves)) == len(waves)
    fast, slow = spoken([REQUESTS[0]._replace(rate=300), REQUESTS[0]._replace(rate=150)])
    assert 1.6 < len(slow) / len(fast) < 2.4


def test_waves_are_speech(waves):
    for wave in waves:
        samples = np.frombuffer(wave, np.int16).astype(float)
        assert 0.8 < len(samples) / ESPEAK_RATE < 3
        assert 500 < samples.std() < 4000
        assert np.abs(samples).max() < 32767


def test_speech_is_cut_off():
    (wave,) = spoken([REQUESTS[0]._replace(text="palabra " * 2000, max_seconds=2.0)])
    assert 2 <= len(wave) / 2 / ESPEAK_RATE < 2.5


def test_languages_and_voices():
    espeak = Espeak()
    assert {"en", "es", "fr", "it", "pt", "de", "ca", "nl", "pt-br", "zh"} <= espeak.voices.keys()
    assert espeak.voices["pt"] == "roa/pt"
    assert espeak.voices["pt-br"] == "roa/pt-BR"
    # "en" is a second name of many voices; the one that espeak-ng ranks first counts.
    assert espeak.voices["en"] == "gmw/en"
    assert espeak.voices["zh"] == "sit/cmn"  # and among equals the first
    assert {"m3", "f2"} <= set(espeak.variants)


def test_a_long_path_to_the_data(tmp_path, monkeypatch):
    folder = tmp_path
    while len(str(folder)) < 220:
        folder = folder / ("x" * 40)
    shutil.copytree(espeakng_loader.get_data_path(), folder / "espeak-ng-data")
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(folder / "espeak-ng-data"))
    assert Espeak().voices["es"] == "roa/es"


def test_an_error_in_a_speaker_names_the_item():
    with pytest.raises(RuntimeError, match="line 7: .*KeyError.*'xx'"):
        list(speak_all([("line 7", REQUESTS[0]._replace(language="xx"))], 1))


def test_a_dead_speaker_names_the_item(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="line 7: the speaking process ended with status 1"):
        list(speak_all([("line 7", REQUESTS[0])], 1))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc to list processes")
def test_items_are_drawn_when_needed_and_speakers_end_with_the_last():
    drawn = []
    children = set(_children())

    def items():
        for number in range(100):
            drawn.append(number)
            yield number, REQUESTS[0]

    results = speak_all(items(), workers=2)
    assert next(results)[0] == 0
    assert next(results)[0] == 1
    assert len(drawn) <= 4
    results.close()
    assert set(_children()) <= children


def _children():
    """Process ids of this process's children."""
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
