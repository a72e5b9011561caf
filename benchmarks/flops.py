"""Floating-point operations of a speech encoder, and what devices can do."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.sizes import Size
from fairseq_samu.pretrained.conv_layers import parse_conv_layers

#: Positional convolution of wav2vec 2.0: kernel and groups.
POSITION_KERNEL, POSITION_GROUPS = 128, 16

#: Dense products in bfloat16 a second, by what the device's name contains, from NVIDIA's data sheets. The
#: first that fits counts.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def extractor_flops(size: Size, samples: Sequence[int]) -> int:
    """Operations of the convolutional extractor: 2·K·C_in·C_out for each of its frames.

    Args:
        size: of the encoder.
        samples: of every utterance; padding is not work.
    """
    total = 0
    for length in samples:
        channels = 1
        for width, kernel, stride in parse_conv_layers(size.convolutions):
            length = (length - kernel) // stride + 1
            total += 2 * kernel * channels * width * length
            channels = width
    return total


def transformer_flops(size: Size, samples: Sequence[int]) -> int:
    r"""Operations of all behind the extractor, forward.

    For an utterance of T frames, the width D, N layers with feed-forward layers of 4D, C channels of the
    extractor, and the positional convolution's kernel K in G groups,

    .. math:: T (2 C D + 2 D^2 K / G + N (24 D^2 + 4 T D)).

    Norms, activations and the sentence head count nothing.

    Args:
        size: of the encoder.
        samples: of every utterance; padding is not work.
    """
    width, layers = size.encoder_dim, size.encoder_layers
    convolutions = parse_conv_layers(size.convolutions)
    channels = convolutions[-1][0]
    projection = 2 * channels * width if channels != width else 0  # where fairseq has one
    position = 2 * width * width * POSITION_KERNEL // POSITION_GROUPS
    total = 0
    for length in samples:
        for _, kernel, stride in convolutions:
            length = (length - kernel) // stride + 1
        total += length * (projection + position + layers * (24 * width**2 + 4 * length * width))
    return total


def update_flops(size: Size, samples: Sequence[int]) -> int:
    """Operations of an update: forward, and twice that backward; of the frozen extractor forward alone."""
    return extractor_flops(size, samples) + 3 * transformer_flops(size, samples)


def peak_flops(device: str) -> float | None:
    """Operations a second in bfloat16 that a device of this name is sold with; None where not known."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)
