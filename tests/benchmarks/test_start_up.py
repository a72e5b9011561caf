"""Both tasks start from one folder, and read the same from it."""

import json

import pytest

from benchmarks import first_batch, start_up
from benchmarks.peers import stand_in_for_torchaudio
from benchmarks.sizes import SIZES


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start_up") / "40_rows"
    start_up.write_corpus(folder, 40)
    return folder


def test_both_tasks_read_the_same_rows(corpus):
    stand_in_for_torchaudio()
    ours, theirs = (
        first_batch.first_batch(task, str(corpus), workers=0, rank=1, ranks=2)
        for task in ("speech_to_text_samu", "speech_to_text")
    )
    said = start_up.same_examples(ours["examples"], [theirs["examples"]])
    assert said.startswith("same tokens") and float(said.split()[-3]) < 1e-5
    assert len(ours["examples"]) == 3 and len(ours["examples"][0]["samples"]) > 20
    for found in (ours, theirs):
        assert found["batches"] >= 2 and len(set(found["rows"])) == len(found["rows"]) > 2
        assert set(found["rows"]) < set(range(40)) and found["workers"] == []
        assert 100 < found["import_mib"] < found["peak_mib"]
        assert found["seconds"] > 0


def test_differences_are_said():
    one = [{"tokens": [1, 2], "samples": [0.5, -0.5]}]
    assert start_up.same_examples(one, [one]).endswith("differ by 0e+00 at most")
    other = [{"tokens": [1, 2], "samples": [0.5, -0.75]}]
    assert start_up.same_examples(one, [one, other]).endswith("differ by 2e-01 at most")
    for wrong in ({"tokens": [1], "samples": [0.5, -0.5]}, {"tokens": [1, 2], "samples": [0.5]}):
        assert start_up.same_examples(one, [one, [wrong]]) == "tokens or lengths DIFFER"


def test_a_process_waits_with_its_first_batch(corpus):
    (found,), mib = start_up._start(corpus, "speech_to_text_samu", ranks=1, workers=1)
    assert len(found["workers"]) == 1
    assert mib > 100


def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(start_up.sys, "executable", "/bin/ls")
    with pytest.raises(RuntimeError, match="expected a first batch, found:\n.*unrecognized option"):
        start_up._start(tmp_path, "speech_to_text_samu")


def test_figures_come_from_the_right_side(tmp_path, monkeypatch):
    starts = []

    def start(folder, task, ranks=1, workers=0):
        ours = task == "speech_to_text_samu"
        index = folder / ".train.tsv.index"
        starts.append((folder.name, "ours" if ours else "theirs", index.exists(), ranks, workers))
        if ours:
            index.mkdir(exist_ok=True)
        seconds, peak = (2.0, 150.0) if ours else (30.0, 1100.0)
        found = {"seconds": seconds, "import_seconds": 5.0, "import_mib": 100.0, "peak_mib": peak,
                 "workers": [], "examples": [{"tokens": [1], "samples": [0.5]}]}  # fmt: skip
        return [dict(found) for _ in range(ranks)], 10 * peak

    monkeypatch.setattr(start_up, "_start", start)
    rows = start_up.measure(tmp_path, SIZES["tiny"], "cpu", 2)
    alone = [("80_rows", "ours", False, 1, 0), ("80_rows", "ours", True, 1, 0)]
    alone += [("80_rows", "theirs", True, 1, 0)]
    together = [("80_rows", "ours", True, 2, 2), ("80_rows", "theirs", True, 2, 2)]
    assert starts[6:] == 2 * alone + 2 * together
    found = {row.figure: row for row in rows}
    assert len(found) == 18 and {row.peer for row in rows} == {"fairseq speech_to_text"}
    row = found["80 rows, first start: time after imports"]
    assert (row.ours, row.theirs, row.target, row.reached) == ([2.0] * 2, [30.0] * 2, 20.0, "no")
    row = found["80 rows, later start: memory above imports, peak"]
    assert (row.ours, row.theirs, row.target, row.reached) == ([50.0] * 2, [1000.0] * 2, 5.0, "yes")
    assert row.same == ("1 rows: same tokens, samples of unit variance differ by 0e+00 at most")
    assert found["40 rows, later start: time, all"].quartiles == (5.0, 5.0, 5.0)
    assert found["40 rows, first start: time after imports"].target is None
    row = found["80 rows, later start, 2 ranks of 2 workers: memory of all processes"]
    assert row.ours == [1500.0] * 2 and row.theirs == [11_000.0] * 2
    json.dumps([row.ratios for row in rows])
