"""Named architectures: the ``model`` section of every preset is also a value of ``--arch``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairseq.models import register_model_architecture
from omegaconf import OmegaConf

PRESETS = Path(__file__).resolve().parent.parent / "presets"


def register_presets(model_name: str) -> None:
    """Register ``presets/<model_name>_<size>.yaml`` as ``--arch <model_name>_<size>``.

    Args:
        model_name: a registered model.
    """
    for path in sorted(PRESETS.glob(f"{model_name}_*.yaml")):
        options: Any = OmegaConf.to_container(OmegaConf.load(path).model)
        register_model_architecture(model_name, path.stem)(architecture(options))


def architecture(options: dict[str, Any]) -> Callable[[Namespace], None]:
    """Make the function that fairseq calls for a named architecture.

    Args:
        options: a preset's model options, with the model's name as ``_name``.

    Returns:
        A function that adds the options the user did not give. It also puts the model's own name in
        place of the preset's: checkpoints keep that name, and only models can be built from it.
    """

    def fill(args: Namespace) -> None:
        for name, value in options.items():
            if not name.startswith("_") and not hasattr(args, name):
                setattr(args, name, value)
        args.arch = options["_name"]

    return fill
