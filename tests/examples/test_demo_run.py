"""What the demo refuses before it begins."""

import importlib.util
import json
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "examples" / "demo" / "run.py"


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("demo_run", RUN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_another_teacher_needs_another_folder(run, tmp_path, monkeypatch):
    teacher = tmp_path / "labse"
    teacher.mkdir()
    out = tmp_path / "out"
    run.Demo(out, "misspelt").check_teacher()  # no step has used it
    run.Demo(out, str(teacher)).check_teacher()
    (out / "seconds.json").write_text(json.dumps({"teacher": 1.0}))
    monkeypatch.chdir(tmp_path)
    run.Demo(out, "labse").check_teacher()
    for other, found in ((None, "the small one"), ("other", "other")):
        with pytest.raises(SystemExit, match=f"in the first call, {teacher}; found {found}: "):
            run.Demo(out, other).check_teacher()
    run.Demo(out, "labse").check_teacher()


def test_folder_made_before_teachers_were_recorded(run, tmp_path):
    (tmp_path / "seconds.json").write_text(json.dumps({"teacher": 1.0}))
    with pytest.raises(SystemExit, match="in the first call, the small one; found some/model: "):
        run.Demo(tmp_path, "some/model").check_teacher()
    run.Demo(tmp_path).check_teacher()


def test_output_that_is_no_folder(run, tmp_path, capsys):
    (tmp_path / "out").touch()
    with pytest.raises(SystemExit):
        run.main(["--out", str(tmp_path / "out")])
    assert "--out: expected a folder to write to, found: " in capsys.readouterr().err


def test_a_teacher_that_is_trained_is_not_trained_again(run, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(run.Demo, "call", lambda demo, module, *_, **__: called.append(module))
    run.Demo(tmp_path).embed_texts()
    (tmp_path / "teacher").mkdir()
    run.Demo(tmp_path).embed_texts()
    assert called == ["data_prep.train_teacher", "data_prep.embed_text", "data_prep.embed_text"]
