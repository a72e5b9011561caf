"""The text decoder: fairseq's Transformer, with what training and beam search ask of it."""

from typing import Any, Dict, List

from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerConfig, TransformerDecoderBase
from fairseq.modules.fairseq_dropout import FairseqDropout
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from torch import Tensor, nn

from fairseq_samu.models.attention import fused
from fairseq_samu.modules.adapter import Adapter
from fairseq_samu.modules.beam_decoder import BeamDecoder, SearchMemory
from fairseq_samu.modules.dropout import dropout
from fairseq_samu.modules.few_rows_linear import FewRowsLinear
from fairseq_samu.modules.late_training import (
    LateTraining,
    expected_by_workers,
    without_gradients,
)
from fairseq_samu.modules.layer_drop import is_dropped, keep_in_graph
from fairseq_samu.modules.recomputation import run_layer
from fairseq_samu.modules.trained_parts import Transformer


class Dropout(FairseqDropout):
    """fairseq's dropout, in training drawn faster on a CPU."""

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Drop; any shape."""
        return dropout(x, self.p) if self.training else super().forward(x, inplace)


class TextDecoderLayer(TransformerDecoderLayerBase):
    """A decoder layer that training may skip, with an adapter behind it if wanted.

    Attributes:
        layerdrop: probability of being skipped.
        recomputes: whether training keeps only what enters the layer.
    """

    layerdrop = 0.0
    recomputes = False

    def __init__(self, cfg: TransformerConfig, no_encoder_attn: bool = False) -> None:
        super().__init__(cfg, no_encoder_attn)
        fused(self.self_attn)
        fused(self.encoder_attn)
        if cfg.activation_fn == "gelu":
            self.activation_fn = nn.functional.gelu  # fairseq's keeps a copy in float32
        self.adapter: nn.Module = nn.Identity()

    def forward(
        self, x: Tensor, encoder_out: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any, Any]:
        """Transform ``x`` (L, B, C); returns it with fairseq's attention and state."""
        recomputes = self.recomputes and self.training
        found: tuple[Tensor, Any, Any] = run_layer(
            self._transform, recomputes, x, encoder_out, *args, **kwargs
        )
        return found

    def _transform(
        self, x: Tensor, encoder_out: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any, Any]:
        if is_dropped(self, self.layerdrop):
            # The encoder too must get a gradient, should all layers be skipped.
            return keep_in_graph(x, [*self.parameters(), encoder_out]), None, None
        x, attention, state = super().forward(x, encoder_out, *args, **kwargs)
        return self.adapter(x), attention, state


class TextDecoder(LateTraining, TransformerDecoderBase):
    """fairseq's Transformer decoder, whose skipped layers still get a gradient (of zero).

    Args:
        cfg: sizes and dropout.
        dictionary: target symbols.
        embed_tokens: embedding of the target symbols.
        layerdrop: probability of skipping a layer in training.
        adapter_dim: width of the bottleneck of an adapter behind every layer (Bapna and Firat 2019,
            arXiv 1909.08478, Section 3.1); 0 = no adapters.
        recomputes: keep only what enters a layer, and compute the rest again in the backward pass.
    """

    #: Stands for the present values of the weights, where these are known to stay.
    _weights: object = None

    def __init__(
        self,
        cfg: TransformerConfig,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding,
        layerdrop: float,
        adapter_dim: int = 0,
        recomputes: bool = False,
    ) -> None:
        super().__init__(cfg, dictionary, embed_tokens)
        for layer in self.layers:
            layer.layerdrop = layerdrop
            layer.recomputes = recomputes
            if adapter_dim != 0:
                layer.adapter = Adapter(layer.embed_dim, adapter_dim)
        clear_unfilled(self.embed_positions)
        for module in self.modules():
            if type(module) is FairseqDropout:
                module.__class__ = Dropout  # which differs in what it computes with alone

    def build_decoder_layer(
        self, cfg: TransformerConfig, no_encoder_attn: bool = False
    ) -> TextDecoderLayer:
        """Build one layer."""
        return TextDecoderLayer(cfg, no_encoder_attn)

    def train(self, mode: bool = True) -> "TextDecoder":
        """Switch to training, where weights change, or to evaluation."""
        super().train(mode)
        if mode:
            self._weights = None
        return self

    def keep_weights(self) -> None:
        """Promise that weights stay as they are now until training goes on; searches may prepare them."""
        self._weights = object()

    def make_generation_fast_(self, **_: Any) -> None:
        """Hear from fairseq that this model will not be trained any more."""
        self.keep_weights()

    @property
    def transformer(self) -> Transformer:
        """What there is to train."""
        return Transformer(self, self.layers)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """Decode as fairseq's decoder does, without graphs to what does not train yet."""
        waiting = self.waiting_parameters()
        with without_gradients(waiting):
            x, extra = super().forward(*args, **kwargs)
        return expected_by_workers(x, waiting), extra

    def begin_search(
        self, encoder_out: Dict[str, List[Tensor]], linear: FewRowsLinear, memory: SearchMemory
    ) -> BeamDecoder:
        """Begin to decode for ``fairseq_samu.generator``."""
        linear.begin(self._weights)
        masks = encoder_out["encoder_padding_mask"]
        mask = masks[0] if masks else None
        return BeamDecoder(self, encoder_out["encoder_out"][0], mask, linear, memory)


def clear_unfilled(positions: nn.Module | None) -> None:
    """Clear a buffer that fairseq 0.12.2 saves with its sinusoids and never fills.

    Without it checkpoints of equal runs differ.
    """
    unfilled = getattr(positions, "_float_tensor", None)
    if unfilled is not None:
        unfilled.zero_()
