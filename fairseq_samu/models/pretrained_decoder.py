"""Starts the text decoder from a checkpoint whose sizes the options take over."""

from __future__ import annotations

from typing import Any

from fairseq.data import Dictionary
from torch import nn

from fairseq_samu.pretrained.text_decoder import TextDecoderCheckpoint, load_text_decoder


def adopt_text_decoder(
    cfg: Any, defaults: Any, dictionary: Dictionary
) -> TextDecoderCheckpoint | None:
    """Read ``text_decoder_path``, if given, and write the sizes found there into ``cfg``.

    The path is taken out of ``cfg``, so that what is saved later can be built without the file.

    Args:
        cfg: the options; changed as described.
        defaults: the same options as nobody set them.
        dictionary: symbols the decoder predicts.

    Returns:
        The checkpoint, or None without a path.

    Raises:
        ValueError: an option or the dictionary contradicts the checkpoint.
    """
    path = cfg.text_decoder_path
    if path is None:
        return None
    checkpoint = load_text_decoder(path)
    contradictions = []
    for option, expected in checkpoint.options.items():
        if cfg[option] not in (expected, getattr(defaults, option)):
            flag = "--" + option.replace("_", "-")
            contradictions.append(
                f"{flag}: the checkpoint has {expected}, the option says {cfg[option]}"
            )
        cfg[option] = expected
    if cfg.max_target_positions > checkpoint.max_target_positions:
        contradictions.append(
            f"--max-target-positions: the checkpoint has {checkpoint.max_target_positions} positions, "
            f"the option asks for {cfg.max_target_positions}"
        )
    if contradictions:
        raise ValueError(
            f"{path}: sizes come from the checkpoint; leave these options out, or choose an "
            "architecture that fits it:\n  " + "\n  ".join(contradictions)
        )
    rows = checkpoint.state_dict["embed_tokens.weight"].size(0)
    if rows != len(dictionary):
        raise ValueError(
            f"{path}: expected as many symbols as its embedding has rows, {rows}; the dictionary has "
            f"{len(dictionary)}. `python -m data_prep.build_vocab --pretrained` writes the dictionary of "
            "mBART-25, mBART-50 or NLLB-200 from the published SentencePiece model"
        )
    cfg.text_decoder_path = None
    return checkpoint


def load_weights(decoder: nn.Module, checkpoint: TextDecoderCheckpoint) -> None:
    """Copy the weights of a checkpoint into a decoder of its sizes.

    Args:
        decoder: a ``TransformerDecoderBase``; what it has beyond the checkpoint, such as adapters,
            stays as it is, and learned positions may be fewer.
        checkpoint: as ``adopt_text_decoder`` returned it.
    """
    own = decoder.state_dict()
    weights = dict(checkpoint.state_dict)
    if "embed_positions.weight" in weights:
        positions = own["embed_positions.weight"].size(0)
        weights["embed_positions.weight"] = weights["embed_positions.weight"][:positions]
    decoder.load_state_dict({**own, **weights})
