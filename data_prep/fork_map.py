"""One forked process per item: every item starts from the same state of the process."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")

_REPLY, _ERROR = b"+", b"!"


def fork_map(
    function: Callable[[Item], bytes], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, bytes]]:
    """Yields every item with `function(item)`, in order, each computed in its own child process.

    What a C library remembers from one call to the next cannot leak into a result, whatever the
    order and number of processes; a crash takes only its own child down. Items are drawn when
    needed, so that memory does not grow with their number. A fork costs one to three milliseconds.

    Args:
        function: runs in the child.
        items: what to run it on; `str(item)` is its name in error messages.
        workers: how many children may run at once.

    Raises:
        RuntimeError: `function` raised, or a child died; names the item.
    """
    items = iter(items)
    running: deque[tuple[Item, int, int]] = deque()
    try:
        while True:
            for item in islice(items, workers - len(running)):
                running.append((item, *_start(function, item)))
            if not running:
                return
            item, child, read_end = running.popleft()
            with os.fdopen(read_end, "rb") as pipe:
                reply = pipe.read()
            _, status = os.waitpid(child, 0)
            if status != 0 or not reply:
                raise RuntimeError(f"{item}: the process working on it died ({_ending(status)})")
            if reply[:1] == _ERROR:
                raise RuntimeError(f"{item}: {reply[1:].decode()}")
            yield item, reply[1:]
    finally:
        for _, child, read_end in running:
            os.close(read_end)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _start(function: Callable[[Item], bytes], item: Item) -> tuple[int, int]:
    """Forks; returns the child's process id and the end of the pipe that its reply comes from."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child:
        os.close(write_end)
        return child, read_end
    # The child leaves by os._exit whatever happens: nothing of the parent may run twice.
    code = 1
    try:
        try:
            reply = _REPLY + function(item)
        except Exception as error:
            reply = _ERROR + f"{type(error).__name__}: {error}".encode()
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(reply)
        code = 0
    finally:
        os._exit(code)


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"exit status {os.WEXITSTATUS(status)}"
