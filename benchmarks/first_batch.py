"""A process that starts as a training does, up to its first batch, and writes as JSON what that took.

    python -m benchmarks.first_batch speech_to_text_samu FOLDER

``start_up.py`` runs it. It waits with its batch in hand until its standard input is closed, so that the
memory of all that runs at a time can be looked at.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

BEGIN = time.perf_counter()

from fairseq import options, tasks  # noqa: E402  (imports are measured)
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402

import fairseq_samu  # noqa: E402, F401  (registers the task)
from benchmarks.peers import stand_in_for_torchaudio  # noqa: E402

#: Samples of a padded batch: 100 s.
MAX_TOKENS = 1_600_000

#: Of the samples that are compared.
SAMPLES_APART = 997

#: fairseq's options of either task; the model is never built.
LINES = {
    "speech_to_text_samu": ["--arch", "xlsr_mbart_st_tiny", "--normalize", "utterance"],
    "speech_to_text": ["--arch", "s2t_transformer_s"],
}


def first_batch(task_name: str, folder: str, workers: int, rank: int, ranks: int) -> dict[str, Any]:
    """Start up to the first batch of the split ``train``.

    Args:
        task_name: one of LINES.
        folder: the data.
        workers: processes that read batches, 0 = this one does.
        rank: which part of the batches this process gets …
        ranks: … of how many.

    Returns:
        ``import_seconds``, ``seconds`` after that, ``import_mib`` and ``peak_mib`` (memory of this process
        once all is imported, and the most until the first batch), ``workers`` (their process ids),
        ``batches``, ``rows`` of the first batch, and ``examples``: tokens of three rows' targets, and some of
        their samples.
    """
    config = task_config(task_name, folder)
    imported, import_mib = time.perf_counter(), _mib("VmRSS")
    task = tasks.setup_task(config)
    task.load_dataset("train", epoch=1)
    dataset = task.dataset("train")
    batches = task.get_batch_iterator(
        dataset, max_tokens=MAX_TOKENS, max_positions=task.max_positions(), ignore_invalid_inputs=True,
        required_batch_size_multiple=8, seed=1, num_shards=ranks, shard_id=rank, num_workers=workers, epoch=1,
    )  # fmt: skip
    epoch = iter(batches.next_epoch_itr(shuffle=True))
    batch = next(epoch)
    found = {
        "import_seconds": imported - BEGIN,
        "seconds": time.perf_counter() - imported,
        "import_mib": import_mib,
        "peak_mib": _mib("VmHWM"),
        "workers": [process.pid for process in multiprocessing.active_children()],
        "batches": len(batches),
        "rows": batch["id"].tolist(),
    }
    rows = (0, len(dataset) // 2, len(dataset) - 1)
    return {**found, "examples": [example(dataset[row]) for row in rows]}


def _mib(name: str) -> float:
    """A figure of this process that Linux keeps in kB.

    Not ``ru_maxrss``: that of a new process begins with what its parent had.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


def task_config(task_name: str, folder: str) -> Any:
    """fairseq's configuration of either task, from its command line."""
    line = [folder, "--task", task_name, *LINES[task_name], "--max-source-positions", "480000"]
    args = options.parse_args_and_arch(options.get_training_parser(), line)
    return convert_namespace_to_omegaconf(args).task


def example(item: Any) -> dict[str, list[float]]:
    """Tokens and some of the samples of an example of either task."""
    entries = item if isinstance(item, dict) else vars(item)
    samples = entries["source"][::SAMPLES_APART]
    return {"tokens": entries["target"].tolist(), "samples": samples.tolist()}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=list(LINES))
    parser.add_argument("folder")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    args = parser.parse_args()
    stand_in_for_torchaudio()
    found = first_batch(args.task, args.folder, args.workers, args.rank, args.ranks)
    print(json.dumps(found), flush=True)
    sys.stdin.read()
    os._exit(0)  # fairseq leaves workers to the garbage collector, which waits 5 s for each


if __name__ == "__main__":
    main()
