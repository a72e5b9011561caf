"""Steps of an optimiser that pass parameters over."""

from collections.abc import Collection
from typing import Any

from fairseq.optim import FP16Optimizer
from torch import nn


def drop_gradients(optimizer: Any, parameters: Collection[nn.Parameter]) -> None:
    """Make the next step pass parameters over: no update, no weight decay, no step counted.

    Between backward pass and step; gradients of zero, which workers exchange for parameters that were
    not used, would not do for that.

    Args:
        optimizer: of fairseq.
        parameters: of the model.

    Raises:
        ValueError: the optimiser made one parameter of all.
    """
    dropped = {*parameters}
    if not dropped:
        return
    for parameter in dropped:
        parameter.grad = None
    if isinstance(optimizer, FP16Optimizer):
        if optimizer.has_flat_params:
            raise ValueError(
                "--freeze-encoder-updates and --freeze-decoder-updates cannot hold back parts of what "
                "--fp16 makes one parameter: add --fp16-no-flatten-grads or --memory-efficient-fp16"
            )
        for parameter, in_fp32 in zip(optimizer.fp16_params, optimizer.fp32_params, strict=True):
            if parameter in dropped:
                in_fp32.grad = None
