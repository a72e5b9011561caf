"""The wav2vec 2.0 / XLS-R speech encoder, built from options or from a checkpoint."""

from dataclasses import dataclass, field, replace
from typing import Any, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import FairseqEncoder
from fairseq.models.wav2vec.wav2vec2 import (
    TransformerSentenceEncoderLayer,
    Wav2Vec2Config,
    Wav2Vec2Model,
)
from fairseq.modules import GradMultiply
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from omegaconf import II
from torch import Tensor, nn

from fairseq_samu.modules.encoder_view import FeatureNoise
from fairseq_samu.modules.layer_drop import is_dropped, keep_in_graph
from fairseq_samu.modules.log_mel import HOP, WINDOW, LogMel
from fairseq_samu.modules.masked_group_norm import MaskedGroupNorm
from fairseq_samu.modules.padding import padding_mask as make_padding_mask
from fairseq_samu.modules.sentence_head import POOLINGS, SentenceHead
from fairseq_samu.modules.span_mask import span_mask
from fairseq_samu.pretrained.conv_layers import parse_conv_layers
from fairseq_samu.pretrained.wav2vec2 import ARCHITECTURE, Wav2VecCheckpoint, load_wav2vec2

EXTRACTOR_MODES = ChoiceEnum(["default", "layer_norm"])
FEATURES = ChoiceEnum(["waveform", "log_mel"])
TRAINED_PARTS = ChoiceEnum(["all", "none"])


@dataclass
class SpeechEncoderConfig(FairseqDataclass):
    """Options of the speech encoder; the sizes default to wav2vec 2.0 base."""

    speech_encoder_path: Optional[str] = field(
        default=None,
        metadata={
            "help": "checkpoint to start the encoder from: fairseq's of wav2vec 2.0 or XLS-R, or one of "
            "samu_xlsr, with its sentence head; sizes come from it, and to translate with the result it is "
            "not needed"
        },
    )
    encoder_features: FEATURES = field(  # type: ignore[valid-type]
        default="waveform",
        metadata={
            "help": "what the convolutional extractor reads: samples (wav2vec 2.0), or 80 log-mel energies "
            "every 10 ms, which takes a small encoder half the time"
        },
    )
    encoder_extractor_mode: EXTRACTOR_MODES = field(  # type: ignore[valid-type]
        default="default",
        metadata={
            "help": "norm of the convolutional extractor: one group norm after the first layer "
            "(wav2vec 2.0 base) or a layer norm in every layer (XLS-R)"
        },
    )
    encoder_conv_layers: str = field(
        default="[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2",
        metadata={
            "help": "extractor layers as a list of (dim, kernel, stride), the first in samples of 16 kHz or "
            "in log-mel frames"
        },
    )
    encoder_conv_bias: bool = field(
        default=False, metadata={"help": "biases in the extractor's convolutions, as XLS-R has"}
    )
    encoder_layers: int = field(default=12, metadata={"help": "Transformer layers of the encoder"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "width of the encoder"})
    encoder_ffn_embed_dim: int = field(
        default=3072, metadata={"help": "width of the encoder's feed-forward layers"}
    )
    encoder_attention_heads: int = field(
        default=12, metadata={"help": "attention heads of an encoder layer"}
    )
    encoder_layer_norm_first: bool = field(
        default=False, metadata={"help": "layer norm before every encoder block (pre-norm, XLS-R)"}
    )
    encoder_conv_pos: int = field(
        default=128, metadata={"help": "kernel of the positional convolution, in frames"}
    )
    encoder_conv_pos_groups: int = field(
        default=16, metadata={"help": "groups of the positional convolution"}
    )
    encoder_dropout: float = field(
        default=0.1, metadata={"help": "dropout probability in the encoder"}
    )
    encoder_attention_dropout: float = field(
        default=0.1, metadata={"help": "dropout probability of the encoder's attention weights"}
    )
    encoder_activation_dropout: float = field(
        default=0.0,
        metadata={"help": "dropout probability inside the encoder's feed-forward layers"},
    )
    encoder_layerdrop: float = field(
        default=0.0, metadata={"help": "probability of skipping an encoder layer in training"}
    )
    encoder_feature_grad_mult: float = field(
        default=1.0,
        metadata={"help": "factor on the gradient of the convolutional extractor; 0 freezes it"},
    )
    mask_prob: float = field(
        default=0.0,
        metadata={"help": "share of the frames masked in training, before spans overlap"},
    )
    mask_length: int = field(default=10, metadata={"help": "frames a mask spans"})
    mask_channel_prob: float = field(
        default=0.0,
        metadata={"help": "share of the channels masked in training, before spans overlap"},
    )
    mask_channel_length: int = field(default=64, metadata={"help": "channels a mask spans"})
    ctc: bool = field(
        default=False,
        metadata={"help": "predict the transcript from the encoder's frames, for a CTC loss"},
    )
    train_encoder: TRAINED_PARTS = field(  # type: ignore[valid-type]
        default="all",
        metadata={"help": "parts of the encoder that train, the sentence head of a view included"},
    )
    pooling: ChoiceEnum(list(POOLINGS)) = field(  # type: ignore[valid-type]
        default="attention",
        metadata={
            "help": "how the sentence head makes one vector of the frames: self-attention (as published), "
            "their mean or maximum, or a Transformer decoder with one learned query (SONAR)"
        },
    )
    sentence_dim: int = field(
        default=0,
        metadata={
            "help": "width of the sentence embedding; 0 = that of the checkpoint or of the task's teacher"
        },
    )
    # How the task normalises waveforms. Not an option: it is recorded, and checked when a
    # checkpoint meets another task.
    input_normalization: str = II("task.normalize")


