"""Reads the encoder of Whisper from a folder of Hugging Face."""

from __future__ import annotations

from typing import Any

from fairseq_samu.pretrained.hugging_face import read_weights
from fairseq_samu.pretrained.seq2seq import import_transformers, named_errors

PREFIXES = ("model.encoder.", "encoder.")


def load_whisper_encoder(folder: str) -> Any:
    """Load the encoder; of safetensors the decoder's weights are not even read.

    Args:
        folder: as ``save_pretrained`` writes it, of ``WhisperModel`` or with a head.

    Returns:
        ``WhisperEncoder`` of transformers, in evaluation mode, single precision.

    Raises:
        FileNotFoundError: the folder has no configuration or no weights.
        ValueError: the weights are not those of that configuration.
        ImportError: transformers is not installed.
    """
    transformers = import_transformers(folder, "hf")
    with named_errors(folder):
        config = transformers.WhisperConfig.from_pretrained(folder, local_files_only=True)
        encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder(config)
    found = read_weights(folder, lambda name: name.startswith(PREFIXES))
    weights = {name.split("encoder.", 1)[1]: weight.float() for name, weight in found.items()}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{folder}: the weights do not fit the configuration: {error}") from error
    return encoder.eval()
