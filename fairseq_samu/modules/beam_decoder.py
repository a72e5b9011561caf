"""A Transformer decoder in a beam search: one new token for every hypothesis at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        memory: for keys and values of tokens; the same one for all searches.
    """

    def __init__(
        self,
        decoder: Any,
        states: Tensor,
        padding_mask: Tensor | None,
        linear: FewRowsLinear,
        memory: SearchMemory,
    ) -> None:
        self._decoder = decoder
        self._length = 0
        self._mask: Tensor | None = None
        if padding_mask is not None and bool(padding_mask.any()):
            mask = states.new_zeros(padding_mask.shape).masked_fill(padding_mask, -torch.inf)
            self._mask = mask[:, None, None]
        batch_first = states.transpose(0, 1).contiguous()
        self._layers = [_Layer(layer, batch_first, linear, memory) for layer in decoder.layers]
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

    def end(self) -> None:
        """Leave the memory to the next search."""
        for layer in self._layers:
            layer.end()


class _Layer:
    """A decoder layer with the keys and values that it has seen.

    With few rows a good part of a step is Python and torch's way to its kernels: what modules need not be
    asked for at every step is looked up here.

    Args:
        layer: fairseq's.
        states: the encoder's output, shape (B, T, C).
        linear: see ``BeamDecoder``.
        memory: see there.
    """

    def __init__(
        self, layer: Any, states: Tensor, linear: FewRowsLinear, memory: SearchMemory
    ) -> None:
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
        self._memory = memory
        #: Keys and values of the tokens so far.
        self._past: _Past | None = None

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

    def end(self) -> None:
        """Give back the memory."""
        if self._past is not None:
            self._memory.give(self._past)
            self._past = None

    def _attend(self, x: Tensor, rows: Tensor | None, length: int) -> Tensor:
        """Attend to the tokens so far."""
        query, now = self._projections(x).split((self._width, 2 * self._width), 1)
        past = self._past = self._moved(rows, length, x)
        keys, values = past.add(now, length)
        query = query.unflatten(1, (keys.size(1), 1, -1))
        return self._out(F.scaled_dot_product_attention(query, keys, values).flatten(1))

    def _moved(self, rows: Tensor | None, length: int, x: Tensor) -> _Past:
        """Keys and values so far, each at the hypothesis that continues theirs, with room for one more."""
        past = self._past
        if past is not None and rows is None and length <= past.room:
            return past
        moved = self._memory.take(x, self._heads, len(x), length)
        if past is not None:
            rows = torch.arange(len(x), device=x.device) if rows is None else rows
            moved.copy(past, rows, length - 1)
            self._memory.give(past)  # the next layer is moved there
        return moved

    def _attend_to_encoder(self, x: Tensor, mask: Tensor | None) -> Tensor:
        keys = self._encoder_keys
        query = self._encoder_query(x).view(len(keys), -1, self._width)
        found = F.scaled_dot_product_attention(
            _split(query, self._heads), keys, self._encoder_values, attn_mask=mask
        )
        return self._encoder_out(found.transpose(1, 2).reshape(x.shape))


class _Past:
    """Keys and values of the tokens of some hypotheses, with room for more of both.

    Args:
        like: a tensor (…, C) of their kind.
        heads: of the attention.
        count: hypotheses.
        room: tokens.
    """

    def __init__(self, like: Tensor, heads: int, count: int, room: int) -> None:
        width = like.size(-1)
        self._all = like.new_empty(count, room, 2 * width)
        #: The same, shape (2, count, H, room, C / H).
        self._all_by_head = self._all.view(count, room, 2, heads, width // heads).permute(
            2, 0, 3, 1, 4
        )
        self.room = room
        self.use(count)

    def fits(self, like: Tensor, heads: int, count: int, room: int) -> bool:
        """Whether this can be used in place of a new one."""
        here, shape = self._all, self._all_by_head.shape
        same = here.dtype == like.dtype and here.device == like.device
        fits = count <= shape[1] and room <= shape[3]
        return same and fits and (2 * like.size(-1), heads) == (here.size(2), shape[2])

    def use(self, count: int) -> None:
        """Go on with so many hypotheses."""
        self._tokens, self._by_head = self._all[:count], self._all_by_head[:, :count]

    def copy(self, other: _Past, rows: Tensor, length: int) -> None:
        """Copy the first ``length`` tokens of another's hypotheses ``rows``."""
        here = self._tokens.narrow(1, 0, length)
        torch.index_select(other._tokens.narrow(1, 0, length), 0, rows, out=here)

    def add(self, now: Tensor, length: int) -> Sequence[Tensor]:
        """Add the ``length``-th token's keys and values, shape (count, 2 C).

        Returns:
            All keys and values, each of shape (count, H, length, C / H).
        """
        self._tokens.select(1, length - 1).copy_(now)
        return self._by_head.narrow(3, 0, length).unbind()


class SearchMemory:
    """Memory that layers, and searches, leave to the next: a system takes its time to hand out new one."""

    def __init__(self) -> None:
        self._free: list[_Past] = []

    def take(self, like: Tensor, heads: int, count: int, length: int) -> _Past:
        """Room for ``count`` hypotheses of at least ``length`` tokens; see ``_Past``."""
        while self._free:
            past = self._free.pop()
            if past.fits(like, heads, count, length):
                past.use(count)
                return past
        return _Past(like, heads, count, max(FIRST_LENGTH, 2 * (length - 1)))

    def give(self, past: _Past) -> None:
        """Take back what is not needed any more."""
        self._free.append(past)


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
