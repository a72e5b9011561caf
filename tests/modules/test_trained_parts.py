"""Tests of the choice of what trains."""

import pytest
from torch import nn

from fairseq_samu.modules.adapter import Adapter
from fairseq_samu.modules.trained_parts import Transformer, parts_of, train_only, training_table


class Layer(nn.Module):
    def __init__(self, adapter: bool, decoder: bool) -> None:
        super().__init__()
        self.self_attn = nn.Linear(2, 2)  # 6 parameters
        if decoder:
            self.encoder_attn = nn.Linear(2, 2)
        self.layer_norm_of_attention = nn.Linear(2, 1)  # 3; no norm, whatever its name
        self.norm = nn.LayerNorm(2)  # 4
        if adapter:
            self.adapter = Adapter(2, 1)  # 4 + 3 + 4


class Network(nn.Module):
    def __init__(self, adapter: bool = False, decoder: bool = False) -> None:
        super().__init__()
        self.extractor = nn.Sequential(nn.Linear(1, 2), nn.LayerNorm(2))  # 4 + 4
        self.layers = nn.ModuleList(Layer(adapter, decoder) for _ in range(3))
        self.norm = nn.LayerNorm(2)
        self.output = nn.Linear(2, 1, bias=False)
        self.tied = self.output

    def transformer(self) -> Transformer:
        return Transformer(self, self.layers, apart=[self.extractor])


def choose(network: Network, names: str) -> set[str]:
    """Names of the parameters that train."""
    train_only(network.transformer(), names, "--train-encoder", "--encoder-adapter-dim")
    return {name for name, p in network.named_parameters() if p.requires_grad}


def both(prefix: str) -> set[str]:
    return {f"{prefix}.weight", f"{prefix}.bias"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("none", set()),
        ("attention", {n for i in range(3) for n in both(f"layers.{i}.self_attn")}),
        ("cross-attention", {n for i in range(3) for n in both(f"layers.{i}.encoder_attn")}),
        ("layernorm", both("norm") | {n for i in range(3) for n in both(f"layers.{i}.norm")}),
        (
            "adapters",
            {n for i in range(3) for m in ("norm", "down", "up") for n in both(f"layers.{i}.adapter.{m}")},
        ),
        (
            "top-1, layernorm",
            {n for n, _ in Network(True, True).named_parameters() if n.startswith("layers.2.")}
            | both("norm") | both("layers.0.norm") | both("layers.1.norm"),
        ),
        ("all", {n for n, _ in Network(True, True).named_parameters()}),
    ],
)  # fmt: skip
def test_exactly_the_named_parts_train(names: str, expected: set[str]) -> None:
    assert choose(Network(adapter=True, decoder=True), names) == expected


def test_parts_divide_the_network() -> None:
    parts = parts_of(Network(adapter=True).transformer())
    sizes = {name: sum(p.numel() for p in parameters) for name, parameters in parts.items()}
    # others: the extractor, a linear layer in each of the layers, the output once though tied
    assert sizes == {"adapters": 33, "attention": 18, "layernorm": 16, "others": 8 + 3 * 3 + 2}


def test_what_was_frozen_stays_frozen() -> None:
    network = Network()
    network.extractor.requires_grad_(False)
    assert not {name for name in choose(network, "all") if name.startswith("extractor")}
    network.layers[2].norm.requires_grad_(False)
    other_layers = {*both("layers.2.self_attn"), *both("layers.2.layer_norm_of_attention")}
    assert choose(network, "top-1") == other_layers


@pytest.mark.parametrize(
    "names",
    ["", "attn", "all,layernorm", "none,adapters", "layernorm,layernorm", "top-1,top-2", "top-0",
     "top-4", "top-", "cross-attention", "others", "attention,"],
)  # fmt: skip
def test_wrong_lists_are_refused_with_the_valid_names(names: str) -> None:
    valid = r"--train-encoder: .*all, none, .*adapters, attention, layernorm and top-N .*3 layers"
    with pytest.raises(ValueError, match=valid) as error:
        choose(Network(adapter=True), names)
    assert repr(names) in str(error.value)


def test_a_part_that_does_not_exist_names_the_option() -> None:
    with pytest.raises(ValueError, match="--train-encoder adapters.*--encoder-adapter-dim"):
        choose(Network(), "adapters")


def test_table() -> None:
    network = Network(adapter=True)
    choose(network, "adapters")
    table = training_table({**parts_of(network.transformer()), "nothing": []})
    assert [line.split() for line in table.splitlines()] == [
        ["part", "parameters", "trainable", "share"],
        ["adapters", "33", "33", "100.0%"],
        ["attention", "18", "0", "0.0%"],
        ["layernorm", "16", "0", "0.0%"],
        ["others", "19", "0", "0.0%"],
        ["total", "86", "33", "38.4%"],
    ]
