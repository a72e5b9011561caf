"""The network of wav2vec 2.0 and XLS-R: waveforms in, frames out."""

from dataclasses import replace
from math import prod
from typing import Any

import torch
from fairseq.models.wav2vec.wav2vec2 import (
    TransformerSentenceEncoderLayer,
    Wav2Vec2Config,
    Wav2Vec2Model,
)
from fairseq.modules import GradMultiply
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch import Tensor, nn

from fairseq_samu.models.attention import fused
from fairseq_samu.modules.adapter import Adapter
from fairseq_samu.modules.dropout import Dropout
from fairseq_samu.modules.late_training import LateTraining
from fairseq_samu.modules.layer_drop import is_dropped, keep_in_graph
from fairseq_samu.modules.layer_weighting import LayerWeighting
from fairseq_samu.modules.log_mel import HOP, WINDOW, LogMel
from fairseq_samu.modules.long_conv import LongConv
from fairseq_samu.modules.masked_group_norm import MaskedGroupNorm
from fairseq_samu.modules.padding import padding_mask as make_padding_mask
from fairseq_samu.modules.padding import window_count
from fairseq_samu.modules.recomputation import run_layer
from fairseq_samu.modules.span_mask import span_mask
from fairseq_samu.modules.strided_conv import StridedConv
from fairseq_samu.modules.trained_parts import Transformer
from fairseq_samu.pretrained.conv_layers import parse_conv_layers

#: Samples, with padding, that the extractor reads at a time where it does not train.
SAMPLES_AT_A_TIME = 2**17


