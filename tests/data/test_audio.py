import io
import math
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

from fairseq_samu.data.audio import (
    SAMPLE_RATE,
    AudioError,
    audio_duration,
    change_speed,
    normalize_utterance,
    read_audio,
)

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def tone(rate, seconds=1.0, hertz=440.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def strongest(wave, rate=SAMPLE_RATE):
    """Frequency (Hz) of the highest peak and its amplitude, from the middle of a waveform."""
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    window = np.hanning(len(middle))
    spectrum = np.abs(np.fft.rfft(middle * window, 16 * len(middle))) / window.sum() * 2
    return spectrum.argmax() * rate / (16 * len(middle)), spectrum.max()


def encoded(wave, rate, extension="flac"):
    file = io.BytesIO()
    container, subtype = FORMATS[extension]
    soundfile.write(file, wave, rate, format=container, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(
    ("extension", "rate", "channels"),
    [
        (extension, rate, channels)
        for extension in FORMATS
        for rate in (8000, 16_000, 22_050, 44_100, 48_000)
        for channels in (1, 2, 3)
        # Opus has no such rates, MP3 at most two channels.
        if not (extension == "opus" and rate in (22_050, 44_100))
        and not (extension == "mp3" and channels > 2)
    ],
)
def test_a_tone_keeps_frequency_length_and_amplitude(tmp_path, extension, rate, channels):
    path = tmp_path / f"tone.{extension}"
    wave = np.repeat(tone(rate, 1.5)[:, None], channels, axis=1)
    path.write_bytes(encoded(wave, rate, extension))

    read = read_audio(str(path))

    assert read.dtype == np.float32 and read.shape == (24_000,)
    hertz, amplitude = strongest(read)
    assert hertz == pytest.approx(440, abs=0.5)
    assert amplitude == pytest.approx(0.5, rel=0.03)
    assert audio_duration(str(path)) == len(read)


def test_what_16_khz_cannot_hold_is_removed_not_folded(tmp_path):
    path = tmp_path / "mixed.wav"
    both = tone(48_000, hertz=1000) + tone(48_000, hertz=11_000, amplitude=0.4)
    soundfile.write(path, both, 48_000)
    wave = read_audio(str(path))[2000:-2000]
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) / len(wave) * 4
    hertz = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    assert spectrum[np.abs(hertz - 5000) < 200].max() < 1e-3
    assert spectrum[np.abs(hertz - 1000) < 200].max() > 0.4


def test_channels_are_averaged(tmp_path):
    left, right = tone(16_000, hertz=440), tone(16_000, hertz=1000, amplitude=0.2)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(str(path)), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "PCM_U8"), ("a.flac", "PCM_16"),
     ("a.flac", "PCM_24"), ("a.wav", "DOUBLE")],
)  # fmt: skip
def test_samples_are_those_that_libsndfile_gives(tmp_path, name, subtype, channels):
    wave = np.random.default_rng(0).uniform(-1, 1, (5_000, channels))
    wave[:2] = [[1.0], [-1.0]]
    soundfile.write(tmp_path / name, wave, 16_000, subtype=subtype)
    expected, _ = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)
    read = read_audio(name, str(tmp_path))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, expected.mean(axis=1))
    data = (tmp_path / name).read_bytes()
    (tmp_path / "archive.tar").write_bytes(b"xyz" + data)
    from_archive = read_audio(f"archive.tar:3:{len(data)}", str(tmp_path))
    np.testing.assert_array_equal(from_archive, read)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open files here")
def test_no_file_stays_open(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16_000), 16_000)
    (tmp_path / "text.wav").write_bytes(b"this is not audio at all, whatever it is called")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        read_audio("a.wav", str(tmp_path))
        audio_duration("a.wav", str(tmp_path))
        with pytest.raises(AudioError):
            read_audio("text.wav", str(tmp_path))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_paths_start_from_the_root_unless_absolute(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(16_000), 16_000)
    relative = read_audio("a.flac", str(tmp_path))
    absolute = read_audio(str(tmp_path / "a.flac"), "/nowhere")
    np.testing.assert_array_equal(relative, absolute)
    with pytest.raises(AudioError, match="no such file"):
        read_audio("a.flac", str(tmp_path / "b"))


