"""The network of E-Branchformer: waveforms in, frames out."""

from typing import Any

import torch
from fairseq.modules import RelPositionMultiHeadedAttention
from torch import Tensor, nn

from fairseq_samu.modules.e_branchformer import (
    EPS,
    Conv2dSubsampling,
    EBranchformerBlock,
    relative_positions,
)
from fairseq_samu.modules.espnet_log_mel import EspnetLogMel, GlobalNorm
from fairseq_samu.modules.late_training import LateTraining
from fairseq_samu.modules.layer_weighting import LayerWeighting
from fairseq_samu.modules.log_mel import HOP, WINDOW, LogMel
from fairseq_samu.modules.masked_group_norm import MaskedGroupNorm
from fairseq_samu.modules.padding import padding_mask as make_padding_mask
from fairseq_samu.modules.padding import window_count
from fairseq_samu.modules.recomputation import run_layer
from fairseq_samu.modules.span_mask import span_mask
from fairseq_samu.modules.trained_parts import Transformer


class RelativeAttention(RelPositionMultiHeadedAttention):  # type: ignore[misc]
    """fairseq's attention with relative positions, which keeps no weights of the last batch."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Attend; see fairseq's."""
        x, _ = super().forward(*args, **kwargs)
        self.attn = None  # B × heads × T × T numbers a layer, which nobody reads
        return x, None


class EBranchformerFrames(LateTraining, nn.Module):
    """E-Branchformer over log-mel energies, one frame for 40 ms.

    The energies of every band are normalised over the utterance. Frames do not depend on the padding
    beside an utterance, and every parameter that requires a gradient gets one in every update. Where
    nothing trains there is no dropout, no mask and no graph.

    Args:
        width: of a frame, D.
        layers: number of blocks.
        heads: attention heads of a block.
        ffn_dim, cgmlp_dim, cgmlp_kernel, merge_kernel, layerdrop: of a block, see
            ``EBranchformerBlock``.
        dropout: probability at the end of every part, on the input of the first block and on the
            sinusoids of relative positions.
        attention_dropout: probability on attention weights.
        activation_dropout: probability inside feed-forward networks and cgMLP.
        mask_prob: share of the energies' frames (10 ms) masked in training, see ``span_mask``.
        mask_length: frames a mask spans.
        mask_channel_prob: share of the bands masked in training.
        mask_channel_length: bands a mask spans.
        espnet_stft: window and hop of ESPnet's energies, normalised over a training set, in place of
            this project's; None = not.
        adapter_dim: width of the adapters' bottleneck in every block; 0 = no adapters.
        layer_weighting: make the frames a learned mixture of all blocks, and of what the first one
            reads, each through the final norm.
        recomputes: keep only what enters a block, and compute the rest again in the backward pass.

    Source: Kim et al. 2022 (arXiv 2210.00077); masks: SpecAugment, Park et al. 2019 (arXiv 1904.08779).
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        ffn_dim: int,
        cgmlp_dim: int,
        cgmlp_kernel: int,
        merge_kernel: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layerdrop: float = 0.0,
        mask_prob: float = 0.0,
        mask_length: int = 10,
        mask_channel_prob: float = 0.0,
        mask_channel_length: int = 27,
        espnet_stft: tuple[int, int] | None = None,
        adapter_dim: int = 0,
        layer_weighting: bool = False,
        recomputes: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.recomputes = recomputes
        self.masks = (mask_prob, mask_length), (mask_channel_prob, mask_channel_length)
        self.log_mel = LogMel() if espnet_stft is None else EspnetLogMel(*espnet_stft)
        norm = MaskedGroupNorm if espnet_stft is None else GlobalNorm
        self.feature_norm = norm(self.log_mel.bands)
        self.embed = Conv2dSubsampling(self.log_mel.bands, width)
        self.dropout = nn.Dropout(dropout)
        blocks = [
            EBranchformerBlock(
                width,
                RelativeAttention(width, heads, attention_dropout),
                ffn_dim=ffn_dim,
                cgmlp_dim=cgmlp_dim,
                cgmlp_kernel=cgmlp_kernel,
                merge_kernel=merge_kernel,
                dropout=dropout,
                activation_dropout=activation_dropout,
                layerdrop=layerdrop,
            )
            for _ in range(layers)
        ]
        if adapter_dim != 0:
            for block in blocks:
                block.add_adapters(adapter_dim)
        self.encoders = nn.ModuleList(blocks)
        self.after_norm = nn.LayerNorm(width, eps=EPS)
        self.layer_weighting = LayerWeighting(layers + 1) if layer_weighting else None

    @property
    def transformer(self) -> Transformer:
        """What there is to train; the weights of the layers are no part of it."""
        outside = [] if self.layer_weighting is None else [self.layer_weighting]
        return Transformer(self, list(self.encoders), [self.embed], outside)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame before the first block sees."""
        energies = 1
        for _ in range(self.embed.LAYERS):
            energies = (energies - 1) * self.embed.STRIDE + self.embed.KERNEL
        if isinstance(self.log_mel, EspnetLogMel):
            return self.log_mel.samples(energies)
        return (energies - 1) * HOP + WINDOW

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode waveforms.

        Args:
            wave: samples at 16 kHz, zero where padded, shape (B, S).
            lengths: samples of every utterance, shape (B,). One too short for a single frame is
                taken as if silence followed.

        Returns:
            Frames of shape (T, B, D), undefined where padded, and their padding mask (B, T).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            layers, padding_mask = self._encode(wave, lengths)
        mixed = layers[-1] if self.layer_weighting is None else self.layer_weighting(layers)
        return mixed.transpose(0, 1), padding_mask

    def _encode(self, wave: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compute what the frames are made of: every layer (B, T, D) that counts, the last one last."""
        wave = nn.functional.pad(wave, (0, max(0, self.receptive_field - wave.size(1))))
        if isinstance(self.log_mel, EspnetLogMel):
            features, lengths = self.log_mel(wave, lengths)
        else:
            features, lengths = self.log_mel(wave), window_count(lengths, WINDOW, HOP)
        # fairseq-generate halves the model under --fp16, but not the samples
        features = features.to(self.after_norm.weight.dtype)
        features = self.feature_norm(features, lengths)
        if self.training:
            features = self._mask(features, lengths)
        x, lengths = self.embed(features, lengths)
        padding_mask = make_padding_mask(lengths, x.size(1))
        x = self.dropout(x * self.width**0.5)
        positions = relative_positions(x.size(1), self.width, x.device).to(x.dtype).unsqueeze(1)
        positions = self.dropout(positions)
        layers = [x]
        for block in self.encoders:
            recomputes = self.recomputes and self.training
            layers.append(run_layer(block, recomputes, layers[-1], positions, padding_mask))
            if self.layer_weighting is None:
                del layers[0]  # frees its memory where no gradient needs it
        return [self.after_norm(layer) for layer in layers], padding_mask

    def _mask(self, features: Tensor, lengths: Tensor) -> Tensor:
        """SpecAugment on normalised energies (B, M, T): zeros, about their mean."""
        (time_prob, frames), (band_prob, bands) = self.masks
        _, n_bands, n_frames = features.shape
        if time_prob > 0:
            masked = span_mask(lengths, n_frames, time_prob, frames)
            features = features.masked_fill(masked.unsqueeze(1), 0.0)
        if band_prob > 0:
            masked = span_mask(torch.full_like(lengths, n_bands), n_bands, band_prob, bands)
            features = features.masked_fill(masked.unsqueeze(2), 0.0)
        return features
