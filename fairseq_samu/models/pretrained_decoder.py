"""Starts the text decoder from a checkpoint whose sizes the options take over."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fairseq_samu.pretrained.kept_rows import read_kept_rows
from fairseq_samu.pretrained.text_decoder import TextDecoderCheckpoint, load_text_decoder

logger = logging.getLogger(__name__)


def adopt_text_decoder(cfg: Any, defaults: Any, task: Any) -> TextDecoderCheckpoint | None:
    """Read ``text_decoder_path``, if given, and write the sizes found there into ``cfg``.

    The path is taken out of ``cfg``, so that what is saved later can be built without the file.

    Args:
        cfg: the options; changed as described.
        defaults: the same options as nobody set them.
        task: gives ``target_dictionary`` and where it lies: ``cfg.data`` and ``cfg.dictionary``.

    Returns:
        The checkpoint, its embedding pruned to the dictionary if that was; None without a path.

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
    checkpoint = _pruned(checkpoint, path, task)
    cfg.text_decoder_path = None
    return checkpoint


def _pruned(checkpoint: TextDecoderCheckpoint, path: str, task: Any) -> TextDecoderCheckpoint:
    """Select the rows of the dictionary, which may already be those of the checkpoint."""
    rows, width = checkpoint.state_dict["embed_tokens.weight"].shape
    symbols = len(task.target_dictionary)
    if rows == symbols:
        return checkpoint
    dictionary_path = Path(task.cfg.data) / task.cfg.dictionary
    kept = read_kept_rows(dictionary_path)
    if kept is None or kept.of != rows:
        pruned = "" if kept is None else f", pruned from {kept.of}"
        raise ValueError(
            f"{path}: expected as many symbols as its embedding has rows, {rows}; {dictionary_path} has "
            f"{symbols}{pruned}. `python -m data_prep.build_vocab --pretrained` writes the dictionary of "
            "mBART-25, mBART-50 or NLLB-200 from the published SentencePiece model"
        )
    weights = dict(checkpoint.state_dict)
    tables = ["embed_tokens.weight"]
    if checkpoint.options["decoder_separate_output_embed"]:
        tables.append("output_projection.weight")
    for name in tables:
        weights[name] = weights[name][kept.rows]
    if len(tables) == 1:
        weights["output_projection.weight"] = weights["embed_tokens.weight"]
    saved = (rows - symbols) * width * len(tables)
    logger.info(
        "%s: kept %d of %d embeddings, %s parameters less", path, symbols, rows, f"{saved:,}"
    )
    # A record of the vocabulary is of the whole one.
    return replace(checkpoint, state_dict=weights, vocabulary=None)


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
