"""What trains is the same on both sides, and so is what it does."""

import functools
import pickle
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.memory import peak_mib
from benchmarks.peers import Batch
from benchmarks.sizes import SIZES
from benchmarks.training import update
from benchmarks.translation_update import WAYS, build_step, choices, compare_times
from fairseq_samu import compat

SIZE = SIZES["tiny"]
CHOICES = {choice.name.partition(",")[0]: choice for choice in choices(SIZE, Path("states"))}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> peers.Peers:
    return peers.prepare(tmp_path_factory.mktemp("peers"), SIZE, 200, (0.5, 0.5))


def trainers(files, choice):
    off = ["--decoder-dropout", "0"]
    encoder_off = ["--encoder-dropout", "0", "--encoder-attention-dropout", "0"]
    ours = peers.xlsr_mbart_st(files, "cpu", *encoder_off, *off, *choice.ours)
    return ours, peers.xm_transformer(files, SIZE, "cpu", *off, *choice.theirs)


#: One norm trains here alone; states are stored as float16.
TOLERANCES = {"LNA": 1e-4, "top 1 and 1 layers": 1e-6, "frozen encoder": 1e-5}


@pytest.mark.parametrize("name", list(TOLERANCES))
def test_both_train_the_same(name, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    losses, trained = [], []
    for trainer in trainers(files, CHOICES[name]):
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        trained.append(sum(p.numel() for p in parameters))
        sample = peers.batch(trainer.task, peers.SPLIT, [0, 1, 2])
        losses.append([update(trainer, sample) for _ in range(4)])
    if name == "LNA":  # the peer's pattern misses layernorm_embedding
        assert trained[0] == trained[1] + 2 * SIZE.decoder_dim
    else:
        assert trained[0] == trained[1]
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCES[name])
    assert losses[0][3] < losses[0][0] * 0.999


def test_a_comparison_has_all_ways_and_sees_that_losses_are_the_same(files):
    choice = CHOICES["top 1 and 1 layers"]
    rows = compare_times(
        files, SIZE, "cpu", choice, [Batch(peers.SHORT_SPLIT, 2, (1, 1))], "few", 2
    )
    # each as it is and with layers computed again
    assert [row.target for row in rows] == [1.5] * 2 * len(WAYS["cpu"][0])
    assert all(len(values) == 2 for row in rows for values in (row.ours, row.theirs))
    assert rows[0].figure == "top 1 and 1 layers, fp32, 2 × 1 to 1 s, few"
    differences = [float(row.same.split()[-3]) for row in rows]
    assert differences[0] < 1e-5
    if compat.CPU_BF16_TRAINS:
        assert rows[0].theirs == rows[1].theirs
        assert 1e-6 < differences[1] < 1e-2


def test_memory_is_that_of_a_step():
    mebibytes = peak_mib("cpu", functools.partial, bytearray, 300 * 2**20)
    assert 290 < mebibytes < 360


def test_a_step_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="the process ended with status 1"):
        peak_mib("cpu", functools.partial, int, "none")


def test_a_step_can_be_measured_in_another_process(files):
    choice, batch = CHOICES["top 1 and 1 layers"], Batch(peers.SPLIT, 2, (0.5, 0.5))
    for side, way in zip(("ours", "theirs"), WAYS["cpu"][0][-1]):
        arguments = build_step, side, files, SIZE, "cpu", choice, way, batch
        assert pickle.loads(pickle.dumps(arguments)) == arguments
        assert build_step(*arguments[1:])() > 100
