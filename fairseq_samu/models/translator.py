"""What models that translate speech have in common, whatever encodes and decodes."""

from typing import Any, ClassVar, Dict, Tuple, Type, TypeVar

from fairseq.models import FairseqEncoderDecoderModel
from torch import Tensor

from fairseq_samu.models.from_pretrained import load_trained
from fairseq_samu.models.recorded_model import RecordedModel
from fairseq_samu.modules.linear import use_fast_products

T = TypeVar("T", bound="Translator")


class Translator(RecordedModel, FairseqEncoderDecoderModel):
    """A speech encoder and a text decoder that attends to its output.

    Args:
        encoder: takes waveforms and their lengths.
        decoder: takes target tokens and the encoder's output.

    Attributes:
        registered_name: of the model, in fairseq.
    """

    registered_name: ClassVar[str]

    def __init__(self, encoder: Any, decoder: Any) -> None:
        super().__init__(encoder, decoder)
        use_fast_products(self)

    @classmethod
    def from_pretrained(cls: Type[T], path: str, data: str) -> Tuple[T, Any]:
        """Load a trained translator; files that only its training started from may be gone.

        Args:
            path: the checkpoint.
            data: folder of the vocabularies it was trained with.

        Returns:
            The model, in evaluation mode, and its task.

        Raises:
            FileNotFoundError, ValueError: see ``fairseq_samu.models.from_pretrained.load_trained``.
        """
        return load_trained(path, cls.registered_name, data)

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor, **more: Any
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """Predict every target token from the ones before it.

        Args:
            src_tokens: waveforms, zero where padded, shape (B, S), or a frozen speech encoder's frames
                for them, shape (B, T, D), where the encoder takes those.
            src_lengths: samples or frames of every utterance, shape (B,).
            prev_output_tokens: target tokens shifted by one, shape (B, L).
            **more: what else a batch says of its utterances to the encoder.

        Returns:
            Logits (B, L, V) and a dict with fairseq's extras and ``encoder_out``.
        """
        encoder_out = self.encoder(src_tokens, src_lengths, **more)
        logits, extra = self.decoder(prev_output_tokens, encoder_out=encoder_out)
        extra["encoder_out"] = encoder_out
        return logits, extra
