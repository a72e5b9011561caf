"""Ratios, the table, and works measured once."""

import json
from types import SimpleNamespace

import pytest

import benchmarks.__main__ as command
from benchmarks.comparison import Comparison, in_turn, seconds, table


def row(**given):
    values = {
        "work": "update", "figure": "full", "unit": "s", "ours": [1.0, 2.0, 4.0],
        "theirs": [2.0, 3.0, 16.0], "peer": "fairseq", "target": 2.0, "same": "yes",
    }  # fmt: skip
    return Comparison(**{**values, **given})


def test_ratios_are_of_what_was_measured_together():
    time = row()
    assert time.ratios == [2.0, 1.5, 4.0]
    assert time.quartiles == (1.75, 2.0, 3.0)
    assert time.reached == "yes"
    assert row(target=2.1).reached == "no"
    assert row(target=None).reached == ""
    speed = row(more_is_better=True)
    assert speed.ratios == [0.5, 1 / 1.5, 0.25]
    assert speed.reached == "no"


def test_table_has_medians_and_quartiles():
    assert table([row(), row(target=None, same="", unit="MiB", theirs=[2000.0, 3e3, 16e3])])[
        2:
    ] == [
        "| update | full | fairseq | 2 s | 3 s | 2.00 [1.75, 3.00] | ≥ 2 | yes | yes |",
        "| update | full | fairseq | 2 MiB | 3,000 MiB | 2000.00 [1750.00, 3000.00] |  |  |  |",
    ]


def test_runs_alternate_and_the_first_round_does_not_count():
    called = []

    def run(name):
        return lambda: called.append(name) or float(len(called))

    assert in_turn({"a": run("a"), "b": run("b")}, repeats=2) == {"a": [3, 5], "b": [4, 6]}
    assert called == ["a", "b"] * 3
    assert 0 <= seconds(lambda: None)() < 0.1


@pytest.fixture
def measured(monkeypatch):
    """Arguments of every measurement that the command makes."""
    calls = []

    def measure(out, size, device, repeats):
        assert out.is_dir()
        calls.append((size.name, device, repeats))
        return [row()]

    monkeypatch.setattr(
        command.importlib, "import_module", lambda name: SimpleNamespace(measure=measure)
    )
    return calls


def test_command_measures_a_work_once(tmp_path, measured, capsys):
    line = [
        "--out",
        str(tmp_path),
        "--only",
        "connector_update",
        "--size",
        "tiny",
        "--repeats",
        "3",
    ]
    command.main(line)
    assert measured == [("tiny", "cpu", 3)]
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (found,) = stored["works"]["connector_update"]["comparisons"]
    assert found["quartiles"] == [1.75, 2.0, 3.0] and found["reached"] == "yes"
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert table([row()])[2] in text and "size: tiny" in text and "torch" in text
    command.main(line)
    assert len(measured) == 1 and "there already" in capsys.readouterr().out
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == text
    command.main([*line, "--again"])
    assert len(measured) == 2


def test_results_of_other_settings_are_not_mixed(tmp_path, measured, capsys):
    line = ["--out", str(tmp_path), "--only", "connector_update", "--size", "tiny"]
    command.main(line)
    with pytest.raises(SystemExit):
        command.main([*line, "--repeats", "4"])
    assert "'repeats': 3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path / "none"), "--repeats", "0"])
    assert "--repeats: expected at least 1, found 0" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
