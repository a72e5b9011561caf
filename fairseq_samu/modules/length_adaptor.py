"""Length adaptors: speech frames (20 ms each) to fewer vectors of the decoder's width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_samu.modules.linear import linear
from fairseq_samu.modules.padding import padding_mask as make_padding_mask

#: What may stand around the convolutions, in the order of computation.
BLOCKS = ("projection", "projection-norm", "norm", "ffn")


class NoAdaptor(nn.Module):
    """Hand the frames on as they are."""

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Frames that come out of ``lengths`` frames, shape (B,)."""
        return lengths

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return ``x`` (T, B, D) and ``padding_mask`` (B, T) unchanged."""
        return x, padding_mask


class LinearAdaptor(nn.Module):
    """Stack ``stride`` consecutive frames and project the stack; stride 1 is a plain projection.

    Args:
        in_dim: width of a frame.
        out_dim: width of the output.
        stride: frames a stack; the last stack of an utterance is filled up with zeros.
    """

    def __init__(self, in_dim: int, out_dim: int, stride: int = 1) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"the adaptor's stride: expected at least 1, found {stride}")
        self.stride = stride
        self.projection = nn.Linear(in_dim * stride, out_dim)

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Vectors that come out of ``lengths`` frames, shape (B,)."""
        return (lengths + self.stride - 1).div(self.stride, rounding_mode="floor")

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Stack and project.

        Args:
            x: frames, shape (T, B, D).
            padding_mask: True where padded, shape (B, T), or None without padding.

        Returns:
            Vectors (T', B, D') with T' = ceil(T / stride), and their padding mask (B, T') or None.
        """
        x = zero_padded(x, padding_mask)
        frames, batch, width = x.shape
        x = F.pad(x, (0, 0, 0, 0, 0, -frames % self.stride))
        stacks = x.view(-1, self.stride, batch, width).transpose(1, 2)  # (T', B, stride, D)
        x = self.projection(stacks.reshape(stacks.size(0), batch, self.stride * width))
        if padding_mask is None:
            return x, None
        lengths = self.out_lengths((~padding_mask).sum(dim=1))
        return x, make_padding_mask(lengths, x.size(0))


class ConvGLUAdaptor(nn.Module):
    """Strided convolutions, each followed by a gated linear unit.

    On an utterance without padding it computes what fairseq's ``Conv1dAdaptor``
    (``xm_transformer``) does, with the same parameter names. Padded frames are set to zero before
    every convolution, not only before the first, so that padding changes nothing.

    Args:
        in_dim: width of a frame.
        out_dim: width of the output.
        n_layers: number of convolutions.
        kernel_size: frames a kernel spans; odd.
        stride: every layer divides the length by it.
        blocks: what else there is, names with commas between them. Before the convolutions, in this
            order: ``projection`` to ``out_dim``, ``projection-norm`` and ``norm``, two layer norms; and
            ``ffn``, half a feed-forward layer with its residual and a layer norm, before the
            convolutions and after them.
        inner_dim: width between the convolutions, ``out_dim`` if not given.

    Raises:
        ValueError: an impossible shape, or a block that does not exist.

    Source: Li et al. 2021 (arXiv 2010.12829), Section 2.2 (length adaptor); the blocks are those of
    fairseq's ``Wav2VecEncoderWithAdaptor``.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        n_layers: int = 3,
        kernel_size: int = 3,
        stride: int = 2,
        blocks: str = "",
        inner_dim: int | None = None,
    ) -> None:
        super().__init__()
        if n_layers < 1:
            raise ValueError(f"the adaptor's layers: expected at least 1, found {n_layers}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"the adaptor's kernel size: expected an odd one, found {kernel_size}")
        if stride < 1:
            raise ValueError(f"the adaptor's stride: expected at least 1, found {stride}")
        names = [name.strip() for name in blocks.split(",") if name.strip()]
        if not {*names} <= {*BLOCKS}:
            raise ValueError(
                f"the adaptor's blocks: expected some of {', '.join(BLOCKS)}, found {blocks!r}"
            )
        self.stride = stride
        self.projection = nn.Linear(in_dim, out_dim) if "projection" in names else None
        width = in_dim if self.projection is None else out_dim
        self.projection_norm = nn.LayerNorm(width) if "projection-norm" in names else None
        self.layernorm = nn.LayerNorm(width) if "norm" in names else None
        ffn = "ffn" in names
        self.proj = _feed_forward(width) if ffn else None
        self.proj_ln = nn.LayerNorm(width) if ffn else None
        widths = [width, *[inner_dim or out_dim] * (n_layers - 1), out_dim]
        self.layers = nn.ModuleList(
            nn.Conv1d(before, 2 * after, kernel_size, stride=stride, padding=kernel_size // 2)
            for before, after in zip(widths, widths[1:])
        )
        self.post_proj = _feed_forward(out_dim) if ffn else None
        self.post_proj_ln = nn.LayerNorm(out_dim) if ffn else None

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Vectors that come out of ``lengths`` frames, shape (B,)."""
        for _ in self.layers:
            lengths = self._conv_lengths(lengths)
        return lengths

    def _conv_lengths(self, lengths: Tensor) -> Tensor:
        return (lengths - 1).div(self.stride, rounding_mode="floor") + 1

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve ``x`` (T, B, D) over time, to (T', B, D'): windows as rows, times the weight as it lies.

        Nothing is transposed for that, and frames are few here: to gather windows costs less than a
        convolution loses on a CPU, forward and most of all backward.
        """
        frames, kernel = x.size(0), weight.size(2)
        x = F.pad(x, (0, 0, 0, 0, kernel // 2, kernel // 2))
        windows = torch.stack([x[n : n + frames : self.stride] for n in range(kernel)], 3)
        return linear(windows.flatten(2), weight.flatten(1), bias)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Shorten.

        Args:
            x: frames, shape (T, B, D).
            padding_mask: True where padded, shape (B, T), or None without padding.

        Returns:
            Vectors (T', B, D'), zero where padded, and their padding mask (B, T') or None.
        """
        for block in (self.projection, self.projection_norm, self.layernorm):
            x = x if block is None else block(x)
        x = zero_padded(_half_step(x, self.proj, self.proj_ln), padding_mask)
        lengths = None if padding_mask is None else (~padding_mask).sum(dim=1)
        for conv in self.layers:
            x = F.glu(self._convolved(x, *conv.parameters()), dim=2)
            if lengths is not None:
                lengths = self._conv_lengths(lengths)
                padding_mask = make_padding_mask(lengths, x.size(0))
                x = zero_padded(x, padding_mask)
        x = _half_step(x, self.post_proj, self.post_proj_ln)
        return zero_padded(x, padding_mask), padding_mask


def _feed_forward(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))


def _half_step(x: Tensor, feed_forward: nn.Module | None, norm: nn.Module | None) -> Tensor:
    """Add half of what a feed-forward layer makes of ``x``, and normalise; None leaves it as it is."""
    return x if feed_forward is None or norm is None else norm(x + 0.5 * feed_forward(x))


def zero_padded(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Return ``x`` (T, B, D) with zeros where ``padding_mask`` (B, T) is True."""
    if padding_mask is None:
        return x
    return x.masked_fill(padding_mask.t().unsqueeze(2), 0.0)
