"""Speech translation: wav2vec 2.0 encoder, length adaptor, Transformer (mBART) decoder."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum
from fairseq.models import FairseqEncoderDecoderModel, register_model
from fairseq.models.transformer import Embedding, TransformerConfig, TransformerDecoderBase
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from omegaconf import II, DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from fairseq_samu import compat
from fairseq_samu.models.speech_encoder import (
    SpeechEncoder,
    SpeechEncoderConfig,
    build_speech_frames,
)
from fairseq_samu.modules.layer_drop import is_dropped, keep_in_graph
from fairseq_samu.modules.length_adaptor import ConvGLUAdaptor, LinearAdaptor, NoAdaptor

logger = logging.getLogger(__name__)

ADAPTORS = ChoiceEnum(["none", "linear", "conv"])
ACTIVATIONS = ChoiceEnum(["relu", "gelu"])


@dataclass
class XlsrMbartStConfig(SpeechEncoderConfig):
    """Options of ``--arch xlsr_mbart_st``; the decoder's sizes default to Transformer base."""

    adaptor: ADAPTORS = field(  # type: ignore[valid-type]
        default="conv",
        metadata={
            "help": "what shortens the encoder's frames for the decoder: nothing (a projection "
            "where the widths differ), frames stacked and projected, or strided convolutions with "
            "GLU"
        },
    )
    adaptor_layers: int = field(default=3, metadata={"help": "convolutions of the conv adaptor"})
    adaptor_kernel_size: int = field(
        default=3, metadata={"help": "frames a kernel of the conv adaptor spans; odd"}
    )
    adaptor_stride: int = field(
        default=2,
        metadata={"help": "stride of each convolution, or frames that the linear adaptor stacks"},
    )
    decoder_layers: int = field(default=6, metadata={"help": "layers of the decoder"})
    decoder_embed_dim: int = field(default=512, metadata={"help": "width of the decoder"})
    decoder_ffn_embed_dim: int = field(
        default=2048, metadata={"help": "width of the decoder's feed-forward layers"}
    )
    decoder_attention_heads: int = field(
        default=8, metadata={"help": "attention heads of a decoder layer"}
    )
    decoder_post_norm: bool = field(
        default=False,
        metadata={"help": "layer norm after every decoder block; before it (mBART) without this"},
    )
    decoder_learned_pos: bool = field(
        default=False, metadata={"help": "learned positions (mBART) in place of sinusoids"}
    )
    decoder_layernorm_embedding: bool = field(
        default=False, metadata={"help": "layer norm on the decoder's embeddings, as mBART has"}
    )
    decoder_no_scale_embedding: bool = field(
        default=False, metadata={"help": "do not multiply embeddings by the root of the width"}
    )
    decoder_separate_output_embed: bool = field(
        default=False,
        metadata={"help": "an output projection of its own, not the decoder's embeddings"},
    )
    decoder_dropout: float = field(
        default=0.1, metadata={"help": "dropout probability in the decoder"}
    )
    decoder_attention_dropout: float = field(
        default=0.0, metadata={"help": "dropout probability of the decoder's attention weights"}
    )
    decoder_activation_dropout: float = field(
        default=0.0,
        metadata={"help": "dropout probability inside the decoder's feed-forward layers"},
    )
    decoder_activation_fn: ACTIVATIONS = field(  # type: ignore[valid-type]
        default="relu", metadata={"help": "activation of the decoder's feed-forward layers"}
    )
    decoder_layerdrop: float = field(
        default=0.0, metadata={"help": "probability of skipping a decoder layer in training"}
    )
    # Not an option of the model: the task's, recorded because learned positions depend on it.
    max_target_positions: int = II("task.max_target_positions")


class TextDecoderLayer(TransformerDecoderLayerBase):
    """A decoder layer that training may skip."""

    layerdrop = 0.0

    def forward(
        self, x: Tensor, encoder_out: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any, Any]:
        """Transform ``x`` (L, B, C); returns it with fairseq's attention and state."""
        if is_dropped(self, self.layerdrop):
            # The encoder too must get a gradient, should all layers be skipped.
            return keep_in_graph(x, [*self.parameters(), encoder_out]), None, None
        output: tuple[Tensor, Any, Any] = super().forward(x, encoder_out, *args, **kwargs)
        return output


class TextDecoder(TransformerDecoderBase):
    """fairseq's Transformer decoder, whose skipped layers still get a gradient (of zero).

    Args:
        cfg: sizes and dropout.
        dictionary: target symbols.
        embed_tokens: embedding of the target symbols.
        layerdrop: probability of skipping a layer in training.
    """

    def __init__(
        self,
        cfg: TransformerConfig,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding,
        layerdrop: float,
    ) -> None:
        super().__init__(cfg, dictionary, embed_tokens)
        for layer in self.layers:
            layer.layerdrop = layerdrop
        # A buffer of sinusoids that fairseq 0.12.2 saves and never fills, so that checkpoints of equal
        # runs differ.
        unfilled = getattr(self.embed_positions, "_float_tensor", None)
        if unfilled is not None:
            unfilled.zero_()

    def build_decoder_layer(
        self, cfg: TransformerConfig, no_encoder_attn: bool = False
    ) -> TextDecoderLayer:
        """Build one layer."""
        return TextDecoderLayer(cfg, no_encoder_attn)


