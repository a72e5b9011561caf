"""The peer in plain PyTorch trains as this project does; operations are those that torch counts."""

import pickle

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import peers, samu_update
from benchmarks.flops import extractor_flops, peak_flops, transformer_flops, update_flops
from benchmarks.sizes import SIZES
from benchmarks.training import update

SIZE = SIZES["tiny"]
FP32, BF16 = samu_update.WAYS["cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samu")
    samu_update.prepare(folder, SIZE)
    return folder


def test_both_train_the_same(folder):
    trainer = samu_update.ours(folder, "cpu", FP32, dropout=0.0)
    peer = samu_update.theirs(folder, "cpu", FP32, trainer.model.head, dropout=0.0)
    sample = peers.batch(trainer.task, peers.SPLIT, range(4))
    lengths = sample["net_input"]["src_lengths"]
    assert lengths.min() < lengths.max()
    assert samu_update.loss_difference(trainer, peer, sample) < 1e-5
    losses = [
        [step(sample) for _ in range(4)] for step in (lambda s: update(trainer, s), peer.update)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][3] < losses[0][0] * 0.99


def test_a_comparison_has_batches_of_three_sizes(folder):
    rows = samu_update.compare_times(folder, SIZE, "cpu", BF16, 2)
    assert [row.figure for row in rows] == [
        "bf16 autocast, 2 × 0.4 to 0.8 s",
        "bf16 autocast, 1 × 0.4 to 0.8 s",
        "bf16 autocast, 2 × 0.2 to 0.4 s",
    ]
    assert 0 < float(rows[0].same.split()[-3]) < 0.05


def test_operations_are_those_that_torch_counts():
    counter = pytest.importorskip("torch.utils.flop_counter")
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        conv_dim=(16, 16, 24, 24), conv_kernel=(20, 8, 4, 4), conv_stride=(10, 4, 4, 2),
        feat_extract_norm="layer", do_stable_layer_norm=True, attn_implementation="eager",
    )  # fmt: skip
    model = Wav2Vec2Model(config).eval()
    samples = [8000, 12345]
    with counter.FlopCounterMode(display=False) as counted, torch.no_grad():
        for length in samples:
            model(torch.zeros(1, length))
    counts = counted.get_flop_counts()
    extractor = sum(counts["Wav2Vec2Model.feature_extractor"].values())
    assert extractor_flops(SIZE, samples) == extractor
    # the positional convolution's kernel is even: one more frame is computed, and dropped
    position = 2 * 32 * 32 * 128 // 16 * len(samples)
    assert transformer_flops(SIZE, samples) == counted.get_total_flops() - extractor - position
    assert update_flops(SIZE, samples) == extractor + 3 * transformer_flops(SIZE, samples)


def test_peaks_are_found_by_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA T4") is None


def test_a_step_can_be_measured_in_another_process(folder):
    batch = peers.batches(SIZE)[0]
    for side in ("ours", "theirs"):
        arguments = samu_update.build_step, side, folder, SIZE, "cpu", FP32, batch
        assert pickle.loads(pickle.dumps(arguments)) == arguments
        step = samu_update.build_step(*arguments[1:])
        assert step() > step()
