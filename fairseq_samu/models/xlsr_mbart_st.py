"""Speech translation: wav2vec 2.0 encoder, length adaptor, Transformer (mBART) decoder."""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum
from fairseq.models import register_model
from fairseq.models.transformer import Embedding
from fairseq.modules import SinusoidalPositionalEmbedding
from omegaconf import II
from torch import nn

from fairseq_samu import compat
from fairseq_samu.models.pretrained_decoder import adopt_text_decoder, load_weights
from fairseq_samu.models.recorded_model import (
    agree_with_task,
    has_ctc_head,
    read_settings,
    record,
)
from fairseq_samu.models.speech_encoder import (
    SpeechEncoder,
    build_sentence_head,
    build_speech_frames,
)
from fairseq_samu.models.speech_encoder_config import (
    SpeechEncoderConfig,
    check_heads,
    check_numbers,
)
from fairseq_samu.models.text_decoder import TextDecoder, clear_unfilled
from fairseq_samu.models.translator import Translator
from fairseq_samu.modules.encoder_view import VIEWS, PooledView, ProjectedView
from fairseq_samu.modules.length_adaptor import ConvGLUAdaptor, LinearAdaptor, NoAdaptor
from fairseq_samu.modules.sentence_head import SentenceHead
from fairseq_samu.pretrained.file_digest import tensors_digest

ADAPTORS = ChoiceEnum(["none", "linear", "conv"])
ACTIVATIONS = ChoiceEnum(["relu", "gelu"])

DECODER_COUNTS = ("decoder_layers", "decoder_embed_dim", "decoder_ffn_embed_dim")
DECODER_SHARES = (
    "decoder_dropout", "decoder_attention_dropout", "decoder_activation_dropout", "decoder_layerdrop",
)  # fmt: skip


