"""Reads text-to-text models of Hugging Face: MarianMT, T5, mT5, mBART, NLLB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece
from fairseq.data import Dictionary

from fairseq_samu.pretrained.hugging_face import read_config

#: Families whose hypotheses fairseq's beam search was compared with.
FAMILIES = ("marian", "t5", "mt5", "mbart", "m2m_100")


def load_seq2seq(folder: str) -> Any:
    """Load a model as transformers does, in single precision and without running code of the folder.

    Args:
        folder: as ``save_pretrained`` writes it.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: the folder has no ``config.json`` or no weights.
        ValueError: it holds a model of another kind.
        ImportError: transformers is not installed.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of Hugging Face, found none")
    family = read_config(folder).get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"{folder}: expected a text-to-text model ({', '.join(FAMILIES)}), found {family!r}"
        )
    try:
        import torch
        from transformers import AutoModelForSeq2SeqLM
    except ImportError as error:
        raise ImportError(f"{folder}: reading it needs transformers: pip install .[hf]") from error
    try:
        model, loading = AutoModelForSeq2SeqLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except OSError as error:
        raise FileNotFoundError(f"{folder}: expected weights, found: {error}") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} weights are missing, the first: {missing[:3]}; expected the "
            "whole model"
        )
    return model.eval()


#: Names of SentencePiece models for the source text, the preferred first.
SENTENCEPIECE = ("source.spm", "spiece.model", "sentencepiece.bpe.model")


def source_tokens(folder: str, text: str, dictionary: Dictionary) -> list[int]:
    """Encode text as input of a model, without the end of the sentence.

    Args:
        folder: of the model.
        text: words; those that are symbols of the dictionary, such as ``>>por<<``, stay whole.
        dictionary: the model's vocabulary.

    Returns:
        Indices of the dictionary.

    Raises:
        FileNotFoundError: the folder has no SentencePiece model.
        ValueError: the dictionary lacks a piece.
    """
    paths = [Path(folder) / name for name in SENTENCEPIECE if (Path(folder) / name).is_file()]
    if not paths:
        raise FileNotFoundError(
            f"{folder}: expected the model's SentencePiece model to encode {text!r} with, found none of "
            + ", ".join(SENTENCEPIECE)
        )
    model = sentencepiece.SentencePieceProcessor(model_file=str(paths[0]))
    words = text.split()
    symbols = []
    while words and words[0] in dictionary.indices:
        symbols.append(words.pop(0))
    symbols += model.encode(" ".join(words), out_type=str)
    missing = [symbol for symbol in symbols if symbol not in dictionary.indices]
    if missing:
        raise ValueError(
            f"{folder}: {text!r} has pieces that are not in the vocabulary: {missing}; expected a prefix "
            "that the model was trained with"
        )
    return [dictionary.index(symbol) for symbol in symbols]
