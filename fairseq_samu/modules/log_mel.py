"""Log-mel filterbank energies: a quarter of the work of wav2vec 2.0's convolutions over samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Samples of 16 kHz that a window spans, and from one window to the next.
WINDOW, HOP = 400, 160


def mel_filters(bands: int, bins: int, sample_rate: int) -> Tensor:
    """Triangular filters, evenly spaced in mel, each of area one.

    Args:
        bands: number of filters M.
        bins: frequencies F from 0 to half of the sample rate.
        sample_rate: in Hz.

    Returns:
        Weights of shape (M, F), float32.

    Source: Slaney 1998, Auditory Toolbox (mel linear to 1 kHz, logarithmic above), as librosa and
    Whisper have it.
    """

    def to_hertz(mel: Tensor) -> Tensor:
        linear = mel * 200.0 / 3.0
        return torch.where(mel < 15.0, linear, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0))

    top = 15.0 + 27.0 * torch.tensor(sample_rate / 2000.0).double().log() / torch.tensor(6.4).log()
    edges = to_hertz(torch.linspace(0.0, float(top), bands + 2, dtype=torch.float64))
    hertz = torch.linspace(0.0, sample_rate / 2, bins, dtype=torch.float64)
    low, centre, high = (edges[i : i + bands, None] for i in range(3))
    rising, falling = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    return (torch.minimum(rising, falling).clamp(min=0.0) * 2.0 / (high - low)).float()


class LogMel(nn.Module):
    """Waveforms become log-mel energies, 100 frames a second.

    A frame sees 25 ms and nothing outside the utterance: T = (S − 400) // 160 + 1.

    Args:
        bands: number of filters M.
        sample_rate: in Hz.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, bands: int = 80, sample_rate: int = 16_000) -> None:
        super().__init__()
        self.bands = bands
        # Not part of a checkpoint: they follow from the numbers.
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        filters = mel_filters(bands, WINDOW // 2 + 1, sample_rate)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """Transform waveforms (B, S) to natural logarithms of mel energies (B, M, T), float32."""
        with torch.autocast(wave.device.type, enabled=False):
            spectrum = torch.stft(
                wave.float(),
                n_fft=WINDOW,
                hop_length=HOP,
                window=self.window.float(),
                center=False,
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()
            # Waveforms have unit variance: what lies below is silence.
            return (self.filters.float() @ power).clamp(min=1e-5).log()
