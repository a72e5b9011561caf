"""LayerDrop that distributed training survives."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_dropped(layer: nn.Module, probability: float) -> bool:
    """Decide whether to skip ``layer`` in this forward pass; never outside training.

    Drawn from torch's CPU generator, which fairseq seeds at every update, alike on every worker.

    Source: Fan et al. 2020 (arXiv 1909.11556), Section 3.1.
    """
    return layer.training and probability > 0 and float(torch.rand(())) < probability


def keep_in_graph(x: Tensor, layer: nn.Module) -> Tensor:
    """Return ``x``, with ``layer``'s trainable parameters in its graph, so that their gradient is zero.

    Distributed data parallel training waits for a gradient of every parameter; without this a dropped
    layer stops it, unless it searches for unused parameters at every update.
    """
    trained = [p for p in layer.parameters() if p.requires_grad]
    # One element of each is enough, and its product with zero cannot overflow in half precision.
    ones = [p.flatten()[:1].to(x.dtype) for p in trained]
    return x + torch.cat(ones).sum() * 0 if ones else x
