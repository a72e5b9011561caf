"""SAMU-XLS-R: a speech encoder that lands on the sentence embedding of the transcript."""

from dataclasses import dataclass
from typing import Any

from fairseq.data import Dictionary
from fairseq.models import register_model
from torch import Tensor, nn

from fairseq_samu.models.from_pretrained import load_trained
from fairseq_samu.models.recorded_model import (
    RecordedModel,
    agree_with_task,
    has_ctc_head,
    record,
)
from fairseq_samu.models.speech_encoder import (
    SpeechEncoder,
    build_sentence_head,
    build_speech_frames,
)
from fairseq_samu.models.speech_encoder_config import SpeechEncoderConfig
from fairseq_samu.modules.length_adaptor import NoAdaptor
from fairseq_samu.modules.linear import use_fast_products
from fairseq_samu.modules.sentence_head import SentenceHead


@dataclass
class SamuXlsrConfig(SpeechEncoderConfig):
    """Options of ``--arch samu_xlsr``."""


@register_model("samu_xlsr", dataclass=SamuXlsrConfig)
class SamuXlsrModel(RecordedModel):
    """XLS-R encoder → pooling → projection → utterance vector.

    Args:
        encoder: the speech encoder, with a CTC head if one is trained along.
        head: from frames to the utterance vector.
        transcript_dictionary: symbols the CTC head predicts, or None without one.

    Source: Khurana et al. 2022 (arXiv 2205.08180), Figure 1 and Section III.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        head: SentenceHead,
        transcript_dictionary: Dictionary | None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        use_fast_products(self)
        if transcript_dictionary is not None:
            self.register_vocabulary("transcript_vocabulary_version", transcript_dictionary)

    @classmethod
    def from_pretrained(cls, path: str) -> tuple["SamuXlsrModel", Any]:
        """Load a trained encoder; nothing but its checkpoint is needed.

        Args:
            path: the checkpoint.

        Returns:
            The model, in evaluation mode, and its task, without vocabularies.

        Raises:
            FileNotFoundError, ValueError: see ``fairseq_samu.models.from_pretrained.load_trained``.
        """
        return load_trained(path, "samu_xlsr", None)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "SamuXlsrModel":
        """Build from options.

        Args:
            cfg: a ``SamuXlsrConfig``; from a checkpoint, the one it was trained with.
            task: gives ``transcript_dictionary``, ``input_normalization`` and ``teacher_dim`` (None
                without a teacher).

        Returns:
            The model.

        Raises:
            ValueError: options, checkpoint and task do not fit together.
        """
        agree_with_task(cfg, task)
        frames, head = build_speech_frames(cfg)
        if cfg.sentence_dim == 0:
            if task.teacher_dim is None:
                raise ValueError("samu_xlsr needs the task's --teacher, or --sentence-dim")
            cfg.sentence_dim = task.teacher_dim
        elif task.teacher_dim not in (None, cfg.sentence_dim):
            raise ValueError(
                f"expected a teacher with vectors of width {cfg.sentence_dim} (--sentence-dim), found "
                f"{task.teacher_dim} in the embeddings of --teacher {task.cfg.teacher}"
            )
        transcripts = task.transcript_dictionary if has_ctc_head(cfg, task) else None
        ctc_head = nn.Linear(cfg.encoder_embed_dim, len(transcripts)) if transcripts else None
        encoder = SpeechEncoder(frames, NoAdaptor(), ctc_head)
        record(cfg)
        model = cls(encoder, head or build_sentence_head(cfg), transcripts)
        model.register_settings(cfg, task)
        model.name_parts({"encoder": frames.transformer})
        return model

    def waiting_parameters(self) -> list[nn.Parameter]:
        """List the parameters of the encoder that do not train yet."""
        return self.encoder.waiting_parameters()

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor | None = None
    ) -> dict[str, Any]:
        """Embed utterances.

        Args:
            src_tokens: waveforms, zero where padded, shape (B, S).
            src_lengths: samples of every utterance, shape (B,).
            prev_output_tokens: not used; batches have them.

        Returns:
            ``embedding`` (B, E), float32 of length one, and ``encoder_out`` of the speech encoder.
        """
        encoder_out = self.encoder(src_tokens, src_lengths)
        frames = encoder_out["speech_out"][0].transpose(0, 1)
        embedding = self.head(frames, encoder_out["speech_padding_mask"][0])
        return {"embedding": embedding, "encoder_out": encoder_out}

    def max_positions(self) -> int:
        """Longest input in samples: the encoder sets no limit."""
        return self.encoder.max_positions()
