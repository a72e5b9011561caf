"""fairseq-train with parts frozen: two workers, weight decay, and nothing frozen moves."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from fairseq_samu import compat

REPOSITORY = Path(__file__).resolve().parents[2]


def test_frozen_weights_stay_over_updates_of_two_workers(
    corpus, tiny_model, tiny_training, tmp_path
):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    workers = [
        subprocess.Popen(
            [
                sys.executable, "-m", "fairseq_cli.train", str(corpus),
                "--user-dir", str(REPOSITORY / "fairseq_samu"), *tiny_model, *tiny_training,
                "--encoder-adapter-dim", "4", "--train-encoder", "adapters,layernorm",
                "--encoder-layer-weighting", "--encoder-layerdrop", "0.5", "--mask-prob", "0.3",
                "--decoder-adapter-dim", "4", "--train-decoder", "adapters,cross-attention",
                "--freeze-decoder-updates", "3",
                "--weight-decay", "0.1", "--max-update", "5", "--save-interval-updates", "1",
                "--disable-validation", "--save-dir", str(tmp_path),
                "--distributed-world-size", "2", "--distributed-rank", str(rank),
                "--distributed-backend", "gloo", "--distributed-no-spawn", "--ddp-backend", "legacy_ddp",
                "--distributed-init-method", f"tcp://localhost:{port}",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    logs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], logs[0][-4000:] + logs[1][-4000:]
    first, third, last = (
        compat.load_checkpoint(str(next(tmp_path.glob(name))))["model"]
        for name in ("checkpoint_*_1.pt", "checkpoint_*_3.pt", "checkpoint_last.pt")
    )
    moved = {name for name, weight in last.items() if not weight.equal(first[name])}
    expected = {
        name
        for name in last
        if "version" not in name
        and (
            not name.startswith(("encoder.wav2vec2.", "decoder."))
            or "adapter" in name
            or "layer_weighting" in name
            or (name.startswith("encoder.") and "layer_norm" in name)
            or (name.startswith("decoder.") and "encoder_attn." in name)
        )
    }
    assert moved == expected
    moved = {name for name, weight in third.items() if not weight.equal(first[name])}
    assert moved == {name for name in expected if not name.startswith("decoder.")}
    assert "encoder.adapters" in logs[0]
