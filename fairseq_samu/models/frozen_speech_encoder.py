"""Frozen speech encoders: wav2vec 2.0 and XLS-R, SAMU-XLS-R, E-Branchformer, Whisper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_samu.models.speech_encoder import build_speech_frames
from fairseq_samu.models.speech_encoder_config import SpeechEncoderConfig
from fairseq_samu.modules.stored_frames import stored_frames
from fairseq_samu.modules.whisper_encoder import WhisperFrames
from fairseq_samu.pretrained.hugging_face import read_config
from fairseq_samu.pretrained.whisper import load_whisper_encoder


class FrozenSpeechEncoder(nn.Module):
    """Frames of a speech encoder that does not train, in evaluation mode and without autograd.

    Args:
        frames: takes waveforms (B, S) and their lengths (B,), gives frames (T, B, D) and their padding
            mask (B, T).
        width: of a frame, D.
    """

    def __init__(self, frames: nn.Module, width: int) -> None:
        super().__init__()
        self.frames = frames.eval().requires_grad_(False)
        self.width = width

    def train(self, mode: bool = True) -> FrozenSpeechEncoder:
        """Leave what is inside in evaluation mode, where it is; to say so to all of it takes time."""
        self.training = mode
        return self

    @torch.no_grad()
    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode; see ``frames``.

        Args:
            wave: waveforms (B, S), or frames that were stored earlier, of any precision, (B, T, D).
            lengths: samples or frames of every utterance, (B,).
        """
        if wave.dim() == 3:
            return stored_frames(wave, lengths, next(self.parameters()).dtype)
        frames, padding_mask = self.frames(wave, lengths)
        return frames, padding_mask


def load_frozen_speech_encoder(path: str, input_normalization: str) -> FrozenSpeechEncoder:
    """Load a speech encoder to be used as it is.

    Args:
        path: what ``--speech-encoder-path`` takes, or a folder of Hugging Face's Whisper.
        input_normalization: how the task normalises waveforms, ``utterance`` or ``none``.

    Returns:
        The encoder.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds something else, or was trained with another normalisation.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"{path}: expected the checkpoint or folder of a speech encoder, found none, seen from "
            f"{Path.cwd()}"
        )
    if (Path(path) / "config.json").is_file() and read_config(path).get("model_type") == "whisper":
        if input_normalization != "none":
            raise ValueError(
                f"{path}: Whisper hears waveforms as they are, the task gives "
                f"'{input_normalization}': pass --normalize none"
            )
        whisper = WhisperFrames(load_whisper_encoder(path))
        return FrozenSpeechEncoder(whisper, whisper.width)
    cfg = OmegaConf.structured(SpeechEncoderConfig())
    cfg.speech_encoder_path = path
    cfg.input_normalization = input_normalization
    cfg.train_encoder = "none"
    frames: Any = build_speech_frames(cfg)[0]
    return FrozenSpeechEncoder(frames, cfg.encoder_embed_dim)
