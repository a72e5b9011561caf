"""A small connector between a frozen speech recogniser and a frozen translator."""

from pathlib import Path
from typing import Any, Dict, Mapping, Sequence

import torch
from fairseq.models import FairseqEncoder, register_model
from torch import Tensor, nn

from fairseq_samu.models.alignment import build_alignment
from fairseq_samu.models.causal_text_model import CausalTextModel
from fairseq_samu.models.connector_from_options import (
    SPEECH_WEIGHTS,
    adopt_connector,
    agree_on_groups,
    build_connector,
    moe_settings,
)
from fairseq_samu.models.connector_st_config import ConnectorStConfig
from fairseq_samu.models.frozen_speech_encoder import (
    FrozenSpeechEncoder,
    load_frozen_speech_encoder,
)
from fairseq_samu.models.frozen_text_model import FrozenTextModel
from fairseq_samu.models.recorded_model import (
    agree_with_task,
    name_parts,
    record,
)
from fairseq_samu.models.speech_encoder_config import check_numbers
from fairseq_samu.models.text_model_from_options import (
    load_text_model,
    text_model_parts,
    text_model_settings,
)
from fairseq_samu.models.translator import Translator
from fairseq_samu.modules.dropout import use_fast_dropout
from fairseq_samu.modules.moe_projector import MoEProjector
from fairseq_samu.modules.padding import padding_mask
from fairseq_samu.pretrained.causal_lm import LORA
from fairseq_samu.pretrained.file_digest import weights_digest
from fairseq_samu.pretrained.seq2seq import source_tokens

#: Parts of a checkpoint's names: what stays in the files of the frozen models, and what trains, with the
#: low-rank adapters inside ``TEXT``.
TEXT = "decoder."
FROZEN = ("encoder.speech.", "encoder.text.", TEXT)
ALIGNMENT = "alignment."

#: What a checkpoint calls the digest of the text model's weights.
TEXT_WEIGHTS = "weights of --text-model-path"

#: Options that count something, from 1.
COUNTS = (
    "connector_layers", "connector_dim", "connector_ffn_dim", "connector_heads", "connector_channels",
    "connector_queries", "connector_stride", "connector_experts", "connector_top_k",
)  # fmt: skip


class ConnectedEncoder(FairseqEncoder):  # type: ignore[misc]
    """Frozen speech encoder → connector (→ frozen encoder of the text model).

    Args:
        speech: the speech encoder.
        connector: what ``build_connector`` returns.
        text: the text model whose encoder or prompt the connector feeds, or None where it feeds the decoder.
        prefix: source tokens in front of the connector's output, shape (P,), or None.
    """

    #: The recogniser's own CTC head is not used.
    ctc_head = None

    def __init__(
        self,
        speech: FrozenSpeechEncoder,
        connector: nn.Module,
        text: FrozenTextModel | CausalTextModel | None,
        prefix: Tensor | None,
    ) -> None:
        super().__init__(dictionary=None)
        self.speech = speech
        self.connector = connector
        self.text = text
        self.register_buffer("prefix", prefix, persistent=False)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        languages: Sequence[Sequence[str]] | None = None,
    ) -> dict[str, list[Any]]:
        """Encode a batch.

        Args:
            src_tokens: waveforms, zero where padded, shape (B, S), or the speech encoder's frames for
                them, shape (B, T, D).
            src_lengths: samples or frames of every utterance, shape (B,).
            languages: source and target language of every utterance, for prompts that name them.

        Returns:
            fairseq's encoder output: ``encoder_out`` (T', B, C) and ``encoder_padding_mask``
            (B, T'), empty where nothing is padded; ``routing``, a ``Routing`` where experts are mixed; the
            remaining keys are empty.
        """
        frames, padding_mask = self.speech(src_tokens, src_lengths)
        x, padding_mask, *routing = self.connector(frames, padding_mask)
        row = []
        if isinstance(self.text, CausalTextModel):
            x, padding_mask = self.text.prompted(x, padding_mask, languages)
            row = [torch.arange(len(padding_mask), device=x.device)]
        elif self.text is not None:
            x, padding_mask = self.text.encode(x, padding_mask, self.prefix)
        return {
            "encoder_out": [x],
            "encoder_padding_mask": [] if padding_mask is None else [padding_mask],
            "encoder_embedding": [],
            "encoder_states": [],
            "src_tokens": [],
            "src_lengths": [],
            "routing": routing,
            "row": row,
        }

    def reorder_encoder_out(
        self, encoder_out: dict[str, list[Tensor]], new_order: Tensor
    ) -> dict[str, list[Tensor]]:
        """Select rows (B',) of the batch, as beam search does."""
        reordered: dict[str, list[Tensor]] = {key: [] for key in encoder_out}
        for key, dim in (("encoder_out", 1), ("encoder_padding_mask", 0), ("row", 0)):
            reordered[key] = [x.index_select(dim, new_order) for x in encoder_out[key]]
        return reordered

    def max_positions(self) -> int:
        """Longest input in samples: the encoder sets no limit."""
        return int(1e9)


