"""Products of few rows with a weight that comes again and again, by the fastest of torch's libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

#: oneDNN's product in single precision; None where torch has none.
_ONE_DNN = (
    torch.ops.mkldnn._linear_pointwise
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    else None
)
#: Entries of a weight by which a change is noticed that torch does not count: that of ``weight.data``.
_SAMPLE = 64


class _Known(NamedTuple):
    """A weight as it was last seen.

    Attributes:
        mark: where it lies and how often it changed.
        sample: some of its entries.
        packed: a copy in the order in which oneDNN reads it; None the first time.
    """

    mark: tuple[Any, ...]
    sample: Tensor
    packed: Tensor | None


class FewRowsLinear:
    """Makes functions that do what linear layers do, without gradients.

    In single precision on a processor torch calls MKL, which with the 8 to 100 rows of a beam search
    takes twice as long as oneDNN on AMD's processors. A weight that comes a second time, unchanged, is
    packed: copied once into the order in which oneDNN reads it, which saves another fifth and costs as
    much memory again. Elsewhere the layers' own products are used.
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Linear, _Known] = WeakKeyDictionary()

    def __call__(self, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        """Make a function (…, in_features) → (…, out_features), good until the weight changes."""
        weight = layer.weight
        if _ONE_DNN is None or weight.device.type != "cpu" or weight.dtype != torch.float32:
            return partial(F.linear, weight=weight, bias=layer.bias)
        mark = (weight.data_ptr(), weight._version, weight.shape, weight.stride())
        entries = weight.detach().flatten()
        sample = entries[:: max(1, len(entries) // _SAMPLE)]
        known, packed = self._known.get(layer), None
        if known is not None and known.mark == mark and torch.equal(known.sample, sample):
            packed = known.packed
            if packed is None:
                packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        self._known[layer] = _Known(mark, sample.clone(), packed)
        return partial(_product, weight if packed is None else packed, layer.bias)


def _product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    assert _ONE_DNN is not None
    found: Tensor = _ONE_DNN(x, weight, bias, "none", [], "")
    return found
