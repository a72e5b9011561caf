"""Manifests are checked as training would find them."""

import hashlib
import shutil

import numpy as np
import pytest
import soundfile

from data_prep import check_manifest
from data_prep.check_manifest import Tags, check_manifests
from data_prep.manifest import COLUMNS, ManifestRow, ManifestWriter
from data_prep.vector_files import VectorFiles, row_hash


@pytest.fixture
def data(tmp_path):
    """Three utterances of two splits, with vectors of a teacher."""
    random = np.random.default_rng(1)
    for split in ("train", "dev"):
        with ManifestWriter(tmp_path / f"{split}.tsv") as manifest:
            for i in range(3):
                name = f"{split}{i}.wav"
                soundfile.write(tmp_path / name, random.uniform(-0.1, 0.1, 22_050), 22_050)
                manifest.write(
                    ManifestRow(f"{split}{i}", name, 16_000, "one", "", f"un {i}", "fr", "en")
                )
    return tmp_path


def check(data, **more):
    manifests = [data / "train.tsv", data / "dev.tsv"]
    summary, problems = check_manifests(manifests, workers=1, **more)
    return summary, [str(problem).replace(f"{data}/", "") for problem in problems]


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_good_manifests_are_summed_up(data):
    summary, problems = check(data)
    assert problems == []
    (pair,) = summary.splits["train"].pairs
    assert (pair.rows, pair.mean_seconds, pair.longest_seconds) == (3, 1.0, 1.0)
    assert [(found.what, found.count) for found in summary.duplicates] == [
        ("transcript and translation", 3)
    ]


@pytest.mark.parametrize(
    "old,new,problem",
    [
        ("16000", "16100", "train.tsv:2: wrong n_frames: expected 16000 samples"),
        ("16000", "١٦٠٠٠", "train.tsv:2: wrong n_frames: "),
        ("16000", "1e4", "train.tsv:2: wrong n_frames: "),
        ("16000", "1" * 5000, "train.tsv:2: wrong n_frames: "),
        ("train1.wav", f"train1.wav:0:{9**40}", "train.tsv:3: unreadable audio: "),
        ("train1.wav", "train1.wav:0:99999", "train.tsv:3: unreadable audio: "),
        ("train1.wav", "gone.wav", "train.tsv:3: no audio file: "),
        ("train2\ttrain2", "train1\ttrain2", "train.tsv:4: duplicate id: row 2 "),
        ("\tone\t\tun 1", "\t\t\tun 1", "train.tsv:3: no translation"),
        (
            "\tone\t\tun 1",
            "\tone\t\tun 1\t",
            "train.tsv:3: wrong number of cells: expected 8, found 9",
        ),
    ],
)
def test_problems_name_the_line(data, old, new, problem):
    edit(data / "train.tsv", old, new)
    _, problems = check(data)
    assert problems[0].startswith(problem)


def test_a_blank_line_that_training_refuses_is_a_problem(data):
    with open(data / "train.tsv", "a", encoding="utf-8") as file:
        file.write("\n")
    assert check(data)[1] == ["train.tsv:5: wrong number of cells: expected 8, found 1"]


def test_a_manifest_without_rows_and_language_segments(data):
    header, *rows = (data / "train.tsv").read_text(encoding="utf-8").splitlines()
    (data / "train.tsv").write_text(header + "\n", encoding="utf-8")
    assert check(data)[1] == ["train.tsv:1: no rows"]
    cells = ["segment_langs", "", "fr:0-16000", "fr:0-16001"]
    lines = [f"{line}\t{cell}\n" for line, cell in zip([header, *rows], cells)]
    (data / "train.tsv").write_text("".join(lines), encoding="utf-8")
    (problem,) = check(data)[1]
    assert problem.startswith("train.tsv:4: wrong segment_langs: ")


def test_what_is_not_shown_is_counted(data):
    header, row, *_ = (data / "train.tsv").read_text(encoding="utf-8").splitlines()
    rows = [row.replace("train0\t", f"{i}\t", 1).replace("16000", "9") for i in range(25)]
    (data / "train.tsv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    problems = check(data)[1]
    assert problems[19].startswith("train.tsv:21: wrong n_frames")
    assert problems[20:] == ["train.tsv:22: and 5 more rows from here on"]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["dropped.tsv"], "error: expected manifests of different names, found none"),
        (["train.tsv", "--workers", "-1"], "error: --workers: expected 0 to 1000, found -1"),
        (["gone.tsv"], "error: [Errno 2] No such file or directory: 'gone.tsv'"),
    ],
)
def test_an_error_has_a_line_of_its_own(data, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(data)
    with pytest.raises(SystemExit) as exit_:
        check_manifest.main(arguments)
    assert exit_.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_target_languages_need_a_tag(data):
    edit(data / "dev.tsv", "un 1\tfr\ten", "un 1\tfr\tde")
    _, problems = check(data, tags=Tags(frozenset({"[en_XX]"}), "[{}]", {"en": "en_XX"}))
    assert problems == ["dev.tsv:3: no tag in the dictionary: [de] of de"]


def test_vectors_of_other_texts_are_found(data):

    texts = [f"un {i}".encode() for i in range(3)]
    for split in ("train", "dev"):
        sha256 = hashlib.sha256(b"".join(text + b"\n" for text in texts)).hexdigest()
        sidecar = {"rows": 3, "dimension": 2, "texts_sha256": sha256}
        files = VectorFiles(data / f"{split}.labse", sidecar)
        vectors, _ = files.open()
        files.finish(vectors, np.array([row_hash(text) for text in texts], np.uint64))
    assert check(data, teachers=["labse"])[1] == []
    edit(data / "dev.tsv", "un 1", "deux")
    shutil.move(data / "train.labse.json", data / "away.json")
    problems = check(data, teachers=["labse"])[1]
    assert problems[0].startswith("train.tsv:1: no usable vectors of labse: ")
    assert problems[1] == "dev.tsv:3: src_text changed since dev.labse.npy was computed"


def test_the_command(data, capsys):
    (data / "dict.txt").write_text("a 1\n<lang:en> 1\n", encoding="utf-8")
    arguments = [str(data / "train.tsv"), "--workers", "1", "--dict", str(data / "dict.txt")]
    for status, edits in ((0, ()), (1, ("train0.wav", "gone.wav"))):
        if edits:
            edit(data / "train.tsv", *edits)
        with pytest.raises(SystemExit) as exit_:
            check_manifest.main(arguments)
        assert exit_.value.code == status
        out = capsys.readouterr().out
        assert "| train | fr→en | " in out
        # A row of a manifest is wrong; nothing is dropped.
        assert ("- train: wrong, no audio file: 1" in out) == bool(edits) and "dropped" not in out
    (data / "train.tsv").write_text("\t".join(COLUMNS[1:]) + "\n")
    with pytest.raises(SystemExit) as exit_:
        check_manifest.main(arguments)
    assert exit_.value.code == 1 and "expected a column id" in capsys.readouterr().err


@pytest.mark.parametrize(("tags", "error"), [("en=en_XX", ""), ("en", "expected language=name")])
def test_the_command_names_languages_as_tags_do(data, capsys, tags, error):
    (data / "dict.txt").write_text("<lang:en_XX> 1\n", encoding="utf-8")
    arguments = [str(data / "train.tsv"), "--workers", "1", "--dict", str(data / "dict.txt")]
    with pytest.raises(SystemExit) as exit_:
        check_manifest.main([*arguments, "--lang-tag-map", tags])
    assert exit_.value.code == bool(error) and error in capsys.readouterr().err
