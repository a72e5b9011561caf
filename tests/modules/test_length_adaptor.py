"""Tests of the length adaptors."""

import pytest
import torch
from fairseq.models.speech_to_text.xm_transformer import Conv1dAdaptor
from torch import nn

from fairseq_samu.modules.length_adaptor import ConvGLUAdaptor, LinearAdaptor, NoAdaptor
from fairseq_samu.modules.padding import padding_mask

IN, OUT = 6, 10


def adaptors() -> list[nn.Module]:
    return [
        NoAdaptor(),
        LinearAdaptor(IN, OUT),
        LinearAdaptor(IN, OUT, stride=4),
        ConvGLUAdaptor(IN, OUT),
        ConvGLUAdaptor(IN, OUT, n_layers=1, kernel_size=5, stride=3),
        ConvGLUAdaptor(IN, OUT, blocks="projection,projection-norm,norm,ffn"),
        ConvGLUAdaptor(IN, OUT, blocks="ffn"),
    ]


@pytest.mark.parametrize("n_layers,kernel,stride", [(3, 3, 2), (1, 3, 2), (2, 5, 2), (2, 3, 1)])
@pytest.mark.parametrize("frames", [1, 2, 7, 64])
def test_conv_equals_fairseqs_without_padding(
    n_layers: int, kernel: int, stride: int, frames: int
) -> None:
    ours = ConvGLUAdaptor(IN, OUT, n_layers, kernel, stride).double()
    fairseqs = Conv1dAdaptor(IN, OUT, n_layers, kernel, stride).double()
    ours.load_state_dict(fairseqs.state_dict())
    x = torch.randn(frames, 2, IN, dtype=torch.float64)
    expected, _ = fairseqs(x, None)
    found, mask = ours(x, None)
    assert mask is None
    assert torch.allclose(found, expected)
    no_padding = torch.zeros(2, frames, dtype=torch.bool)
    found, mask = ours(x, no_padding)
    assert torch.allclose(found, expected)
    assert mask is not None and not mask.any() and mask.shape == (2, expected.size(0))


@pytest.mark.parametrize(
    "given", [{"layernorm": True}, {"proj": True}, {"layernorm": True, "proj": True}]
)
@torch.no_grad()
def test_blocks_equal_fairseqs(given: dict[str, bool]) -> None:
    blocks = ",".join({"layernorm": "norm", "proj": "ffn"}[name] for name in given)
    fairseqs = Conv1dAdaptor(IN, OUT, 2, **given).double()
    for parameter in fairseqs.parameters():
        parameter.normal_()
    ours = ConvGLUAdaptor(IN, OUT, 2, blocks=blocks).double()
    ours.load_state_dict(fairseqs.state_dict())
    x = torch.randn(17, 2, IN, dtype=torch.float64)
    assert torch.allclose(ours(x, None)[0], fairseqs(x, None)[0])


@torch.no_grad()
def test_projection_comes_first() -> None:
    adaptor = ConvGLUAdaptor(
        3, 2, n_layers=1, kernel_size=1, stride=1, blocks="projection,projection-norm"
    )
    assert isinstance(adaptor.projection, nn.Linear) and isinstance(adaptor.layers[0], nn.Conv1d)
    adaptor.projection.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
    adaptor.projection.bias.zero_()
    adaptor.layers[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0]]).unsqueeze(2))
    adaptor.layers[0].bias.zero_()
    out, _ = adaptor(torch.tensor([[[6.0, 9.0, 2.0]]]), None)
    # (6, 2) normalised is (1, -1); the gate is sigmoid(0)
    assert torch.allclose(out, torch.tensor([[[0.5, -0.5]]]), atol=1e-4)


@pytest.mark.parametrize("adaptor", adaptors(), ids=lambda a: type(a).__name__)
def test_padding_changes_nothing(adaptor: nn.Module) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([23, 16, 9, 1])
    x = torch.randn(23, 4, IN) * 5  # noise where padded
    batch, mask = adaptor(x, padding_mask(lengths, 23))
    assert ((~mask).sum(1) == adaptor.out_lengths(lengths)).all()
    for row, length in enumerate(lengths.tolist()):
        alone, no_mask = adaptor(x[:length, row : row + 1], None)
        assert no_mask is None
        assert alone.size(0) == adaptor.out_lengths(lengths)[row]
        assert torch.allclose(batch[: alone.size(0), row : row + 1], alone, atol=1e-5)


def test_fairseqs_conv_does_see_padding() -> None:
    """The reason for zeroing before every convolution; if this fails, ours can go."""
    torch.manual_seed(0)
    fairseqs = Conv1dAdaptor(IN, OUT)
    x = torch.randn(24, 2, IN)
    # 13 → 7 → 4 → 2: the second convolution's last kernel covers a padded frame
    batch, _ = fairseqs(x, padding_mask(torch.tensor([24, 13]), 24))
    alone, _ = fairseqs(x[:13, 1:], None)
    assert not torch.allclose(batch[: alone.size(0), 1:], alone, atol=1e-4)


def test_linear_stacks_consecutive_frames() -> None:
    adaptor = LinearAdaptor(2, 4, stride=2)
    with torch.no_grad():
        adaptor.projection.weight.copy_(torch.eye(4))
        adaptor.projection.bias.zero_()
    x = torch.arange(6.0).view(3, 1, 2)
    out, _ = adaptor(x, None)
    assert out.squeeze(1).tolist() == [[0, 1, 2, 3], [4, 5, 0, 0]]


@pytest.mark.parametrize("adaptor", adaptors()[1:], ids=lambda a: type(a).__name__)
def test_gradients_reach_everything(adaptor: nn.Module) -> None:
    x = torch.randn(20, 2, IN, requires_grad=True)
    out, _ = adaptor(x, padding_mask(torch.tensor([20, 12]), 20))
    # Not a plain sum: that of normalised vectors is constant.
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adaptor.parameters())
    assert x.grad is not None and (x.grad[12:, 1] == 0).all()


@pytest.mark.parametrize(
    "build,found",
    [
        (lambda: LinearAdaptor(2, 2, stride=0), "stride: .* found 0"),
        (lambda: ConvGLUAdaptor(2, 2, stride=0), "stride: .* found 0"),
        (lambda: ConvGLUAdaptor(2, 2, kernel_size=4), "kernel size: .* found 4"),
        (lambda: ConvGLUAdaptor(2, 2, n_layers=0), "layers: .* found 0"),
        (lambda: ConvGLUAdaptor(2, 2, blocks="norm,fnn"), "projection, .*ffn, found 'norm,fnn'"),
    ],
)
def test_impossible_shapes_are_refused(build, found: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=found):
        build()
