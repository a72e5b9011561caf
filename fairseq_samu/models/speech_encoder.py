"""The wav2vec 2.0 / XLS-R speech encoder, built from options or from a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import FairseqEncoder
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config
from omegaconf import II
from torch import Tensor, nn

from fairseq_samu.models.speech_frames import SpeechFrames
from fairseq_samu.modules.adapter import Adapter
from fairseq_samu.modules.added_weights import with_added
from fairseq_samu.modules.encoder_view import FeatureNoise
from fairseq_samu.modules.late_training import expected_by_workers, without_gradients
from fairseq_samu.modules.layer_weighting import LayerWeighting
from fairseq_samu.modules.sentence_head import POOLINGS, SentenceHead
from fairseq_samu.pretrained.conv_layers import parse_conv_layers
from fairseq_samu.pretrained.speech_encoder import load_speech_encoder
from fairseq_samu.pretrained.wav2vec2 import ARCHITECTURE, Wav2VecCheckpoint

EXTRACTOR_MODES = ChoiceEnum(["default", "layer_norm"])
FEATURES = ChoiceEnum(["waveform", "log_mel"])

#: Options that count something, from 1.
COUNTS = (
    "encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_conv_pos",
    "encoder_conv_pos_groups", "mask_length", "mask_channel_length",
)  # fmt: skip
#: Options that are probabilities or shares, from 0 to 1.
SHARES = (
    "encoder_dropout", "encoder_attention_dropout", "encoder_activation_dropout", "encoder_layerdrop",
    "mask_prob", "mask_channel_prob",
)  # fmt: skip


@dataclass
class SpeechEncoderConfig(FairseqDataclass):
    """Options of the speech encoder; the sizes default to wav2vec 2.0 base."""

    speech_encoder_path: Optional[str] = field(
        default=None,
        metadata={
            "help": "what to start the encoder from: fairseq's checkpoint of wav2vec 2.0 or XLS-R, a folder "
            "of Hugging Face's, or a checkpoint of samu_xlsr, with its sentence head; sizes come from it, "
            "and to translate with the result it is not needed"
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
    train_encoder: str = field(
        default="all",
        metadata={
            "help": "parts of the encoder that train: all; none (the sentence head of a view is frozen "
            "too); or some of adapters, attention, layernorm, top-N (the last N layers), with commas"
        },
    )
    freeze_encoder_updates: int = field(
        default=0,
        metadata={
            "help": "updates before the encoder trains (the sentence head of a view waits with it); "
            "from then on the parts named by train_encoder do"
        },
    )
    encoder_adapter_dim: int = field(
        default=0,
        metadata={
            "help": "width of the bottleneck of two adapters in every encoder layer; 0 = no adapters"
        },
    )
    encoder_layer_weighting: bool = field(
        default=False,
        metadata={"help": "frames are a learned mixture of all encoder layers, not the last layer"},
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
    """

    def __init__(
        self,
        frames: SpeechFrames,
        adaptor: nn.Module,
        ctc_head: nn.Linear | None,
        positions: nn.Module | None = None,
        view: nn.Module | None = None,
        noise: float = 0.0,
    ) -> None:
        super().__init__(dictionary=None)
        self.wav2vec2 = frames
        self.adaptor = adaptor
        self.ctc_head = ctc_head
        self.positions = positions
        self.view = view
        self.noise = FeatureNoise(noise)
        if frames.never_trains:
            for part in self._frozen_with_frames():
                part.requires_grad_(False)

    def _frozen_with_frames(self) -> list[nn.Module]:
        """Find what a frozen network takes along: the head it is read through, and what that reads."""
        if self.view is None or not self.wav2vec2.frozen:
            return []
        return [part for part in (self.view, self.wav2vec2.layer_weighting) if part is not None]

    def train(self, mode: bool = True) -> "SpeechEncoder":
        """Switch to training or evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        for part in self._frozen_with_frames():
            part.eval()
        return self

    def set_num_updates(self, num_updates: int) -> None:
        """Tell the parts how many updates were made; what trains from now on leaves evaluation."""
        super().set_num_updates(num_updates)
        self.train(self.training)

    def waiting_parameters(self) -> list[nn.Parameter]:
        """List the parameters that do not train yet."""
        waiting = self.wav2vec2.waiting_parameters()
        if waiting:
            waiting += [p for part in self._frozen_with_frames() for p in part.parameters()]
        return waiting

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
        waiting = self.waiting_parameters()
        with without_gradients(waiting):
            speech, speech_padding_mask = self.wav2vec2(src_tokens, src_lengths)
        speech = expected_by_workers(speech, waiting)
        x, padding_mask = speech, speech_padding_mask
        if self.view is not None:
            with without_gradients(waiting):
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
        The encoder, of which the parts in ``train_encoder`` train, and the sentence head of the
        checkpoint if it has one.

    Raises:
        ValueError: an option contradicts the checkpoint, its weights do not fit, or there are no such
            parts.
    """
    check_numbers(cfg, COUNTS, SHARES)
    if cfg.encoder_embed_dim % cfg.encoder_conv_pos_groups:
        raise ValueError(
            f"--encoder-conv-pos-groups: expected a number that divides --encoder-embed-dim "
            f"{cfg.encoder_embed_dim}, found {cfg.encoder_conv_pos_groups}"
        )
    if cfg.speech_encoder_path is None:
        check_heads(cfg, "encoder")
        frames = _new_frames(cfg)
        frames.train_only(cfg.train_encoder, cfg.freeze_encoder_updates, "encoder")
        return frames, None
    path = cfg.speech_encoder_path
    checkpoint = load_speech_encoder(path)
    _check_normalization(cfg, checkpoint)
    _adopt_sizes(cfg, checkpoint)
    frames = _new_frames(cfg)
    weights = with_added(checkpoint.state_dict, frames, (Adapter, LayerWeighting))
    head = build_sentence_head(cfg) if checkpoint.head else None
    try:
        frames.load_state_dict(weights)
        if head is not None:
            head.load_state_dict(checkpoint.head)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the weights do not fit the options saved with them: {error}"
        ) from error
    cfg.speech_encoder_path = None
    frames.train_only(cfg.train_encoder, cfg.freeze_encoder_updates, "encoder")
    return frames, head


def _new_frames(cfg: Any) -> SpeechFrames:
    return SpeechFrames(
        _wav2vec2_config(cfg),
        str(cfg.encoder_features),
        cfg.encoder_adapter_dim,
        cfg.encoder_layer_weighting,
    )


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


def check_numbers(cfg: Any, counts: Sequence[str], shares: Sequence[str]) -> None:
    """Refuse numbers that mean nothing (``ValueError``); fairseq takes some of them without a word.

    Args:
        cfg: the options.
        counts: those that count something, from 1.
        shares: those that are probabilities or shares, from 0 to 1.
    """
    for name in counts:
        if cfg[name] < 1:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option}: expected at least 1, found {cfg[name]}")
    for name in shares:
        if not 0 <= cfg[name] <= 1:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option}: expected a share between 0 and 1, found {cfg[name]}")


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
