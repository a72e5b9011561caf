"""Tests of the group norm that does not see padding."""

import pytest
import torch
from fairseq.modules import Fp32GroupNorm

from fairseq_samu.modules.masked_group_norm import MaskedGroupNorm


def make_pair(channels: int) -> tuple[MaskedGroupNorm, Fp32GroupNorm]:
    torch.manual_seed(0)
    ours, fairseqs = MaskedGroupNorm(channels), Fp32GroupNorm(channels, channels)
    with torch.no_grad():
        for parameter in fairseqs.parameters():
            parameter.normal_()
    ours.load_state_dict(fairseqs.state_dict())
    return ours, fairseqs


def test_equals_fairseqs_group_norm_without_padding() -> None:
    ours, fairseqs = make_pair(6)
    x = 3 * torch.randn(2, 6, 50) + 5
    assert torch.allclose(ours(x, torch.tensor([50, 50])), fairseqs(x), atol=1e-5)


def test_gradients_equal_fairseqs_without_padding() -> None:
    ours, fairseqs = make_pair(4)
    x = torch.randn(2, 4, 30)
    weights = torch.randn(2, 4, 30)
    gradients = []
    for norm, arguments in ((ours, [torch.tensor([30, 30])]), (fairseqs, [])):
        leaf = x.clone().requires_grad_()
        (norm(leaf, *arguments) * weights).sum().backward()
        gradients.append([leaf.grad, norm.weight.grad, norm.bias.grad])
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_padding_changes_nothing() -> None:
    norm, _ = make_pair(5)
    x = torch.randn(2, 5, 40)
    padded = x.clone()
    padded[1, :, 25:] = 1e4  # whatever stands there
    batch = norm(padded, torch.tensor([40, 25]))
    alone = norm(x[1:, :, :25], torch.tensor([25]))
    assert torch.allclose(batch[1:, :, :25], alone, atol=1e-5)
    assert torch.allclose(batch[:1], norm(x[:1], torch.tensor([40])), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_normalised_in_float32(dtype: torch.dtype) -> None:
    norm, _ = make_pair(3)
    # the sum over time leaves the range of float16
    x = torch.full((1, 3, 4000), 100.0) + torch.randn(1, 3, 4000)
    expected = norm(x.to(dtype).float(), torch.tensor([4000]))
    found = norm.to(dtype)(x.to(dtype), torch.tensor([4000]))
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, atol=0.05)
