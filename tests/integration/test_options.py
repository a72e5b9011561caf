"""Every option can be given on the command line and in Hydra, and no two options collide."""

import argparse
from collections import Counter

import pytest
from fairseq import options
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import gen_parser_from_dataclass
from hydra.core.config_store import ConfigStore

import fairseq_samu  # noqa: F401  (registers the components)
from fairseq_samu import options as listed

COMPONENTS = {
    (option.replace("--", "").replace("arch", "model"), name): config_class
    for name, (option, config_class) in listed.COMPONENTS.items()
}


def own_fields(config_class):
    """Fields that belong to the component, not interpolated from another part of the configuration."""
    for name, field in config_class.__dataclass_fields__.items():
        interpolated = isinstance(field.default, str) and field.default.startswith("${")
        if not name.startswith("_") and not interpolated:
            yield name, field


@pytest.fixture(scope="module")
def train_parser() -> argparse.ArgumentParser:
    """fairseq-train's parser with the options of all our components."""
    parser = options.get_training_parser()
    for config_class in COMPONENTS.values():
        gen_parser_from_dataclass(parser, config_class())
    return parser


@pytest.mark.parametrize("key", COMPONENTS, ids=lambda key: key[1])
def test_every_option_is_on_the_command_line_and_in_hydra(train_parser, key):
    known = {option for action in train_parser._actions for option in action.option_strings}
    positional = {action.dest for action in train_parser._actions if not action.option_strings}
    node = ConfigStore.instance().load(f"{key[0]}/{key[1]}.yaml").node
    for name, _ in own_fields(COMPONENTS[key]):
        assert f"--{name.replace('_', '-')}" in known or name in positional, name
        assert name in list(node.keys()), name  # "in node" is False for mandatory values


@pytest.mark.parametrize("key", COMPONENTS, ids=lambda key: key[1])
def test_every_option_has_help_and_no_boolean_defaults_to_true(key):
    for name, field in own_fields(COMPONENTS[key]):
        assert field.metadata.get("help"), f"{name} has no help"
        assert field.default is not True, f"{name} could not be turned off"


def test_no_two_options_collide():
    """fairseq drops the second of two options of one name without a word."""
    for model in ("xlsr_mbart_st", "samu_xlsr"):
        for criterion in ("label_smoothed_nll", "mse_to_labse"):
            used = [("task", "speech_to_text_samu"), ("model", model), ("criterion", criterion)]
            used.append(("optimizer", "grouped_adam"))
            assert collisions([COMPONENTS[key] for key in used]) == []


def collisions(classes):
    """Options that components used together share with one another or with fairseq."""
    names = Counter(name for config_class in classes for name, _ in own_fields(config_class))
    for part in FairseqConfig.__dataclass_fields__.values():
        config_class = getattr(part.type, "__dataclass_fields__", None)
        if config_class is not None:
            names.update(name for name in config_class if not name.startswith("_"))
    own = {name for config_class in classes for name, _ in own_fields(config_class)}
    return sorted(name for name in own if names[name] > 1)


@pytest.mark.parametrize("key", COMPONENTS, ids=lambda key: key[1])
def test_the_list_of_options_is_complete(key, capsys):
    listed.main([key[1]])
    printed = capsys.readouterr().out
    for name, field in own_fields(COMPONENTS[key]):
        assert f"--{name.replace('_', '-')}" in printed or name == "data"
        assert str(field.metadata["help"])[:15] in " ".join(printed.split())
