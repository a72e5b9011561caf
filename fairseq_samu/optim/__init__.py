"""Optimisers; importing this package registers them with fairseq."""

from fairseq_samu.optim.grouped_adam import GroupedAdam, GroupedAdamConfig

__all__ = ["GroupedAdam", "GroupedAdamConfig"]
