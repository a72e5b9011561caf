"""Both sides of a comparison are one model that meets the same batches."""

from pathlib import Path

import pytest
import torch

from benchmarks import peers
from benchmarks.sizes import SIZES
from benchmarks.training import update

WITHOUT_DROPOUT = ["--decoder-dropout", "0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> peers.Peers:
    """Models and utterances of one length: fairseq lets padding change its losses."""
    size = SIZES["tiny"]
    return peers.prepare(tmp_path_factory.mktemp("peers"), size, 200, (0.5, 0.5))


def test_losses_are_the_same(files: peers.Peers) -> None:
    ours = peers.xlsr_mbart_st(
        files, "cpu", "--encoder-dropout", "0", "--encoder-attention-dropout", "0", *WITHOUT_DROPOUT
    )
    theirs = peers.xm_transformer(files, SIZES["tiny"], "cpu", *WITHOUT_DROPOUT)
    rows = [3, 0, 1]
    our_batch, their_batch = (peers.batch(t.task, peers.SPLIT, rows) for t in (ours, theirs))
    for name in ("src_tokens", "src_lengths", "prev_output_tokens"):
        torch.testing.assert_close(our_batch["net_input"][name], their_batch["net_input"][name])
    losses = [
        [update(t, b) for _ in range(3)] for t, b in ((ours, our_batch), (theirs, their_batch))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][2] < losses[0][0] * 0.999  # it learns


def test_files_are_written_once(files: peers.Peers) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(files.xm.parent).rglob("*")}
    assert peers.prepare(files.xm.parent, SIZES["tiny"], 200, (0.5, 0.5)) == files
    assert before == {path: path.stat().st_mtime_ns for path in files.xm.parent.rglob("*")}
