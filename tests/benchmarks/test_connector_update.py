"""The benchmark's two trainings are one."""

import re

import pytest

pytest.importorskip("transformers")

from benchmarks.connector_update import measure
from benchmarks.sizes import SIZES


def test_both_trainings_have_the_same_losses(tmp_path):
    update, storing = measure(tmp_path, SIZES["tiny"], "cpu", repeats=2)
    assert len(update.ours) == len(update.theirs) == 2
    found = re.fullmatch(r"losses of 3 updates, (.+) to (.+), differ by (.+) at most", update.same)
    first, last, difference = map(float, found.groups())
    assert last < first - 0.1
    assert 0 < difference < 1e-3
    # 50 frames a second, 16 numbers of two bytes
    stored = re.search(r"([\d.]+) MB an hour", storing.figure)
    assert float(stored[1]) == pytest.approx(3600 * 50 * 32 / 1e6, rel=0.03)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 20e6
