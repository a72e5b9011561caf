"""Retrieval scores by hand and against scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fairseq.logging import metrics

from fairseq_samu import retrieval
from fairseq_samu.retrieval import (
    EmbeddingCollector,
    first_right_ranks,
    log_retrieval,
    retrieval_scores,
)


def test_ranks_by_hand():
    candidates = torch.eye(3)
    queries = torch.tensor([[0.9, 0.3, 0.1], [0.9, 0.3, 0.1], [0.5, 0.5, 0.5]])
    groups = torch.arange(3)
    ranks = first_right_ranks(queries, candidates, groups, groups)
    assert ranks.tolist() == [1, 2, 3], "ties count against"


def test_an_utterance_is_not_found_itself(monkeypatch):
    vectors = F.normalize(torch.tensor([[1.0, 0], [0.9, 0.1], [0.5, 0.5], [0, 1.0]]), dim=1)
    groups = torch.tensor([0, 1, 0, 1])
    everything = first_right_ranks(vectors, vectors, groups, groups)
    assert everything.tolist() == [1, 1, 1, 1], "each finds itself"
    others = first_right_ranks(vectors, vectors, groups, groups, itself=torch.arange(4))
    # By angle: 0 → 1 before 2; 1 → 0, 2 before 3; 2 → 1 before 0, and 3 exactly as far as 0.
    assert others[[0, 1, 3]].tolist() == [2, 3, 2]
    assert others[2] == 3
    monkeypatch.setattr(retrieval, "BLOCK", 5)
    blocks = first_right_ranks(vectors, vectors, groups, groups, itself=torch.arange(4))
    assert blocks.tolist() == others.tolist()


def test_scores_equal_scikit_learn():
    sklearn_neighbors = pytest.importorskip("sklearn.neighbors")
    torch.manual_seed(0)
    text = F.normalize(torch.randn(60, 16), dim=1)
    speech = F.normalize(text + 0.3 * torch.randn(60, 16), dim=1)
    scores = retrieval_scores(speech, text, np.arange(60))
    for name, queries, candidates in (
        ("speech_to_text", speech, text),
        ("text_to_speech", text, speech),
    ):
        index = sklearn_neighbors.NearestNeighbors(n_neighbors=60, metric="cosine")
        found = index.fit(candidates.numpy()).kneighbors(queries.numpy(), return_distance=False)
        ranks = 1 + (found == np.arange(60)[:, None]).argmax(1)
        assert scores[name]["r1"] == pytest.approx(100 * (ranks == 1).mean())
        assert scores[name]["r5"] == pytest.approx(100 * (ranks <= 5).mean())
        assert scores[name]["mrr"] == pytest.approx((1 / ranks).mean(), abs=1e-6)
        assert 20 < scores[name]["r1"] < 100, "neither trivial nor hopeless"


def test_utterances_of_one_text_are_right_for_one_another():
    text = torch.eye(4)[[0, 0, 1]]
    speech = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 0.8, 0.6, 0]])
    scores = retrieval_scores(speech, text, np.array([7, 7, 9]))
    # The second utterance has 0 to both texts and loses the tie; texts find their utterances.
    assert scores["speech_to_text"]["r1"] == pytest.approx(200 / 3)
    assert scores["text_to_speech"]["r1"] == 100


def test_whole_split_is_logged_per_pair_however_it_was_batched():
    torch.manual_seed(0)
    text = F.normalize(torch.randn(20, 8), dim=1).numpy().astype(np.float16)
    speech = F.normalize(
        torch.from_numpy(text.astype(np.float32)) + 0.4 * torch.randn(20, 8), dim=1
    )
    pair_ids = np.array([0, 1] * 10, dtype=np.int16)
    collector = EmbeddingCollector()
    with metrics.aggregate(new_root=True) as found:
        for rows in torch.randperm(20).split(3):
            collector.add(rows, speech[rows])
            log_retrieval(collector, text, pair_ids, {0: "es-en", 1: "fr-en"})
    values = found.get_smoothed_values()
    expected = [
        retrieval_scores(
            speech[pair::2], torch.from_numpy(text[pair::2].astype(np.float32)), np.arange(10)
        )
        for pair in (0, 1)
    ]
    ways = ("speech_to_text", "text_to_speech")
    for pair, name in enumerate(("es-en", "fr-en")):
        mean = np.mean([expected[pair][way]["r1"] for way in ways])
        assert values[f"r1_{name}"] == pytest.approx(mean, abs=1e-3)
    for way in ways:
        mean = np.mean([scores[way]["mrr"] for scores in expected])
        assert values[f"mrr_{way}"] == pytest.approx(mean, abs=1e-3)
    mean = np.mean([scores[way]["r1"] for scores in expected for way in ways])
    assert values["r1"] == pytest.approx(mean, abs=1e-3)


def test_pairs_of_which_no_row_is_used_are_not_logged():
    text = torch.eye(4).numpy().astype(np.float16)
    collector = EmbeddingCollector()
    with metrics.aggregate(new_root=True) as found:
        collector.add(torch.tensor([0, 3]), torch.eye(4)[[0, 3]])
        log_retrieval(collector, text, np.array([0, 1, 1, 2]), {0: "es-en", 2: "it-en"})
    values = found.get_smoothed_values()
    assert values["r1"] == values["r1_es-en"] == values["r1_it-en"] == 100
    assert not [name for name in values if "fr" in name]
