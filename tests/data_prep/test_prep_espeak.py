"""From parallel text to manifests and archives."""

import csv
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import prep_espeak
from data_prep.archive import SAMPLE_RATE
from data_prep.manifest import COLUMNS
from data_prep.prep_espeak import Delivery, draw_manner, finish_wave, prepare_espeak

REPOSITORY = Path(prep_espeak.__file__).parents[1]
ES = ["El rey busca una llave.", "Hoy la reina vende un libro.", "Un chico ve el espejo rojo."]
EN = ["The king looks for a key.", "Today the queen sells a book.", "A boy sees the red mirror."]
FR = ["Le roi cherche une clé.", "Aujourd'hui la reine vend un livre.", "Un garçon voit le miroir."]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def text(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "text" / f"{split}.es-en.es", ES)
        write(tmp_path / "text" / f"{split}.es-en.en", EN)
        write(tmp_path / "text" / f"{split}.fr-en.fr", FR[:2])
        write(tmp_path / "text" / f"{split}.fr-en.en", EN[:2])
    return tmp_path / "text"


def read_manifest(path):
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    assert tuple(header) == COLUMNS
    return [dict(zip(header, row)) for row in rows]


def read_audio(folder, spec):
    name, offset, length = spec.rsplit(":", 2)
    data = (folder / name).read_bytes()[int(offset) : int(offset) + int(length)]
    wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert rate == SAMPLE_RATE
    assert wave.shape[1] == 1
    return wave[:, 0]


def test_manifest_and_speech(text, tmp_path):
    out = tmp_path / "out"
    reports = prepare_espeak(text, out, ["train", "test"], ["es", "fr"], ["en"])
    assert sorted(path.name for path in out.iterdir()) == [
        "test.tsv", "test.zip", "train.tsv", "train.zip",
    ]  # fmt: skip
    rows = read_manifest(out / "train.tsv")
    assert [row["src_text"] for row in rows] == ES + FR[:2]
    assert [row["tgt_text"] for row in rows] == EN + EN[:2]
    assert [row["src_lang"] for row in rows] == ["es"] * 3 + ["fr"] * 2
    assert {row["tgt_lang"] for row in rows} == {"en"}
    assert len({row["id"] for row in rows}) == 5
    assert {row["speaker"] for row in rows} <= {"default", "m3", "f2"}
    waves = [read_audio(out, row["audio"]) for row in rows]
    assert [len(wave) for wave in waves] == [int(row["n_frames"]) for row in rows]
    for wave in waves:
        assert 0.5 < len(wave) / SAMPLE_RATE < 3
        assert 0.01 < wave.std() < 0.3
        assert np.abs(wave).max() < 1
    assert reports["train"].utterances == reports["train"].rows == 5
    assert reports["train"].samples == sum(map(len, waves))
    # Splits draw their own voices, rates and pitches.
    assert [row["n_frames"] for row in read_manifest(out / "test.tsv")] != [
        row["n_frames"] for row in rows
    ]


def test_the_same_bytes_for_any_number_of_workers_and_other_text(text, tmp_path):
    outs = []
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        prepare_espeak(text, out, ["train"], ["es", "fr"], ["en"], workers=workers)
        outs.append([(out / name).read_bytes() for name in ("train.tsv", "train.zip")])
    assert outs[0] == outs[1]
    prepare_espeak(text, tmp_path / "fr", ["train"], ["fr"], ["en"])
    with_spanish = read_manifest(tmp_path / "out1" / "train.tsv")[3:]
    alone = read_manifest(tmp_path / "fr" / "train.tsv")
    for one, other in zip(with_spanish, alone):
        np.testing.assert_array_equal(
            read_audio(tmp_path / "out1", one["audio"]), read_audio(tmp_path / "fr", other["audio"])
        )
    other_seed = tmp_path / "seed2"
    prepare_espeak(text, other_seed, ["train"], ["es", "fr"], ["en"], Delivery(seed=2))
    assert (other_seed / "train.zip").read_bytes() != outs[0][1]


