"""The sizes at which everything is measured."""

from __future__ import annotations

from dataclasses import dataclass

#: wav2vec 2.0's extractor.
CONVOLUTIONS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"

#: How many times longer long utterances are.
LONGER = 2.5


@dataclass(frozen=True)
class Size:
    """How large models and batches are.

    Attributes:
        name: as on the command line.
        encoder_layers: layers of the speech encoder, which has XLS-R's shape (layer norm in the extractor
            and before every block).
        encoder_dim: its width; feed-forward layers are four times as wide.
        encoder_heads: its attention heads.
        convolutions: its extractor, as wav2vec 2.0 spells it.
        decoder_layers: layers of the decoder, which has mBART's shape.
        decoder_dim: its width; feed-forward layers are four times as wide.
        decoder_heads: its attention heads.
        vocabularies: words of the small target vocabulary, with which everything is measured, and of the
            large one, with which one figure is.
        utterances: utterances of a batch.
        seconds: length of the shortest and of the longest of them.
        memory: further batches whose memory is measured where it has a target, the one that needs least
            first: how many utterances, and whether they are ``LONGER``.
    """

    name: str
    encoder_layers: int
    encoder_dim: int
    encoder_heads: int
    convolutions: str
    decoder_layers: int
    decoder_dim: int
    decoder_heads: int
    vocabularies: tuple[int, int]
    utterances: int
    seconds: tuple[float, float]
    memory: tuple[tuple[int, bool], ...] = ()


#: By name: one that only shows that a work runs, one for a CPU, one for a GPU (XLS-R 300M and mBART-50).
SIZES = {
    size.name: size
    for size in (
        Size(
            "tiny", 2, 32, 4, "[(16, 20, 10), (16, 8, 4), (24, 4, 4), (24, 4, 2)]", 2, 16, 4,
            (200, 400), 2, (0.4, 0.8), ((4, False), (2, True)),
        ),
        Size(
            "small", 6, 512, 8, CONVOLUTIONS, 6, 512, 8, (8_000, 250_000), 4, (3.0, 6.0),
            ((8, False), (4, True), (16, False)),
        ),
        Size(
            "large", 24, 1024, 16, CONVOLUTIONS, 12, 1024, 16, (8_000, 250_000), 32, (3.0, 12.0),
        ),
    )
}  # fmt: skip
