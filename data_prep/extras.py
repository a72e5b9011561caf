"""Packages that only some commands need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Wraps imports: if one fails, the error says which extra of this project brings the package.

    Args:
        extra: its name in `pip install 'fairseq-samu[NAME]'`.
        purpose: what the packages are needed for.

    Raises:
        ModuleNotFoundError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {error.name}, which comes with the extra `{extra}`: "
            f"pip install 'fairseq-samu[{extra}]'",
            name=error.name,
        ) from error
