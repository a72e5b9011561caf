"""fairseq-train towards a teacher on transcripts alone: two workers, one, and accumulation agree."""

import json
import os
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_prep.embed_text import Teacher, embed_manifest
from data_prep.manifest import ManifestRow, ManifestWriter
from fairseq_samu import compat

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH = 6

#: Trains with one command line of fairseq-train after another: loading fairseq takes longest.
TRAIN = """
import json, sys
from fairseq_cli.train import cli_main
for sys.argv in json.loads(sys.argv[1]):
    print("RUN", flush=True)
    cli_main()
"""

OPTIONS = [
    "--task", "speech_to_text_samu", "--teacher", "small", "--criterion", "mse_to_labse",
    "--arch", "samu_xlsr_tiny", "--encoder-conv-layers", "[(16,20,10),(16,8,4),(32,4,4),(32,4,2)]",
    "--encoder-layers", "1", "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "64",
    "--encoder-attention-heads", "2", "--encoder-conv-pos", "4", "--encoder-conv-pos-groups", "2",
    "--encoder-dropout", "0", "--encoder-attention-dropout", "0",
    "--train-subset", "train", "--valid-subset", "dev", "--required-batch-size-multiple", "1",
    # Adam would make full steps of rounding errors.
    "--optimizer", "sgd", "--lr-scheduler", "fixed", "--max-update", "3",
    "--cpu", "--num-workers", "0", "--log-format", "json", "--log-interval", "1", "--no-epoch-checkpoints",
]  # fmt: skip
CONTRASTIVE = ["--contrastive-weight", "20", "--contrastive-temperature", "0.2"]


def vector(text):
    return np.random.default_rng(zlib.crc32(text.encode())).normal(size=WIDTH)


def write_split(folder, split, texts):
    """Noise in German and French, which a teacher has embedded; there are no translations."""
    rng = np.random.default_rng(len(texts))
    with ManifestWriter(folder / f"{split}.tsv") as manifest:
        for i, text in enumerate(texts):
            length = int(rng.integers(4000, 9000))
            soundfile.write(folder / f"{split}{i}.wav", rng.normal(0, 0.1, length), 16_000)
            lang = ("de", "fr")[i % 2]
            manifest.write(
                ManifestRow(f"{split}{i}", f"{split}{i}.wav", length, "", "", text, lang, "")
            )
    teacher = Teacher(
        "some/model", "abc", WIDTH, lambda texts: np.stack([vector(text) for text in texts])
    )
    embed_manifest(folder / f"{split}.tsv", teacher, "small", "src_text")


def training(folder, *runs):
    """A process that trains one run after another; each is a name and its options."""
    lines = [
        ["fairseq-train", str(folder), "--user-dir", str(REPOSITORY / "fairseq_samu"), *OPTIONS,
         *options, "--save-dir", str(folder / name)]
        for name, *options in runs
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, json.dumps(lines)], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def entries(log, kind):
    """What fairseq logged as JSON, by the run."""
    lines = (run.splitlines() for run in log.split("RUN\n")[1:])
    return [[json.loads(x[x.index("{") :]) for x in run if f"| {kind} | {{" in x] for run in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of the checkpoints, and the logs of one process and of the first of two workers."""
    folder = tmp_path_factory.mktemp("samu")
    # Sentence 5 is spoken twice: not a negative of itself, whichever worker has it.
    write_split(folder, "train", [f"sentence {i}" for i in (0, 1, 2, 3, 4, 5, 6, 5)])
    write_split(folder, "dev", [f"other sentence {i}" for i in range(5)])
    quick = ["--lr", "0.05", "--disable-validation"]
    one = training(
        folder,
        ["one", *quick, "--batch-size", "8"],
        ["accumulated", *quick, "--batch-size", "4", "--update-freq", "2"],
        ["one_contrastive", *quick, "--batch-size", "8", *CONTRASTIVE],
        ["untrained", "--lr", "0", "--batch-size", "8", "--max-update", "1"],
    )
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    two = [
        training(
            folder,
            *(
                [*run, "--distributed-world-size", "2", "--distributed-rank", str(rank),
                 "--distributed-backend", "gloo", "--distributed-no-spawn", "--ddp-backend", "legacy_ddp",
                 "--distributed-init-method", f"tcp://localhost:{port}"]
                for run in (
                    ["two", *quick, "--batch-size", "4"],
                    ["two_contrastive", *quick, "--batch-size", "4", *CONTRASTIVE],
                    # Three batches: the second worker has none for the second update, and another
                    # number of batches of the validation.
                    ["uneven", "--lr", "0.05", "--batch-size", "3", *CONTRASTIVE],
                )
            ),
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        logs = [process.communicate(timeout=300)[0] for process in (one, *two)]
    finally:
        for process in (one, *two):
            process.kill()
    for process, log in zip((one, *two), logs):
        assert process.returncode == 0, log[-4000:]
    return folder, logs[0], logs[1]


def weights(folder, name):
    return compat.load_checkpoint(str(folder / name / "checkpoint_last.pt"))["model"]


@pytest.mark.parametrize(("single", "other"), [
    ("one", "accumulated"), ("one", "two"), ("one_contrastive", "two_contrastive"),
])  # fmt: skip
def test_the_same_weights_however_the_batch_is_split(trained, single, other):
    folder, _, _ = trained
    expected, found = weights(folder, single), weights(folder, other)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=2e-6, rtol=2e-5, msg=name)


def test_two_workers_log_what_one_does(trained):
    _, one, two = trained
    one, two = entries(one, "train_inner"), entries(two, "train_inner")
    for expected, found in ((one[0], two[0]), (one[2], two[1])):
        assert len(expected) == len(found) == 3
        for a, b in zip(expected, found):
            names = ["loss", "distance", "distance_de", "distance_fr", "gnorm"]
            for name in names + ["contrastive_loss"] * ("contrastive_loss" in a):
                assert float(b[name]) == pytest.approx(float(a[name]), abs=2e-3), name
    assert "contrastive_loss" in one[2][0] and "contrastive_loss" not in one[0][0]


def test_a_worker_without_a_batch_holds_up_nobody(trained):
    _, _, log = trained
    valid = entries(log, "dev")[2]
    assert valid and {"dev_r1", "dev_r1_de", "dev_mrr_fr", "dev_contrastive_loss"} <= set(valid[-1])


def test_an_update_moves_all_of_the_head(trained):
    """Published code builds a head that its optimiser never hears of."""
    folder, _, _ = trained
    before, after = weights(folder, "untrained"), weights(folder, "one")
    # Softmax over frames does not see what is added to the scores of all.
    head = [
        name for name in before if name.startswith("head.") and name != "head.pooling.score.bias"
    ]
    assert len(head) == 3
    assert [name for name in head if torch.equal(before[name], after[name])] == []
