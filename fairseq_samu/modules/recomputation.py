"""Layers of which only the input is kept, and the rest computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run_layer(layer: Callable[..., Any], recomputes: bool, *args: Any, **kwargs: Any) -> Any:
    """Run a layer; dropout is the same when it is computed again.

    Args:
        layer: what to run.
        recomputes: keep nothing but the arguments for the backward pass. Not for layers that ask for other
            gradients there, as those do that wait for their first update.
        *args: what the layer takes.
        **kwargs: the same.

    Source: Chen et al. 2016 (arXiv 1604.06174), Section 3.
    """
    if recomputes and torch.is_grad_enabled():
        return checkpoint(partial(layer, **kwargs), *args, use_reentrant=False)
    return layer(*args, **kwargs)