@register_model("connector_st", dataclass=ConnectorStConfig)
class ConnectorStModel(Translator):
    """Frozen speech encoder → connector → frozen text model.

    Only the connector trains, with low-rank adapters in a language model if there are any, and only that is
    in the checkpoint, which names the frozen models by their paths and a digest of their weights, and
    refuses others.

    Args:
        encoder: speech encoder and connector.
        decoder: the text model.
        alignment: pools states (B, T, C) with a padding mask (B, T), or None without alignment.

    Source: Sedláček et al. 2024 (arXiv 2411.18294), Sections 3.1 and 3.2: ECD and ECED.
    """

    registered_name = "connector_st"

    def __init__(
        self,
        encoder: ConnectedEncoder,
        decoder: FrozenTextModel | CausalTextModel,
        alignment: nn.Module | None = None,
    ) -> None:
        super().__init__(encoder, decoder)
        self.alignment = alignment
        #: As in the options, which without transcripts build no alignment.
        self.alignment_pooling = "none"
        self.register_vocabulary("vocabulary_version", decoder.dictionary)
        #: Digest of the weights of ``frozen_speech_encoder``, which the task keeps its frames by.
        self.frozen_speech_weights = ""

    @property
    def frozen_speech_encoder(self) -> FrozenSpeechEncoder:
        """What makes the frames that ``--cache-encoder-states`` stores."""
        return self.encoder.speech

    @property
    def reads_languages(self) -> bool:
        """Whether the encoder wants to know the languages of every utterance."""
        return isinstance(self.decoder, CausalTextModel) and self.decoder.prompt.reads_languages

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "ConnectorStModel":
        """Build from options.

        Args:
            cfg: a ``ConnectorStConfig``; from a checkpoint, the one it was trained with.
            task: gives ``target_dictionary``, ``codec`` and ``input_normalization``.

        Returns:
            The model.

        Raises:
            FileNotFoundError: a frozen model is not where it was; ``fairseq-generate`` takes
                ``--model-overrides "{'text_model_path': …}"``.
            ValueError: options, frozen models and task do not fit together.
        """
        _check_options(cfg, task)
        agree_with_task(cfg, task)
        agree_on_groups(cfg, task)
        speech = load_frozen_speech_encoder(cfg.speech_encoder_path, cfg.input_normalization)
        text = load_text_model(cfg, task)
        feeds_encoder = str(cfg.connect) == "encoder"
        connector = build_connector(cfg, speech.width, text.width)
        use_fast_dropout(connector)
        encoder = ConnectedEncoder(
            speech,
            connector,
            text if feeds_encoder or isinstance(text, CausalTextModel) else None,
            _encode_prefix(cfg, task) if feeds_encoder else None,
        )
        speech_digest = weights_digest(cfg.speech_encoder_path)
        if cfg.reset_decoder_from is not None:
            adopt_connector(encoder.connector, cfg, speech_digest)
            cfg.reset_decoder_from = None
        record(cfg)
        model = cls(encoder, text, build_alignment(cfg, task, text.width))
        model.alignment_pooling = str(cfg.alignment_pooling)
        model.frozen_speech_weights = speech_digest
        model.register_settings(
            cfg,
            task,
            {
                SPEECH_WEIGHTS: speech_digest,
                TEXT_WEIGHTS: weights_digest(cfg.text_model_path),
                **moe_settings(cfg),
                **text_model_settings(cfg),
            },
        )
        parts = {
            "speech encoder": list(speech.parameters()),
            "connector": list(encoder.connector.parameters()),
            **text_model_parts(text),
        }
        if cfg.alignment_pooling == "attention" and model.alignment is not None:
            parts["alignment"] = list(model.alignment.parameters())
        name_parts(parts)
        return model

    def state_dict(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        """Weights without those of the frozen models."""
        whole = super().state_dict(*args, **kwargs)
        return {name: whole[name] for name in whole if not _is_frozen(name)}

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        model_cfg: Any = None,
        args: Any = None,
    ) -> Any:
        """Load the connector; see ``RecordedModel.load_state_dict``.

        What an alignment has trained is left out where there is none; low-rank adapters that a checkpoint
        was trained without begin anew.
        """
        whole = super().state_dict()
        frozen = {name: whole[name] for name in whole if _is_frozen(name)}
        lora = {name: whole[name] for name in whole if name.startswith(TEXT) and LORA in name}
        if not lora.keys() & state_dict.keys():
            frozen.update(lora)
        trained = {
            name: weight
            for name, weight in state_dict.items()
            if name in whole or not name.startswith(ALIGNMENT)
        }
        return super().load_state_dict({**trained, **frozen}, strict, model_cfg, args)

    # Training stages

    def begin_stage(self, stage: int) -> None:
        """Say that a training stage begins or lasts; see ``MoEProjector.begin_stage``.

        Other connectors remember nothing.

        Args:
            stage: its number, from 1.
        """
        if isinstance(self.encoder.connector, MoEProjector):
            self.encoder.connector.begin_stage(stage)

    @property
    def stage_progress(self) -> float:
        """How far the transition to this stage is, from 0 to 1: the transition loss fades with it.

        It may be set at any time; connectors without experts are always through.
        """
        return float(getattr(self.encoder.connector, "stage_progress", 1.0))

    @stage_progress.setter
    def stage_progress(self, progress: float) -> None:
        if isinstance(self.encoder.connector, MoEProjector):
            self.encoder.connector.stage_progress = progress

    def pooled_states(
        self,
        encoder_out: dict[str, list[Tensor]],
        transcript: Tensor,
        lengths: Tensor,
        tags: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Vectors of speech and of its transcript, in the space that the text model's decoder reads.

        Those of the transcript are what its frozen encoder makes of it, behind the prefix where there is
        one; no gradient goes there.

        Args:
            encoder_out: output of the encoder.
            transcript: pieces, padded, shape (B, L).
            lengths: pieces of every transcript, shape (B,).
            tags: of the transcripts' languages, shape (B,), None without; a prefix stands in their place.

        Returns:
            Both as (B, C).

        Raises:
            ValueError: the model was built without ``--alignment-pooling``.

        Source: the authors' code of Sedláček et al. 2024 (arXiv 2411.18294) compares the means over the
        connector's output and over that of the text encoder (ECD with a Q-Former). Reconstructed by
        analogy: the other connectors, ECED, and attention, whose weights both sides share.
        """
        if self.alignment is None:
            raise ValueError("--alignment-weight: expected --alignment-pooling mean or attention")
        prefix = self.encoder.prefix
        with torch.no_grad():
            tokens, lengths = self.decoder.source_batch(
                transcript, lengths, tags if prefix is None else None
            )
            text, text_mask = self.decoder.encode(
                self.decoder.embed(tokens).transpose(0, 1),
                padding_mask(lengths, tokens.size(1)),
                prefix,
            )
            text_vector, _ = self.alignment(text.transpose(0, 1), text_mask)
        masks = encoder_out["encoder_padding_mask"]
        speech = encoder_out["encoder_out"][0].transpose(0, 1)
        speech_vector, _ = self.alignment(speech, masks[0] if masks else None)
        return speech_vector, text_vector


def _is_frozen(name: str) -> bool:
    return name.startswith(FROZEN) and not (name.startswith(TEXT) and LORA in name)


def _check_options(cfg: Any, task: Any) -> None:
    if task.target_dictionary is None:
        raise ValueError(
            "connector_st needs target texts: give the data folder the text model's vocabulary"
        )
    for option in ("speech_encoder_path", "text_model_path"):
        if not cfg[option]:
            raise ValueError(f"connector_st: --{option.replace('_', '-')} is missing")
    check_numbers(cfg, COUNTS, ("connector_dropout",))
    if cfg.text_prefix and str(cfg.connect) != "encoder":
        raise ValueError("--text-prefix goes into the text model's encoder: --connect encoder")
    for option in ("speech_encoder_path", "text_model_path"):
        if not Path(cfg[option]).exists():
            raise FileNotFoundError(
                f"{cfg[option]}: --{option.replace('_', '-')}: expected a file or folder, found none, seen "
                f"from {Path.cwd()}. A trained connector_st keeps this path in its checkpoint: where the "
                f"model has moved, give fairseq-generate --model-overrides \"{{'{option}': '…'}}\""
            )


def _encode_prefix(cfg: Any, task: Any) -> Tensor | None:
    if not cfg.text_prefix.strip():
        return None
    return torch.tensor(source_tokens(cfg.text_model_path, cfg.text_prefix, task.target_dictionary))