@register_model("xlsr_mbart_st", dataclass=XlsrMbartStConfig)
class XlsrMbartStModel(FairseqEncoderDecoderModel):
    """XLS-R encoder → length adaptor → mBART decoder.

    A checkpoint records its vocabularies and the normalisation of its input, and refuses others.

    Args:
        encoder: the speech encoder.
        decoder: the text decoder.
        target_dictionary: symbols the decoder predicts.
        transcript_dictionary: symbols the CTC head predicts, or None without one.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        decoder: TextDecoder,
        target_dictionary: Dictionary,
        transcript_dictionary: Dictionary | None,
    ) -> None:
        super().__init__(encoder, decoder)
        self.register_vocabulary("vocabulary_version", target_dictionary)
        if transcript_dictionary is not None:
            self.register_vocabulary("transcript_vocabulary_version", transcript_dictionary)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "XlsrMbartStModel":
        """Build from options.

        Args:
            cfg: an ``XlsrMbartStConfig``; from a checkpoint, the one it was trained with.
            task: gives ``target_dictionary``, ``transcript_dictionary`` (None without transcripts),
                ``input_normalization`` and ``cfg.max_target_positions``.

        Returns:
            The model.

        Raises:
            ValueError: options, checkpoint and task do not fit together.
        """
        _agree_with_task(cfg, task)
        frames = build_speech_frames(cfg)
        transcripts: Dictionary | None = None
        ctc_head: nn.Linear | None = None
        if cfg.ctc and task.transcript_dictionary is None:
            # As it should be when translating with a trained model.
            logger.warning("--ctc is left out: the task has no --transcript-dictionary")
        elif cfg.ctc:
            transcripts = task.transcript_dictionary
            ctc_head = nn.Linear(cfg.encoder_embed_dim, len(transcripts))
        encoder = SpeechEncoder(frames, _build_adaptor(cfg), ctc_head)
        decoder = _build_decoder(cfg, task.target_dictionary)
        _record(cfg)
        return cls(encoder, decoder, task.target_dictionary, transcripts)

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """Predict every target token from the ones before it.

        Args:
            src_tokens: waveforms, zero where padded, shape (B, S).
            src_lengths: samples of every utterance, shape (B,).
            prev_output_tokens: target tokens shifted by one, shape (B, L).

        Returns:
            Logits (B, L, V) and a dict with fairseq's extras and ``encoder_out``.
        """
        encoder_out = self.encoder(src_tokens, src_lengths)
        logits, extra = self.decoder(prev_output_tokens, encoder_out=encoder_out)
        extra["encoder_out"] = encoder_out
        return logits, extra

    def get_ctc_output(self, encoder_out: dict[str, list[Tensor]]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the transcript's symbols.

        Args:
            encoder_out: output of the encoder.

        Returns:
            Float32 log-probabilities (T, B, V) and the frames of every utterance (B,).

        Raises:
            ValueError: the model has no CTC head.
        """
        if not encoder_out["ctc_logits"]:
            raise ValueError("the model was built without a CTC head: give it --ctc")
        log_probs = encoder_out["ctc_logits"][0].float().log_softmax(dim=-1)
        return log_probs, (~encoder_out["speech_padding_mask"][0]).sum(dim=1)

    def register_vocabulary(self, name: str, dictionary: Dictionary) -> None:
        """Keep the size and a hash of the vocabulary in the state dict.

        fairseq's moving averages of the weights spare only buffers whose name has "version" in it,
        and averaging checkpoints keeps whole numbers below 2^48 exact.
        """
        digest = hashlib.sha256("\n".join(dictionary.symbols).encode()).digest()
        record = torch.tensor([len(dictionary), int.from_bytes(digest[:6], "big")])
        self.register_buffer(name, record)

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        model_cfg: Any = None,
        args: Any = None,
    ) -> Any:
        """Load weights after checking that they belong to these vocabularies and sizes.

        Without transcripts the model has no CTC head, and that of the checkpoint is left out.

        Args:
            state_dict: the weights.
            strict: whether names have to match exactly.
            model_cfg: options of the checkpoint, which fairseq uses to prune layers.
            args: the same, in old checkpoints.

        Returns:
            What ``torch.nn.Module.load_state_dict`` returns.

        Raises:
            ValueError: another vocabulary, or weights of another shape.
        """
        if self.encoder.ctc_head is None:
            unused = ("encoder.ctc_head.", "transcript_vocabulary_version")
            state_dict = {k: v for k, v in state_dict.items() if not k.startswith(unused)}
        self._check_vocabularies(state_dict)
        self._check_sizes(state_dict)
        return super().load_state_dict(state_dict, strict=strict, model_cfg=model_cfg, args=args)

    def _check_vocabularies(self, state_dict: Mapping[str, Any]) -> None:
        own = self.state_dict()
        for name, what, option in (
            ("vocabulary_version", "target", "--dictionary"),
            ("transcript_vocabulary_version", "transcript", "--transcript-dictionary"),
        ):
            if name not in state_dict or name not in own:
                continue
            (size, digest), (own_size, own_digest) = state_dict[name].tolist(), own[name].tolist()
            if (size, digest) == (own_size, own_digest):
                continue
            found = f"{own_size}" if own_size != size else f"{own_size} other ones"
            raise ValueError(
                f"the checkpoint was trained with a {what} vocabulary of {size} symbols, the "
                f"task's has {found}: give the task the files the checkpoint was trained with "
                f"({option} and its SentencePiece model)"
            )

    def _check_sizes(self, state_dict: Mapping[str, Any]) -> None:
        own = self.state_dict()
        different = [
            f"{name}: checkpoint {tuple(weight.shape)}, model {tuple(own[name].shape)}"
            for name, weight in state_dict.items()
            if name in own and weight.shape != own[name].shape
        ]
        if different:
            more = f"\n  … and {len(different) - 8} more" if len(different) > 8 else ""
            raise ValueError(
                "the checkpoint's weights have other sizes than the model's, whose options have to "
                "be those it was trained with:\n  " + "\n  ".join(different[:8]) + more
            )


