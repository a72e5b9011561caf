"""fairseq's Adam in one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from fairseq.optim.adam import Adam
from torch.optim.adamw import adamw

from fairseq_samu import compat

#: Where torch has the kernel.
_DEVICES = ("cpu", "cuda")
#: What fairseq keeps of a weight, beside the number of its steps.
_AVERAGES = ("exp_avg", "exp_avg_sq")


class FusedAdam(Adam):  # type: ignore[misc]
    """fairseq's Adam (decoupled weight decay), its steps made by torch's fused kernel.

    The same steps but for rounding, and the same state, so that either goes on from the other's
    checkpoint. Where weights have 16 bits and averages 32, as with ``--memory-efficient-fp16``, the step is
    fairseq's own, because the kernel wants one type; so it is on other devices and with torch before 2.4.
    """

    #: What the next step multiplies gradients with, on its way through them.
    factor: float | torch.Tensor = 1.0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients and what to multiply them with."""
        super().zero_grad(set_to_none)
        self.factor = 1.0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What ``closure`` returned.
        """
        loss = None if closure is None else closure()
        factor, self.factor = self.factor, 1.0
        with torch.no_grad():
            if compat.FUSED_ADAM and self._fits():
                for group in self.param_groups:
                    self._step_group(group, factor)
            else:
                self._multiply_gradients(factor)
                super().step()
        return loss

    def _fits(self) -> bool:
        """Whether the kernel takes all weights, gradients and averages; it checks little itself."""
        return all(
            tensor.dtype == torch.float32
            and tensor.is_contiguous()
            and tensor.device.type in _DEVICES
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
            for tensor in (weight, weight.grad, *map(self.state[weight].get, _AVERAGES))
            if tensor is not None  # there are no averages before the first step
        )

    def _multiply_gradients(self, factor: float | torch.Tensor) -> None:
        if _is_one(factor):
            return
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.mul_(factor)

    def _step_group(self, group: dict[str, Any], factor: float | torch.Tensor) -> None:
        """Update the weights of a group, those together that have made as many steps.

        Args:
            group: of weights.
            factor: what their gradients are multiplied with.
        """
        alike: dict[tuple[torch.device, int], list[tuple[torch.Tensor, ...]]] = {}
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state.update(step=0, **{name: torch.zeros_like(weight) for name in _AVERAGES})
            state["step"] += 1
            averages = (state[name] for name in _AVERAGES)
            alike.setdefault((weight.device, state["step"]), []).append(
                (weight, weight.grad, *averages)
            )
        beta1, beta2 = group["betas"]
        # The kernel divides, and writes down what it found.
        scale = None if _is_one(factor) else 1 / torch.as_tensor(factor, dtype=torch.float32)
        for (device, step), rows in alike.items():
            weights, gradients, first, second = map(list, zip(*rows))
            # The kernel counts them up, one at a time.
            steps = torch.full((len(weights),), step - 1.0, device=device)
            adamw(
                weights, gradients, first, second, [], list(steps.unbind()),
                fused=True, grad_scale=scale, amsgrad=False, maximize=False,
                lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
                # fairseq adds epsilon before the second average is corrected for having begun at
                # zero, torch after that.
                eps=group["eps"] / math.sqrt(1 - beta2**step),
            )  # fmt: skip


def _is_one(factor: float | torch.Tensor) -> bool:
    """Whether there is nothing to multiply; tensors are not looked at, which a device would wait for."""
    return not isinstance(factor, torch.Tensor) and factor == 1
