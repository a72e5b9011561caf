"""Describes text decoders as Hugging Face's mBART and M2M-100, without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fairseq_samu.pretrained.text_decoder import FAMILIES, TextDecoderCheckpoint

#: What transformers calls the families.
CLASSES = {
    "mbart": "MBartForConditionalGeneration",
    "m2m_100": "M2M100ForConditionalGeneration",
}

#: Options that neither family has a place for → what it has instead.
ONLY = {
    "decoder_adapter_dim": (0, "no adapters"),
    "decoder_post_norm": (False, "layer norms before the blocks"),
}

#: Special symbols of fairseq's dictionaries.
BOS, PAD, EOS = 0, 1, 2


def family_of(options: Mapping[str, Any], source: str) -> str:
    """Find the family that computes the same.

    Args:
        options: the sizes, as ``load_text_decoder`` returns them.
        source: where they come from, for errors.

    Returns:
        ``mbart`` (learned positions, a layer norm on the embeddings) or ``m2m_100`` (sinusoids, none),
        as ``model_type`` says it.

    Raises:
        ValueError: neither does; names the option that stands in the way.
    """
    for option, (only, instead) in ONLY.items():
        found = options.get(option, only)
        if found != only:
            raise ValueError(
                f"{source}: expected a decoder that MBart or M2M100 of transformers can compute, which "
                f"have {instead}; found {_flag(option)} {found}"
            )
    for family, shape in FAMILIES.items():
        if all(options[option] == value for option, value in shape.items()):
            return family
    found = ", ".join(f"{_flag(option)} {options[option]}" for option in FAMILIES["mbart"])
    raise ValueError(
        f"{source}: expected a decoder that MBart or M2M100 of transformers can compute: learned "
        f"positions together with a layer norm on the embeddings, or neither; found {found}"
    )


def config_of(decoder: TextDecoderCheckpoint, source: str) -> dict[str, Any]:
    """Translate the sizes of a decoder to what ``config.json`` says.

    Args:
        decoder: as ``load_text_decoder`` returns it.
        source: where it comes from, for errors.

    Returns:
        The configuration of an encoder-decoder without encoder layers: its decoder reads what another
        network has encoded.

    Raises:
        ValueError: see ``family_of``.
    """
    options = decoder.options
    family = family_of(options, source)
    heads, ffn_dim = options["decoder_attention_heads"], options["decoder_ffn_embed_dim"]
    return {
        "model_type": family,
        "architectures": [CLASSES[family]],
        "vocab_size": len(decoder.state_dict["embed_tokens.weight"]),
        "max_position_embeddings": decoder.max_target_positions,
        "d_model": options["decoder_embed_dim"],
        "decoder_layers": options["decoder_layers"],
        "decoder_ffn_dim": ffn_dim,
        "decoder_attention_heads": heads,
        "encoder_layers": 0,
        "encoder_ffn_dim": ffn_dim,
        "encoder_attention_heads": heads,
        "activation_function": options["decoder_activation_fn"],
        "scale_embedding": not options["decoder_no_scale_embedding"],
        "tie_word_embeddings": not options["decoder_separate_output_embed"],
        "is_encoder_decoder": True,
        "bos_token_id": BOS,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "decoder_start_token_id": EOS,
        "dtype": "float32",
    }


def huggingface_weights(decoder: TextDecoderCheckpoint, source: str) -> dict[str, Tensor]:
    """Rename the weights of a decoder.

    Args:
        decoder: as ``load_text_decoder`` returns it.
        source: where it comes from, for errors.

    Returns:
        All weights of the class that ``config_of`` names. What its encoder has beside its layers is
        there, and changes nothing.

    Raises:
        ValueError: see ``family_of``.
    """
    options, weights = decoder.options, dict(decoder.state_dict)
    width = options["decoder_embed_dim"]
    output = weights.pop("output_projection.weight")
    theirs = {"model.shared.weight": weights["embed_tokens.weight"]}
    if options["decoder_separate_output_embed"]:
        # transformers then counts on no other tie either, and wants the embeddings of both sides.
        theirs["model.encoder.embed_tokens.weight"] = weights["embed_tokens.weight"]
        theirs["lm_head.weight"] = output
    else:
        del weights["embed_tokens.weight"]
    theirs.update({f"model.decoder.{name}": weight for name, weight in weights.items()})
    norms = ["layer_norm"]
    if family_of(options, source) == "mbart":
        norms.append("layernorm_embedding")
        positions = torch.zeros_like(weights["embed_positions.weight"])
        theirs["model.encoder.embed_positions.weight"] = positions
        theirs["final_logits_bias"] = torch.zeros(1, len(output))
    for norm in norms:
        theirs[f"model.encoder.{norm}.weight"] = torch.ones(width)
        theirs[f"model.encoder.{norm}.bias"] = torch.zeros(width)
    return theirs


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
