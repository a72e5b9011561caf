"""Adam with a learning rate for each part of the model."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.optim import register_optimizer
from fairseq.optim.adam import Adam, FairseqAdam, FairseqAdamConfig
from torch import nn

from fairseq_samu.optim.fused_adam import FusedAdam

logger = logging.getLogger(__name__)


@dataclass
class GroupedAdamConfig(FairseqAdamConfig):
    """Options of ``--optimizer grouped_adam``: those of ``adam``, and one more."""

    lr_scales: str = field(
        default="",
        metadata={
            "help": "factors on the learning rate, with commas: encoder=0.1,decoder=0.1; of a part as the "
            "log names it at start-up (encoder.adapters, decoder.cross-attention, outside), or of "
            "encoder or decoder, for those of its parts that are not named; 1 where nothing is said"
        },
    )


@register_optimizer("grouped_adam", dataclass=GroupedAdamConfig)
class GroupedAdam(FairseqAdam):  # type: ignore[misc]
    """fairseq's Adam, whose schedule is multiplied by a factor in each part of the model.

    Every part has a group of parameters, whatever its factor, so that a resumed run may change factors
    as it may change the learning rate. Schedules set one rate, and logs show it; each group gets its
    product with the factor. Steps are those of :class:`FusedAdam`, unless ``use_old_adam`` asks for
    fairseq's own or apex has some for the device.

    Args:
        cfg: a ``GroupedAdamConfig``.
        params: parameters with their part as ``param_group``, the attribute that fairseq keeps for
            that. Parameters that were flattened into one have none.

    Raises:
        ValueError: a factor that is not one, a part that does not train, or a parameter without part.
    """

    def __init__(self, cfg: Any, params: Sequence[nn.Parameter]) -> None:
        groups: dict[str, list[nn.Parameter]] = {}
        for parameter in params:
            part = getattr(parameter, "param_group", None)
            if part is None:
                raise ValueError(
                    "--optimizer grouped_adam: expected parameters that know their part of the model, found "
                    f"one of {parameter.numel():,} weights that does not. --fp16 makes one of all of them: "
                    "add --fp16-no-flatten-grads or --memory-efficient-fp16"
                )
            groups.setdefault(part, []).append(parameter)
        self.scales = part_scales(cfg.lr_scales, list(groups))
        super().__init__(cfg, [{"params": p, "part": part} for part, p in groups.items()])
        if type(self.optimizer) is Adam and not (cfg.use_old_adam or cfg.tpu):
            self._optimizer: torch.optim.Optimizer = FusedAdam(
                self.param_groups, **self.optimizer_config
            )
        self.set_lr(self.optimizer_config["lr"])
        factors = ", ".join(f"{part} {scale:g}" for part, scale in self.scales.items())
        logger.info("factors on the learning rate: %s", factors)

    def get_lr(self) -> float:
        """Return the learning rate before it is multiplied."""
        return float(self.param_groups[0]["base_lr"])

    def set_lr(self, lr: float) -> None:
        """Set the learning rate; each part gets its multiple."""
        for group in self.param_groups:
            group["base_lr"] = lr
            group["lr"] = lr * self.scales[group["part"]]

    def multiply_grads(self, c: float | torch.Tensor) -> None:
        """Multiply gradients with ``c``; steps of ``FusedAdam`` do so on their way, as they clip."""
        if isinstance(self.optimizer, FusedAdam):
            self.optimizer.factor = self.optimizer.factor * c
        else:
            super().multiply_grads(c)

    def clip_grad_norm(
        self, max_norm: float, aggregate_norm_fn: Optional[Callable[[Any], Any]] = None
    ) -> torch.Tensor:
        """Make gradients together no longer than ``max_norm``, unless it is 0.

        Args:
            max_norm: their largest norm.
            aggregate_norm_fn: makes the norm of all workers' gradients of this one's.

        Returns:
            Their norm before that.
        """
        fused = isinstance(self.optimizer, FusedAdam)
        norm: torch.Tensor = super().clip_grad_norm(0 if fused else max_norm, aggregate_norm_fn)
        if fused:
            norm = norm * self.optimizer.factor
            if max_norm > 0:
                self.multiply_grads((max_norm / (norm + 1e-6)).clamp(max=1))
        return norm

    def load_state_dict(
        self, state_dict: dict[str, Any], optimizer_overrides: Optional[dict[str, Any]] = None
    ) -> None:
        """Load the state of a checkpoint; the factors stay those of the options.

        Args:
            state_dict: what ``state_dict`` returned.
            optimizer_overrides: settings that replace those of the checkpoint, such as ``lr``.

        Raises:
            ValueError: other parts trained.
        """
        trained, own = (
            [group.get("part") for group in groups]
            for groups in (state_dict["param_groups"], self.param_groups)
        )
        if trained != own:
            raise ValueError(
                f"the checkpoint's optimiser trained {', '.join(map(str, trained))}, this run trains "
                f"{', '.join(own)}: give --train-encoder and --train-decoder as they were, or "
                "--reset-optimizer"
            )
        super().load_state_dict(state_dict, optimizer_overrides)
        self.set_lr((optimizer_overrides or {}).get("lr", self.get_lr()))


def part_scales(text: str, parts: Sequence[str]) -> dict[str, float]:
    """Read the factors.

    Args:
        text: ``name=factor`` with commas between; names of parts, or what stands before their dot.
        parts: the parts that train.

    Returns:
        A factor for each of ``parts``.

    Raises:
        ValueError: an entry of another form, a factor that is not above 0 and finite, a name that fits
            no part, or one given twice.
    """
    names = [*dict.fromkeys([part.split(".")[0] for part in parts] + list(parts))]
    found: dict[str, float] = {}
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        name, _, factor = (word.strip() for word in entry.partition("="))
        try:
            scale = float(factor)
        except ValueError:
            scale = math.nan
        if name not in names or name in found or not 0 < scale < math.inf:
            raise ValueError(
                f"--lr-scales: expected name=factor with commas between, each name once, of what trains: "
                f"{', '.join(names)}; and factors above 0; found {entry!r} in {text!r}"
            )
        found[name] = scale
    return {part: found.get(part, found.get(part.split(".")[0], 1.0)) for part in parts}
