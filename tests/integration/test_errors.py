"""Wrong input stops a run before training, and the message says what to mend."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def data(corpus: Path, tmp_path: Path) -> Path:
    """A copy of the corpus's data folder to break."""
    copy = tmp_path / "data"
    shutil.copytree(corpus, copy)
    return copy


@pytest.fixture
def failing_run(run_fairseq, tiny_model, tiny_training, tmp_path):
    """Runs fairseq-train and returns what it printed; the run has to fail before the first update."""

    def run(data: Path, *options: str) -> str:
        result = run_fairseq(
            "train", data, *tiny_model, *tiny_training, "--max-update", "2",
            "--save-dir", tmp_path / "checkpoints", *options, check=False,
        )  # fmt: skip
        assert result.returncode != 0, result.stdout[-2000:]
        assert '"num_updates"' not in result.stdout
        return result.stdout

    return run


def edit(manifest: Path, row: int, column: str, value: str) -> None:
    """Replace one cell; row 1 is the first after the header."""
    lines = manifest.read_text(encoding="utf-8").splitlines()
    cells = lines[row].split("\t")
    cells[lines[0].split("\t").index(column)] = value
    lines[row] = "\t".join(cells)
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_missing_audio(data, failing_run):
    edit(data / "train.tsv", 7, "audio", "nowhere/absent.wav")
    output = failing_run(data)
    assert "absent.wav" in output and "train.tsv:8" in output


def test_missing_column(data, failing_run):
    path = data / "train.tsv"
    path.write_text(
        path.read_text(encoding="utf-8").replace("n_frames", "frames", 1), encoding="utf-8"
    )
    output = failing_run(data)
    assert "train.tsv:1" in output and "n_frames" in output


def test_unknown_language_tag(data, failing_run):
    edit(data / "train.tsv", 3, "tgt_lang", "xx")
    output = failing_run(data)
    assert "<lang:xx>" in output and "<lang:en>" in output and "<lang:fr>" in output


def test_wrong_tag_template(data, failing_run):
    output = failing_run(data, "--lang-tag-template", "[{}_XX]")
    assert "[fr_XX]" in output and "<lang:fr>" in output


def test_vocabulary_mismatch(data, failing_run):
    path = data / "dict.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[10:]) + "\n", encoding="utf-8")
    output = failing_run(data)
    assert "vocabulary mismatch" in output and "spm.model" in output


def test_no_dictionary(data, failing_run):
    (data / "dict.txt").unlink()
    output = failing_run(data)
    assert "dict.txt" in output and "build_vocab" in output


def test_transcripts_missing_for_ctc(data, failing_run):
    output = failing_run(data, "--ctc-weight", "0.3")
    assert "--transcript-dictionary" in output


def test_broken_validation_manifest_is_found_before_training(data, failing_run):
    edit(data / "dev.tsv", 2, "n_frames", "many")
    output = failing_run(data)
    assert "dev.tsv:3" in output and "many" in output


def test_no_manifest(data, failing_run):
    (data / "train.tsv").unlink()
    assert "train.tsv" in failing_run(data)


def test_overlong_rows_are_reported_for_every_split(
    data, run_fairseq, tiny_model, tiny_training, tmp_path
):
    edit(data / "dev.tsv", 2, "n_frames", "100000000")
    edit(data / "train.tsv", 5, "n_frames", "100000000")
    result = run_fairseq(
        "train",
        data,
        *tiny_model,
        *tiny_training,
        "--max-update",
        "1",
        "--save-dir",
        tmp_path / "c",
    )
    before_training = result.stdout.split("begin training epoch")[0]
    for split, row in (("dev", 2), ("train", 5)):
        name = (data / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[row].split("\t")[0]
        report = next(line for line in before_training.splitlines() if f"{split}.tsv: 1 of" in line)
        assert f"1 longer than 480000 samples: {name}" in report


def test_checkpoint_of_another_vocabulary(data, run_fairseq, tiny_model, tiny_training, tmp_path):
    run_fairseq("train", data, *tiny_model, *tiny_training, "--max-update", "1",
                "--disable-validation", "--save-dir", tmp_path / "c")  # fmt: skip
    path = data / "dict.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[1:] + lines[:1]) + "\n", encoding="utf-8")
    result = run_fairseq(
        "generate", data, "--task", "speech_to_text_samu", "--path", tmp_path / "c/checkpoint_last.pt",
        "--cpu", "--gen-subset", "test", "--scoring", "sacrebleu", check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "dictionary" in result.stdout


def test_checkpoint_of_another_normalisation(
    data, run_fairseq, tiny_model, tiny_training, tmp_path
):
    run_fairseq("train", data, *tiny_model, *tiny_training, "--max-update", "1",
                "--disable-validation", "--save-dir", tmp_path / "c")  # fmt: skip
    result = run_fairseq(
        "generate", data, "--task", "speech_to_text_samu", "--path", tmp_path / "c/checkpoint_last.pt",
        "--cpu", "--gen-subset", "test", "--scoring", "sacrebleu", "--normalize", "none", check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "--normalize" in result.stdout
