"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


class ReplacedFile:
    """A file written under a hidden name in the same folder, which takes its real name at the end.

    The hidden name is always the same, so that the next run overwrites what a killed one left.

    Args:
        path: the file to write; its folder is created.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Removes what an interrupted run left."""
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.tmp")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary.unlink(missing_ok=True)

    def commit(self) -> None:
        """Puts what was written in the place of `path`."""
        os.replace(self.temporary, self.path)

    def discard(self) -> None:
        """Removes what was not committed; `path` stays as it is."""
        self.temporary.unlink(missing_ok=True)
