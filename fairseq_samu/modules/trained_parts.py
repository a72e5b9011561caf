"""Which parts of a Transformer train: chosen by name, found by the structure of its modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from fairseq_samu.modules.adapter import Adapter


class Transformer(NamedTuple):
    """A Transformer whose parts are to be told apart.

    Attributes:
        network: all of it.
        layers: its layers, the first one first. Every layer has a module ``self_attn``, and those of
            a decoder have one ``encoder_attn``.
        apart: modules within ``network`` whose layer norms are their own affair, like a
            convolutional feature extractor.
        outside: modules within ``network`` that are no part of it: they always train.
    """

    network: nn.Module
    layers: Sequence[nn.Module]
    apart: Sequence[nn.Module] = ()
    outside: Sequence[nn.Module] = ()


def parts_of(transformer: Transformer) -> dict[str, list[nn.Parameter]]:
    """Divide the parameters: each belongs to one part.

    Args:
        transformer: what to divide.

    Returns:
        The parameters inside: of ``adapters``, ``attention``, ``cross-attention`` (if there is one),
        ``layernorm`` (without the norms inside adapters and of modules that stand apart) and
        ``others``.
    """
    apart = {module for root in transformer.apart for module in root.modules()}
    modules = [module for module in transformer.network.modules() if module not in apart]
    layers = transformer.layers
    found: dict[str, list[nn.Module]] = {
        "adapters": [module for module in modules if isinstance(module, Adapter)],
        "attention": [layer.get_submodule("self_attn") for layer in layers],
        "cross-attention": [
            layer.get_submodule("encoder_attn")
            for layer in layers
            if hasattr(layer, "encoder_attn")
        ],
        # Every layer norm has this attribute: apex's, which fairseq prefers, is not torch's.
        "layernorm": [module for module in modules if hasattr(module, "normalized_shape")],
        "others": [transformer.network],
    }
    if not found["cross-attention"]:
        del found["cross-attention"]
    seen = _outside(transformer)
    parts: dict[str, list[nn.Parameter]] = {}
    for name, members in found.items():
        # A dict keeps their order.
        parameters = dict.fromkeys(p for member in members for p in member.parameters())
        parts[name] = [parameter for parameter in parameters if parameter not in seen]
        seen.update(parts[name])
    return parts


def train_only(transformer: Transformer, names: str, option: str, adapter_option: str) -> None:
    """Freeze all but the named parts. What was frozen already stays so.

    Args:
        transformer: what to train.
        names: ``all``, ``none``, or a comma-separated list of names of ``parts_of`` and ``top-N``, the
            last N layers with all that is in them.
        option: where ``names`` comes from, for error messages.
        adapter_option: the option that adds adapters, for error messages.

    Raises:
        ValueError: another name, one given twice, ``all`` or ``none`` beside others, a part that does
            not exist.
    """
    parts = parts_of(transformer)
    trained = _outside(transformer)
    for name in _split(names, option, [part for part in parts if part != "others"], transformer):
        if name == "all":
            return
        if name.startswith("top-"):
            for layer in transformer.layers[-int(name[4:]) :]:
                trained.update(layer.parameters())
        elif name != "none":
            if not parts[name]:
                raise ValueError(f"{option} {name}: there are none; set {adapter_option}")
            trained.update(parts[name])
    for parameter in transformer.network.parameters():
        if parameter not in trained:
            parameter.requires_grad_(False)


def _outside(transformer: Transformer) -> set[nn.Parameter]:
    return {parameter for module in transformer.outside for parameter in module.parameters()}


def _split(names: str, option: str, parts: list[str], transformer: Transformer) -> list[str]:
    """Split a list of parts and check it."""
    chosen = [name.strip() for name in names.split(",")]
    tops = [f"top-{n + 1}" for n in range(len(transformer.layers))]
    wrong = [name for name in chosen if name not in {"all", "none", *parts, *tops}]
    alone = len(chosen) > 1 and bool({"all", "none"} & {*chosen})
    twice = len({*chosen}) < len(chosen) or len({*chosen} & {*tops}) > 1
    if wrong or alone or twice:
        raise ValueError(
            f"{option}: expected all, none, or some of {', '.join(parts)} and top-N (the last N of "
            f"{len(tops)} layers), each once and with commas between them, found {names!r}"
        )
    return chosen


def training_table(parts: Mapping[str, Iterable[nn.Parameter]]) -> str:
    """Tell how many parameters train, as a table in text.

    Args:
        parts: parameters under the names of their rows; parts without parameters are left out.

    Returns:
        A line for each part and one for their sum.
    """
    rows = []
    for name, parameters in parts.items():
        sizes = [(p.numel(), p.numel() if p.requires_grad else 0) for p in parameters]
        if sizes:
            rows.append((name, sum(n for n, _ in sizes), sum(n for _, n in sizes)))
    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'part':{width}}  {'parameters':>13}  {'trainable':>13}  share"]
    lines += [f"{name:{width}}  {n:13,}  {k:13,}  {k / max(n, 1):5.1%}" for name, n, k in rows]
    return "\n".join(lines)
