"""Log-mel energies, against transformers' filters and spectrogram."""

import numpy as np
import pytest
import torch

from fairseq_samu.modules.log_mel import LogMel, mel_filters

audio_utils = pytest.importorskip("transformers.audio_utils")


@pytest.mark.parametrize("bands", [40, 80])
def test_filters_are_those_of_whisper(bands):
    expected = audio_utils.mel_filter_bank(
        num_frequency_bins=201, num_mel_filters=bands, min_frequency=0.0, max_frequency=8000.0,
        sampling_rate=16_000, norm="slaney", mel_scale="slaney",
    )  # fmt: skip
    np.testing.assert_allclose(mel_filters(bands, 201, 16_000).T, expected, atol=1e-7)


def test_energies_are_those_of_transformers():
    wave = torch.randn(2, 3000, generator=torch.Generator().manual_seed(1))
    found = LogMel()(wave)
    assert found.shape == (2, 80, (3000 - 400) // 160 + 1)
    for row, energies in zip(wave, found):
        expected = audio_utils.spectrogram(
            row.numpy(), audio_utils.window_function(400, "hann"), frame_length=400, hop_length=160,
            power=2.0, center=False, mel_filters=mel_filters(80, 201, 16_000).T.numpy(),
            mel_floor=1e-5,
        )  # fmt: skip
        np.testing.assert_allclose(energies, np.log(expected), atol=1e-3)


def test_silence_is_finite_and_keeps_out_of_the_checkpoint():
    log_mel = LogMel()
    assert torch.isfinite(log_mel(torch.zeros(1, 800))).all()
    assert log_mel.state_dict() == {}
