"""Convolutions with long kernels by Fourier transforms, on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairseq_samu.modules.matrix_product import autocast_dtype

#: Numbers of a kernel from which on transforms pay.
LONG = 64
#: Frames of a batch from which on they pay: below, transforming the kernels takes most of the time.
MANY = 256
#: Outputs of one transform, about, if there are more: kernels are transformed to the same length.
SEGMENT = 384


class LongConv(nn.Conv1d):
    """``torch.nn.Conv1d`` of stride one, on a CPU by transforms where its kernel is long.

    A product of spectra takes the place of a sum over the kernel. Groups are computed one after the other, in
    what a cache holds. Results are torch's up to rounding in float32, in which they are computed under
    autocast, too.

    Source: Stockham 1966, High-speed convolution and correlation (overlapping segments).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``input`` (B, C, T)."""
        pays = self.kernel_size[0] >= LONG and len(input) * input.size(2) >= MANY
        if not pays or input.device.type != "cpu" or self.weight.dtype != torch.float32:
            return super().forward(input)
        dtype = autocast_dtype(input)
        with torch.autocast("cpu", enabled=False):
            x = F.pad(input.float(), (int(self.padding[0]),) * 2)
            out: Tensor = _Correlation.apply(x, self.weight, self.groups)  # type: ignore[no-untyped-call]
            if self.bias is not None:
                out = out + self.bias.unsqueeze(1)
            return out.to(dtype)


class _Correlation(torch.autograd.Function):
    """Correlate numbers (B, C, T) with a weight (O, C / groups, K), giving (B, O, T - K + 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        to_x, to_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if to_weight else None, weight if to_x else None)
        ctx.groups, ctx.shapes = groups, (x.shape, weight.shape)
        frames, size, hop = _lengths(x.shape, weight.shape)
        found = []
        for part, kernels in zip(x.chunk(groups, 1), weight.chunk(groups)):
            spectra = _spectra(_windows(part, frames, size, hop), size)
            spectra = torch.bmm(spectra, _of_kernels(kernels, size).conj().transpose(1, 2))
            found.append(_signals(spectra, size, len(x))[..., :hop].flatten(2)[..., :frames])
        return torch.cat(found, 1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.shapes
        frames, size, hop = _lengths(of_x, of_weight)
        grad = F.pad(grad, (0, -frames % hop)).unflatten(2, (-1, hop))
        to_x, to_weight = [], []
        for n, part in enumerate(grad.chunk(ctx.groups, 1)):
            spectra = _spectra(part, size)
            if weight is not None:
                kernels = _of_kernels(weight.chunk(ctx.groups)[n], size)
                segments = _signals(torch.bmm(spectra, kernels), size, len(grad))
                to_x.append(_added(segments, hop)[..., : of_x[2]])
            if x is not None:
                read = _spectra(_windows(x.chunk(ctx.groups, 1)[n], frames, size, hop), size)
                product = torch.bmm(spectra.conj().transpose(1, 2), read).permute(1, 2, 0)
                to_weight.append(torch.fft.irfft(product, size)[..., : of_weight[2]])
        return (
            None if weight is None else torch.cat(to_x, 1),
            None if x is None else torch.cat(to_weight),
            None,
        )


def _lengths(x: torch.Size, weight: torch.Size) -> tuple[int, int, int]:
    """Outputs, numbers of a segment, and outputs that a segment gives."""
    frames, kernel = x[2] - weight[2] + 1, weight[2]
    size = fast_length(min(frames, SEGMENT) + kernel - 1)
    return frames, size, size - kernel + 1


def fast_length(least: int) -> int:
    """Smallest even number from ``least`` on without prime factors above 5, as transforms like it."""
    length = least + least % 2
    while 60**20 % length:
        length += 2
    return length


def _windows(x: Tensor, frames: int, size: int, hop: int) -> Tensor:
    """Cut (B, C, T) into segments (B, C, S, N) that give ``frames`` outputs, zeros after the end."""
    segments = -(-frames // hop)
    return F.pad(x, (0, (segments - 1) * hop + size - x.size(2))).unfold(2, size, hop)


def _spectra(segments: Tensor, size: int) -> Tensor:
    """Transform segments (B, C, S, N or less): (F, B S, C)."""
    return torch.fft.rfft(segments, size).permute(3, 0, 2, 1).flatten(1, 2)


def _of_kernels(weight: Tensor, size: int) -> Tensor:
    """Transform kernels (O, C, K): (F, O, C)."""
    return torch.fft.rfft(weight, size).permute(2, 0, 1)


def _signals(spectra: Tensor, size: int, batch: int) -> Tensor:
    """Transform spectra (F, B S, C) back: (B, C, S, N)."""
    return torch.fft.irfft(spectra.unflatten(1, (batch, -1)).permute(1, 3, 2, 0), size)


def _added(segments: Tensor, hop: int) -> Tensor:
    """Add segments (B, C, S, N) where they overlap: (B, C, (S - 1) hop + N)."""
    count, size = segments.shape[2:]
    out = segments.new_zeros(*segments.shape[:2], (count - 1) * hop + size)
    for n in range(count):
        out[..., n * hop : n * hop + size] += segments[:, :, n]
    return out
