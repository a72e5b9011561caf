"""Criterions; importing this package registers them with fairseq."""

from fairseq_samu.criterions.label_smoothed_nll import (
    LabelSmoothedNllConfig,
    LabelSmoothedNllCriterion,
)
from fairseq_samu.criterions.mse_to_labse import MseToLabseConfig, MseToLabseCriterion

__all__ = [
    "LabelSmoothedNllConfig",
    "LabelSmoothedNllCriterion",
    "MseToLabseConfig",
    "MseToLabseCriterion",
]