def test_shared_text_is_spoken_once(tmp_path):
    for language, lines in (("es", ES), ("en", EN), ("fr", FR)):
        write(tmp_path / "text" / f"train.{language}", lines)
    report = prepare_espeak(tmp_path / "text", tmp_path, ["train"], ["es"], ["en", "fr"])["train"]
    assert (report.rows, report.utterances) == (6, 3)
    rows = read_manifest(tmp_path / "train.tsv")
    assert len({row["id"] for row in rows}) == 6
    assert len({row["audio"] for row in rows}) == 3
    assert [(row["tgt_lang"], row["tgt_text"]) for row in rows[:2]] == [
        ("en", EN[0]),
        ("fr", FR[0]),
    ]


def test_long_utterances_are_left_out(text, tmp_path):
    write(text / "train.es-en.es", [ES[0], "muy " * 60 + "largo.", ES[2]])
    report = prepare_espeak(text, tmp_path, ["train"], ["es"], ["en"], Delivery(max_seconds=3.0))[
        "train"
    ]
    assert (report.rows, report.left_out) == (2, 1)
    assert [row["tgt_text"] for row in read_manifest(tmp_path / "train.tsv")] == [EN[0], EN[2]]
    assert "1 left out as too long" in str(report)
    with pytest.raises(ValueError, match=r"train: .* at most 0\.1 s, found 3 longer ones"):
        prepare_espeak(text, tmp_path, ["train"], ["es"], ["en"], Delivery(max_seconds=0.1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sources": ["es", "qq"]}, r"expected a language of espeak-ng \(.* fr .*\), found 'qq'"),
        ({"voices": ("+m3", "+x9")}, r"voice variant of espeak-ng \(.* m3 .*\), found '\+x9'"),
        ({"voices": ()}, "expected at least one voice"),
        ({"rate": 440}, "between 80 and 450 words a minute, found rate 440 and jitter 0.1"),
        ({"rate_jitter": 0.9}, "between 80 and 450 words a minute"),
        ({"pitch": (60, 40)}, r"found \(60, 40\)"),
        ({"max_seconds": 0.0}, "max_seconds > 0, found 0.0"),
        ({"max_seconds": float("nan")}, "max_seconds > 0, found nan"),
        ({"workers": 0}, "at least one worker, found 0"),
        ({"splits": ["train", "train"]}, "given once each, found \\['train', 'train'\\]"),
        ({"splits": []}, "given once each, found \\[\\]"),
        ({"splits": ["../x"]}, "names of splits without folders, found '../x'"),
    ],
)
def test_wrong_options(text, tmp_path, change, message):
    call = {"splits": ["train"], "sources": ["es"], "workers": 1}
    call.update({key: value for key, value in change.items() if key in call})
    delivery = Delivery(**{key: value for key, value in change.items() if key not in call})
    with pytest.raises(ValueError, match=message):
        prepare_espeak(
            text, tmp_path / "out", call["splits"], call["sources"], ["en"], delivery,
            call["workers"],
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_all_text_is_checked_before_anything_is_spoken(text, tmp_path):
    write(text / "test.fr-en.fr", ["Bonjour.", "…"])
    with pytest.raises(ValueError, match=r"test\.fr-en\.fr:2: expected something to speak"):
        prepare_espeak(text, tmp_path / "out", ["train", "test"], ["es", "fr"], ["en"])
    (text / "test.fr-en.fr").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.fr-en\.fr"):
        prepare_espeak(text, tmp_path / "out", ["train", "test"], ["es", "fr"], ["en"])
    assert not (tmp_path / "out").exists()


def test_text_that_a_voice_is_silent_about(text, tmp_path, monkeypatch):
    monkeypatch.setattr(prep_espeak, "finish_wave", lambda samples: np.zeros(0, np.float32))
    with pytest.raises(RuntimeError, match=r"train\.es-en\.es:1: 'El rey .*nothing to speak"):
        prepare_espeak(text, tmp_path / "out", ["train"], ["es"], ["en"])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_killed_run_leaves_nothing_that_looks_finished(text, tmp_path):
    out = tmp_path / "out"
    prepare_espeak(text, out, ["test"], ["es"], ["en"])
    write(text / "train.es-en.es", ES * 2000)
    write(text / "train.es-en.en", EN * 2000)
    options = ["--text-dir", text, "--splits", "train", "--src", "es", "--tgt", "en", "--out", out]
    command = [sys.executable, "-m", "data_prep.prep_espeak", *map(str, options)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    temporary = out / ".train.zip.tmp"
    deadline = time.time() + 60
    while not (temporary.exists() and temporary.stat().st_size > 50_000):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    speakers = children.read_text().split() if children.exists() else []
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(out.glob("train.*"))
    for pid in speakers:  # they end by themselves
        while (
            Path(f"/proc/{pid}").exists() and "\tZ" not in Path(f"/proc/{pid}/status").read_text()
        ):
            assert time.time() < deadline
            time.sleep(0.01)

    write(text / "train.es-en.es", ES)
    write(text / "train.es-en.en", EN)
    subprocess.run(command, cwd=REPOSITORY, check=True, stderr=subprocess.DEVNULL)
    assert sorted(path.name for path in out.iterdir()) == [
        "test.tsv", "test.zip", "train.tsv", "train.zip",
    ]  # fmt: skip
    assert len(read_manifest(out / "train.tsv")) == 3


def test_an_older_manifest_never_stands_beside_a_newer_archive(text, tmp_path, monkeypatch):
    prepare_espeak(text, tmp_path / "out", ["train"], ["es"], ["en"])

    def crash(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(prep_espeak.FlacArchive, "__exit__", lambda self, *error: crash(self))
    with pytest.raises(KeyboardInterrupt):
        prepare_espeak(text, tmp_path / "out", ["train"], ["fr"], ["en"])
    assert not (tmp_path / "out" / "train.tsv").exists()


def test_the_command_reports_and_fails_plainly(text, tmp_path):
    options = ["--text-dir", text, "--splits", "train", "--src", "es", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "data_prep.prep_espeak", *map(str, options), "--tgt"]
    done = subprocess.run([*command, "en"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("train: 3 rows, 3 utterances, 0.00 h, mean 1.")
    failed = subprocess.run([*command, "xx"], cwd=REPOSITORY, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: expected ")
    assert "Traceback" not in failed.stderr


def test_manners_are_drawn_evenly_within_their_ranges():
    delivery = Delivery(voices=("", "+m3", "f2"), rate=200, rate_jitter=0.1, pitch=(40, 42))
    manners = [draw_manner(f"train_es_{number}", delivery) for number in range(3000)]
    voices, rates, pitches = zip(*manners)
    for variant in ("", "m3", "f2"):
        assert 850 < voices.count(variant) < 1150
    assert (min(rates), max(rates)) == (180, 220)
    assert abs(sum(rates) / 3000 - 200) < 1
    assert set(pitches) == {40, 41, 42}
    assert manners == [draw_manner(f"train_es_{number}", delivery) for number in range(3000)]


def test_silence_is_cut_off_at_the_edges_only():
    tone = np.sin(np.arange(22_050) * 0.1) * 8000
    pause = np.zeros(22_050 // 2)
    samples = np.concatenate([pause, tone, pause, tone, pause, pause]).astype(np.int16)
    wave = finish_wave(samples)
    assert abs(len(wave) / SAMPLE_RATE - 2.52) < 0.02  # and 10 ms of silence at both ends
    assert np.abs(wave[: SAMPLE_RATE // 200]).max() < 0.01
    assert abs(np.abs(wave).max() - 8000 / 32768) < 0.01
    assert finish_wave(np.zeros(1000, np.int16)).size == 0
    assert finish_wave(np.zeros(0, np.int16)).size == 0