@dataclass
class XlsrMbartStConfig(SpeechEncoderConfig):
    """Options of ``--arch xlsr_mbart_st``; the decoder's sizes default to Transformer base."""

    text_decoder_path: Optional[str] = field(
        default=None,
        metadata={
            "help": "what to start the decoder from: fairseq's checkpoint of mBART-25 or mBART-50, a folder "
            "of Hugging Face's mBART or NLLB, or a checkpoint of this model; sizes come from it, the data "
            "folder needs its dictionary (data_prep.build_vocab --pretrained), and to translate with the "
            "result it is not needed"
        },
    )
    encoder_view: ChoiceEnum(list(VIEWS)) = field(  # type: ignore[valid-type]
        default="hidden",
        metadata={
            "help": "what the decoder reads: the encoder's hidden frames; or, of a SAMU-XLS-R encoder, the "
            "frames projected to the sentence space and weighted as its head pools them (measured in "
            "examples/demo: the best of the three for languages without translation data); or the pooled "
            "vector alone"
        },
    )
    encoder_view_noise: float = field(
        default=0.0,
        metadata={
            "help": "Gaussian noise on what the adaptor reads in training, as a multiple of every feature's "
            "standard deviation: a regulariser that the demo's frozen encoder turned out not to need"
        },
    )
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
    adaptor_blocks: str = field(
        default="",
        metadata={
            "help": "what the conv adaptor has beside its convolutions, as fairseq's xm_transformer may: "
            "some of projection (to the decoder's width), projection-norm, norm, ffn, with commas"
        },
    )
    adaptor_positions: bool = field(
        default=False,
        metadata={
            "help": "add sinusoidal positions to the adaptor's output; from scratch the decoder hardly "
            "finds its way in speech whose word order says nothing, such as digits, without them"
        },
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
    train_decoder: str = field(
        default="all",
        metadata={
            "help": "parts of the decoder that train: all; none; or some of adapters, attention (over the "
            "target), cross-attention, layernorm, top-N (the last N layers), with commas"
        },
    )
    freeze_decoder_updates: int = field(
        default=0,
        metadata={
            "help": "updates before the decoder trains; from then on the parts named by train_decoder do"
        },
    )
    decoder_adapter_dim: int = field(
        default=0,
        metadata={
            "help": "width of the bottleneck of an adapter behind every decoder layer; 0 = no adapters"
        },
    )
    # Not an option of the model: the task's, recorded because learned positions depend on it.
    max_target_positions: int = II("task.max_target_positions")


@register_model("xlsr_mbart_st", dataclass=XlsrMbartStConfig)
class XlsrMbartStModel(Translator):
    """XLS-R encoder → length adaptor → mBART decoder.

    A checkpoint records its vocabularies and the normalisation of its input, and refuses others.

    Args:
        encoder: the speech encoder.
        decoder: the text decoder.
        target_dictionary: symbols the decoder predicts.
        transcript_dictionary: symbols the CTC head predicts, or None without one.
    """

    registered_name = "xlsr_mbart_st"

    def __init__(
        self,
        encoder: SpeechEncoder,
        decoder: TextDecoder,
        target_dictionary: Dictionary,
        transcript_dictionary: Dictionary | None,
    ) -> None:
        super().__init__(encoder, decoder)
        self._fused_weights: str | None = None
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
        if task.target_dictionary is None:
            raise ValueError(
                "xlsr_mbart_st needs target texts: give the data folder a target vocabulary "
                "(--dictionary, --sentencepiece-model)"
            )
        agree_with_task(cfg, task)
        pretrained = adopt_text_decoder(cfg, XlsrMbartStConfig(), task)
        frames, head = build_speech_frames(cfg)
        transcripts: Dictionary | None = None
        ctc_head: nn.Linear | None = None
        if has_ctc_head(cfg, task):
            transcripts = task.transcript_dictionary
            ctc_head = nn.Linear(cfg.encoder_embed_dim, len(transcripts))
        view = _build_view(cfg, head)
        encoder = SpeechEncoder(
            frames,
            _build_adaptor(cfg, cfg.encoder_embed_dim if view is None else view.width),
            ctc_head,
            _build_positions(cfg),
            view,
            cfg.encoder_view_noise,
        )
        decoder = _build_decoder(cfg, task.target_dictionary)
        if pretrained is not None:
            load_weights(decoder, pretrained)
        record(cfg)
        model = cls(encoder, decoder, task.target_dictionary, transcripts)
        if pretrained is not None and pretrained.vocabulary is not None:
            model.check_vocabularies({"vocabulary_version": pretrained.vocabulary})
        # Exceptions that omegaconf catches below keep this frame until the garbage collector comes.
        del pretrained
        model.register_settings(cfg, task)
        model.name_parts({"encoder": frames.transformer, "decoder": decoder.transformer})
        return model

    @property
    def frozen_speech_encoder(self) -> nn.Module | None:
        """What makes the frames that ``--cache-encoder-states`` stores; None where some of it trains."""
        frames = self.encoder.wav2vec2
        outside = frames.transformer.outside
        trains = any(p.requires_grad for module in outside for p in module.parameters())
        return frames if frames.never_trains and not trains else None

    @property
    def frozen_speech_weights(self) -> str:
        """Digest of all that those frames depend on."""
        if self._fused_weights is not None:
            return self._fused_weights
        settings = {
            name: value
            for name, value in read_settings(self.settings_version).items()
            if name.startswith("--encoder-") and name != "--encoder-view"
        }
        return tensors_digest(self.encoder.wav2vec2.state_dict(), settings)

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Let fairseq fuse weights for the search; frames stored in training keep their digest."""
        if self.frozen_speech_encoder is not None:
            self._fused_weights = self.frozen_speech_weights
        super().prepare_for_inference_(cfg)

    def waiting_parameters(self) -> list[nn.Parameter]:
        """List the parameters of encoder and decoder that do not train yet."""
        return [*self.encoder.waiting_parameters(), *self.decoder.waiting_parameters()]


def _build_positions(cfg: Any) -> nn.Module | None:
    if not cfg.adaptor_positions:
        return None
    # The table grows when an utterance is longer.
    positions = SinusoidalPositionalEmbedding(cfg.decoder_embed_dim, padding_idx=1, init_size=1024)
    clear_unfilled(positions)
    return positions


def _build_view(cfg: Any, head: SentenceHead | None) -> ProjectedView | PooledView | None:
    """Build what stands between frames and adaptor; ``head`` is the checkpoint's."""
    if cfg.encoder_view_noise < 0:
        raise ValueError(
            f"--encoder-view-noise: expected 0 or more, found {cfg.encoder_view_noise}"
        )
    view = str(cfg.encoder_view)
    if view == "hidden":
        return None
    if head is None and cfg.sentence_dim == 0:
        raise ValueError(
            f"--encoder-view {view} reads the encoder through its sentence head: expected a checkpoint of "
            "samu_xlsr as --speech-encoder-path, found an encoder without a head"
        )
    head = head or build_sentence_head(cfg)
    return ProjectedView(head) if view == "projected" else PooledView(head)


def _build_adaptor(cfg: Any, width: int) -> nn.Module:
    out_dim = cfg.decoder_embed_dim
    kind = str(cfg.adaptor)
    if kind == "conv":
        return ConvGLUAdaptor(
            width,
            out_dim,
            n_layers=cfg.adaptor_layers,
            kernel_size=cfg.adaptor_kernel_size,
            stride=cfg.adaptor_stride,
            blocks=cfg.adaptor_blocks,
        )
    if cfg.adaptor_blocks:
        raise ValueError(f"--adaptor-blocks: expected --adaptor conv with it, found {kind}")
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
    check_numbers(cfg, DECODER_COUNTS, DECODER_SHARES)
    check_heads(cfg, "decoder")
    embedding = Embedding(len(dictionary), cfg.decoder_embed_dim, dictionary.pad())
    decoder = TextDecoder(
        decoder_cfg,
        dictionary,
        embedding,
        cfg.decoder_layerdrop,
        cfg.decoder_adapter_dim,
        cfg.checkpoint_activations,
    )
    decoder.train_only(cfg.train_decoder, cfg.freeze_decoder_updates, "decoder")
    return decoder
