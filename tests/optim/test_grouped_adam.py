"""Tests of the optimiser with a learning rate for each part."""

import pytest
import torch
from fairseq import optim
from fairseq.optim.adam import Adam
from fairseq.optim.fp16_optimizer import FP16Optimizer, MemoryEfficientFP16Optimizer
from omegaconf import OmegaConf
from torch import nn

import fairseq_samu.optim  # noqa: F401  (registers the optimiser)
from fairseq_samu.optim.fused_adam import FusedAdam
from fairseq_samu.optim.grouped_adam import part_scales

PARTS = ["outside", "encoder.attention", "encoder.others", "decoder.layernorm"]


def build(lr_scales="encoder=0.1,encoder.others=0.5", parts=PARTS, lr=0.01, use_old_adam=False):
    """An optimiser of one weight a part, as fairseq's trainer builds it."""
    weights = [nn.Parameter(torch.ones(())) for _ in parts]
    for weight, part in zip(weights, parts, strict=True):
        weight.param_group = part
    cfg = OmegaConf.create(
        {
            "_name": "grouped_adam", "lr_scales": lr_scales, "lr": [lr], "tpu": False,
            "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-12, "weight_decay": 0.0,
            "use_old_adam": use_old_adam,
        }
    )  # fmt: skip
    return optim.build_optimizer(cfg, weights), weights


def rates(optimizer):
    return {group["part"]: pytest.approx(group["lr"]) for group in optimizer.param_groups}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [1, 1, 1, 1]),
        ("encoder=0.1", [1, 0.1, 0.1, 1]),
        (" encoder = 0.1, encoder.others=2e-1 ,outside=3,", [3, 0.1, 0.2, 1]),
        ("encoder.others=0.2,encoder=0.1", [1, 0.1, 0.2, 1]),
    ],
)
def test_the_nearest_name_decides(text, expected):
    assert list(part_scales(text, PARTS).values()) == expected


@pytest.mark.parametrize(
    "text",
    ["encoder", "encoder=", "encoder=fast", "encoder=0", "encoder=-1", "encoder=nan", "encoder=inf",
     "others=1", "adaptor=1", "decoder.adapters=1", "encoder=1,encoder=1", "encoder:1"],
)  # fmt: skip
def test_what_cannot_be_a_factor_is_refused_with_the_names_there_are(text):
    names = "outside, encoder, decoder, encoder.attention, encoder.others, decoder.layernorm"
    with pytest.raises(
        ValueError, match=f"--lr-scales: .*what trains: {names};.* found 'enc|oth|ada|dec"
    ):
        part_scales(text, PARTS)  # fmt: skip


def test_every_part_takes_steps_of_its_size():
    """Adam's first step is the learning rate, whatever the gradient."""
    optimizer, weights = build()
    optimizer.set_lr(0.02)
    assert optimizer.get_lr() == 0.02
    for weight in weights:
        weight.grad = torch.tensor(7.0)
    optimizer.step()
    steps = [1 - weight.item() for weight in weights]
    assert steps == pytest.approx([0.02, 0.002, 0.01, 0.02], rel=1e-4)


def test_the_checkpoint_has_the_rate_and_the_options_the_factors():
    saved = build()[0]
    saved.set_lr(0.02)
    optimizer, _ = build("decoder=0.25")
    optimizer.load_state_dict(saved.state_dict())
    assert optimizer.get_lr() == 0.02
    assert rates(optimizer) == dict(zip(PARTS, [0.02, 0.02, 0.02, 0.005], strict=True))
    optimizer.load_state_dict(saved.state_dict(), {"lr": 0.04, "betas": (0.5, 0.5)})
    assert rates(optimizer)["decoder.layernorm"] == 0.01
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.5)


def test_other_parts_than_the_checkpoints_are_refused():
    with pytest.raises(ValueError, match=r"trained outside, encoder.attention.* trains outside: "):
        build("", ["outside"])[0].load_state_dict(build()[0].state_dict())


def test_flattened_weights_are_refused():
    """``--fp16`` hands all weights over as one, which belongs to no part."""
    cfg = build()[0].cfg
    with pytest.raises(ValueError, match="one of 10 weights .*--fp16-no-flatten-grads"):
        optim.build_optimizer(cfg, [{0: nn.Parameter(torch.zeros(10))}])


def test_fairseqs_own_steps_can_be_asked_for():
    assert type(build()[0].optimizer) is FusedAdam
    assert type(build(use_old_adam=True)[0].optimizer) is Adam


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("count", [8.0, torch.tensor(8.0)])
def test_gradients_are_averaged_and_clipped_as_fairseq_does(max_norm, count):
    """On the way through them, or before; the second time from gradients that were none in between."""
    norms, trained = [], []
    for use_old_adam in (False, True):
        optimizer, weights = build(use_old_adam=use_old_adam)
        for gradients in ([8, -4, 16, 2], [2, 3, 4, 5]):
            optimizer.zero_grad()
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = torch.tensor(float(gradient))
            optimizer.multiply_grads(1 / count)
            norms.append(optimizer.clip_grad_norm(max_norm).item())
            optimizer.step()
        trained.append([weight.item() for weight in weights])
        averages = [state["exp_avg_sq"] for state in optimizer.state_dict()["state"].values()]
        trained[-1] += torch.stack(averages).tolist()
    # The root of 8² + 4² + 16² + 2² and of 2² + 3² + 4² + 5², divided by 8.
    assert norms == pytest.approx([340**0.5 / 8, 54**0.5 / 8] * 2)
    assert trained[0] == pytest.approx(trained[1], rel=1e-5)


def test_what_was_to_be_multiplied_is_forgotten_with_the_gradients():
    """A batch that did not fit in memory, or whose gradients were not finite, makes no step."""
    optimizer, weights = build(lr=1.0)
    optimizer.multiply_grads(1e-30)
    optimizer.zero_grad()
    weights[0].grad = torch.tensor(1e-6)
    optimizer.step()
    assert weights[0].item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_mixed_precision_is_fairseqs(memory_efficient):
    cls = MemoryEfficientFP16Optimizer if memory_efficient else FP16Optimizer
    trained = []
    for use_old_adam in (False, True):
        cfg = OmegaConf.create(
            {
                "common": {"bf16": True, "fp16_scale_window": 1},
                "optimization": {"update_freq": [1]},
                "optimizer": build(use_old_adam=use_old_adam)[0].cfg,
                "distributed_training": {"distributed_world_size": 1},
            }
        )
        weights = [nn.Parameter(torch.linspace(0, 1, 40).bfloat16()) for _ in PARTS]
        for weight, part in zip(weights, PARTS, strict=True):
            weight.param_group = part
        optimizer = cls.build_optimizer(cfg, weights)
        for number in range(1, 4):
            optimizer.zero_grad()
            optimizer.backward(sum((weight**2).sum() * number for weight in weights))
            optimizer.multiply_grads(0.5)
            optimizer.clip_grad_norm(2.0)
            optimizer.step()
        trained.append(torch.cat([weight.detach() for weight in weights]).float())
    assert (trained[0] - torch.linspace(0, 1, 40).repeat(4)).abs().max() > 0.02
    torch.testing.assert_close(trained[0], trained[1], rtol=2**-8, atol=1e-6)
