"""Imports point one way, so that every part can be read and tested without those above it."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "fairseq_samu"

#: What each folder may import of the package, beside its own files where it says so.
ALLOWED = {
    "modules": {"modules"},
    "data": {"data"},
    "pretrained": {"pretrained", "compat"},
    "models": {"models", "modules", "pretrained", "compat"},
    "criterions": {"criterions"},
    "optim": {"optim", "compat"},
    "tasks": {
        "tasks",
        "data",
        "generator",
        "scoring",
        "error_rates",
        "pair_metrics",
        "retrieval",
        "optim",
        "compat",
    },
}
#: What of fairseq they may import; None = anything.
FAIRSEQ = {"modules": (), "data": ("fairseq.data",), "data_prep": ()}


def imported(path: Path):
    """Full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module in ("fairseq_samu", "fairseq") else [node.module]


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_folders_import_only_what_lies_below_them(folder):
    files = [path for path in sorted((PACKAGE / folder).glob("*.py")) if path.name != "__init__.py"]
    assert files
    for path in files:
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "fairseq_samu":
                assert parts[1] in ALLOWED[folder], f"{path} imports {name}"
            if parts[0] == "fairseq" and folder in FAIRSEQ:
                assert name.startswith(FAIRSEQ[folder] or "-"), f"{path} imports {name}"


def test_registered_components_do_not_import_each_other():
    """A model, task or criterion is a leaf: what two of them share lies in a folder below."""
    for folder in ("models", "tasks", "criterions"):
        registered = [
            path.stem
            for path in (PACKAGE / folder).glob("*.py")
            if f"@register_{folder[:-1]}(" in path.read_text(encoding="utf-8")
        ]
        assert registered
        for stem in registered:
            for name in imported(PACKAGE / folder / f"{stem}.py"):
                others = [f"fairseq_samu.{folder}.{other}" for other in registered if other != stem]
                assert name not in others, f"{stem} imports {name}"


def test_data_preparation_needs_no_fairseq():
    for path in (REPOSITORY / "data_prep").glob("*.py"):
        for name in imported(path):
            assert name.split(".")[0] not in ("fairseq", "fairseq_samu"), f"{path}: {name}"


def test_examples_do_not_shadow_the_examples_of_fairseq():
    assert not list((REPOSITORY / "examples").rglob("__init__.py"))
