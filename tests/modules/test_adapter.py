"""Tests of the bottleneck adapter."""

import pytest
import torch
from torch import nn

from fairseq_samu.modules.adapter import Adapter


def test_a_new_adapter_changes_nothing_and_learns() -> None:
    torch.manual_seed(0)
    adapter = Adapter(6, 3)
    x = torch.randn(4, 2, 6)
    assert torch.equal(adapter(x), x)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    for _ in range(2):  # nothing before the last projection gets a gradient while that is zero
        optimizer.zero_grad()
        adapter(x).pow(3).sum().backward()
        optimizer.step()
    assert [n for n, value in adapter.state_dict().items() if torch.equal(value, before[n])] == []


def test_equals_fairseqs() -> None:
    """fairseq's leaves the residual to the layer, and keeps many adapters in one tensor."""
    wav2vec2 = pytest.importorskip("fairseq.models.wav2vec.wav2vec2")
    if not hasattr(wav2vec2, "AdapterFast"):
        pytest.skip("this fairseq has no adapters")
    torch.manual_seed(0)
    theirs = wav2vec2.AdapterFast(1, 6, 3, "relu")
    ours = Adapter(6, 3)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    names = ["ln_W", "ln_b", "W_a", "b_a", "W_b", "b_b"]
    for parameter, name in zip(ours.parameters(), names, strict=True):
        parameter.data.copy_(getattr(theirs, name)[0])
    x = torch.randn(5, 2, 6)
    torch.testing.assert_close(ours(x), x + theirs(x, 0))


def test_width_is_checked() -> None:
    with pytest.raises(ValueError, match="at least 1, found 0"):
        Adapter(4, 0)
