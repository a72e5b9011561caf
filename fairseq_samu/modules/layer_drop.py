"""LayerDrop that distributed training survives."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def is_dropped(layer: nn.Module, probability: float) -> bool:
    """Decide whether to skip ``layer`` in this forward pass; never outside training.

    Drawn from torch's CPU generator, which fairseq seeds at every update, alike on every worker.

    Source: Fan et al. 2020 (arXiv 1909.11556), Section 3.1.
    """
    return layer.training and probability > 0 and float(torch.rand(())) < probability


def keep_in_graph(x: Tensor, unused: Iterable[Tensor]) -> Tensor:
    """Return ``x``, with unused tensors in its graph, so that these get a gradient of zero.

    Distributed data parallel training waits for a gradient of every parameter; without this a
    dropped layer stops it, unless it searches for unused parameters at every update.

    Args:
        x: any tensor.
        unused: the parameters, and other inputs, of what was dropped.
    """
    # One element of each is enough, and its product with zero cannot overflow in half precision.
    ones = [tensor.flatten()[:1].to(x.dtype) for tensor in unused if tensor.requires_grad]
    return x + torch.cat(ones).sum() * 0 if ones else x
