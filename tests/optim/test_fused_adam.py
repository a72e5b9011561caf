"""Steps and state of the fused Adam are fairseq's."""

import copy
import io

import pytest
import torch
from fairseq.optim import adam
from fairseq.optim.adam import Adam
from torch import nn

from fairseq_samu import compat
from fairseq_samu.optim.fused_adam import FusedAdam

#: Sizes that fill the kernel's vectors and that do not; an epsilon that is large beside gradients.
SHAPES = [(64, 33), (7,), (1,), (5, 3, 3)]
OPTIONS = {"lr": 0.02, "betas": (0.9, 0.98), "eps": 1e-3, "weight_decay": 0.1}
#: Steps in which the second weight has no gradient, so that it made fewer.
WITHOUT = (1, 2, 5)


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def run(optimizer, steps):
    """Steps from gradients that depend on nothing but the step."""
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        for index, weight in enumerate(w for g in optimizer.param_groups for w in g["params"]):
            gradient = 1e-2 * torch.randn(weight.shape, generator=generator)
            weight.grad = None if index == 1 and number in WITHOUT else gradient.to(weight)
        optimizer.step()
    return [weight.detach().clone() for g in optimizer.param_groups for weight in g["params"]]


def in_groups(cls, weights):
    """An optimiser with two groups, the second with a rate of its own."""
    return cls([{"params": weights[:2]}, {"params": weights[2:], "lr": 0.005}], **OPTIONS)


def test_steps_are_fairseqs():
    ours, theirs = (run(in_groups(cls, weights()), range(1, 7)) for cls in (FusedAdam, Adam))
    for got, expected, before in zip(ours, theirs, weights(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert (got - before).abs().max() > 0.001


def test_steps_are_torchs_where_epsilon_is_small():
    """torch adds epsilon elsewhere; with one of nothing both are the same."""
    options = {**OPTIONS, "eps": 1e-20}
    ours, theirs = (
        run(cls(weights(), **options), range(1, 7)) for cls in (FusedAdam, torch.optim.AdamW)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("first", "second"), [(FusedAdam, FusedAdam), (FusedAdam, Adam), (Adam, FusedAdam)]
)
def test_either_goes_on_from_the_others_state(first, second):
    through = in_groups(Adam if Adam in (first, second) else FusedAdam, weights())
    expected = run(through, range(1, 7))

    begun = in_groups(first, weights())
    reached = run(begun, range(1, 4))
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    resumed = in_groups(second, [nn.Parameter(weight) for weight in reached])
    resumed.load_state_dict(torch.load(file))
    got = run(resumed, range(4, 7))
    if first is second:
        assert all(map(torch.equal, got, expected))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_the_state_has_fairseqs_names_and_types():
    ours, theirs = in_groups(FusedAdam, weights()), in_groups(Adam, weights())
    run(ours, range(1, 7)), run(theirs, range(1, 7))
    states = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    for number, expected in states[1].items():
        assert list(states[0][number]) == list(expected) == ["step", "exp_avg", "exp_avg_sq"]
        assert states[0][number]["step"] == (3 if number == 1 else 6)
        torch.testing.assert_close(states[0][number], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.skipif(not compat.FUSED_ADAM, reason="torch has no fused Adam")
def test_what_the_kernel_takes_never_takes_fairseqs_path(monkeypatch):
    monkeypatch.setattr(adam.Adam, "step", None)
    run(in_groups(FusedAdam, weights()), range(1, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_have_averages_of_32(dtype):
    optimizer = in_groups(FusedAdam, weights(dtype))
    got, expected = run(optimizer, range(1, 7)), run(in_groups(Adam, weights(dtype)), range(1, 7))
    assert all(map(torch.equal, got, expected))
    assert all(state["exp_avg"].dtype == torch.float32 for state in optimizer.state.values())


def test_gradients_may_lie_otherwise_in_memory():
    first = weights()[:1]
    second = copy.deepcopy(first)
    gradient = torch.randn(SHAPES[0][::-1]).T
    for cls, weight in ((FusedAdam, first), (Adam, second)):
        weight[0].grad = gradient.clone(memory_format=torch.preserve_format)
        assert not weight[0].grad.is_contiguous()
        cls(weight, **OPTIONS).step()
    torch.testing.assert_close(first, second)


def test_a_closure_is_called():
    assert FusedAdam(weights(), **OPTIONS).step(lambda: 3) == 3
