"""Tests of the extractor's layers as text."""

import builtins
from pathlib import Path

import pytest

from fairseq_samu.pretrained.conv_layers import parse_conv_layers


@pytest.mark.parametrize(
    "text",
    [
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2",
        " 2 * [(8, 3, 2), (4, 2, 1)] ",
        "[[16, 10, 5], (16, 3, 2)]",
        "([(1, 1, 1)] + [(2, 2, 2)]) * 3",
    ],
)
def test_reads_what_python_would(text: str) -> None:
    assert parse_conv_layers(text) == [tuple(layer) for layer in eval(text.strip())]


def test_its_own_text_form_reads_the_same() -> None:
    layers = parse_conv_layers("[(512, 10, 5)] + [(512, 3, 2)] * 4")
    assert parse_conv_layers(str(layers)) == layers


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "512",
        "[(512, 10)]",
        "[(512, 10, 5, 1)]",
        "[(512, 10, 0)]",
        "[(512, 10, -5)]",
        "[(True, 10, 5)]",
        "[(512.0, 10, 5)]",
        "[('512', 10, 5)]",
        "[(512, 10, 5)] - [(1, 1, 1)]",
        "[(512, 10, 5)] * 0",
        "[(512, 10, 5)] * 65",
        "[(512, 10, 5)] * 99999999999",
        "[(9**9**9, 10, 5)]",
        "[(10**9, 10, 5)]",
        "[(100000000, 10, 5)]",
        "[(x, 10, 5) for x in (1, 2)]",
        "[(512, 10, 5)]; import os",
        "[" * 500,
        "(" * 3000 + "1" + ")" * 3000 + " " * 3000,
        "[(512, 10, 5)]" + "+[(512, 10, 5)]" * 100,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a list of .dim, kernel, stride."):
        parse_conv_layers(text)


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "eval", lambda *_: pytest.fail("eval was called"))
    victim = tmp_path / "victim"
    attack = f"__import__('pathlib').Path({str(victim)!r}).touch() or [(512, 10, 5)]"
    with pytest.raises(ValueError, match="__import__"):
        parse_conv_layers(attack)
    assert not victim.exists()
