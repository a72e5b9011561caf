"""Connectors: frames of a frozen speech encoder to input of a frozen text model.

Besides these, ``LinearAdaptor`` (stacked frames, projected) serves as one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq_samu.modules.length_adaptor import ConvGLUAdaptor
from fairseq_samu.modules.self_attention import SelfAttention


class SubsamplerTransformer(nn.Module):
    """STE: two strided convolutions with GLU, then Transformer encoder layers and a projection.

    Four frames become one vector. Padding changes nothing.

    Args:
        in_dim: width of a frame.
        out_dim: width of the text model.
        dim: width of the Transformer.
        layers: its layers, with the layer norms behind the blocks.
        heads: its attention heads.
        ffn_dim: width of its feed-forward layers.
        dropout: probability, in every block and on the positions.
        channels: of the first convolution, half of which its gate keeps; even.

    Source: Sedláček et al. 2024 (arXiv 2411.18294), STE; the convolutions are those of Synnaeve et al.
    2019 (arXiv 1911.08460).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        dim: int = 256,
        layers: int = 6,
        heads: int = 4,
        ffn_dim: int = 2048,
        dropout: float = 0.1,
        channels: int = 1024,
    ) -> None:
        super().__init__()
        _check(dim, layers, heads)
        if channels < 2 or channels % 2:
            raise ValueError(f"the connector's channels: expected an even number, found {channels}")
        self.subsampler = ConvGLUAdaptor(
            in_dim, dim, n_layers=2, kernel_size=5, stride=2, inner_dim=channels // 2
        )
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, ffn_dim, dropout, activation="gelu")
            for _ in range(layers)
        )
        for layer in self.layers:
            layer.self_attn.__class__ = (
                SelfAttention  # which differs in what it computes with alone
            )
        self.projection = nn.Linear(dim, out_dim)

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Vectors that come out of ``lengths`` frames, shape (B,): twice (L − 1) // 2 + 1."""
        return self.subsampler.out_lengths(lengths)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Connect.

        Args:
            x: frames, shape (T, B, D).
            padding_mask: True where padded, shape (B, T), or None without padding.

        Returns:
            Vectors (T', B, D') and their padding mask (B, T') or None.
        """
        x, padding_mask = self.subsampler(x, padding_mask)
        x = self.dropout(x + sinusoids(x.size(0), x.size(2), x.device).to(x.dtype).unsqueeze(1))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding_mask)
        return self.projection(x), padding_mask


class QFormer(nn.Module):
    """Learned queries that read the frames by cross-attention: a fixed number of vectors comes out.

    Args:
        in_dim: width of a frame.
        out_dim: width of the text model.
        queries: vectors that come out of every utterance.
        dim: width of the Transformer.
        layers: its layers; every one has self-attention over the queries, then cross-attention to the
            frames, with the layer norms behind the blocks.
        heads: attention heads of both.
        ffn_dim: width of its feed-forward layers.
        dropout: probability, in every block and on the queries.

    Source: Li et al. 2023 (BLIP-2, arXiv 2301.12597), Section 3.1, without the text branch, and with
    cross-attention in every layer as in Sedláček et al. 2024 (arXiv 2411.18294).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        queries: int = 128,
        dim: int = 256,
        layers: int = 6,
        heads: int = 4,
        ffn_dim: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check(dim, layers, heads)
        if queries < 1:
            raise ValueError(f"the connector's queries: expected at least 1, found {queries}")
        self.queries = nn.Parameter(torch.randn(queries, 1, dim) * 0.02)
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            layer = nn.TransformerDecoderLayer(dim, heads, ffn_dim, dropout, activation="gelu")
            layer.multihead_attn = nn.MultiheadAttention(
                dim, heads, dropout, kdim=in_dim, vdim=in_dim
            )
            self.layers.append(layer)
        self.projection = nn.Linear(dim, out_dim)

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Vectors that come out of ``lengths`` frames, shape (B,): the number of queries."""
        return torch.full_like(lengths, self.queries.size(0))

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, None]:
        """Connect.

        Args:
            x: frames, shape (T, B, D).
            padding_mask: True where padded, shape (B, T), or None without padding.

        Returns:
            Vectors (Q, B, D'), one a query, and None: none of them is padding.
        """
        queries = self.dropout(self.layer_norm(self.queries)).expand(-1, x.size(1), -1)
        for layer in self.layers:
            queries = layer(queries, x, memory_key_padding_mask=padding_mask)
        return self.projection(queries), None


def sinusoids(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Positions (length, dim): sines, then cosines, of wavelengths from 2π to 20,000π.

    Made where they are needed, so that a device does not wait for a copy.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), Section 3.5.
    """
    wavelengths = torch.pow(10000.0, -torch.arange(dim // 2, device=device) / (dim / 2))
    angles = torch.arange(length, device=device).unsqueeze(1) * wavelengths
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _check(dim: int, layers: int, heads: int) -> None:
    if layers < 1:
        raise ValueError(f"the connector's layers: expected at least 1, found {layers}")
    if dim % 2 or dim % heads:
        raise ValueError(
            f"the connector's width: expected an even multiple of its {heads} attention heads, found {dim}"
        )
