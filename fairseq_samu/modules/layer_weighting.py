"""A learned mixture of a network's layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LayerWeighting(nn.Module):
    """Sum of the layers' outputs with softmax weights; at the start their mean.

    Args:
        n_layers: outputs to weigh.

    Source: SUPERB (Yang et al. 2021, arXiv 2105.01051), Section 3.
    """

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_layers))

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Weigh ``n_layers`` tensors of one shape; returns a tensor of that shape."""
        weights = self.logits.softmax(dim=0)
        # One by one: a stack would copy the output of every layer.
        mixed = weights[0] * layers[0]
        for weight, layer in zip(weights[1:], layers[1:], strict=True):
            mixed = mixed + weight * layer
        return mixed
