"""The one way in which two things are compared: in turn, in one process, and as ratios."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Comparison:
    """One figure of this project beside the peer's.

    Attributes:
        work: what is measured, such as "translation update".
        figure: which of its figures.
        unit: of the values.
        ours: this project's values, in the order in which they were measured.
        theirs: the peer's; the i-th of both were measured one after the other.
        peer: what a user would run instead.
        target: ratio to reach; None without one.
        same: what was found on the results being the same; empty where there is nothing to compare.
        more_is_better: values such as sentences a second; False for times and memory.
    """

    work: str
    figure: str
    unit: str
    ours: list[float]
    theirs: list[float]
    peer: str
    target: float | None
    same: str
    more_is_better: bool = False

    @property
    def ratios(self) -> list[float]:
        """How many times better this project is, pair by pair."""
        pairs = zip(self.ours, self.theirs)
        return [o / t if self.more_is_better else t / o for o, t in pairs]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of the ratios."""
        low, median, high = np.percentile(self.ratios, [25, 50, 75])
        return float(low), float(median), float(high)

    @property
    def reached(self) -> str:
        """Whether the median reaches the target: yes, no, or empty without one."""
        if self.target is None:
            return ""
        return "yes" if self.quartiles[1] >= self.target else "no"


def seconds(step: Callable[[], object], device: str = "cpu") -> Callable[[], float]:
    """Make a function that calls ``step`` and returns the seconds that this took.

    Args:
        step: what to time.
        device: ``cpu`` or ``cuda``, whose queue is waited for.
    """

    def timed() -> float:
        _wait_for(device)
        begin = time.perf_counter()
        step()
        _wait_for(device)
        return time.perf_counter() - begin

    return timed


def in_turn(
    runs: Mapping[str, Callable[[], float]], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Call functions alternately, so that all meet the same load of the machine.

    Args:
        runs: what to call, in this order in every round; they return the measured value.
        repeats: rounds that count.
        warm_up: rounds before them, which do not count.

    Returns:
        The values of every run.
    """
    values: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + repeats):
        for name, run in runs.items():
            value = run()
            if turn >= warm_up:
                values[name].append(value)
    return values


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write ``results.json`` and, for reading, ``results.md``.

    Args:
        out: folder of the two.
        results: ``settings`` and ``machine``, and in ``works`` the ``comparisons`` of every work.
    """
    stored = json.dumps(results, default=_as_stored, indent=1, ensure_ascii=False)
    (out / "results.json").write_text(stored + "\n", encoding="utf-8")
    lines = [f"{name}: {value}  " for part in ("machine", "settings")
             for name, value in results[part].items()]  # fmt: skip
    rows = [c for work in results["works"].values() for c in work["comparisons"]]
    text = "\n".join([*lines, "", *table(rows)]) + "\n"
    (out / "results.md").write_text(text, encoding="utf-8")


def read_results(path: Path) -> dict[str, Any]:
    """Read ``results.json``."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for work in results["works"].values():
        work["comparisons"] = [
            Comparison(**{k: v for k, v in row.items() if k not in _DERIVED})
            for row in work["comparisons"]
        ]
    return results


def table(comparisons: list[Comparison]) -> list[str]:
    """Lines of a Markdown table; every value is a median, the ratio has its quartiles."""
    lines = [
        "| work | figure | peer | ours | theirs | ratio [quartiles] | target | reached | same results |",
        "|---|---|---|---:|---:|---:|---:|---|---|",
    ]
    for row in comparisons:
        low, median, high = row.quartiles
        ours, theirs = (
            f"{_short(float(np.median(side)))} {row.unit}" for side in (row.ours, row.theirs)
        )
        target = "" if row.target is None else f"≥ {row.target:g}"
        lines.append(
            f"| {row.work} | {row.figure} | {row.peer} | {ours} | {theirs} | "
            f"{median:.2f} [{low:.2f}, {high:.2f}] | {target} | {row.reached} | {row.same} |"
        )
    return lines


def _short(value: float) -> str:
    """Three digits, or all of a large number's."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


#: What readers of results.json need not work out.
_DERIVED = ("quartiles", "reached")


def _as_stored(row: Comparison) -> dict[str, Any]:
    return {**asdict(row), **{name: getattr(row, name) for name in _DERIVED}}


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