class SpeechLayer(TransformerSentenceEncoderLayer):
    """A layer of wav2vec 2.0 that training may skip.

    Args:
        layerdrop: probability of being skipped.
        **shape: the arguments of fairseq's layer.
    """

    def __init__(self, layerdrop: float, **shape: Any) -> None:
        super().__init__(**shape)
        self.layerdrop = layerdrop

    def forward(self, x: Tensor, **options: Any) -> tuple[Tensor, tuple[Tensor | None, Tensor]]:
        """Transform ``x`` (T, B, D); returns it with fairseq's (attention, feed-forward output)."""
        if is_dropped(self, self.layerdrop):
            x = keep_in_graph(x, self.parameters())
            return x, (None, x)
        output: tuple[Tensor, tuple[Tensor | None, Tensor]] = super().forward(x, **options)
        return output


class SpeechFrames(Wav2Vec2Model):
    """wav2vec 2.0 without its pre-training parts: waveforms in, frames out.

    Parameters are named as in fairseq. Unlike fairseq's, the frames of an utterance do not depend
    on the padding beside it in either extractor mode, masks and skipped layers follow torch's
    random generator (and so repeat when training resumes), and every parameter that requires a
    gradient gets one in every update.

    Args:
        cfg: sizes, dropout, masking and ``feature_grad_mult``; ``conv_feature_layers`` has to be a
            plain list literal, because fairseq evaluates it.
        features: what the extractor reads, ``waveform`` or ``log_mel``.

    Source: Baevski et al. 2020 (arXiv 2006.11477), Section 2; Babu et al. 2021 (arXiv 2111.09296).
    """

    def __init__(self, cfg: Wav2Vec2Config, features: str = "waveform") -> None:
        super().__init__(replace(cfg, encoder_layers=0))
        self.remove_pretraining_modules()
        self.cfg = cfg
        self.conv_layers = parse_conv_layers(cfg.conv_feature_layers)
        self.log_mel = LogMel() if features == "log_mel" else None
        if self.log_mel is not None:
            dim, kernel, stride = self.conv_layers[0]
            first = nn.Conv1d(self.log_mel.bands, dim, kernel, stride, bias=cfg.conv_bias)
            nn.init.kaiming_normal_(first.weight)
            self.feature_extractor.conv_layers[0][0] = first
        if cfg.extractor_mode == "default":
            self.feature_extractor.conv_layers[0][2] = MaskedGroupNorm(self.conv_layers[0][0])
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
        # SpeechLayer draws by itself; fairseq's loop would draw from NumPy.
        self.encoder.layerdrop = 0.0
        for module in self.modules():
            if isinstance(module, nn.GELU):
                module.register_forward_hook(_make_gradient_contiguous)

        # What never gets a gradient must not ask for one: distributed training would wait for it.
        self.mask_emb.requires_grad_(cfg.mask_prob > 0)
        self.feature_extractor.requires_grad_(cfg.feature_grad_mult > 0)

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
        x = nn.functional.pad(wave, (0, max(0, self.receptive_field - wave.size(1))))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.feature_grad_mult > 0):
            x, lengths = self._extract(x, lengths)
        if x.requires_grad and self.feature_grad_mult != 1.0:
            x = GradMultiply.apply(x, self.feature_grad_mult)
        x = self.layer_norm(x.transpose(1, 2))
        if self.post_extract_proj is not None:
            x = self.post_extract_proj(x)
        if self.training:
            x = self._mask(x, lengths)
        padding_mask = make_padding_mask(lengths, x.size(1))
        # min_layer: do not collect the output of every layer
        x, _ = self.encoder.extract_features(
            x, padding_mask=padding_mask, min_layer=len(self.encoder.layers)
        )
        if self.encoder.layer_norm_first:
            x = self.encoder.layer_norm(x)
        return x.transpose(0, 1), padding_mask

    def _extract(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Run the convolutions: (B, S) → (B, D, T), and the frames of every utterance."""
        x = wave.unsqueeze(1)
        if self.log_mel is not None:
            x, lengths = self.log_mel(wave), _windows(lengths, WINDOW, HOP)
        # fairseq-generate halves the model under --fp16, but not the samples
        x = x.to(self.layer_norm.weight.dtype)
        for block, (_, kernel, stride) in zip(
            self.feature_extractor.conv_layers, self.conv_layers, strict=True
        ):
            lengths = _windows(lengths, kernel, stride)
            for module in block:
                x = module(x, lengths) if isinstance(module, MaskedGroupNorm) else module(x)
        return x, lengths

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


def _windows(lengths: Tensor, kernel: int, stride: int) -> Tensor:
    """Windows of ``kernel`` in sequences of these lengths; at least one."""
    return ((lengths - kernel).div(stride, rounding_mode="floor") + 1).clamp(min=1)


def _make_gradient_contiguous(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    """Hand the gradient of ``output`` on with its elements in order.

    On a CPU, torch 1.12 differentiates GELU wrongly otherwise: it reads memory that was never
    written, and wav2vec 2.0 transposes behind its GELUs.
    """
    if output.requires_grad and not output.is_cuda:
        output.register_hook(Tensor.contiguous)


class SpeechEncoder(FairseqEncoder):
    """Speech frames, their CTC scores if wanted, and what a decoder reads of them.

    Args:
        frames: the wav2vec 2.0 network.
        adaptor: a module of ``fairseq_samu.modules.length_adaptor``.
        ctc_head: projection from frames to transcript symbols, or None.
        positions: fairseq's sinusoidal embedding, added to what the decoder reads, or None.
        view: a module of ``fairseq_samu.modules.encoder_view`` between frames and adaptor, or None for
            the frames themselves.
        noise: factor of the noise on what the adaptor reads in training.
        frozen: keep frames and view as they are: no gradient, no dropout, no masks.
    """

    def __init__(
        self,
        frames: SpeechFrames,
        adaptor: nn.Module,
        ctc_head: nn.Linear | None,
        positions: nn.Module | None = None,
        view: nn.Module | None = None,
        noise: float = 0.0,
        frozen: bool = False,
    ) -> None:
        super().__init__(dictionary=None)
        self.wav2vec2 = frames
        self.adaptor = adaptor
        self.ctc_head = ctc_head
        self.positions = positions
        self.view = view
        self.noise = FeatureNoise(noise)
        self.frozen = frozen
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def _frozen_parts(self) -> list[nn.Module]:
        return [part for part in (self.wav2vec2, self.view) if part is not None and self.frozen]

    def train(self, mode: bool = True) -> "SpeechEncoder":
        """Switch to training or evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def forward(self, src_tokens: Tensor, src_lengths: Tensor) -> dict[str, list[Tensor]]:
        """Encode a batch.

        Args:
            src_tokens: waveforms, zero where padded, shape (B, S).
            src_lengths: samples of every utterance, shape (B,).

        Returns:
            fairseq's encoder output, whose values are lists: ``encoder_out`` (T', B, C) and
            ``encoder_padding_mask`` (B, T') for the decoder; ``speech_out`` (T, B, D) and
            ``speech_padding_mask`` (B, T), the frames before the adaptor; ``ctc_logits``
            (T, B, V), or an empty list without CTC; and fairseq's remaining keys, empty.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            speech, speech_padding_mask = self.wav2vec2(src_tokens, src_lengths)
            x, padding_mask = speech, speech_padding_mask
            if self.view is not None:
                x, padding_mask = self.view(x, padding_mask)
        x, padding_mask = self.adaptor(self.noise(x, padding_mask), padding_mask)
        if self.positions is not None:
            # The mask stands for tokens: padded frames have the padding index, 1.
            x = x + self.positions(padding_mask).transpose(0, 1).type_as(x)
        return {
            "encoder_out": [x],
            "encoder_padding_mask": [padding_mask],
            "encoder_embedding": [],
            "encoder_states": [],
            "src_tokens": [],
            "src_lengths": [],
            "speech_out": [speech],
            "speech_padding_mask": [speech_padding_mask],
            # Computed here and not by the criterion: all parameters have to be used inside the
            # forward pass of the wrapped model.
            "ctc_logits": [] if self.ctc_head is None else [self.ctc_head(speech)],
        }

    def reorder_encoder_out(
        self, encoder_out: dict[str, list[Tensor]], new_order: Tensor
    ) -> dict[str, list[Tensor]]:
        """Select rows of the batch, as beam search does.

        Only what the decoder reads is kept: copying the frames for every hypothesis would cost
        memory and serve nothing.

        Args:
            encoder_out: output of ``forward``.
            new_order: rows to select, shape (B',).

        Returns:
            A new output for B' rows, without frames and CTC scores.
        """
        reordered: dict[str, list[Tensor]] = {key: [] for key in encoder_out}
        reordered["encoder_out"] = [
            x.index_select(1, new_order) for x in encoder_out["encoder_out"]
        ]
        reordered["encoder_padding_mask"] = [
            mask.index_select(0, new_order) for mask in encoder_out["encoder_padding_mask"]
        ]
        return reordered

    def max_positions(self) -> int:
        """Longest input in samples: the encoder sets no limit."""
        return int(1e9)


def build_speech_frames(cfg: Any) -> tuple[SpeechFrames, SentenceHead | None]:
    """Build the encoder from a ``SpeechEncoderConfig``, with pretrained weights if it names any.

    With ``speech_encoder_path`` the sizes found in that checkpoint are written into ``cfg`` and
    the path is taken out, so that what is saved later can be built without the file.

    Args:
        cfg: the options; changed as described.

    Returns:
        The encoder, and the sentence head of the checkpoint if it has one.

    Raises:
        ValueError: an option contradicts the checkpoint, or its weights do not fit.
    """
    if cfg.speech_encoder_path is None:
        check_heads(cfg, "encoder")
        return SpeechFrames(_wav2vec2_config(cfg), str(cfg.encoder_features)), None
    path = cfg.speech_encoder_path
    checkpoint = load_wav2vec2(path)
    _check_normalization(cfg, checkpoint)
    _adopt_sizes(cfg, checkpoint)
    frames = SpeechFrames(_wav2vec2_config(cfg), str(cfg.encoder_features))
    head = build_sentence_head(cfg) if checkpoint.head else None
    try:
        frames.load_state_dict(checkpoint.state_dict)
        if head is not None:
            head.load_state_dict(checkpoint.head)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the weights do not fit the options saved with them: {error}"
        ) from error
    cfg.speech_encoder_path = None
    return frames, head


def build_sentence_head(cfg: Any) -> SentenceHead:
    """Build the head that turns frames into the utterance vector."""
    return SentenceHead(cfg.encoder_embed_dim, cfg.sentence_dim, str(cfg.pooling))


def check_heads(cfg: Any, part: str) -> None:
    """Refuse a width that the attention heads of ``part`` (encoder, decoder) do not divide."""
    width, heads = cfg[f"{part}_embed_dim"], cfg[f"{part}_attention_heads"]
    if heads < 1 or width % heads:
        raise ValueError(
            f"--{part}-attention-heads: expected a number that divides --{part}-embed-dim {width}, "
            f"found {heads}"
        )


def _wav2vec2_config(cfg: Any) -> Wav2Vec2Config:
    wav2vec2 = Wav2Vec2Config(
        dropout=cfg.encoder_dropout,
        attention_dropout=cfg.encoder_attention_dropout,
        activation_dropout=cfg.encoder_activation_dropout,
        encoder_layerdrop=cfg.encoder_layerdrop,
        feature_grad_mult=cfg.encoder_feature_grad_mult,
        mask_prob=cfg.mask_prob,
        mask_length=cfg.mask_length,
        mask_channel_prob=cfg.mask_channel_prob,
        mask_channel_length=cfg.mask_channel_length,
    )
    sizes = {name: cfg[option] for name, option in ARCHITECTURE.items()}
    sizes["extractor_mode"] = str(sizes["extractor_mode"])
    # fairseq evaluates this text: hand it one that is known to be a list of numbers
    sizes["conv_feature_layers"] = str(parse_conv_layers(sizes["conv_feature_layers"]))
    return replace(wav2vec2, **sizes)


def _adopt_sizes(cfg: Any, checkpoint: Wav2VecCheckpoint) -> None:
    """Write the checkpoint's sizes into ``cfg``, unless an option says otherwise."""
    defaults = SpeechEncoderConfig()
    contradictions = []
    for option, expected in checkpoint.options.items():
        found, default = cfg[option], getattr(defaults, option)
        if option == "encoder_conv_layers":
            found, default = str(parse_conv_layers(found)), str(parse_conv_layers(default))
        if found not in (expected, default):
            flag = "--" + option.replace("_", "-")
            contradictions.append(f"{flag}: the checkpoint has {expected}, the option says {found}")
        cfg[option] = expected
    if contradictions:
        raise ValueError(
            f"{cfg.speech_encoder_path}: sizes come from the checkpoint; leave these options out, "
            "or choose an architecture that fits it:\n  " + "\n  ".join(contradictions)
        )


def _check_normalization(cfg: Any, checkpoint: Wav2VecCheckpoint) -> None:
    if checkpoint.normalize is None:
        return
    trained = "utterance" if checkpoint.normalize else "none"
    if trained != cfg.input_normalization:
        raise ValueError(
            f"{cfg.speech_encoder_path}: the encoder was trained with input normalisation "
            f"'{trained}', the task gives '{cfg.input_normalization}': pass --normalize {trained}"
        )
