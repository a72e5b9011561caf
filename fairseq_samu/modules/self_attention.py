"""torch's attention, in training on a CPU by faster products and with dropout that keeps a byte a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairseq_samu.modules.dropout import attention_with_dropout
from fairseq_samu.modules.linear import linear


class SelfAttention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` as the layers of a Transformer encoder call it."""

    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attend from ``query`` (L, B, D) to itself; arguments are torch's.

        Returns:
            What was found, shape (L, B, D), and None in place of weights.
        """
        padded = kwargs.get("key_padding_mask")
        fast = self.training and 0 < self.dropout < 1 and query.device.type == "cpu"
        if not fast or kwargs.get("attn_mask") is not None or kwargs.get("need_weights", True):
            found: tuple[Tensor, Tensor | None] = super().forward(query, *args, **kwargs)
            return found
        length, batch, width = query.shape
        projected = linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.view(length, batch, 3, self.num_heads, -1).permute(2, 1, 3, 0, 4)
        mask = None
        if padded is not None:
            if padded.dtype == torch.bool:
                padded = torch.zeros_like(padded, dtype=q.dtype).masked_fill(padded, -torch.inf)
            mask = padded.to(q.dtype).view(batch, 1, 1, length)
        attended = attention_with_dropout(q, k, v, mask, self.dropout)
        attended = attended.permute(2, 0, 1, 3).reshape(length, batch, width)
        return linear(attended, self.out_proj.weight, self.out_proj.bias), None
