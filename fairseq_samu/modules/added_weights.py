"""Weights of modules that were added to a network after its training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def with_added(
    state_dict: Mapping[str, Tensor], network: nn.Module, kinds: tuple[type[nn.Module], ...]
) -> dict[str, Tensor]:
    """Complete weights that were saved before modules were added to their network.

    Args:
        state_dict: weights of ``network``. A module of which it has some weights has not been added:
            then others are missing.
        network: what the weights are for.
        kinds: classes of modules that may have been added, such as adapters.

    Returns:
        The weights, with those of added modules as ``network`` has them now.
    """
    completed = dict(state_dict)
    for prefix, module in network.named_modules():
        if isinstance(module, kinds):
            own = module.state_dict(prefix=f"{prefix}.")
            if not own.keys() & state_dict.keys():
                completed.update(own)
    return completed
