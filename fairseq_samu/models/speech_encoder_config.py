"""Options of the speech encoder that all models share, and what is wrong with some of their values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from fairseq_samu.modules.sentence_head import POOLINGS

BLOCKS = ChoiceEnum(["transformer", "e_branchformer"])
EXTRACTOR_MODES = ChoiceEnum(["default", "layer_norm"])
FEATURES = ChoiceEnum(["waveform", "log_mel"])

#: Options that count something, from 1.
COUNTS = (
    "encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_conv_pos",
    "encoder_conv_pos_groups", "encoder_cgmlp_dim", "encoder_cgmlp_kernel", "encoder_merge_kernel",
    "mask_length", "mask_channel_length",
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
            "of Hugging Face's, a checkpoint of samu_xlsr, with its sentence head, or a folder of ESPnet's "
            "E-Branchformer; sizes come from it, and to translate with the result it is not needed"
        },
    )
    encoder_blocks: BLOCKS = field(  # type: ignore[valid-type]
        default="transformer",
        metadata={
            "help": "what the encoder consists of: wav2vec 2.0's convolutions and Transformer layers, or "
            "E-Branchformer blocks over log-mel energies, one frame for 40 ms"
        },
    )
    encoder_features: FEATURES = field(  # type: ignore[valid-type]
        default="waveform",
        metadata={
            "help": "what the convolutional extractor reads: samples (wav2vec 2.0), or 80 log-mel energies "
            "every 10 ms, which takes a small encoder half the time; E-Branchformer reads log_mel"
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
    encoder_layers: int = field(default=12, metadata={"help": "layers (blocks) of the encoder"})
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
    encoder_cgmlp_dim: int = field(
        default=3072, metadata={"help": "channels of E-Branchformer's cgMLP before its gate; even"}
    )
    encoder_cgmlp_kernel: int = field(
        default=31,
        metadata={"help": "frames that the convolution of E-Branchformer's gate spans; odd"},
    )
    encoder_merge_kernel: int = field(
        default=31,
        metadata={
            "help": "frames that the convolution over E-Branchformer's two branches spans; odd"
        },
    )
    encoder_espnet_stft: str = field(
        default="",
        metadata={
            "help": "window and hop, in samples, of the energies that ESPnet's E-Branchformer hears, as "
            "'512,160'; comes with its weights from --speech-encoder-path; empty = this project's"
        },
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
        metadata={
            "help": "share of the frames masked in training, before spans overlap (E-Branchformer: of the "
            "energies' frames, 10 ms each)"
        },
    )
    mask_length: int = field(default=10, metadata={"help": "frames a mask spans"})
    mask_channel_prob: float = field(
        default=0.0,
        metadata={
            "help": "share of the channels masked in training, before spans overlap (E-Branchformer: of the "
            "80 energies)"
        },
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
    checkpoint_activations: bool = field(
        default=False,
        metadata={
            "help": "keep only what enters the layers of encoder and decoder, and compute the rest again in "
            "the backward pass: less memory, most of all for long utterances and large batches, and more time"
        },
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


#: Options that only one kind of blocks has.
ONLY_TRANSFORMER = (
    "encoder_extractor_mode", "encoder_conv_layers", "encoder_conv_bias", "encoder_layer_norm_first",
    "encoder_conv_pos", "encoder_conv_pos_groups", "encoder_feature_grad_mult",
)  # fmt: skip
ONLY_E_BRANCHFORMER = (
    "encoder_cgmlp_dim", "encoder_cgmlp_kernel", "encoder_merge_kernel", "encoder_espnet_stft",
)  # fmt: skip


def check_blocks(cfg: Any) -> None:
    """Refuse sizes that do not fit ``encoder_blocks``, and options that only other blocks have.

    Args:
        cfg: the options.

    Raises:
        ValueError: there are such.
    """
    blocks, defaults = str(cfg.encoder_blocks), SpeechEncoderConfig()
    others = ONLY_E_BRANCHFORMER if blocks == "transformer" else ONLY_TRANSFORMER
    given = [name for name in others if cfg[name] != getattr(defaults, name)]
    if given:
        raise ValueError(
            f"--encoder-blocks {blocks} has no use for: "
            + ", ".join("--" + name.replace("_", "-") for name in given)
        )
    if blocks == "transformer":
        if cfg.encoder_embed_dim % cfg.encoder_conv_pos_groups:
            raise ValueError(
                f"--encoder-conv-pos-groups: expected a number that divides --encoder-embed-dim "
                f"{cfg.encoder_embed_dim}, found {cfg.encoder_conv_pos_groups}"
            )
        return
    if cfg.encoder_features != "log_mel":
        raise ValueError(
            f"--encoder-blocks {blocks} reads log-mel energies: expected --encoder-features log_mel, "
            f"found {cfg.encoder_features}"
        )
    for name, rest in (
        ("encoder_embed_dim", 0), ("encoder_cgmlp_dim", 0),
        ("encoder_cgmlp_kernel", 1), ("encoder_merge_kernel", 1),
    ):  # fmt: skip
        if cfg[name] % 2 != rest:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected an {('even', 'odd')[rest]} number, "
                f"found {cfg[name]}"
            )


def espnet_stft(text: str) -> tuple[int, int] | None:
    """Window and hop of ``encoder_espnet_stft``; None without."""
    if not text:
        return None
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if len(numbers) != 2 or not 1 <= numbers[1] <= numbers[0] <= 512:
        raise ValueError(
            f"--encoder-espnet-stft: expected window and hop in samples, 512 at most, found {text!r}"
        )
    return numbers[0], numbers[1]


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
