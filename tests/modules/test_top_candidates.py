"""The best continuations: by hand, and against torch's own sums and selection over everything."""

import pytest
import torch
from torch import Tensor

from fairseq_samu.modules import top_candidates as module
from fairseq_samu.modules.top_candidates import log_normalizers, top_candidates


def test_candidates_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4 behind a hypothesis of 1/4 and 1/8, 1/8, 3/4 behind one of 1/2."""
    logits = torch.tensor([[[2.0, 1.0, 1.0], [1.0, 1.0, 6.0]]]).log()
    scores = torch.tensor([[1 / 4, 1 / 2]]).log()
    normalizers = log_normalizers(logits)
    assert torch.allclose(normalizers.exp(), torch.tensor([[4.0, 8.0]]))
    found = top_candidates(logits, normalizers, scores, 2)
    assert torch.allclose(found.scores.exp(), torch.tensor([[3 / 8, 1 / 8]]))
    assert found.tokens.tolist() == [[2, 0]]
    assert found.beams.tolist() == [[1, 0]]


@pytest.mark.parametrize("symbols", [3, 64, 129, 1000, 64 * 40])
@pytest.mark.parametrize("width", [1, 5])
def test_candidates_are_the_largest_of_all(symbols: int, width: int) -> None:
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(4, width, symbols, generator=generator)
        logits[0, 0] = -torch.inf  # a hypothesis that nothing follows
        logits[1, :, 1] = 9.0  # best for all
        scores = torch.randn(4, width, generator=generator)
        normalizers = torch.randn(4, width, generator=generator)
        k = min(10, width * symbols)
        found = top_candidates(logits, normalizers, scores, k)
        every = (logits - normalizers[..., None]) + scores[..., None]
        assert torch.equal(found.scores, every.flatten(1).topk(k).values)
        sentences = torch.arange(4).unsqueeze(1)
        assert torch.equal(every[sentences, found.beams, found.tokens], found.scores)
        places = found.beams * symbols + found.tokens
        assert all(len(set(row)) == k for row in places.tolist())


def test_equal_scores_are_each_taken_once() -> None:
    logits = torch.zeros(1, 2, 200)
    found = top_candidates(logits, torch.zeros(1, 2), torch.zeros(1, 2), 10)
    assert found.scores.tolist() == [[0.0] * 10]
    assert len(set(zip(found.beams[0].tolist(), found.tokens[0].tolist()))) == 10


def large(rows: int, symbols: int) -> Tensor:
    logits = 5 * torch.randn(2, rows, symbols)
    logits[0, 0] += 1000  # exponentials of it alone would be infinite
    logits[1, 0, 100:300] = -torch.inf  # whole slices that cannot be
    return logits


def test_normalizers_of_many_symbols_are_summed_up_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = large(3, 1001)
    expected = logits.double().logsumexp(-1).float()
    assert torch.allclose(log_normalizers(logits), expected, rtol=0, atol=1e-4)
    monkeypatch.setattr(module, "SLICE", 100)
    assert torch.allclose(log_normalizers(logits), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("slice_", [4, 100])
def test_normalizers_show_numbers_that_are_none(
    monkeypatch: pytest.MonkeyPatch, value: float, slice_: int
) -> None:
    monkeypatch.setattr(module, "SLICE", slice_)
    logits = torch.zeros(2, 1, 10)
    logits[1, 0, 7] = value
    assert log_normalizers(logits).isfinite().flatten().tolist() == [True, False]
