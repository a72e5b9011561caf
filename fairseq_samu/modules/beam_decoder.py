"""A Transformer decoder in a beam search: one new token for every hypothesis at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
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
        self._first_norm, self._last_norm = map(
            _function, (decoder.layernorm_embedding, decoder.layer_norm)
        )
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
        x = decoder.embed_scale * decoder.embed_tokens(tokens.flatten())
        # All that positions depend on is how many tokens there are.
        so_far = tokens.new_zeros(1, self._length)
        x = x + decoder.embed_positions(so_far, incremental_state={})[0, -1]
        x = self._first_norm(x)
        for layer in self._layers:
            x = layer.advance(x, rows, self._length, self._mask)
        x = self._last_norm(x)
        return x.view(*tokens.shape, -1)

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

    With few rows a good part of a step is Python and torch's way to its kernels: what modules need not be
    asked for at every step is looked up here.

    Args:
        layer: fairseq's.
        states: the encoder's output, shape (B, T, C).
        linear: see ``BeamDecoder``.
    """

    def __init__(self, layer: Any, states: Tensor, linear: FewRowsLinear) -> None:
        attention, own = layer.encoder_attn, layer.self_attn
        self._width, self._heads = own.embed_dim, own.num_heads
        self._encoder_keys, self._encoder_values = (
            _split(linear(projection)(states), self._heads)
            for projection in (attention.k_proj, attention.v_proj)
        )
        self._encoder_query, self._encoder_out = map(linear, (attention.q_proj, attention.out_proj))
        self._projections = linear(own.q_proj, own.k_proj, own.v_proj)
        self._out = linear(own.out_proj)
        self._fc1, self._fc2 = map(linear, (layer.fc1, layer.fc2))
        self._activation, self._adapter = layer.activation_fn, _function(layer.adapter)
        self._norms_before: bool = layer.normalize_before
        self._own_norm, self._encoder_norm, self._final_norm = map(
            _function,
            (layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm),
        )
        #: Keys and values of the tokens so far, and memory to move them to.
        self._past = self._spare = _Past(states, 0, 0, self._heads)

    def advance(self, x: Tensor, rows: Tensor | None, length: int, mask: Tensor | None) -> Tensor:
        """Transform the newest tokens (B x W, C), which are the ``length``-th of theirs."""
        if self._norms_before:
            x = x + self._attend(self._own_norm(x), rows, length)
            x = x + self._attend_to_encoder(self._encoder_norm(x), mask)
            x = x + self._fc2(self._activation(self._fc1(self._final_norm(x))))
        else:
            x = self._own_norm(x + self._attend(x, rows, length))
            x = self._encoder_norm(x + self._attend_to_encoder(x, mask))
            x = self._final_norm(x + self._fc2(self._activation(self._fc1(x))))
        return self._adapter(x)

    def keep(self, sentences: Tensor) -> None:
        """Forget the encoder's output for all but these sentences."""
        self._encoder_keys = self._encoder_keys[sentences]
        self._encoder_values = self._encoder_values[sentences]

    def _attend(self, x: Tensor, rows: Tensor | None, length: int) -> Tensor:
        """Attend to the tokens so far."""
        query, now = self._projections(x).split((self._width, 2 * self._width), 1)
        self._move(rows, length, x)
        keys, values = self._past.add(now, length)
        query = query.unflatten(1, (keys.size(1), 1, -1))
        return self._out(F.scaled_dot_product_attention(query, keys, values).flatten(1))

    def _move(self, rows: Tensor | None, length: int, x: Tensor) -> None:
        """Bring keys and values so far to the hypotheses that continue theirs, with room for one more."""
        count, before = len(x), length - 1
        if rows is None and before and length <= self._past.room:
            return
        past, self._past = self._past, self._spare.first(count)
        if self._past.count < count or self._past.room < length:
            self._past = _Past(x, count, max(FIRST_LENGTH, 2 * before), self._heads)
        if before:
            rows = torch.arange(count, device=x.device) if rows is None else rows
            self._past.take(past, rows, before)
        self._spare = past

    def _attend_to_encoder(self, x: Tensor, mask: Tensor | None) -> Tensor:
        keys = self._encoder_keys
        query = self._encoder_query(x).view(len(keys), -1, self._width)
        found = F.scaled_dot_product_attention(
            _split(query, self._heads), keys, self._encoder_values, attn_mask=mask
        )
        return self._encoder_out(found.transpose(1, 2).reshape(x.shape))


class _Past:
    """Keys and values of the tokens of some hypotheses, with room for more tokens.

    Args:
        like: a tensor (…, C) of their kind.
        count: hypotheses.
        room: tokens.
        heads: of the attention.
    """

    def __init__(self, like: Tensor, count: int, room: int, heads: int) -> None:
        width = like.size(-1)
        self._memory = like.new_empty(count, room, 2 * width)
        #: The same, shape (2, count, H, room, C / H).
        self._by_head = self._memory.view(count, room, 2, heads, width // heads).permute(
            2, 0, 3, 1, 4
        )
        self.count, self.room = count, room

    def first(self, count: int) -> _Past:
        """The first ``count`` hypotheses, or all if they are fewer."""
        if count >= self.count:
            return self
        part = copy(self)
        part._memory, part._by_head = self._memory[:count], self._by_head[:, :count]
        part.count = count
        return part

    def take(self, other: _Past, rows: Tensor, length: int) -> None:
        """Copy the first ``length`` tokens of another's hypotheses ``rows``."""
        here = self._memory.narrow(1, 0, length)
        torch.index_select(other._memory.narrow(1, 0, length), 0, rows, out=here)

    def add(self, now: Tensor, length: int) -> Sequence[Tensor]:
        """Add the ``length``-th token's keys and values, shape (count, 2 C).

        Returns:
            All keys and values, each of shape (count, H, length, C / H).
        """
        self._memory.select(1, length - 1).copy_(now)
        return self._by_head.narrow(3, 0, length).unbind()


def _function(module: nn.Module | None) -> Callable[[Tensor], Tensor]:
    """What the module does in evaluation, without what torch does around every call of a module."""
    if module is None or type(module) is nn.Identity:
        return _same
    if type(module) is not nn.LayerNorm:
        return module
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _same(x: Tensor) -> Tensor:
    return x


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, L, C) → (B, H, L, C / H)."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)
