"""Whisper's log-mel front end and windows of 30 s around its encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairseq_samu.modules.log_mel import HOP, WINDOW, mel_filters
from fairseq_samu.modules.padding import padding_mask as make_padding_mask

#: Samples of 16 kHz that become one frame of the encoder, two log-mel frames.
FRAME = 2 * HOP


class WhisperLogMel(nn.Module):
    """Waveforms become log-mel energies scaled as Whisper's, 100 frames a second.

    Args:
        bands: number of filters M, 80 or 128.

    Source: Radford et al. 2022 (arXiv 2212.04356), Section 2.2; openai/whisper, ``audio.py``.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, bands: int = 80) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        filters = mel_filters(bands, WINDOW // 2 + 1, 16000)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """Turn (B, S) into (B, M, S // 160), every row scaled by its own loudest band."""
        spectrum = torch.stft(wave.float(), WINDOW, HOP, window=self.window, return_complex=True)
        energies = self.filters @ spectrum[..., :-1].abs().square()
        log = energies.clamp(min=1e-10).log10()
        log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (log + 4.0) / 4.0


class WhisperFrames(nn.Module):
    """Waveforms in, frames of Whisper's encoder out, 50 a second.

    Whisper hears 30 s at a time and knows no padding mask, so that every window is filled up with
    silence as in its training. Longer speech is cut into windows, whose frames are joined; frames
    behind the end of an utterance are padding.

    Args:
        encoder: ``WhisperEncoder`` of transformers.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.log_mel = WhisperLogMel(int(encoder.config.num_mel_bins))
        self.frames_a_window = int(encoder.config.max_source_positions)

    @property
    def width(self) -> int:
        """Width of a frame."""
        return int(self.encoder.config.d_model)

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            wave: waveforms, zero where padded, shape (B, S).
            lengths: samples of every utterance, shape (B,).

        Returns:
            Frames (T, B, D) and their padding mask (B, T); an utterance has one frame for every
            20 ms begun.
        """
        samples = self.frames_a_window * FRAME
        batch = wave.size(0)
        windows = nn.functional.pad(wave, (0, -wave.size(1) % samples)).view(-1, samples)
        features = self.log_mel(windows).to(self.encoder.conv1.weight.dtype)
        frames = self.encoder(features).last_hidden_state
        frames = frames.reshape(batch, -1, frames.size(2))
        longest = -(-wave.size(1) // FRAME)
        frame_lengths = (lengths + FRAME - 1).div(FRAME, rounding_mode="floor")
        return frames[:, :longest].transpose(0, 1), make_padding_mask(frame_lengths, longest)
