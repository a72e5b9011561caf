"""Products with weights that come again, beside those of the layers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fairseq_samu.modules import few_rows_linear
from fairseq_samu.modules.few_rows_linear import FewRowsLinear


def close(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_products_are_those_of_the_layer(dtype: torch.dtype, bias: bool) -> None:
    layer, linear = nn.Linear(7, 5, bias=bias).to(dtype), FewRowsLinear()
    for rows, weights in ((3, None), (1, "these"), (40, "these"), (2, None)):
        linear.begin(weights)
        product, x = linear(layer), torch.randn(2, rows, 7).to(dtype)
        assert close(product(x), layer(x))
        assert close(product(x[:, :1]), layer(x[:, :1]))
        assert close(product(x[0]), layer(x[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_layers_side_by_side(dtype: torch.dtype, bias: bool) -> None:
    layers = [nn.Linear(7, width, bias=bias).to(dtype) for width in (5, 3, 4)]
    linear, x = FewRowsLinear(), torch.randn(2, 7).to(dtype)
    for turn in range(4):
        linear.begin(None if turn == 0 else turn // 3)
        found = linear(*layers)(x)
        assert close(found, torch.cat([layer(x) for layer in layers], -1))
        if turn == 2:  # the last of them alone changes
            layers[2].weight.data.mul_(2)


needs_one_dnn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="needs oneDNN's product of torch 2"
)


@pytest.fixture
def one_dnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor."""
    monkeypatch.setattr(few_rows_linear, "onednn_is_faster", lambda: True)


@needs_one_dnn
@pytest.mark.usefixtures("one_dnn")
def test_weights_are_packed_once_where_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    times = []
    pack = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda *x: times.append(1) or pack(*x)
    )
    layer, linear = nn.Linear(7, 5), FewRowsLinear()
    packed = []
    for weights in (None, None, "these", "these", "those", "those", None, "those"):
        linear.begin(weights)
        linear(layer)
        packed.append(len(times))
    assert packed == [0, 0, 1, 1, 2, 2, 2, 3]


def change_one_entry(layer: nn.Linear) -> None:
    """As fairseq's optimizers change weights: torch does not count it."""
    layer.weight.data[4, 6] += 1


CHANGES: dict[str, Callable[[nn.Linear], object]] = {
    "in place": lambda layer: layer.weight[4, 6].add_(1),
    "data": change_one_entry,
    "other memory": lambda layer: setattr(layer.weight, "data", layer.weight.data + 1),
    "step": lambda layer: torch.optim.SGD(layer.parameters(), lr=0.1).step(),
    "load": lambda layer: layer.load_state_dict(nn.Linear(7, 5).state_dict()),
}


@needs_one_dnn
@pytest.mark.usefixtures("one_dnn")
@pytest.mark.parametrize("weights", [None, "these"])
@pytest.mark.parametrize("change", list(CHANGES))
@torch.no_grad()
def test_a_changed_weight_is_noticed(change: str, weights: str | None) -> None:
    layer, linear, x = nn.Linear(7, 5), FewRowsLinear(), torch.randn(3, 7)
    layer.weight.grad = torch.ones_like(layer.weight)
    for _ in range(3):
        linear.begin(weights)
        before = linear(layer)(x)
    CHANGES[change](layer)
    for _ in range(3):
        # Who changes weights behind torch's back has to break the promise that they stay.
        linear.begin("those" if weights is not None and change == "data" else weights)
        found = linear(layer)(x)
        assert close(found, layer(x)) and not torch.allclose(found, before)


@torch.no_grad()
def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    monkeypatch.setattr(few_rows_linear, "onednn_is_faster", lambda: False)
    linear = FewRowsLinear()
    assert torch.equal(linear(layer)(x), layer(x))
    assert torch.equal(linear(layer)(x), layer(x))
