"""What trains is the same on both sides, and so is what it does."""

import functools
import pickle
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.memory import peak_mib, peaks_mib
from benchmarks.peers import Batch
from benchmarks.sizes import SIZES
from benchmarks.training import update
from benchmarks.translation_update import (
    RECOMPUTED,
    WAYS,
    build_steps,
    choices,
    compare_memory,
    compare_times,
)
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


def test_memory_is_that_of_each_of_several_steps():
    sizes = peaks_mib("cpu", _steps, [100 * 2**20, 300 * 2**20])
    assert 90 < sizes[0] < 160
    assert 290 < sizes[1] < 360


def _steps(sizes):
    return [functools.partial(bytearray, size) for size in sizes]


def test_steps_can_be_measured_in_another_process(files):
    choice, batches = CHOICES["top 1 and 1 layers"], peers.memory_batches(SIZE)
    for side, way in zip(("ours", "theirs"), WAYS["cpu"][0][-1]):
        arguments = build_steps, side, files, SIZE, "cpu", choice, way, batches
        assert pickle.loads(pickle.dumps(arguments)) == arguments
        losses = [step() for step in build_steps(*arguments[1:])]
        assert losses[0] > 100
        assert losses[1] == pytest.approx(losses[0], rel=0.2)  # of a sentence
        assert losses[2] > losses[0] * 1.5  # of a longer one


def test_memory_of_more_batches_where_it_has_a_target(files, monkeypatch):
    measured = []

    def peaks(device, build, side, files, size, device_again, choice, way, batches):
        measured.append((side, way.name))
        return [float(batch.utterances * len(side)) for batch in batches]

    monkeypatch.setattr("benchmarks.translation_update.peaks_mib", peaks)
    names = ["full", "LNA", "adapters"]
    rows = compare_memory(files, SIZE, "cpu", [CHOICES[name] for name in names], "few")
    ways = len(WAYS["cpu"][0])
    assert len(rows) == ways + 2 * (2 * ways * 3)
    # as it is and with layers computed again, the peer of both once
    assert len(measured) == (ways + 1) + (2 * ways + 2) + 2 * ways
    last = WAYS["cpu"][0][-1][0].name
    assert rows[-1].figure == (
        f"memory: adapters, beside LNA, {last}, --checkpoint-activations, 2 × 1 to 2 s, few"
    )
    assert rows[-1].peer == "fairseq xm_transformer --checkpoint-activations"
    assert (rows[-1].ours, rows[-1].theirs) == ([8.0], [12.0])
    assert rows[-1].target == 2


@pytest.mark.parametrize("name", ["LNA", "top 1 and 1 layers"])
def test_the_peer_computes_layers_again_where_it_then_trains_the_same(name, files):
    choice = CHOICES[name]
    trainer = peers.xm_transformer(files, SIZE, "cpu", *choice.theirs, *RECOMPUTED)
    sample = peers.batch(trainer.task, peers.SPLIT, [0, 1])
    trainer.zero_grad()
    trainer.task.train_step(sample, trainer.model.train(), trainer.criterion, trainer.optimizer, 0)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert choice.peer_recomputes == all(p.grad is not None for p in trained)
