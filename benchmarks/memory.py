"""The memory that a step takes at most, seen in a process of its own."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import re
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

#: Something whose memory is measured.
Step = Callable[[], object]


def peak_mib(device: str, build: Callable[..., Step], *args: Any) -> float:
    """Memory of everything that one step needs; see :func:`peaks_mib`."""
    return peaks_mib(device, _only, build, *args)[0]


def _only(build: Callable[..., Step], *args: Any) -> list[Step]:
    return [build(*args)]


def peaks_mib(device: str, build: Callable[..., Sequence[Step]], *args: Any) -> list[float]:
    """Memory of everything that steps need, each at its peak.

    On a CPU it is resident memory beyond that of a process that has imported the same libraries, so that both
    devices count the same: weights, gradients, the optimiser's state, activations.

    Args:
        device: ``cpu`` or ``cuda``.
        build: returns the steps, the one that needs least first, because what a step leaves behind counts
            in the next; called in the other process, so it and its arguments have to be picklable.
        *args: its arguments.

    Returns:
        The largest use during each step, in MiB, after a first one, in which optimisers make their state.

    Raises:
        RuntimeError: the other process ended without an answer.
    """
    gc.collect()  # the other process may need the room of trainers that are held by reference cycles
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, device, build, args))
    process.start()
    sender.close()
    try:
        peaks: list[float] = receiver.recv()
    except EOFError:
        peaks = []
    process.join()
    if not peaks:
        raise RuntimeError(f"measuring memory: the process ended with status {process.exitcode}")
    return peaks


def _measure(
    sender: Connection, device: str, build: Callable[..., Sequence[Step]], args: tuple[Any]
) -> None:
    logging.disable(logging.INFO)
    before = 0.0 if device == "cuda" else _status("VmRSS")
    steps = build(*args)
    gc.collect()  # checkpoints may be held by reference cycles
    steps[0]()
    peaks = []
    for step in steps:
        _forget_peak(device)
        step()
        peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _status("VmHWM")
        peaks.append(peak - before)
    sender.send(peaks)


def _forget_peak(device: str) -> None:
    """Let the peak begin anew: loading a checkpoint may have taken more than training does."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(name: str) -> float:
    """A value of this process in MiB: ``VmRSS``, its resident memory, or ``VmHWM``, the peak of that."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
