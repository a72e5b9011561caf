"""Cross-modal retrieval: does an utterance find its text among all others, and the text its utterance?"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed
from fairseq.logging import metrics
from numpy.typing import NDArray
from torch import Tensor

#: Similarities held at a time: 64 MB.
BLOCK = 1 << 24


def first_right_ranks(
    queries: Tensor,
    candidates: Tensor,
    query_groups: Tensor,
    candidate_groups: Tensor,
    itself: Tensor | None = None,
) -> Tensor:
    """Rank of the best candidate of its own group for every query, from 1.

    Ties count against the query, except ties among the candidates of its group.

    Args:
        queries: vectors of length one, shape (Q, E).
        candidates: vectors of length one, shape (C, E).
        query_groups: group of every query, shape (Q,); each has a candidate.
        candidate_groups: group of every candidate, shape (C,).
        itself: position of every query among the candidates, where it is not to be found, shape (Q,).

    Returns:
        Shape (Q,), int64.
    """
    ranks = []
    for rows in torch.arange(len(queries)).split(max(1, BLOCK // len(candidates))):
        similarity = queries[rows] @ candidates.T
        right = query_groups[rows, None] == candidate_groups[None, :]
        if itself is not None:
            own = itself[rows, None]
            similarity.scatter_(1, own, float("-inf"))
            right.scatter_(1, own, False)
        best = similarity.masked_fill(~right, float("-inf")).amax(dim=1, keepdim=True)
        ranks.append(((similarity >= best) & ~right).sum(dim=1) + 1)
    return torch.cat(ranks)


def rank_scores(ranks: Tensor) -> dict[str, float]:
    """``r1`` and ``r5`` (%: how many ranks are at most 1 and 5) and ``mrr``, the mean of 1 / rank."""
    return {
        "r1": 100.0 * float((ranks <= 1).float().mean()),
        "r5": 100.0 * float((ranks <= 5).float().mean()),
        "mrr": float((1.0 / ranks.float()).mean()),
    }


def retrieval_scores(
    speech: Tensor, text: Tensor, groups: NDArray[np.int64]
) -> dict[str, dict[str, float]]:
    """R@1, R@5 and mean reciprocal rank, speech → text and text → speech.

    Utterances of one text are right answers for one another's text.

    Args:
        speech: vectors of the utterances, of length one, shape (N, E).
        text: vectors of their texts, of length one, shape (N, E).
        groups: number of each utterance's text; equal texts have equal numbers, shape (N,).

    Returns:
        ``speech_to_text`` and ``text_to_speech``, each with ``r1`` and ``r5`` (%) and ``mrr`` (0 to 1).
    """
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    texts, of_speech = text[torch.from_numpy(first)], torch.from_numpy(number.reshape(-1))
    of_text = torch.arange(len(first))
    return {
        "speech_to_text": rank_scores(first_right_ranks(speech, texts, of_speech, of_text)),
        "text_to_speech": rank_scores(first_right_ranks(texts, speech, of_text, of_speech)),
    }


class EmbeddingCollector:
    """Keeps the utterance vectors of a validation split until all are there, over all workers."""

    def __init__(self) -> None:
        self._vectors: dict[int, Tensor] = {}

    def add(self, rows: Tensor, vectors: Tensor) -> None:
        """Take in the vectors (B, E) of some rows (B,)."""
        for row, vector in zip(rows.tolist(), vectors.float().cpu()):
            self._vectors[row] = vector

    def gather(self) -> Mapping[int, Tensor]:
        """Vectors of all rows on every worker; has to be called by all of them."""
        if not torch.distributed.is_initialized():
            return self._vectors
        parts: list[dict[int, Tensor]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self._vectors)
        return {row: vector for part in parts for row, vector in part.items()}


def log_retrieval(
    collector: EmbeddingCollector,
    teacher: NDArray[np.float16],
    pair_ids: NDArray[np.int16],
    names: Mapping[int, str],
) -> None:
    """Log retrieval within every language pair and its means over pairs and both directions.

    The values are worked out when fairseq reads them at the end of the validation, on every worker:
    ``r1``, ``r5`` and ``mrr``; ``r1_speech_to_text`` and so on; and, where there are several pairs,
    ``r1_src-tgt`` and so on.

    Args:
        collector: vectors of the utterances seen.
        teacher: vectors of all rows of the split, shape (N, E).
        pair_ids: number of every row's language pair, shape (N,).
        names: ``src-tgt`` of the pairs of which rows are used.
    """

    @cache
    def scores() -> dict[str, dict[str, dict[str, float]]]:
        vectors = collector.gather()
        rows = np.array(sorted(vectors))
        found = {}
        for pair in np.unique(pair_ids[rows]).tolist():
            mine = rows[pair_ids[rows] == pair]
            text = np.asarray(teacher[mine])
            groups = np.unique(text, axis=0, return_inverse=True)[1].reshape(-1)
            speech = torch.stack([vectors[row] for row in mine.tolist()])
            found[names[pair]] = retrieval_scores(
                speech, torch.from_numpy(text.astype(np.float32)), groups
            )
        return found

    def mean(metric: str, pair: str | None, way: str | None) -> Callable[[Any], float]:
        def value(_: Any) -> float:
            found = [scores()[pair]] if pair else list(scores().values())
            ways = [way] if way else ["speech_to_text", "text_to_speech"]
            return round(float(np.mean([each[one][metric] for each in found for one in ways])), 4)

        return value

    for metric in ("r1", "r5", "mrr"):
        metrics.log_derived(metric, mean(metric, None, None))
        for way in ("speech_to_text", "text_to_speech"):
            metrics.log_derived(f"{metric}_{way}", mean(metric, None, way))
        if len(names) > 1:
            for pair in sorted(names.values()):
                metrics.log_derived(f"{metric}_{pair}", mean(metric, pair, None))
