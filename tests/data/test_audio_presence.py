"""Missing audio is found when a manifest is opened for training."""

import os
import time

import pytest

from fairseq_samu.data import audio_presence
from fairseq_samu.data.audio_presence import check_audio_present
from fairseq_samu.data.manifest import Manifest
from fairseq_samu.data.manifest_index import COLUMNS, ManifestError


@pytest.fixture
def write(tmp_path):
    """Writes a manifest with these audio cells."""

    def make(*audio: str) -> Manifest:
        rows = [f"u{i}\t{cell}\t16000\ttext\ts\ttexte\tfr\ten" for i, cell in enumerate(audio)]
        path = tmp_path / "train.tsv"
        path.write_text("\n".join(["\t".join(COLUMNS), *rows]) + "\n", encoding="utf-8")
        return Manifest(path)

    (tmp_path / "a.wav").write_bytes(b"x" * 10)
    (tmp_path / "b.zip").write_bytes(b"x" * 100)
    return make


def test_present_files_and_slices_pass(write, tmp_path):
    check_audio_present(write("a.wav", "b.zip:90:10", str(tmp_path / "a.wav")), str(tmp_path))


@pytest.mark.parametrize(
    ("cell", "found"),
    [("c.wav", "no such file"), ("b.zip:91:10", "100 bytes"), ("c.zip:0:1", "no such file"),
     ("", None), (".", "no such file")],
)  # fmt: skip
def test_the_first_row_without_audio_is_named(write, tmp_path, cell, found):
    if found is None:  # an empty cell is refused by the manifest itself
        with pytest.raises(ManifestError, match="audio"):
            write("a.wav", cell)
        return
    with pytest.raises(ManifestError, match=rf"train\.tsv:3: .*{found}.*\(2 of 4 rows"):
        check_audio_present(write("a.wav", cell, "a.wav", cell), str(tmp_path))


def test_rows_of_all_blocks_are_counted_and_the_first_is_named(write, tmp_path, monkeypatch):
    monkeypatch.setattr(audio_presence, "BLOCK_ROWS", 2)
    cells = ["a.wav", "a.wav", "a.wav", "b.zip:91:10", "c.wav", "b.zip:91:10", "b.zip:1:2"]
    with pytest.raises(ManifestError, match=r"train\.tsv:5: .*b\.zip:91:10.*\(3 of 7 rows"):
        check_audio_present(write(*cells), str(tmp_path))


def test_an_empty_file_is_no_audio(write, tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(ManifestError, match="0 bytes"):
        check_audio_present(write("empty.wav"), str(tmp_path))


def test_a_file_deleted_since_is_found(write, tmp_path):
    check_audio_present(write("a.wav"), str(tmp_path))
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ManifestError, match="no such file"):
        check_audio_present(Manifest(tmp_path / "train.tsv"), str(tmp_path))


def test_a_large_manifest_that_passed_is_looked_up_once(write, tmp_path, monkeypatch):
    monkeypatch.setattr(audio_presence, "MANY_ROWS", 1)
    check_audio_present(write("a.wav"), str(tmp_path))
    looked_up = []
    monkeypatch.setattr(
        audio_presence, "split_slice", lambda spec: looked_up.append(spec) or (spec, 0, 0)
    )
    check_audio_present(Manifest(tmp_path / "train.tsv"), str(tmp_path))
    assert looked_up == []
    os.utime(tmp_path / "train.tsv", (time.time() + 5, time.time() + 5))
    check_audio_present(Manifest(tmp_path / "train.tsv"), str(tmp_path))
    assert looked_up == ["a.wav"]
    # The same content and time again, but written since.
    before = (tmp_path / "train.tsv").stat()
    time.sleep(0.02)
    (tmp_path / "train.tsv").write_bytes((tmp_path / "train.tsv").read_bytes())
    os.utime(tmp_path / "train.tsv", ns=(before.st_atime_ns, before.st_mtime_ns))
    check_audio_present(Manifest(tmp_path / "train.tsv"), str(tmp_path))
    assert looked_up == ["a.wav", "a.wav"]