def zip_slices(path):
    """Where Python's zipfile put the data of each member, read from its local header."""
    data = path.read_bytes()
    for info in zipfile.ZipFile(path).infolist():
        header = data[info.header_offset :]
        name, extra = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        offset = info.header_offset + 30 + name + extra
        yield info.filename, f"{path.name}:{offset}:{info.compress_size}"


def test_reads_slices_of_a_stored_zip(tmp_path):
    waves = {"300.flac": tone(16_000, hertz=300), "500.ogg": tone(16_000, hertz=500)}
    with zipfile.ZipFile(tmp_path / "clips.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, wave in waves.items():
            archive.writestr(name, encoded(wave, 16_000, name.split(".")[1]))
    for name, spec in zip_slices(tmp_path / "clips.zip"):
        wave = read_audio(spec, str(tmp_path))
        assert strongest(wave)[0] == pytest.approx(int(name[:3]), abs=0.5)
        assert audio_duration(spec, str(tmp_path)) == 16_000


def test_reads_slices_of_a_tar(tmp_path):
    with tarfile.open(tmp_path / "clips.tar", "w") as archive:
        for hertz in (300, 500):
            data = encoded(tone(44_100, hertz=hertz), 44_100, "mp3")
            info = tarfile.TarInfo(f"{hertz}.mp3")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with tarfile.open(tmp_path / "clips.tar") as archive:
        infos = archive.getmembers()
    for info in infos:
        wave = read_audio(f"{tmp_path}/clips.tar:{info.offset_data}:{info.size}")
        assert len(wave) == 16_000
        assert strongest(wave)[0] == pytest.approx(int(info.name[:3]), abs=0.5)


def test_a_slice_of_a_compressed_archive_says_so(tmp_path):
    with zipfile.ZipFile(tmp_path / "clips.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", encoded(tone(16_000), 16_000, "wav"))
    ((_, spec),) = zip_slices(tmp_path / "clips.zip")
    with pytest.raises(AudioError, match="clips.zip:.*without compression"):
        read_audio(spec, str(tmp_path))


def test_reads_human_speech_from_another_archive(tmp_path):
    real = Path(__file__).resolve().parents[3] / "shared/real/spoken_digits/recordings.zip"
    if not real.is_file():
        pytest.skip("the recordings of spoken digits are not here")
    with zipfile.ZipFile(real) as source, zipfile.ZipFile(tmp_path / "stored.zip", "w") as stored:
        for name in source.namelist()[:3]:
            stored.writestr(name, source.read(name))
    specs = dict(zip_slices(tmp_path / "stored.zip"))
    assert len(specs) == 3
    for name, spec in specs.items():
        with zipfile.ZipFile(real) as source:
            original, rate = soundfile.read(io.BytesIO(source.read(name)))
        assert rate == 8000
        wave = read_audio(spec, str(tmp_path))
        assert len(wave) == 2 * len(original)
        # Every second sample of the doubled rate is one of the originals, but for the roll-off.
        error = np.abs(wave[::2] - original)[50:-50]
        assert np.sqrt((error**2).mean()) < 0.05 * original.std()


def corrupt(tmp_path, name):
    """Audio that cannot be used, by what is wrong with it."""
    path = tmp_path / name
    flac, mp3 = encoded(tone(44_100, 3), 44_100), encoded(tone(44_100, 3), 44_100, "mp3")
    nan = tone(16_000)
    nan[1234] = math.nan
    contents = {
        "text.wav": b"this is not audio at all, whatever it is called",
        "none.wav": b"",
        "headers.raw": b"\0" * 1000,
        "zero.wav": encoded(np.zeros(0), 16_000, "wav"),
        "nan.wav": encoded(nan, 16_000, "float.wav"),
        "half.flac": flac[: len(flac) // 2],
        "half.mp3": mp3[: len(mp3) // 2],
        "clips.zip": flac,
    }
    path.write_bytes(contents[name])
    return str(path)


@pytest.mark.parametrize(
    ("name", "suffix", "message"),
    [
        ("text.wav", "", "expected wav, flac, ogg, opus or mp3, found: .*[Ff]ormat"),
        ("none.wav", "", "expected wav, flac, ogg, opus or mp3"),
        ("headers.raw", "", "expected wav, flac, ogg, opus or mp3"),
        ("zero.wav", "", "expected audio, found no samples"),
        ("nan.wav", "", "expected finite samples, found nan at sample 1234"),
        ("half.flac", "", "expected wav, flac"),
        ("half.mp3", "", r"truncated audio, expected 132300 frames, found \d+"),
        ("clips.zip", ":0:0", "found 0 from 0"),
        ("clips.zip", ":10:99999999", r"within the \d+ of the archive, found 99999999 from 10"),
        ("clips.zip", ":99999999:10", "found 10 from 99999999"),
        ("clips.zip", ":-1:10", "no such file"),
        ("clips.zip", ":100:200", "without compression"),
    ],
)
def test_unusable_audio_is_named(tmp_path, name, suffix, message, capfd):
    spec = corrupt(tmp_path, name) + suffix
    with pytest.raises(AudioError, match=message) as error:
        read_audio(spec)
    assert str(error.value).startswith(spec)


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(AudioError, match="found a folder"):
        read_audio(str(tmp_path))
    with pytest.raises(AudioError, match="found no such file: .*clip.wav"):
        audio_duration("clip.wav", str(tmp_path))
    with pytest.raises(AudioError, match="x.zip:0:5: expected .* no such file: .*x.zip$"):
        read_audio("x.zip:0:5", str(tmp_path))


def test_duration_comes_from_the_header(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.flac", tone(22_050, 2.345), 22_050)
    expected = len(read_audio(str(tmp_path / "a.flac")))

    def read(*args, **kwargs):
        raise AssertionError("decoded")

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    assert audio_duration(str(tmp_path / "a.flac")) == expected
    with pytest.raises(AudioError, match="expected wav"):
        audio_duration(corrupt(tmp_path, "text.wav"))
    with pytest.raises(AudioError, match="no samples"):
        audio_duration(corrupt(tmp_path, "zero.wav"))


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("frames", [1, 2, 3, 1001, 44_101])
def test_duration_rounds_as_reading_does(tmp_path, rate, frames):
    soundfile.write(tmp_path / "a.wav", np.full(frames, 0.1), rate)
    spec = str(tmp_path / "a.wav")
    if frames * 16_000 / rate >= 0.5:
        assert len(read_audio(spec)) == audio_duration(spec)
    else:
        for read in (read_audio, audio_duration):
            with pytest.raises(AudioError, match="found no samples"):
                read(spec)


@pytest.mark.parametrize("factor", [0.9, 1.1, 0.5, 1.37])
def test_speed_moves_pitch_and_length(factor):
    wave = tone(16_000, 2).astype(np.float32)
    faster = change_speed(wave, factor)
    assert faster.dtype == np.float32
    assert len(faster) == math.floor(len(wave) / factor + 0.5)
    hertz, amplitude = strongest(faster)
    assert hertz == pytest.approx(440 * factor, abs=0.5)
    assert amplitude == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("scale", [1e-4, 0.03, 1.0, 3e4])
def test_normalisation_is_that_of_pre_training(scale):
    wave = (np.random.default_rng(0).normal(0.2, 1, 48_000) * scale).astype(np.float32)
    expected = F.layer_norm(torch.from_numpy(wave), wave.shape).numpy()
    normalised = normalize_utterance(wave)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, expected, atol=2e-5, rtol=1e-4)
    exact = wave.astype(np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    np.testing.assert_allclose(normalised, exact, atol=2e-6, rtol=1e-5)


def test_normalised_silence_is_silence():
    assert not normalize_utterance(np.zeros(1000, dtype=np.float32)).any()
