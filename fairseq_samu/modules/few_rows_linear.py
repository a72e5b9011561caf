"""Products of few rows with a weight that comes again and again, by the fastest of torch's libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fairseq_samu.modules.matrix_product import onednn_is_faster


class _Packed(NamedTuple):
    """Weights side by side, in the order in which oneDNN reads them.

    Attributes:
        marks: where each of them lies, and how often it changed.
        weight: the copy.
    """

    marks: tuple[Any, ...]
    weight: Tensor


class FewRowsLinear:
    """Makes functions that do what linear layers do, without gradients; one for several of one input.

    Where oneDNN is faster (see ``matrix_product``), it does the products; elsewhere the layers' own are used.
    Weights that are known to stay are packed: copied once into the order in which oneDNN reads them, which
    saves another fifth with the rows of a beam search, half with 5 of them, and costs as much memory again.
    """

    def __init__(self) -> None:
        self._weights: object = None
        self._packed: WeakKeyDictionary[nn.Linear, _Packed] = WeakKeyDictionary()

    def begin(self, weights: object) -> None:
        """Begin to make functions for a search.

        Args:
            weights: stands for the weights' values: what is packed serves as long as this is the same; None =
                they may change at any time, and nothing is packed. (That torch counts changes is not enough
                to notice them: those of ``weight.data``, as of fairseq's optimizers, it does not count.)
        """
        if weights is None or weights is not self._weights:
            self._packed.clear()
        self._weights = weights

    def __call__(self, *layers: nn.Linear) -> Callable[[Tensor], Tensor]:
        """Make a function (…, in_features) → (…, out_features of all), good until a weight changes."""
        first = layers[0].weight
        on_cpu = first.device.type == "cpu" and first.dtype == torch.float32
        if not (on_cpu and onednn_is_faster()):
            return partial(_own_product, *_joined(layers))
        if self._weights is None:
            return partial(_one_dnn_product, *_joined(layers))
        marks = tuple(
            (weight.data_ptr(), weight._version, weight.shape, weight.stride())
            for weight in (layer.weight for layer in layers)
        )
        packed = self._packed.get(layers[0])
        if packed is None or packed.marks != marks:
            weight, _ = _joined(layers)
            packed = _Packed(marks, torch.ops.mkldnn._reorder_linear_weight(weight, None))
            self._packed[layers[0]] = packed
        return partial(_one_dnn_product, packed.weight, _bias(layers))


def _joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of layers side by side."""
    if len(layers) == 1:
        return layers[0].weight.detach(), layers[0].bias
    return torch.cat([layer.weight.detach() for layer in layers]), _bias(layers)


def _bias(layers: Sequence[nn.Linear]) -> Tensor | None:
    """Biases side by side, which all layers have or none."""
    if layers[0].bias is None or len(layers) == 1:
        return layers[0].bias
    return torch.cat([layer.bias.detach() for layer in layers])


def _own_product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def _one_dnn_product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found
