"""Criterions; importing this package registers them with fairseq."""

from fairseq_samu.criterions.label_smoothed_nll import (
    LabelSmoothedNllConfig,
    LabelSmoothedNllCriterion,
)

__all__ = ["LabelSmoothedNllConfig", "LabelSmoothedNllCriterion"]
