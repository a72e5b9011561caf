"""From a manifest to the first batch: seconds and resident memory, beside fairseq's ``speech_to_text``.

Every start is a process of its own (``first_batch.py``), which sets the task up, loads, orders and batches
the split, and reads the first batch. A few recordings of noise are shared by all rows. This project scans a
manifest when it meets it first and keeps what it found beside it; fairseq reads and tokenises it every time,
in every process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import soundfile

from benchmarks.comparison import Comparison, in_turn
from benchmarks.sizes import Size

WORK = "start-up"
PEER = "fairseq speech_to_text"

#: Rows of the manifests; the first are few enough to see whether what does not grow matters.
ROWS = {"tiny": (40, 80)}
ROWS_BY_DEFAULT = (10_000, 1_000_000)

#: Most rounds, because the peer takes half a minute for a million rows.
MAX_REPEATS = 3

RATE = 16_000
RECORDINGS = 16
SECONDS = (2.0, 10.0)
WORDS_A_TARGET = 12
RANKS = 2
WORKERS = 2

TIMES_FASTER = 20.0
TIMES_SMALLER = 5.0


def measure(out: Path, size: Size, device: str, repeats: int) -> list[Comparison]:
    """Start both tasks in turn, on a small and a large manifest.

    Args:
        out: folder for the data.
        size: tiny, or anything else: models are not built.
        device: not used, for the same reason.
        repeats: starts, MAX_REPEATS at most.
    """
    small, large = ROWS.get(size.name, ROWS_BY_DEFAULT)
    repeats = min(repeats, MAX_REPEATS)
    comparisons = []
    for rows in (small, large):
        folder = out / f"{rows}_rows"
        write_corpus(folder, rows)
        targets = (TIMES_FASTER, TIMES_SMALLER) if rows == large else (None, None)
        comparisons += _alone(folder, rows, repeats, targets)
    return comparisons + _ranks(folder, large, repeats)


def _alone(
    folder: Path, rows: int, repeats: int, targets: tuple[float | None, float | None]
) -> list[Comparison]:
    """One process at a time: this project's first start, a later one, the peer's."""
    index = folder / ".train.tsv.index"
    found: dict[str, list[dict[str, Any]]] = {"first": [], "later": [], "theirs": []}

    def run(name: str) -> Callable[[], float]:
        def start() -> float:
            if name == "first":
                shutil.rmtree(index, ignore_errors=True)
            task = "speech_to_text" if name == "theirs" else "speech_to_text_samu"
            processes, _ = _start(folder, task)
            found[name] += processes
            return float(processes[0]["seconds"])

        return start

    # The first process finds in the page cache what this one has imported and written: nothing to warm up.
    in_turn({name: run(name) for name in found}, repeats, warm_up=0)
    examples = [process["examples"] for processes in found.values() for process in processes]
    same = f"{len(examples[0])} rows: " + same_examples(examples[0], examples[1:])

    def compare(
        name: str, figure: str, unit: str, target: float | None, of: Callable[[Any], float]
    ) -> Comparison:
        start = f"{rows:,} rows, {name} start"
        values = ([of(process) for process in found[side]] for side in (name, "theirs"))
        return Comparison(WORK, f"{start}: {figure}", unit, *values, PEER, target, same)

    faster, smaller = targets
    return [
        comparison
        for name in ("first", "later")
        for comparison in (
            compare(name, "time after imports", "s", faster, lambda p: p["seconds"]),
            compare(name, "memory above imports, peak", "MiB", smaller,
                    lambda p: p["peak_mib"] - p["import_mib"]),
            compare(name, "time, all", "s", None, lambda p: p["import_seconds"] + p["seconds"]),
            compare(name, "memory, all, peak", "MiB", None, lambda p: p["peak_mib"]),
        )
    ]  # fmt: skip


def same_examples(examples: list[dict[str, list[float]]], others: list[Any]) -> str:
    """Say how alike rows are that several processes read."""
    differences = [0.0]
    for other in others:
        for a, b in zip(examples, other, strict=True):
            if a["tokens"] != b["tokens"] or len(a["samples"]) != len(b["samples"]):
                return "tokens or lengths DIFFER"
            differences.append(np.abs(np.subtract(a["samples"], b["samples"])).max())
    return f"same tokens, samples of unit variance differ by {max(differences):.0e} at most"


def _ranks(folder: Path, rows: int, repeats: int) -> list[Comparison]:
    """Some processes at once, as the ranks of one training on one machine, with workers."""
    tasks = {"ours": "speech_to_text_samu", "theirs": "speech_to_text"}
    seconds: dict[str, list[float]] = {side: [] for side in tasks}

    def run(side: str) -> Callable[[], float]:
        def start() -> float:
            processes, mib = _start(folder, tasks[side], RANKS, WORKERS)
            seconds[side].append(max(process["seconds"] for process in processes))
            return mib

        return start

    memory = in_turn({side: run(side) for side in tasks}, repeats, warm_up=0)
    figure = f"{rows:,} rows, later start, {RANKS} ranks of {WORKERS} workers"
    return [
        Comparison(
            WORK, f"{figure}: {what}", unit, values["ours"], values["theirs"], PEER, None, ""
        )
        for what, unit, values in (
            ("time after imports of the slower", "s", seconds),
            ("memory of all processes", "MiB", memory),
        )
    ]


def _start(
    folder: Path, task: str, ranks: int = 1, workers: int = 0
) -> tuple[list[dict[str, Any]], float]:
    """Start processes up to their first batch.

    Returns:
        What each of them measured, and what they and their workers hold in memory together, in MiB: pages
        that several share count once (the sum of the kernel's proportional set sizes).
    """
    line = [sys.executable, "-m", "benchmarks.first_batch", task, str(folder.resolve()), "--workers",
            str(workers), "--ranks", str(ranks)]  # fmt: skip
    root = Path(__file__).resolve().parents[1]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [*line, "--rank", str(rank)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )
            for rank in range(ranks)
        ]  # fmt: skip
        found = [_read_line(process) for process in processes]
        ids = [
            pid for one, process in zip(found, processes) for pid in (process.pid, *one["workers"])
        ]
        return found, sum(map(_proportional_mib, ids))


def _read_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process measured."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(
            f"{process.args}: expected a first batch, found:\n{process.communicate()[1]}"
        )
    found: dict[str, Any] = json.loads(line)
    return found


def _proportional_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    return int(text.partition("\nPss:")[2].split()[0]) / 1024


def write_corpus(folder: Path, rows: int) -> None:
    """Write ``train.tsv``, random words with shared recordings of noise, and a vocabulary, for both tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(letters, length)) for length in rng.integers(2, 9, 3000)]
    lengths = rng.integers(int(SECONDS[0] * RATE), int(SECONDS[1] * RATE), RECORDINGS)
    for number, length in enumerate(lengths.tolist()):
        soundfile.write(folder / f"{number}.wav", rng.normal(0, 0.1, length), RATE)
    recordings = rng.integers(RECORDINGS, size=rows).tolist()
    with open(folder / "train.tsv", "w", encoding="utf-8") as file:
        file.write("id\taudio\tn_frames\ttgt_text\tspeaker\tsrc_text\tsrc_lang\ttgt_lang\n")
        for row, (recording, chosen) in enumerate(
            zip(recordings, rng.integers(len(words), size=(rows, WORDS_A_TARGET), dtype=np.int16))
        ):
            text = " ".join([words[word] for word in chosen.tolist()])
            file.write(
                f"utterance_{row:07d}\t{recording}.wav\t{lengths[recording]}\t{text}\tspeaker_{row % 1000}\t"
                f"{text}\t{('es', 'fr')[row % 3 == 0]}\ten\n"
            )
    with open(folder / "spm.model", "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words * 3), model_writer=model, vocab_size=2000,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    symbols = [pieces.id_to_piece(i) for i in range(3, pieces.get_piece_size())] + ["<lang:en>"]
    text = "".join(f"{symbol} 1\n" for symbol in symbols)
    (folder / "dict.txt").write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(
        "use_audio_input: true\nvocab_filename: dict.txt\n"
        "prepend_tgt_lang_tag: true\n"
        f"audio_root: {folder.resolve()}\n"
        f"bpe_tokenizer: {{bpe: sentencepiece, sentencepiece_model: {folder.resolve() / 'spm.model'}}}\n",
        encoding="utf-8",
    )
