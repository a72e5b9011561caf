"""fairseq's own trainer in this process, for either side of a comparison."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Sequence
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer

import fairseq_samu  # noqa: F401  (registers tasks and models)


def configuration(line: Sequence[str], device: str, precision: str = "fp32") -> Any:
    """fairseq's configuration, as ``fairseq-train`` makes it.

    Args:
        line: its command line.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32``, ``fp16`` or ``bf16``, for all weights and activations, as fairseq's options
            of these names.
    """
    parser = options.get_training_parser()
    placed = [*line, "--distributed-world-size", "1", *(["--cpu"] if device == "cpu" else [])]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, placed))
    # On a command line --bf16 asks for a TPU.
    cfg.common.fp16, cfg.common.bf16 = precision == "fp16", precision == "bf16"
    return cfg


def start(line: Sequence[str], device: str, precision: str = "fp32") -> Trainer:
    """fairseq's trainer for a command line; arguments as above."""
    gc.collect()  # trainers are held by reference cycles when nobody needs them any more
    cfg = configuration(line, device, precision)
    torch.manual_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task)
    with contextlib.redirect_stdout(io.StringIO()):  # some of fairseq's models print themselves
        model = task.build_model(cfg.model)
    return Trainer(cfg, task, model, task.build_criterion(cfg.criterion))


def update(trainer: Trainer, sample: dict[str, Any]) -> float:
    """Make an update; its loss, as fairseq logs it."""
    with metrics.aggregate(new_root=True) as meters:
        trainer.train_step([sample])
    return float(meters["loss"].avg)