class SpeechLayer(TransformerSentenceEncoderLayer):
    """A layer of wav2vec 2.0 that training may skip, with adapters if wanted.

    Args:
        layerdrop: probability of being skipped.
        **shape: the arguments of fairseq's layer.
    """

    def __init__(self, layerdrop: float, **shape: Any) -> None:
        super().__init__(**shape)
        fused(self.self_attn)
        if shape["activation_fn"] == "gelu":
            self.activation_fn = nn.functional.gelu  # fairseq's keeps a copy in float32
        for name in ("dropout1", "dropout2", "dropout3"):
            setattr(self, name, Dropout(getattr(self, name).p))
        self.layerdrop = layerdrop
        self.attention_adapter: nn.Module = nn.Identity()
        self.ffn_adapter: nn.Module = nn.Identity()

    def add_adapters(self, bottleneck: int) -> None:
        """Add an adapter to the output of either block, before the residual joins it.

        Source: Houlsby et al. 2019 (arXiv 1902.00751), Figure 2.
        """
        self.attention_adapter = Adapter(self.embedding_dim, bottleneck)
        self.ffn_adapter = Adapter(self.embedding_dim, bottleneck)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Transform ``x`` (T, B, D) with padding mask (B, T), or None without padding."""
        if is_dropped(self, self.layerdrop):
            return keep_in_graph(x, self.parameters())
        residual = x
        if self.layer_norm_first:
            x = self.self_attn_layer_norm(x)
        x, _ = self.self_attn(x, x, x, key_padding_mask=padding_mask, need_weights=False)
        x = residual + self.attention_adapter(self.dropout1(x))
        if not self.layer_norm_first:
            x = self.self_attn_layer_norm(x)
        residual = x
        if self.layer_norm_first:
            x = self.final_layer_norm(x)
        x = self.fc2(self.dropout2(self.activation_fn(self.fc1(x))))
        x = residual + self.ffn_adapter(self.dropout3(x))
        return x if self.layer_norm_first else self.final_layer_norm(x)


class SpeechFrames(LateTraining, Wav2Vec2Model):
    """wav2vec 2.0 without its pre-training parts: waveforms in, frames out.

    Parameters are named as in fairseq. Unlike fairseq's, the frames of an utterance do not depend
    on the padding beside it in either extractor mode, masks and skipped layers follow torch's
    random generator (and so repeat when training resumes), and every parameter that requires a
    gradient gets one in every update. Where nothing trains there is no dropout, no mask and no graph;
    else what is frozen keeps its dropout, as the parts that train are used to.

    Args:
        cfg: sizes, dropout, masking and ``feature_grad_mult``; ``conv_feature_layers`` has to be a
            plain list literal, because fairseq evaluates it.
        features: what the extractor reads, ``waveform`` or ``log_mel``.
        adapter_dim: width of the adapters' bottleneck in every layer; 0 = no adapters.
        layer_weighting: make the frames a learned mixture of all layers, and of what the first one
            reads. The layers of a pre-norm encoder pass through its final norm for that, because
            the deeper they are the larger is what they give.
        recomputes: keep only what enters a layer, and compute the rest again in the backward pass.

    Source: Baevski et al. 2020 (arXiv 2006.11477), Section 2; Babu et al. 2021 (arXiv 2111.09296).
    """

    def __init__(
        self,
        cfg: Wav2Vec2Config,
        features: str = "waveform",
        adapter_dim: int = 0,
        layer_weighting: bool = False,
        recomputes: bool = False,
    ) -> None:
        super().__init__(replace(cfg, encoder_layers=0))
        self.recomputes = recomputes
        self.remove_pretraining_modules()
        self.cfg = cfg
        self.width: int = cfg.encoder_embed_dim
        self.conv_layers = parse_conv_layers(cfg.conv_feature_layers)
        self.log_mel = LogMel() if features == "log_mel" else None
        if self.log_mel is not None:
            dim, kernel, stride = self.conv_layers[0]
            first = nn.Conv1d(self.log_mel.bands, dim, kernel, stride, bias=cfg.conv_bias)
            nn.init.kaiming_normal_(first.weight)
            self.feature_extractor.conv_layers[0][0] = first
        if cfg.extractor_mode == "default":
            self.feature_extractor.conv_layers[0][2] = MaskedGroupNorm(self.conv_layers[0][0])
        for block in self.feature_extractor.conv_layers:
            block[0] = StridedConv(block[0])
            if cfg.extractor_mode == "layer_norm":
                # fairseq transposes around the norm; here channels are last already.
                block[2][0] = block[2][2] = nn.Identity()
        # It differs in what it computes with alone.
        self.encoder.pos_conv[0].__class__ = LongConv
        self.encoder.layers = nn.ModuleList(
            SpeechLayer(
                layerdrop=cfg.encoder_layerdrop,
                embedding_dim=cfg.encoder_embed_dim,
                ffn_embedding_dim=cfg.encoder_ffn_embed_dim,
                num_attention_heads=cfg.encoder_attention_heads,
                dropout=cfg.dropout,
                attention_dropout=cfg.attention_dropout,
                activation_dropout=cfg.activation_dropout,
                activation_fn=cfg.activation_fn,
                layer_norm_first=cfg.layer_norm_first,
            )
            for _ in range(cfg.encoder_layers)
        ).apply(init_bert_params)
        if adapter_dim != 0:
            for layer in self.encoder.layers:
                layer.add_adapters(adapter_dim)
        self.layer_weighting = LayerWeighting(cfg.encoder_layers + 1) if layer_weighting else None
        for module in self.modules():
            if isinstance(module, nn.GELU):
                module.register_forward_hook(_make_gradient_contiguous)

        # What never gets a gradient must not ask for one: distributed training would wait for it.
        self.mask_emb.requires_grad_(cfg.mask_prob > 0)
        self.feature_extractor.requires_grad_(cfg.feature_grad_mult > 0)

    @property
    def transformer(self) -> Transformer:
        """What there is to train; the weights of the layers are no part of it."""
        outside = [] if self.layer_weighting is None else [self.layer_weighting]
        return Transformer(self, self.encoder.layers, [self.feature_extractor], outside)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees."""
        samples = 1
        for _, kernel, stride in reversed(self.conv_layers):
            samples = (samples - 1) * stride + kernel
        return samples if self.log_mel is None else (samples - 1) * HOP + WINDOW

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode waveforms.

        Args:
            wave: samples at 16 kHz, zero where padded, shape (B, S).
            lengths: samples of every utterance, shape (B,). One too short for a single frame is
                taken as if silence followed.

        Returns:
            Frames of shape (T, B, D), undefined where padded, and their padding mask (B, T).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            layers, padding_mask = self._encode(wave, lengths)
        frames = layers[-1] if self.layer_weighting is None else self.layer_weighting(layers)
        return frames, padding_mask

    def _encode(self, wave: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compute what the frames are made of: every layer (T, B, D) that counts, the last one last."""
        x = nn.functional.pad(wave, (0, max(0, self.receptive_field - wave.size(1))))
        trains = any(p.requires_grad for p in self.feature_extractor.parameters())
        if torch.is_grad_enabled() and trains:
            x, lengths = self._extract(x, lengths)
        else:
            with torch.no_grad():
                x, lengths = self._extract_in_parts(x, lengths)
        if x.requires_grad and self.feature_grad_mult != 1.0:
            x = GradMultiply.apply(x, self.feature_grad_mult)
        x = self.layer_norm(x)
        if self.post_extract_proj is not None:
            x = self.post_extract_proj(x)
        if self.training:
            x = self._mask(x, lengths)
        padding_mask = make_padding_mask(lengths, x.size(1))

        # The loop is not fairseq's: that one keeps no input of the first layer, drops layers by
        # NumPy's generator, and pads once more.
        x = x.masked_fill(padding_mask.unsqueeze(2), 0.0)
        x = x + self.encoder.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        if not self.encoder.layer_norm_first:
            x = self.encoder.layer_norm(x)
        x = nn.functional.dropout(x, self.encoder.dropout, self.training).transpose(0, 1)
        layers = [x]
        # To look at a mask would make a GPU wait.
        padded = None if not x.is_cuda and not padding_mask.any() else padding_mask
        for layer in self.encoder.layers:
            recomputes = self.recomputes and self.training
            layers.append(run_layer(layer, recomputes, layers[-1], padded))
            if self.layer_weighting is None:
                del layers[0]  # frees its memory where no gradient needs it
        if self.encoder.layer_norm_first:
            layers = [self.encoder.layer_norm(layer) for layer in layers]
        return layers, padding_mask

    def _extract_in_parts(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Run the convolutions over some utterances at a time; see ``_extract``.

        The first ones give 200 times as many numbers as they read; of the rest of the batch these need
        not be in memory.
        """
        rows = max(1, SAMPLES_AT_A_TIME // wave.size(1))
        parts = [self._extract(*part) for part in zip(wave.split(rows), lengths.split(rows))]
        frames, counts = zip(*parts)
        return torch.cat(frames), torch.cat(counts)

    def _extract(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Run the convolutions: (B, S) → (B, T, D), and the frames of every utterance."""
        x = wave.unsqueeze(2)
        if self.log_mel is not None:
            x, lengths = self.log_mel(wave).transpose(1, 2), window_count(lengths, WINDOW, HOP)
        frames = x.size(1)
        # All strides divide it; windows that reach into the padding are cut off in the end.
        x = nn.functional.pad(
            x, (0, 0, 0, -frames % prod(stride for _, _, stride in self.conv_layers))
        )
        # fairseq-generate halves the model under --fp16, but not the samples
        x = x.to(self.layer_norm.weight.dtype)
        for block, (_, kernel, stride) in zip(
            self.feature_extractor.conv_layers, self.conv_layers, strict=True
        ):
            lengths = window_count(lengths, kernel, stride)
            frames = (frames - kernel) // stride + 1
            for module in block:
                if isinstance(module, MaskedGroupNorm):
                    x = module(x.transpose(1, 2), lengths).transpose(1, 2)
                else:
                    x = module(x)
        return x[:, :frames], lengths

    def _mask(self, x: Tensor, lengths: Tensor) -> Tensor:
        """SpecAugment on the frames (B, T, D): a learned vector over time, zeros over channels."""
        batch, frames, width = x.shape
        if self.mask_prob > 0:
            masked = span_mask(lengths, frames, self.mask_prob, self.mask_length)
            x = torch.where(masked.unsqueeze(2), self.mask_emb.to(x.dtype), x)
        if self.mask_channel_prob > 0:
            channels = torch.full_like(lengths, width)
            masked = span_mask(channels, width, self.mask_channel_prob, self.mask_channel_length)
            x = x.masked_fill(masked.unsqueeze(1), 0.0)
        return x


def _make_gradient_contiguous(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    """Hand the gradient of ``output`` on with its elements in order.

    On a CPU, torch 1.12 differentiates GELU wrongly otherwise: it reads memory that was never
    written, and wav2vec 2.0 transposes behind its GELUs.
    """
    if output.requires_grad and not output.is_cuda:
        output.register_hook(Tensor.contiguous)
