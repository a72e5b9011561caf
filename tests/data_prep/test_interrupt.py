"""Ctrl-C in the wrong moment neither spoils a file nor is forgotten."""

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from data_prep import archive, audio
from data_prep.interrupt import held_back

REPOSITORY = Path(__file__).resolve().parents[2]
WAVE = np.random.default_rng(1).uniform(-0.1, 0.1, 8000).astype(np.float32)


class Pressed(io.BytesIO):
    """Ctrl-C comes while libsndfile reads or writes."""

    def _press(self):
        os.kill(os.getpid(), signal.SIGINT)

    def write(self, data):
        self._press()
        return super().write(data)

    def readinto(self, buffer):
        self._press()
        return super().readinto(buffer)

    def read(self, size=-1):
        self._press()
        return super().read(size)


def test_encoding_and_decoding_hear_it_at_their_end(monkeypatch, capfd):
    flac = archive.encode_flac(WAVE)
    monkeypatch.setattr(archive.io, "BytesIO", Pressed)
    with pytest.raises(KeyboardInterrupt):
        archive.encode_flac(WAVE)
    with pytest.raises(KeyboardInterrupt):
        audio.decode_audio(flac, "clip")
    assert "Exception ignored" not in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_is_not_hidden_and_other_threads_are_left_alone():
    with pytest.raises(ValueError, match="mine"), held_back():
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    done = []

    def work():
        with held_back():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]


def test_speaking_ends_without_a_traceback(tmp_path):
    (tmp_path / "train.es").write_text("El rey busca una llave.\n" * 3000, encoding="utf-8")
    (tmp_path / "train.en").write_text("The king looks for a key.\n" * 3000, encoding="utf-8")
    command = [
        sys.executable, "-m", "data_prep.prep_espeak", "--text-dir", ".", "--splits", "train",
        "--src", "es", "--tgt", "en", "--out", "out", "--workers", "1",
    ]  # fmt: skip
    running = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    seen = ""
    while "utt/s]" not in seen.replace("?utt/s]", ""):
        more = running.stderr.read(1)
        assert more, seen
        seen += more
    os.killpg(running.pid, signal.SIGINT)
    _, rest = running.communicate(timeout=20)
    assert running.returncode == 130 and rest.splitlines()[-1].startswith("interrupted: ")
    assert "Traceback" not in rest and not list((tmp_path / "out").glob("*.tsv"))
