"""The archive of FLAC files."""

import io
import zipfile

import numpy as np
import pytest
import soundfile

from data_prep.archive import SAMPLE_RATE, FlacArchive, encode_flac


def noise(samples, seed=1):
    wave = np.random.default_rng(seed).uniform(-0.5, 0.5, samples)
    return (np.rint(wave * 32768) / 32768).astype(np.float32)


def read_slice(folder, spec):
    name, offset, length = spec.rsplit(":", 2)
    with open(folder / name, "rb") as file:
        file.seek(int(offset))
        return file.read(int(length))


def decode(flac):
    wave, rate = soundfile.read(io.BytesIO(flac), dtype="float32")
    assert rate == SAMPLE_RATE
    return wave


def test_slices_are_whole_files_and_any_zip_program_opens_the_archive(tmp_path):
    waves = {"a.flac": noise(1000, 1), "größer/b.flac": noise(3000, 2), "c.flac": noise(1, 3)}
    with FlacArchive(tmp_path / "x.zip") as archive:
        specs = {name: archive.add(name, encode_flac(wave)) for name, wave in waves.items()}
    with zipfile.ZipFile(tmp_path / "x.zip") as opened:
        assert opened.testzip() is None
        for name, wave in waves.items():
            assert opened.getinfo(name).compress_type == zipfile.ZIP_STORED
            assert opened.getinfo(name).date_time == (1980, 1, 1, 0, 0, 0)
            flac = read_slice(tmp_path, specs[name])
            assert flac == opened.read(name)
            np.testing.assert_array_equal(decode(flac), wave)


def test_the_same_members_give_the_same_bytes(tmp_path):
    for name in ("x.zip", "y.zip"):
        with FlacArchive(tmp_path / name) as archive:
            archive.add("a.flac", encode_flac(noise(500)))
    assert (tmp_path / "x.zip").read_bytes() == (tmp_path / "y.zip").read_bytes()


def test_beyond_four_gigabytes(tmp_path):
    flac = encode_flac(noise(500))
    with FlacArchive(tmp_path / "big.zip") as archive:
        archive.add("first.flac", flac)
        # A hole in the file stands for the members that would fill it.
        archive._zip.start_dir = 5 << 30
        archive._zip.fp.seek(5 << 30)
        spec = archive.add("last.flac", flac)
    assert int(spec.split(":")[1]) > 5 << 30
    assert read_slice(tmp_path, spec) == flac
    with zipfile.ZipFile(tmp_path / "big.zip") as opened:
        assert opened.read("last.flac") == flac


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(KeyError), FlacArchive(tmp_path / "x.zip") as archive:
        archive.add("a.flac", encode_flac(noise(500)))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(tmp_path):
    first = FlacArchive(tmp_path / "x.zip")
    first.add("a.flac", encode_flac(noise(500)))
    with FlacArchive(tmp_path / "x.zip") as archive:
        archive.add("b.flac", encode_flac(noise(500)))
    assert zipfile.ZipFile(tmp_path / "x.zip").namelist() == ["b.flac"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_samples_out_of_range_are_clipped():
    wave = decode(encode_flac(np.array([1.5, -1.5, 1.0, -1.0, 0.25], np.float32)))
    np.testing.assert_array_equal(wave, np.float32([32767 / 32768, -1, 32767 / 32768, -1, 0.25]))


@pytest.mark.parametrize(
    "wave, message",
    [
        (np.zeros(0, np.float32), r"found shape \(0,\)"),
        (np.zeros((5, 2), np.float32), r"found shape \(5, 2\)"),
        (np.array([0, np.nan], np.float32), "found NaN or infinity"),
    ],
)
def test_what_is_no_wave_is_refused(wave, message):
    with pytest.raises(ValueError, match=message):
        encode_flac(wave)
