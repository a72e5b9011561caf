"""A frozen text model in a beam search: one new token for every hypothesis at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FrozenTextSearch:
    """Runs a model of transformers for the hypotheses of ``fairseq_samu.generator``'s search.

    Keys and values of the encoder's output are moved only where sentences leave the search or begin to have
    more hypotheses; between the hypotheses of a sentence they are the same.

    Args:
        text: a ``fairseq_samu.models.frozen_text_model.FrozenTextModel`` in evaluation mode.
        encoder_out: ``encoder_out`` (T, B, C) and ``encoder_padding_mask`` (B, T), each in a list that is
            empty without one.
    """

    def __init__(self, text: Any, encoder_out: dict[str, list[Tensor]]) -> None:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        self._text = text
        self._tokens: Any = DynamicCache()
        self._encoded: Any = DynamicCache()
        self._cache = EncoderDecoderCache(self._tokens, self._encoded)
        self._states = encoder_out["encoder_out"][0].transpose(0, 1)
        masks = encoder_out["encoder_padding_mask"]
        self._attend = (~masks[0]).long() if masks and bool(masks[0].any()) else None
        self._first = True
        self._shape: torch.Size | None = None

    def advance(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """Add a token to every hypothesis; see ``fairseq_samu.modules.beam_decoder.BeamDecoder``.

        Args:
            tokens: the newest ones, shape (B, W).
            rows: numbers of the hypotheses of the step before that these continue, shape (B x W,), or None.

        Returns:
            Logits of the next token, shape (B, W, V).
        """
        if self._first:
            self._first, self._shape = False, tokens.shape
            if self._text.start is None:
                # The tag stands in front, which is given; so do its logits.
                return self._states.new_zeros(*tokens.shape, len(self._text.dictionary))
            tokens = torch.full_like(tokens, self._text.start)
        if rows is not None:
            self._tokens.reorder_cache(rows)
            if tokens.shape != self._shape:
                self._encoded.reorder_cache(rows)
                self._states = self._states[rows]
                self._attend = None if self._attend is None else self._attend[rows]
                self._shape = tokens.shape
        found: Any = self._text.model(
            encoder_outputs=(self._states,),
            attention_mask=self._attend,
            decoder_input_ids=tokens.reshape(-1, 1),
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: Tensor = found.logits
        return logits.view(*tokens.shape, -1)

    def logits(self, features: Tensor) -> Tensor:
        """Return what ``advance`` found, which are logits already."""
        return features

    def keep(self, sentences: Tensor) -> None:
        """Leave out all other sentences, which the next step's rows leave out."""

    def end(self) -> None:
        """Leave nothing to the next search."""
