"""Reads fairseq's ``xm_transformer``: XLS-R encoder, convolutional adaptor, mBART decoder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairseq_samu import compat
from fairseq_samu.pretrained.stored_options import plain_options
from fairseq_samu.pretrained.text_decoder import TextDecoderCheckpoint, text_decoder_of
from fairseq_samu.pretrained.wav2vec2 import Wav2VecCheckpoint, wav2vec2_of

SPEECH = "encoder.w2v_encoder.w2v_model."
ADAPTOR = "encoder.adaptor."

#: fairseq's names of what stands between encoder and adaptor → those of ``ConvGLUAdaptor``.
PROJECTION = {
    "encoder.w2v_encoder.proj.": "projection.",
    "encoder.w2v_proj_ln.": "projection_norm.",
}

#: Blocks of ``ConvGLUAdaptor`` → their modules there.
BLOCKS = {
    "projection": ("projection",),
    "projection-norm": ("projection_norm",),
    "norm": ("layernorm",),
    "ffn": ("proj.0", "proj.2", "proj_ln", "post_proj.0", "post_proj.2", "post_proj_ln"),
}


@dataclass(frozen=True)
class XmTransformerCheckpoint:
    """A translator as found on disk.

    Attributes:
        encoder: the speech encoder.
        decoder: the text decoder.
        adaptor_options: the adaptor's sizes, under the names of this project's options.
        adaptor: its weights, under the names of ``ConvGLUAdaptor``.
        auxiliary: first names of weights that translate nothing, such as the decoders of a multitask
            training.
    """

    encoder: Wav2VecCheckpoint
    decoder: TextDecoderCheckpoint
    adaptor_options: dict[str, Any]
    adaptor: dict[str, Tensor]
    auxiliary: list[str]


def load_xm_transformer(path: str, w2v_path: str | None = None) -> XmTransformerCheckpoint:
    """Read a speech translation model that fairseq trained.

    Args:
        path: the checkpoint, with ``cfg`` or, if older, ``args``.
        w2v_path: the wav2vec 2.0 checkpoint that its training started from. fairseq keeps no other
            record of the encoder's shape, unless it was given one as ``--w2v-args``. None = where
            it lay at training.

    Returns:
        Its architecture and weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds another model, or a variant that is not supported.

    Source: Li et al. 2021 (arXiv 2010.12829); Babu et al. 2021 (arXiv 2111.09296), Section 5.1.
    """
    state = compat.load_checkpoint(path)
    weights = state.get("model")
    if not isinstance(weights, dict) or not _has(weights, SPEECH) or not _has(weights, "decoder."):
        raise ValueError(
            f"{path}: expected fairseq's xm_transformer, with weights named {SPEECH}… and decoder.…, "
            "found none"
        )
    stored = state.get("cfg") or state.get("args")
    model = plain_options(stored)
    if state.get("cfg") is not None:
        model = plain_options(model.get("model"))
    if model.get("remove_weight_norm"):
        raise ValueError(f"{path}: remove_weight_norm=False expected, found True")
    decoder = text_decoder_of(state, path)
    width = int(decoder.options["decoder_embed_dim"])
    read = decoder.state_dict["layers.0.encoder_attn.k_proj.weight"].size(1)
    if read != width:
        raise ValueError(
            f"{path}: expected a decoder whose attention reads vectors of its own width {width}, found "
            f"{read}: its adaptor was trained without projection to the decoder (encoder_proj)"
        )
    options, adaptor = _adaptor(weights, model, width, path)
    known = ("encoder.", "decoder.")
    return XmTransformerCheckpoint(
        encoder=wav2vec2_of(state, path, w2v_path),
        decoder=decoder,
        adaptor_options=options,
        adaptor=adaptor,
        auxiliary=sorted({name.split(".")[0] for name in weights if not name.startswith(known)}),
    )


def _has(weights: dict[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights)


def _adaptor(
    weights: dict[str, Tensor], model: dict[str, Any], width: int, path: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Collect what stands between encoder and decoder: its options and weights."""
    adaptor = {}
    for name, weight in weights.items():
        if name.startswith("encoder.") and not name.startswith(SPEECH):
            for prefix, own in {**PROJECTION, ADAPTOR: ""}.items():
                name = own + name[len(prefix) :] if name.startswith(prefix) else name
            adaptor[name] = weight
    layers = {
        int(found[1]) for found in (re.match(r"layers\.(\d+)\.", n) for n in adaptor) if found
    }
    if not layers:
        raise ValueError(f"{path}: expected convolutions in the adaptor, found adaptor_n_layers=0")
    blocks = [name for name, modules in BLOCKS.items() if _has(adaptor, modules[0] + ".")]
    modules = [f"layers.{layer}" for layer in range(len(layers))]
    modules += [module for block in blocks for module in BLOCKS[block]]
    expected = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    different = sorted(expected ^ {*adaptor})
    if different:
        raise ValueError(
            f"{path}: expected an encoder, its adaptor and nothing else, found these weights missing or "
            f"unknown: {', '.join(different[:5])}"
        )
    # Weights say more than options here: those of one name built other networks over the years.
    channels, _, kernel = adaptor["layers.0.weight"].shape
    if channels != 2 * width:
        raise ValueError(
            f"{path}: expected an adaptor that gives vectors of the decoder's width {width}, found "
            f"{channels // 2}"
        )
    if "adaptor_stride" not in model:
        raise ValueError(
            f"{path}: expected the options of an xm_transformer, found no adaptor_stride"
        )
    return {
        "adaptor_layers": len(layers),
        "adaptor_kernel_size": kernel,
        "adaptor_stride": int(model["adaptor_stride"]),
        "adaptor_blocks": ",".join(blocks),
    }, adaptor
