"""The CTC term that criterions share."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def ctc_loss(model: Any, encoder_out: Any, sample: dict[str, Any], blank: int) -> Tensor:
    """−log p(transcript) under CTC (Graves et al. 2006), summed over the batch.

    Args:
        model: has ``get_ctc_output``.
        encoder_out: output of its encoder.
        sample: batch with ``transcript`` (B, L) and ``transcript_lengths`` (B,).
        blank: index of the blank symbol.
    """
    log_probs, lengths = model.get_ctc_output(encoder_out)
    return F.ctc_loss(
        log_probs.float(),
        sample["transcript"],
        lengths,
        sample["transcript_lengths"],
        blank=blank,
        reduction="sum",
        # An utterance with fewer frames than symbols has no alignment and an infinite loss; it
        # would turn the whole update into NaN.
        zero_infinity=True,
    )
