"""Processes that speak with espeak-ng side by side."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from data_prep import espeak

Item = TypeVar("Item")


def speak_all(
    items: Iterable[tuple[Item, espeak.Request]], workers: int
) -> Iterator[tuple[Item, bytes]]:
    """Speaks many texts; the samples do not depend on the number of workers.

    Items are drawn when a worker is free, so that memory does not grow with their number.

    Args:
        items: what to speak; `str()` of the first of each pair names it in error messages.
        workers: number of processes.

    Yields:
        In order, the first of each pair with its wave: 16-bit samples at 22,050 Hz.

    Raises:
        RuntimeError: a text cannot be spoken.
    """
    items = iter(items)
    speakers = [
        subprocess.Popen(
            [sys.executable, espeak.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(workers)
    ]
    busy: deque[tuple[Item, subprocess.Popen[bytes]]] = deque()

    def give_work(speaker: subprocess.Popen[bytes]) -> None:
        for item, request in islice(items, 1):
            _send(speaker, request)
            busy.append((item, speaker))

    try:
        for speaker in speakers:
            give_work(speaker)
        while busy:
            item, speaker = busy.popleft()
            # Never two requests before the answer is read: with both pipes full nobody would move.
            wave = _receive(speaker, item)
            give_work(speaker)
            yield item, wave
    finally:
        for speaker in speakers:
            _dismiss(speaker)


def _send(speaker: subprocess.Popen[bytes], request: espeak.Request) -> None:
    assert speaker.stdin is not None
    # That a speaker is dead is found, and said, where its answer is missing.
    with contextlib.suppress(BrokenPipeError):
        speaker.stdin.write(json.dumps(request).encode() + b"\n")
        speaker.stdin.flush()


def _receive(speaker: subprocess.Popen[bytes], item: object) -> bytes:
    assert speaker.stdout is not None
    header = speaker.stdout.readline()
    if not header:
        raise RuntimeError(f"{item}: the speaking process ended with status {speaker.wait()}")
    answer = json.loads(header)
    if "error" in answer:
        raise RuntimeError(f"{item}: {answer['error']}")
    size: int = answer["bytes"]
    return speaker.stdout.read(size)


def _dismiss(speaker: subprocess.Popen[bytes]) -> None:
    """Ends a speaker: it stops when it finds its pipes closed."""
    for pipe in (speaker.stdin, speaker.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
    speaker.wait()
