"""Audio seconds that a second of data loading gives, without a model: this project's and fairseq's datasets.

Both read the same batches through fairseq's iterator and torch's data loader, with none to two workers.
fairseq reads no mp3: there the other side is this project reading wav. Recordings are few and stay in the
page cache, so that decoding and what surrounds it are measured, not a disk.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from fairseq.data import iterators
from fairseq.tasks import setup_task
from numpy.typing import NDArray

from benchmarks.comparison import Comparison, in_turn
from benchmarks.first_batch import MAX_TOKENS, example, task_config
from benchmarks.peers import stand_in_for_torchaudio
from benchmarks.sizes import Size
from benchmarks.start_up import PEER, RATE, RECORDINGS, same_examples, write_corpus
from fairseq_samu import compat

WORK = "data loading"

#: Rows of an epoch.
ROWS = {"tiny": 24}
ROWS_BY_DEFAULT = 1000

WORKERS = (0, 1, 2)

#: What is stored how; slices are flac.
KINDS = ("wav", "flac", "slices", "mp3")

#: Seconds that a batch of up to 100 s is used for where waiting is measured, and batches.
USE_SECONDS = 0.1
USED_BATCHES = 30


def measure(out: Path, size: Size, device: str, repeats: int) -> list[Comparison]:
    """Read an epoch of every kind of audio in turn.

    Args:
        out: folder for the data.
        size: tiny, or anything else: there is no model.
        device: not used, for the same reason.
        repeats: epochs.
    """
    stand_in_for_torchaudio()
    rows = ROWS.get(size.name, ROWS_BY_DEFAULT)
    ours, theirs = {}, {}
    for kind in KINDS:
        write_recordings(out / kind, kind, rows)
        ours[kind] = _dataset("speech_to_text_samu", out / kind)
        if kind != "mp3":
            theirs[kind] = _dataset("speech_to_text", out / kind)
    batches = ours["wav"].batch_by_size(ours["wav"].ordered_indices(), max_tokens=MAX_TOKENS)
    lengths = ours["wav"].manifest.n_frames
    comparisons = []
    for kind in KINDS:
        peer, peer_name, same = theirs.get(kind), PEER, ""
        if peer is None:
            peer, peer_name = ours["wav"], "this project from wav"
        else:
            checked = (0, rows // 2, rows - 1)
            items = ([example(side[row]) for row in checked] for side in (ours[kind], peer))
            same = f"{len(checked)} rows: " + same_examples(next(items), [next(items)])
        for workers in WORKERS:
            values = in_turn(
                {
                    "ours": partial(_speed, ours[kind], batches, lengths, workers),
                    "theirs": partial(_speed, peer, batches, lengths, workers),
                },
                repeats,
            )
            figure = f"{kind}, {workers} workers: audio a second"
            comparisons.append(
                Comparison(WORK, figure, "s", *values.values(), peer_name, None, same, True)
            )
    used = batches[:USED_BATCHES]
    for workers in WORKERS[1:]:
        values = in_turn(
            {name: partial(_waiting, side["flac"], used, workers) for name, side in
             (("ours", ours), ("theirs", theirs))},
            repeats,
        )  # fmt: skip
        figure = (
            f"flac, {workers} workers: waiting for a batch, each used for {USE_SECONDS * 1e3:g} ms"
        )
        comparisons.append(Comparison(WORK, figure, "ms", *values.values(), PEER, None, ""))
    return comparisons


def _dataset(task_name: str, folder: Path) -> Any:
    task = setup_task(task_config(task_name, str(folder.resolve())))
    task.load_dataset("train", epoch=1)
    return task.dataset("train")


def _speed(
    dataset: Any, batches: Sequence[NDArray[np.int64]], lengths: NDArray[np.int64], workers: int
) -> float:
    """Audio seconds a second of an epoch, but for its first batch, for which workers start."""
    rows, waits = read_epoch(dataset, batches, workers)
    return float(lengths[np.concatenate(rows[1:])].sum() / RATE / sum(waits[1:]))


def _waiting(dataset: Any, batches: Sequence[NDArray[np.int64]], workers: int) -> float:
    """Milliseconds of waiting for a batch other than the first, each used for ``USE_SECONDS``."""
    _, waits = read_epoch(dataset, batches, workers, lambda: time.sleep(USE_SECONDS))
    return 1e3 * float(np.mean(waits[1:]))


def read_epoch(
    dataset: Any,
    batches: Sequence[NDArray[np.int64]],
    workers: int,
    use: Callable[[], None] = lambda: None,
) -> tuple[list[NDArray[np.int64]], list[float]]:
    """Read batches as a training does, in shuffled order.

    Args:
        dataset: of either task.
        batches: rows of each.
        workers: processes that read them, 0 = this one does.
        use: called with every batch in hand.

    Returns:
        Rows of every batch, and the seconds that it was waited for.
    """
    iterator = iterators.EpochBatchIterator(
        dataset, dataset.collater, batches, seed=1, num_workers=workers, epoch=1, buffer_size=10,
        reuse_dataloader=True,
    )  # fmt: skip
    epoch = iterator.next_epoch_itr(shuffle=True)
    rows, waits = [], []
    for _ in batches:
        begin = time.perf_counter()
        batch = next(epoch)
        waits.append(time.perf_counter() - begin)
        rows.append(batch["id"].numpy())
        use()
    compat.stop_workers(iterator)
    return rows, waits


def write_recordings(folder: Path, kind: str, rows: int) -> None:
    """Write a corpus of ``start_up`` with its recordings stored as one of ``KINDS``."""
    write_corpus(folder, rows)
    if kind == "wav":
        return
    places = {}
    extension = "mp3" if kind == "mp3" else "flac"
    with zipfile.ZipFile(folder / "clips.zip", "w", zipfile.ZIP_STORED) as archive:
        for number in range(RECORDINGS):
            wave, _ = soundfile.read(folder / f"{number}.wav")
            (folder / f"{number}.wav").unlink()
            path = folder / f"{number}.{extension}"
            soundfile.write(path, wave, RATE)
            places[f"{number}.wav"] = path.name
            if kind == "slices":
                archive.write(path, path.name)
                size = path.stat().st_size
                places[f"{number}.wav"] = f"clips.zip:{archive.fp.tell() - size}:{size}"
                path.unlink()
    header, *lines = (folder / "train.tsv").read_text(encoding="utf-8").splitlines()
    cells = (line.split("\t") for line in lines)
    changed = ("\t".join([name, places[audio], *rest]) for name, audio, *rest in cells)
    text = "\n".join([header, *changed]) + "\n"
    (folder / "train.tsv").write_text(text, encoding="utf-8")
