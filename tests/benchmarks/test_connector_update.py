"""The benchmark's two trainings are one."""

import re

import pytest

pytest.importorskip("transformers")

from benchmarks import connector_update
from benchmarks.sizes import SIZES


def test_both_trainings_have_the_same_losses(tmp_path, monkeypatch):
    monkeypatch.setattr(connector_update, "peak_mib", lambda *step: 7.0)
    monkeypatch.setattr(connector_update, "SECONDS", (1.0, 2.0))
    monkeypatch.setattr(connector_update, "SHORT_SECONDS", (0.5, 1.0))
    *updates, storing, memory = connector_update.measure(tmp_path, SIZES["tiny"], "cpu", repeats=2)
    assert len(updates) == 3
    falls = []
    for update in updates:
        assert len(update.ours) == len(update.theirs) == 2
        found = re.fullmatch(
            r"losses of 3 updates, (.+) to (.+), differ by (.+) at most", update.same
        )
        first, last, difference = map(float, found.groups())
        assert difference < 1e-3
        assert last < first
        falls.append(first - last)
    assert falls[0] > 0.1
    assert (memory.ours, memory.theirs) == ([7.0], [7.0])
    # 50 frames a second, 16 numbers of two bytes; and an index
    stored = re.search(r"([\d.]+) MB an hour", storing.figure)
    assert float(stored[1]) == pytest.approx(3600 * 50 * 32 / 1e6, rel=0.06)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 20e6
