"""Tests of layer drop."""

import pytest
import torch
from torch import nn

from fairseq_samu.modules.layer_drop import is_dropped, keep_in_graph


def test_drops_with_the_given_probability_in_training_only() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    share = sum(is_dropped(layer, 0.3) for _ in range(5000)) / 5000
    assert share == pytest.approx(0.3, abs=0.03)
    assert not any(is_dropped(layer, 0.0) for _ in range(100))
    layer.eval()
    assert not any(is_dropped(layer, 0.9) for _ in range(100))


def test_probability_zero_leaves_the_random_generator_alone() -> None:
    layer = nn.Linear(2, 2)
    state = torch.get_rng_state()
    is_dropped(layer, 0.0)
    assert torch.equal(state, torch.get_rng_state())


def test_gradients_of_a_dropped_layer_are_zero_not_missing() -> None:
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    x = torch.randn(4, 3, requires_grad=True)
    y = keep_in_graph(x, layer.parameters())
    assert torch.equal(x, y)
    y.sum().backward()
    assert layer.weight.grad is not None and not layer.weight.grad.any()
    assert layer.bias.grad is None
    assert x.grad is not None and (x.grad == 1).all()


def test_large_half_precision_weights_give_no_nan() -> None:
    layer = nn.Linear(300, 300).half()
    nn.init.constant_(layer.weight, 6e4)
    assert torch.isfinite(keep_in_graph(torch.ones(2, 300).half(), layer.parameters())).all()


def test_a_frozen_layer_changes_nothing() -> None:
    layer = nn.Linear(2, 2).requires_grad_(False)
    x = torch.randn(2, 2)
    assert keep_in_graph(x, layer.parameters()) is x
