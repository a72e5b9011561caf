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

#: Entries of a weight by which a change is noticed that torch does not count: that of ``weight.data``.
_SAMPLE = 64


class _Known(NamedTuple):
    """A weight as it was last seen.

    Attributes:
        marks: where it, or each of those side by side, lies and how often it changed.
        sample: some of their entries.
        packed: a copy in the order in which oneDNN reads it; None the first time.
    """

    marks: tuple[Any, ...]
    sample: Tensor
    packed: Tensor | None


class FewRowsLinear:
    """Makes functions that do what linear layers do, without gradients; one for several of one input.

    Where oneDNN is faster (see ``matrix_product``), it does the products. A weight that comes a second
    time, unchanged, is packed: copied once into the order in which oneDNN reads it, which saves another
    fifth with the 8 to 100 rows of a beam search and costs as much memory again. Elsewhere the layers'
    own products are used.
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Linear, _Known] = WeakKeyDictionary()

    def __call__(self, *layers: nn.Linear) -> Callable[[Tensor], Tensor]:
        """Make a function (…, in_features) → (…, out_features of all), good until a weight changes."""
        first = layers[0].weight
        on_cpu = first.device.type == "cpu" and first.dtype == torch.float32
        if not (on_cpu and onednn_is_faster()):
            return partial(_own_product, *_joined(layers))
        marks = tuple(
            (weight.data_ptr(), weight._version, weight.shape, weight.stride())
            for weight in (layer.weight for layer in layers)
        )
        sample = torch.cat([_sample(layer.weight) for layer in layers])
        known = self._known.get(layers[0])
        if known is None or known.marks != marks or not torch.equal(known.sample, sample):
            self._known[layers[0]] = _Known(marks, sample, None)
            return partial(_one_dnn_product, *_joined(layers))
        weight, bias = _joined(layers) if known.packed is None else (known.packed, _bias(layers))
        if known.packed is None:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
            self._known[layers[0]] = known._replace(packed=weight)
        return partial(_one_dnn_product, weight, bias)


def _sample(weight: Tensor) -> Tensor:
    entries = weight.detach().flatten()
    return entries[:: max(1, len(entries) // _SAMPLE)]


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
