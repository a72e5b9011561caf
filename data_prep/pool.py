"""Processes that work on a stream of rows side by side: in order, with few blocks in memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, TypeVar

from data_prep.corpus import BadRow, CorpusRow
from data_prep.interrupt import held_back

Result = TypeVar("Result")

# Rows that a worker gets at once; shards take turns in such blocks. It may not depend on options: it decides
# which shard a row belongs to.
BLOCK = 16


class Block(NamedTuple):
    """Rows that one worker does.

    Attributes:
        start: number of the first in its split.
        rows: of the corpus.
        digest: of all rows of the split up to its end.
    """

    start: int
    rows: list[CorpusRow | BadRow]
    digest: str = ""


def blocks_of(rows: Iterator[CorpusRow | BadRow]) -> Iterator[Block]:
    """Yields rows in blocks."""
    start, block = 0, []
    for row in rows:
        block.append(row)
        if len(block) == BLOCK:
            yield Block(start, block)
            start, block = start + BLOCK, []
    if block:
        yield Block(start, block)


def available_cores() -> int:
    """Cores that this process may use, which a scheduler may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """Worker processes.

    One worker is a process as well: audio may crash a decoder, and Ctrl-C would be lost inside one, with the
    clip, because Python cannot raise through it.

    Args:
        workers: number of processes.
    """

    def __init__(self, workers: int) -> None:
        """Processes start when they get work."""
        self._workers = workers
        self._executor = self._started()

    def map(
        self, function: Callable[[Block], list[Result]], blocks: Iterable[Block]
    ) -> Iterator[tuple[Block, list[Result]]]:
        """Yields every block with the results of its rows, in order.

        Blocks are drawn while workers have little to do: at most three a worker are in memory. A row with
        which a worker dies, also when nothing else is in work, becomes a `BadRow`.

        Args:
            function: gives a result for every row of a block.
            blocks: what to do.

        Raises:
            RuntimeError: workers die whatever they get.
        """
        waiting: deque[tuple[Block, Future[list[Result]]]] = deque()
        for block in blocks:
            waiting.append((block, self._submit(function, block)))
            if len(waiting) > 3 * self._workers:
                yield self._next(function, waiting)
        while waiting:
            yield self._next(function, waiting)

    def _next(
        self,
        function: Callable[[Block], list[Result]],
        waiting: deque[tuple[Block, Future[list[Result]]]],
    ) -> tuple[Block, list[Result]]:
        """Takes the first of the blocks, and does it again row by row if a worker died meanwhile."""
        block, future = waiting.popleft()
        try:
            return block, future.result()
        except BrokenProcessPool:
            # Nobody says which of the blocks in work it was: the next shall be alone in work.
            wait(other for _, other in waiting)
            results = [
                self._alone(function, Block(block.start + i, [row]))
                for i, row in enumerate(block.rows)
            ]
            for i, (other_block, other) in enumerate(waiting):
                if isinstance(other.exception(), BrokenProcessPool):
                    waiting[i] = other_block, self._submit(function, other_block)
            return block, [result for row_results in results for result in row_results]

    def _alone(self, function: Callable[[Block], list[Result]], block: Block) -> list[Result]:
        """The result of a block of one row, without other blocks in work."""
        with contextlib.suppress(BrokenProcessPool):
            return self._submit(function, block).result()
        row = block.rows[0]
        reason = "worker died: audio that crashes the decoder, or too little memory"
        if isinstance(row, CorpusRow):
            reason += f": {row.place.audio}"
        bad = BadRow(row.id, reason, row.src_lang, row.tgt_lang)
        try:
            return self._submit(function, block._replace(rows=[bad])).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "worker processes die whatever they do (too little memory?): the same command goes on where "
                "it was"
            ) from error

    def _submit(
        self, function: Callable[[Block], list[Result]], block: Block
    ) -> Future[list[Result]]:
        """Hands a block to a worker, to a new one if one died."""
        try:
            return self._executor.submit(function, block)
        except BrokenProcessPool:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = self._started()
            return self._executor.submit(function, block)

    def _started(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._workers, initializer=_start_worker)

    def __enter__(self) -> Pool:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes; work that nobody waits for is given up."""
        # A second Ctrl-C in here would leave processes that wait for each other.
        with held_back():
            self._executor.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, ends with it even if it was killed, and is silent.

    Decoders print notes on damaged files that name no file; what is wrong with one is in its row's reason.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _end_with_parent() -> None:
    with contextlib.suppress(AttributeError, OSError):
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
    os._exit(1)
