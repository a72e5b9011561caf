"""What all datasets of waveforms share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class WaveformDataset(FairseqDataset):
    """What datasets of waveforms share: lengths in samples and batches of all rows.

    Subclasses define ``num_tokens_vec``, the lengths of many rows in 16 kHz samples.
    """

    def num_tokens(self, index: int) -> int:
        """Length of a row in 16 kHz samples."""
        return int(self.num_tokens_vec(np.array([index]))[0])

    def filter_indices_by_size(
        self, indices: NDArray[np.int64], max_sizes: Any
    ) -> tuple[NDArray[np.int64], list[int]]:
        """Part rows into those within the limits and the others.

        Args:
            indices: row numbers.
            max_sizes: most samples, or (most samples, most target tokens); None for no limit.
        """
        limits = max_sizes if isinstance(max_sizes, (tuple, list)) else (max_sizes, None)
        keep = np.ones(len(indices), dtype=bool)
        if limits[0] is not None:
            keep &= self.num_tokens_vec(indices) <= limits[0]
        if len(limits) > 1 and limits[1] is not None:
            keep &= ~self._has_long_target(indices, limits[1])
        return indices[keep], indices[~keep].tolist()

    def batch_by_size(
        self,
        indices: NDArray[np.int64],
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[Any]:
        """Cut ordered rows into batches, all of them.

        Some versions of fairseq drop a last batch whose size is not a multiple of
        ``required_batch_size_multiple`` (8 unless set), which would leave test utterances without a
        translation: it is put back.
        """
        if len(indices) == 0:
            return []
        batches: list[Any] = list(
            super().batch_by_size(indices, max_tokens, max_sentences, required_batch_size_multiple)
        )
        dropped = indices[sum(map(len, batches)) :]
        return [*batches, dropped] if len(dropped) else batches

    def _has_long_target(self, indices: NDArray[np.int64], limit: int) -> NDArray[np.bool_]:
        """Which rows have more target tokens than a limit."""
        return np.zeros(len(indices), dtype=bool)


def collate_sources(indices: Sequence[int], sources: Sequence[Tensor]) -> dict[str, Any]:
    """Part of a batch that does not depend on texts; ``ntokens`` counts samples."""
    lengths = torch.tensor([len(source) for source in sources])
    return {
        "id": torch.tensor(indices),
        "nsentences": len(sources),
        "ntokens": int(lengths.sum()),
        "net_input": {
            "src_tokens": pad_sequence(list(sources), batch_first=True),
            "src_lengths": lengths,
        },
    }
