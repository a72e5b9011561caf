"""Tests of the weighting of layers."""

import math

import torch

from fairseq_samu.modules.layer_weighting import LayerWeighting


def test_is_the_mean_at_first() -> None:
    layers = [torch.full((2, 3), float(value)) for value in (1, 2, 6)]
    torch.testing.assert_close(LayerWeighting(3)(layers), torch.full((2, 3), 3.0))


def test_weighs_with_the_softmax() -> None:
    weighting = LayerWeighting(3)
    weighting.logits.data = torch.tensor([math.log(1.0), math.log(3.0), math.log(4.0)])
    layers = [torch.tensor([8.0, 0.0]), torch.tensor([0.0, 8.0]), torch.tensor([16.0, 80.0])]
    # 1/8, 3/8 and 4/8 of the layers
    torch.testing.assert_close(weighting(layers), torch.tensor([9.0, 43.0]))


def test_gradients_reach_weights_and_layers() -> None:
    weighting = LayerWeighting(2)
    layers = [torch.ones(2, requires_grad=True), torch.full((2,), 3.0, requires_grad=True)]
    weighting(layers).sum().backward()
    # d/dl_i of the softmax at equal weights: 1/4 (x_i - x_j), here for two elements
    torch.testing.assert_close(weighting.logits.grad, torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(layers[0].grad, torch.full((2,), 0.5))
