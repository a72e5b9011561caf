"""A Transformer decoder in a beam search: one new token for every hypothesis at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fairseq_samu.modules.few_rows_linear import FewRowsLinear

#: Tokens there is room for at first; doubled when they are full.
FIRST_LENGTH = 32


class BeamDecoder:
    """Runs fairseq's Transformer decoder for the hypotheses of a beam search.

    It computes what the decoder's own incremental forward does. Keys and values of the encoder's output
    exist once for a sentence, whatever hypotheses it has, and are not moved when these change places; those
    of tokens are, from one piece of memory to another and back.

    Args:
        decoder: a ``fairseq_samu.models.text_decoder.TextDecoder`` in evaluation mode: fairseq's
            Transformer decoder of one width throughout, with a module ``adapter`` behind every layer.
        states: the encoder's output, shape (T, B, C).
        padding_mask: True where it is padded, shape (B, T), or None without padding.
        linear: makes the products with weights; the same one for all searches.
    """

    def __init__(
        self, decoder: Any, states: Tensor, padding_mask: Tensor | None, linear: FewRowsLinear
    ) -> None:
        self._decoder = decoder
        self._length = 0
        self._mask: Tensor | None = None
        if padding_mask is not None and bool(padding_mask.any()):
            mask = states.new_zeros(padding_mask.shape).masked_fill(padding_mask, -torch.inf)
            self._mask = mask[:, None, None]
        batch_first = states.transpose(0, 1).contiguous()
        self._layers = [_Layer(layer, batch_first, linear) for layer in decoder.layers]
        #: Logits of the next token, (…, C) → (…, V).
        self.logits = linear(decoder.output_projection)

    def advance(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """Add a token to every hypothesis.

        Args:
            tokens: the newest ones, shape (B, W).
            rows: numbers b x W' + w of the hypotheses of the step before, W' a sentence, that these continue,
                shape (B x W,); None where every hypothesis goes on by itself.

        Returns:
            The decoder's features for them, shape (B, W, C).
        """
        decoder = self._decoder
        self._length += 1
        x = decoder.embed_scale * decoder.embed_tokens(tokens)
        # All that positions depend on is how many tokens there are.
        so_far = tokens.new_zeros(1, self._length)
        x = x + decoder.embed_positions(so_far, incremental_state={})[:, -1:]
        if decoder.layernorm_embedding is not None:
            x = decoder.layernorm_embedding(x)
        for layer in self._layers:
            x = layer.advance(x, rows, self._length, self._mask)
        if decoder.layer_norm is not None:
            x = decoder.layer_norm(x)
        return x

    def keep(self, sentences: Tensor) -> None:
        """Leave out all other sentences from the next step on, whose ``rows`` are still those of this one.

        Args:
            sentences: their numbers, ascending, shape (B',).
        """
        if self._mask is not None:
            self._mask = self._mask[sentences]
        for layer in self._layers:
            layer.keep(sentences)


class _Layer:
    """A decoder layer with the keys and values that it has seen.

    Args:
        layer: fairseq's.
        states: the encoder's output, shape (B, T, C).
        linear: see ``BeamDecoder``.
    """

    def __init__(self, layer: Any, states: Tensor, linear: FewRowsLinear) -> None:
        self._layer = layer
        attention = layer.encoder_attn
        self._heads = attention.num_heads
        self._encoder_keys = _split(linear(attention.k_proj)(states), self._heads)
        self._encoder_values = _split(linear(attention.v_proj)(states), self._heads)
        self._encoder_query, self._encoder_out = map(linear, (attention.q_proj, attention.out_proj))
        own = layer.self_attn
        self._projections = linear(own.q_proj, own.k_proj, own.v_proj)
        self._out = linear(own.out_proj)
        self._fc1, self._fc2 = map(linear, (layer.fc1, layer.fc2))
        #: Keys and values of the tokens so far, shape (B x W or more, room for tokens, 2, C), and memory to
        #: move them to.
        self._past = self._spare = states.new_empty(0, 0, 2, attention.embed_dim)

    def advance(self, x: Tensor, rows: Tensor | None, length: int, mask: Tensor | None) -> Tensor:
        """Transform the newest tokens (B, W, C), which are the ``length``-th of theirs."""
        layer = self._layer
        residual, x = x, self._before(layer.self_attn_layer_norm, x)
        x = self._after(layer.self_attn_layer_norm, residual + self._attend(x, rows, length))
        residual, x = x, self._before(layer.encoder_attn_layer_norm, x)
        x = residual + self._attend_to_encoder(x, mask)
        x = self._after(layer.encoder_attn_layer_norm, x)
        residual, x = x, self._before(layer.final_layer_norm, x)
        x = self._fc2(layer.activation_fn(self._fc1(x)))
        x = self._after(layer.final_layer_norm, residual + x)
        adapted: Tensor = layer.adapter(x)
        return adapted

    def keep(self, sentences: Tensor) -> None:
        """Forget the encoder's output for all but these sentences."""
        self._encoder_keys = self._encoder_keys[sentences]
        self._encoder_values = self._encoder_values[sentences]

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self._layer.normalize_before else x

    def _after(self, norm: nn.Module, x: Tensor) -> Tensor:
        return x if self._layer.normalize_before else norm(x)

    def _attend(self, x: Tensor, rows: Tensor | None, length: int) -> Tensor:
        """Attend to the tokens so far."""
        flat = x.flatten(0, 1)
        past = self._moved(rows, length, flat)
        query, now = self._projections(flat).tensor_split((x.size(-1),), -1)
        past[:, length - 1] = now.view(len(now), 2, -1)
        found = F.scaled_dot_product_attention(
            _split(query.unsqueeze(1), self._heads),
            _split(past[:, :length, 0], self._heads),
            _split(past[:, :length, 1], self._heads),
        )
        return self._out(_joined(found).view_as(x))

    def _moved(self, rows: Tensor | None, length: int, x: Tensor) -> Tensor:
        """Keys and values so far, each at the hypothesis that continues theirs, with room for one more."""
        count, before = len(x), length - 1
        if rows is None and before and length <= self._past.size(1):
            return self._past[:count]
        past, self._past = self._past, self._spare
        if len(self._past) < count or self._past.size(1) < length:
            room = max(FIRST_LENGTH, 2 * before)
            self._past = x.new_empty(count, room, 2, x.size(-1))
        if before:
            if rows is None:
                rows = torch.arange(count, device=x.device)
            moved = self._past[:count, :before]
            torch.index_select(past[:, :before], 0, rows, out=moved)
        self._spare = past
        return self._past[:count]

    def _attend_to_encoder(self, x: Tensor, mask: Tensor | None) -> Tensor:
        found = F.scaled_dot_product_attention(
            _split(self._encoder_query(x), self._heads),
            self._encoder_keys,
            self._encoder_values,
            attn_mask=mask,
        )
        return self._encoder_out(_joined(found))


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, L, C) → (B, H, L, C / H)."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """(B, H, L, C / H) → (B, L, C)."""
    return x.transpose(1, 2).flatten(2)
