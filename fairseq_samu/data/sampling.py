"""Re-samples language pairs, so that small ones are seen more often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def resampling_ratios(counts: Sequence[int], alpha: float) -> NDArray[np.float64]:
    """How often an utterance of each group is drawn in an epoch.

    r_l = (1 / p_l) · p_l^α / Σ_k p_k^α, where p_l is the share of group l among the utterances. α =
    1 leaves the data as it is, α = 0 makes all groups alike; a sampling temperature T is α = 1 / T.
    An epoch keeps its size: Σ_l counts_l · r_l is the number of utterances.

    Args:
        counts: utterances of each group.
        alpha: exponent α ≥ 0.

    Returns:
        Ratios (groups,).

    Raises:
        ValueError: a group without utterances, or a negative α.

    Source: Khurana et al. 2022, SAMU-XLS-R (arXiv 2205.08180), Eq. 3.
    """
    sizes = np.asarray(counts, dtype=np.float64)
    if sizes.size == 0 or (sizes <= 0).any():
        raise ValueError(f"expected at least one utterance in every group, found {list(counts)}")
    if not 0 <= alpha < np.inf:
        raise ValueError(f"expected alpha ≥ 0, found {alpha}")
    shares = sizes / sizes.sum()
    drawn = (
        shares / shares.max()
    ) ** alpha  # the largest is 1, whatever alpha: no underflow to 0/0
    ratios: NDArray[np.float64] = drawn / drawn.sum() / shares
    return ratios


def resample_rows(
    rows: NDArray[np.int64],
    groups: NDArray[np.integer],
    ratios: NDArray[np.float64],
    seed: int,
    epoch: int,
) -> NDArray[np.int64]:
    """Rows of one epoch: whole copies of every group, and a part of it for its ratio's fraction.

    Args:
        rows: (N,) rows to draw from.
        groups: (N,) group of each row.
        ratios: (groups,) from :func:`resampling_ratios`.
        seed: the run's seed.
        epoch: epochs take different parts.

    Returns:
        Rows, some of them repeated, group by group; the same for the same seed and epoch.
    """
    rng = np.random.default_rng((seed, epoch))
    drawn = []
    for group, ratio in enumerate(ratios):
        members = rows[groups == group]
        copies = int(ratio)
        part = round((ratio - copies) * len(members))
        drawn += [members] * copies + [rng.choice(members, part, replace=False)]
    return np.concatenate(drawn)