def _agree_with_task(cfg: Any, task: Any) -> None:
    """Take from the task what belongs to both, and check what a checkpoint recorded of it."""
    if OmegaConf.is_interpolation(cfg, "max_target_positions"):
        cfg.max_target_positions = task.cfg.max_target_positions
    if OmegaConf.is_interpolation(cfg, "input_normalization"):
        cfg.input_normalization = task.input_normalization
    if cfg.input_normalization != task.input_normalization:
        raise ValueError(
            f"the model was trained with input normalisation '{cfg.input_normalization}', the task "
            f"gives '{task.input_normalization}': pass --normalize {cfg.input_normalization}"
        )


def _record(cfg: Any) -> None:
    """Write what was settled while building back to the options that checkpoints keep.

    fairseq builds models from a merged copy of ``cfg.model``, whose parent is still the whole
    configuration.
    """
    whole = cfg._get_parent()
    saved = None if whole is None else whole.get("model")
    if isinstance(saved, DictConfig):
        with open_dict(saved):
            settled: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
            for name, value in settled.items():
                saved[name] = value


def _build_adaptor(cfg: Any) -> nn.Module:
    width, out_dim = cfg.encoder_embed_dim, cfg.decoder_embed_dim
    kind = str(cfg.adaptor)
    if kind == "conv":
        return ConvGLUAdaptor(
            width,
            out_dim,
            n_layers=cfg.adaptor_layers,
            kernel_size=cfg.adaptor_kernel_size,
            stride=cfg.adaptor_stride,
        )
    if kind == "linear":
        return LinearAdaptor(width, out_dim, stride=cfg.adaptor_stride)
    return NoAdaptor() if width == out_dim else LinearAdaptor(width, out_dim)


def _build_decoder(cfg: Any, dictionary: Dictionary) -> TextDecoder:
    decoder_cfg = compat.fresh_transformer_config()
    decoder_cfg.dropout = cfg.decoder_dropout
    decoder_cfg.attention_dropout = cfg.decoder_attention_dropout
    decoder_cfg.activation_dropout = cfg.decoder_activation_dropout
    decoder_cfg.activation_fn = str(cfg.decoder_activation_fn)
    decoder_cfg.layernorm_embedding = cfg.decoder_layernorm_embedding
    decoder_cfg.no_scale_embedding = cfg.decoder_no_scale_embedding
    decoder_cfg.share_decoder_input_output_embed = not cfg.decoder_separate_output_embed
    decoder_cfg.max_target_positions = cfg.max_target_positions
    decoder_cfg.encoder.embed_dim = cfg.decoder_embed_dim  # what the adaptor hands over
    decoder_cfg.decoder.layers = cfg.decoder_layers
    decoder_cfg.decoder.embed_dim = cfg.decoder_embed_dim
    decoder_cfg.decoder.input_dim = cfg.decoder_embed_dim
    decoder_cfg.decoder.output_dim = cfg.decoder_embed_dim
    decoder_cfg.decoder.ffn_embed_dim = cfg.decoder_ffn_embed_dim
    decoder_cfg.decoder.attention_heads = cfg.decoder_attention_heads
    decoder_cfg.decoder.normalize_before = not cfg.decoder_post_norm
    decoder_cfg.decoder.learned_pos = cfg.decoder_learned_pos
    embedding = Embedding(len(dictionary), cfg.decoder_embed_dim, dictionary.pad())
    return TextDecoder(decoder_cfg, dictionary, embedding, cfg.decoder_layerdrop)
