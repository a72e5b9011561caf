"""The speech encoder (wav2vec 2.0 / XLS-R, E-Branchformer), built from options or from a checkpoint."""

from dataclasses import replace
from typing import Any, Union

from fairseq.models import FairseqEncoder
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config
from torch import Tensor, nn

from fairseq_samu.models.e_branchformer_frames import EBranchformerFrames
from fairseq_samu.models.speech_encoder_config import (
    COUNTS,
    SHARES,
    SpeechEncoderConfig,
    check_blocks,
    check_heads,
    check_numbers,
    espnet_stft,
)
from fairseq_samu.models.speech_frames import SpeechFrames
from fairseq_samu.modules.adapter import Adapter
from fairseq_samu.modules.added_weights import with_added
from fairseq_samu.modules.encoder_view import FeatureNoise
from fairseq_samu.modules.late_training import expected_by_workers, without_gradients
from fairseq_samu.modules.layer_weighting import LayerWeighting
from fairseq_samu.modules.sentence_head import SentenceHead
from fairseq_samu.modules.stored_frames import stored_frames
from fairseq_samu.pretrained.conv_layers import parse_conv_layers
from fairseq_samu.pretrained.speech_encoder import load_speech_encoder
from fairseq_samu.pretrained.wav2vec2 import ARCHITECTURE, Wav2VecCheckpoint

#: The network that makes frames of waveforms.
Frames = Union[SpeechFrames, EBranchformerFrames]


class SpeechEncoder(FairseqEncoder):
    """Speech frames, their CTC scores if wanted, and what a decoder reads of them.

    Args:
        frames: the network, which checkpoints call wav2vec2 whatever it is.
        adaptor: a module of ``fairseq_samu.modules.length_adaptor``.
        ctc_head: projection from frames to transcript symbols, or None.
        positions: fairseq's sinusoidal embedding, added to what the decoder reads, or None.
        view: a module of ``fairseq_samu.modules.encoder_view`` between frames and adaptor, or None for
            the frames themselves.
        noise: factor of the noise on what the adaptor reads in training.
    """

    def __init__(
        self,
        frames: Frames,
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
            src_tokens: waveforms, zero where padded, shape (B, S), or frames of the frozen network that
                were stored earlier, shape (B, T, D).
            src_lengths: samples or frames of every utterance, shape (B,).

        Returns:
            fairseq's encoder output, whose values are lists: ``encoder_out`` (T', B, C) and
            ``encoder_padding_mask`` (B, T') for the decoder; ``speech_out`` (T, B, D) and
            ``speech_padding_mask`` (B, T), the frames before the adaptor; ``ctc_logits``
            (T, B, V), or an empty list without CTC; and fairseq's remaining keys, empty.
        """
        waiting = self.waiting_parameters()
        if src_tokens.dim() == 3:
            dtype = next(self.wav2vec2.parameters()).dtype
            speech, speech_padding_mask = stored_frames(src_tokens, src_lengths, dtype)
        else:
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


def build_speech_frames(cfg: Any) -> tuple[Frames, SentenceHead | None]:
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
    if cfg.speech_encoder_path is None:
        check_heads(cfg, "encoder")
        check_blocks(cfg)
        frames = _new_frames(cfg)
        frames.train_only(cfg.train_encoder, cfg.freeze_encoder_updates, "encoder")
        return frames, None
    path = cfg.speech_encoder_path
    checkpoint = load_speech_encoder(path)
    _check_normalization(cfg, checkpoint)
    _adopt_sizes(cfg, checkpoint)
    try:
        check_numbers(cfg, COUNTS, SHARES)
        check_heads(cfg, "encoder")
        check_blocks(cfg)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
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


def _new_frames(cfg: Any) -> Frames:
    if cfg.encoder_blocks == "transformer":
        return SpeechFrames(
            _wav2vec2_config(cfg),
            str(cfg.encoder_features),
            cfg.encoder_adapter_dim,
            cfg.encoder_layer_weighting,
            cfg.checkpoint_activations,
        )
    return EBranchformerFrames(
        width=cfg.encoder_embed_dim,
        layers=cfg.encoder_layers,
        heads=cfg.encoder_attention_heads,
        ffn_dim=cfg.encoder_ffn_embed_dim,
        cgmlp_dim=cfg.encoder_cgmlp_dim,
        cgmlp_kernel=cfg.encoder_cgmlp_kernel,
        merge_kernel=cfg.encoder_merge_kernel,
        dropout=cfg.encoder_dropout,
        attention_dropout=cfg.encoder_attention_dropout,
        activation_dropout=cfg.encoder_activation_dropout,
        layerdrop=cfg.encoder_layerdrop,
        mask_prob=cfg.mask_prob,
        mask_length=cfg.mask_length,
        mask_channel_prob=cfg.mask_channel_prob,
        mask_channel_length=cfg.mask_channel_length,
        espnet_stft=espnet_stft(cfg.encoder_espnet_stft),
        adapter_dim=cfg.encoder_adapter_dim,
        layer_weighting=cfg.encoder_layer_weighting,
        recomputes=cfg.checkpoint_activations,
    )


def build_sentence_head(cfg: Any) -> SentenceHead:
    """Build the head that turns frames into the utterance vector."""
    return SentenceHead(cfg.encoder_embed_dim, cfg.sentence_dim, str(cfg.pooling))


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
    for option, expected in {"encoder_blocks": "transformer", **checkpoint.options}.items():
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
