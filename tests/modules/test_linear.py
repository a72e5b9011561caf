"""Tests of projections by the faster library."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fairseq_samu import compat
from fairseq_samu.modules import matrix_product
from fairseq_samu.modules.linear import Linear, use_fast_products


@pytest.fixture(params=[0, 2**62], ids=["oneDNN", "torch"])
def library(request, monkeypatch):
    monkeypatch.setattr(matrix_product, "SMALL", request.param)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [(), ("input",), ("weight",)])
@pytest.mark.usefixtures("library")
def test_equals_torchs(bias, frozen):
    torch.manual_seed(0)
    theirs, ours = nn.Linear(24, 40, bias=bias), Linear(24, 40, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(24, 5, 7).transpose(0, 2)
    weights = torch.randn(7, 5, 40)
    results = []
    for layer in (theirs, ours):
        leaf = x.clone().requires_grad_("input" not in frozen)
        layer.weight.requires_grad_("weight" not in frozen)
        out = layer(leaf)
        (out * weights).sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in layer.parameters())])
    for mine, expected in zip(results[1], results[0], strict=True):
        assert (mine is None) == (expected is None)
        assert mine is None or torch.allclose(mine, expected, atol=1e-4)


def test_what_is_frozen_keeps_no_input():
    """The memory that partial training saves."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer = Linear(6, 3)
        layer.weight.requires_grad_(False)
        layer(torch.randn(5, 6, requires_grad=True))
    assert torch.Size([5, 6]) not in kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_torchs(dtype):
    layer = Linear(8, 4).to(dtype)
    x = torch.randn(3, 8, dtype=dtype)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_autocast():
    layer, x = Linear(8, 4), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.skipif(not compat.CPU_BF16_TRAINS, reason="torch 1 cannot")
@pytest.mark.parametrize("bias", [True, False])
def test_under_autocast_a_frozen_weight_gives_what_torchs_gives(bias):
    theirs, ours = nn.Linear(24, 40, bias=bias), Linear(24, 40, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for layer in (theirs, ours):
        torch.manual_seed(0)
        layer.weight.requires_grad_(False)
        x = torch.randn(5, 7, 24, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
            (out * torch.randn(5, 7, 40)).sum().backward()
        results.append([out, x.grad, *(p.grad for p in layer.parameters())])
    for mine, expected in zip(results[1], results[0], strict=True):
        assert (mine is None) == (expected is None)
        assert mine is None or (mine.dtype == expected.dtype and torch.equal(mine, expected))


@pytest.mark.parametrize("frozen", [False, True])
def test_under_autocast_no_copy_of_a_frozen_weight_is_kept(frozen):
    kept = []
    layer = Linear(6, 3).requires_grad_(not frozen)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", torch.bfloat16),
    ):
        layer(torch.randn(5, 6, requires_grad=True))
    copies = [t for t in kept if t.numel() == 18 and t.data_ptr() != layer.weight.data_ptr()]
    assert bool(copies) != frozen


def test_a_transposed_input_is_multiplied_by_the_weight_itself():
    """torch makes a copy of the weight for each utterance."""
    layer = Linear(256, 4096, bias=False).to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(5, 16, 256, dtype=torch.bfloat16).transpose(0, 1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        out = layer(x)
    assert torch.equal(out, nn.functional.linear(x.contiguous(), layer.weight))
    allocated = sum(max(0, e.self_cpu_memory_usage) for e in profiled.key_averages())
    assert allocated < 2 * (out.numel() + x.numel()) * 2


def test_parameters_stay_the_same_ones():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.GELU(), nn.Linear(4, 5, bias=False)))
    network[1][1].weight = network[0].weight
    before = network.eval().state_dict(keep_vars=True)
    use_fast_products(network)
    after = network.state_dict(keep_vars=True)
    assert after.keys() == before.keys() and all(after[n] is before[n] for n in before)
    assert type(network[0]) is type(network[1][1]) is Linear
    assert not any(module.training for module in network.modules())


@pytest.mark.usefixtures("library")
def test_a_weight_that_was_pruned_behind_the_layers_back():
    layer, x = Linear(8, 6), torch.randn(2, 3, 8)
    layer.weight, layer.bias = nn.Parameter(torch.randn(4, 8)), None
    expected = nn.functional.linear(x, layer.weight)
    torch.testing.assert_close(layer(x), expected)
