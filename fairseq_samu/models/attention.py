"""fairseq's attention through torch's fused kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import Tensor

from fairseq_samu.modules.dropout import attention_with_dropout

#: torch 1 has no fused kernels.
FUSED = hasattr(F, "scaled_dot_product_attention")
#: Keys to which a CPU attends as fast in 32 bits as in 16, forward and backward.
FEW_KEYS = 256


class Attention(MultiheadAttention):
    """fairseq's attention; in training, and wherever nobody asks for weights, by fused kernels.

    fairseq's takes ``torch.nn.functional.multi_head_attention_forward``, which passes the modules of the
    projections by, and computes weights that training does not read.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: Any = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from ``query`` (L, B, D) to ``key`` (T, B, D); see fairseq's.

        Args:
            query: what attends.
            key: what is attended to.
            value: the same as ``key``.
            key_padding_mask: True where padded, shape (B, T), or None without padding.
            incremental_state: of beam search.
            need_weights: return the weights too, outside of training.
            static_kv: keys are those of the state, if there is one.
            attn_mask: added to the scores, shape (L, T).
            before_softmax: return scores.
            need_head_weights: return the weights of every head, outside of training.

        Returns:
            What was found, shape (L, B, D), and the weights or None.
        """
        weights = (need_weights or need_head_weights) and not self.training
        if not FUSED or weights or incremental_state is not None or before_softmax:
            found: tuple[Tensor, Tensor | None] = super().forward(
                query, key, value, key_padding_mask, incremental_state, need_weights, static_kv,
                attn_mask, before_softmax, need_head_weights,
            )  # fmt: skip
            return found
        length, batch, width = query.shape
        q, k, v = (
            project(x).view(-1, batch, self.num_heads, self.head_dim).permute(1, 2, 0, 3)
            for project, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mask = None if attn_mask is None else attn_mask.to(q.dtype)
        if key_padding_mask is not None:
            padded = key_padding_mask.view(batch, 1, 1, -1)
            above = q.new_zeros(()) if mask is None else mask
            mask = above.masked_fill(padded, float("-inf"))
        dropout = self.dropout_module.p if self.training else 0.0
        if 0 < dropout < 1 and q.device.type == "cpu":
            attended = attention_with_dropout(q, k, v, mask, dropout)
        else:
            attended = _attention(q, k, v, mask, dropout)
        attended = attended.permute(2, 0, 1, 3).reshape(length, batch, width)
        return self.out_proj(attended), None


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attend; on a CPU to few keys in 32 bits, because torch's gradient in 16 takes four times as long."""
    halves = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
    if not halves or k.size(2) > FEW_KEYS:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout)
    with torch.autocast("cpu", enabled=False):
        mask = None if mask is None else mask.float()
        found = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, dropout)
    return found.to(q.dtype)


def fused(attention: MultiheadAttention) -> Attention:
    """Turn fairseq's attention into ``Attention``, which differs in what it computes with alone."""
    attention.__class__ = Attention
    return attention
