"""The vocabulary of a text model with numbers of its own for the special symbols."""

from __future__ import annotations

import json
from pathlib import Path

from fairseq.data import Dictionary


class TextModelDictionary(Dictionary):  # type: ignore[misc]
    """A fairseq dictionary whose indices are those of the model, special symbols included.

    Models without a symbol for the beginning use another one's index for it.

    Args:
        symbols: all of them.
        bos: index of what the decoder begins with.
        pad: index of the padding.
        eos: index of the end of a sentence.
        unk: index of the unknown symbol.

    Raises:
        ValueError: a symbol is there twice, or an index has no symbol.
    """

    def __init__(self, symbols: list[str], bos: int, pad: int, eos: int, unk: int) -> None:
        for index in (bos, pad, eos, unk):
            if not 0 <= index < len(symbols):
                raise ValueError(f"expected indices of {len(symbols)} symbols, found {index}")
        super().__init__(bos=symbols[bos], pad=symbols[pad], eos=symbols[eos], unk=symbols[unk])
        self.symbols = list(symbols)
        self.indices = {symbol: index for index, symbol in enumerate(symbols)}
        self.count = [1] * len(symbols)
        if len(self.indices) != len(symbols):
            raise ValueError("expected every symbol once, found one twice")
        self.bos_index, self.pad_index, self.eos_index, self.unk_index = bos, pad, eos, unk
        self.nspecial = 0

    @classmethod
    def read(cls, path: Path) -> TextModelDictionary:
        """Read ``dict.json`` as ``data_prep.build_vocab --text-model`` writes it.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: expected a dictionary written by `python -m data_prep.build_vocab "
                f"--text-model`, found something else ({error})"
            ) from error
