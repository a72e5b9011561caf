"""The text form of a convolutional extractor's layers, read without running it as code."""

from __future__ import annotations

import ast

ConvLayers = list[tuple[int, int, int]]

# Far above any extractor in use; they keep a hostile text from filling the memory.
MAX_TEXT = 4096
MAX_LAYERS = 64
MAX_NUMBER = 65_536


def parse_conv_layers(text: str) -> ConvLayers:
    """Read layers such as ``[(512, 10, 5)] + [(512, 3, 2)] * 4``.

    fairseq hands this text to ``eval``, also when it comes from a downloaded checkpoint. Here only
    lists of tuples of three positive numbers, ``+`` and ``*`` are understood.

    Args:
        text: (dim, kernel, stride) of every layer as a Python list.

    Returns:
        The layers, in order.

    Raises:
        ValueError: the text is anything else.
    """
    try:
        if len(text) > MAX_TEXT:
            raise ValueError("too long")
        layers = _layers(ast.parse(text.strip(), mode="eval").body)
        if not layers:
            raise ValueError("no layers")
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        shown = text if len(text) <= 200 else text[:200] + "…"
        raise ValueError(
            "convolutional layers: expected a list of (dim, kernel, stride) such as "
            f"'[(512, 10, 5)] + [(512, 3, 2)] * 4', found {shown!r} ({error})"
        ) from error
    return layers


def _layers(node: ast.expr) -> ConvLayers:
    if isinstance(node, ast.List):
        layers = [_layer(element) for element in node.elts]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        layers = _layers(node.left) + _layers(node.right)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = node.left, node.right
        if isinstance(left, ast.Constant):
            left, right = right, left
        times = _number(right)
        layers = _layers(left)
        if times * len(layers) > MAX_LAYERS:
            raise ValueError(f"more than {MAX_LAYERS} layers")
        layers = layers * times
    else:
        raise ValueError(f"a {type(node).__name__} is not a list of layers")
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"more than {MAX_LAYERS} layers")
    return layers


def _layer(node: ast.expr) -> tuple[int, int, int]:
    if not isinstance(node, (ast.Tuple, ast.List)) or len(node.elts) != 3:
        raise ValueError("a layer is (dim, kernel, stride)")
    dim, kernel, stride = (_number(element) for element in node.elts)
    return dim, kernel, stride


def _number(node: ast.expr) -> int:
    # bool is an int, and True a legal constant
    if not isinstance(node, ast.Constant) or type(node.value) is not int:
        raise ValueError("expected a whole number")
    if not 1 <= node.value <= MAX_NUMBER:
        raise ValueError(f"{node.value} is not between 1 and {MAX_NUMBER}")
    return node.value
