"""Tests of the random spans."""

import numpy as np
import pytest
import torch

from fairseq_samu.modules.span_mask import span_mask


def runs(row: torch.Tensor) -> list[int]:
    """Lengths of the runs of True."""
    lengths, current = [], 0
    for value in [*row.tolist(), False]:
        if value:
            current += 1
        elif current:
            lengths.append(current)
            current = 0
    return lengths


def test_one_span_has_the_given_length() -> None:
    mask = span_mask(torch.full((200,), 100), 100, prob=0.1, span=10)  # exactly one span, or two
    for row in mask:
        assert sum(runs(row)) >= 10 and min(runs(row)) >= 10 and sum(runs(row)) <= 20


def test_covers_the_share_expected_of_random_spans() -> None:
    torch.manual_seed(0)
    size, span = 500, 10
    mask = span_mask(torch.full((400,), size), size, prob=0.65, span=span)
    # A frame stays bare if none of the 32.5 starts, out of 491, lies within the 10 that would
    # cover it.
    expected = 1 - (1 - span / (size - span + 1)) ** (0.65 * size / span)
    assert mask.float().mean().item() == pytest.approx(expected, abs=0.02)


def test_every_valid_position_is_reached_and_no_padding() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([30, 17])
    seen = torch.zeros(2, 30, dtype=torch.bool)
    for _ in range(300):
        seen |= span_mask(lengths, 30, prob=0.4, span=5)
    assert seen.sum(1).tolist() == [30, 17]
    assert seen[1, :17].all()


def test_never_masks_a_whole_row() -> None:
    lengths = torch.arange(1, 60)
    for _ in range(50):
        mask = span_mask(lengths, 60, prob=0.99, span=10)
        assert (mask.sum(1) < lengths).all()
        assert not mask[:10].any()  # no longer than one span


def test_probability_zero_masks_nothing() -> None:
    assert not span_mask(torch.tensor([50, 20]), 50, prob=0.0, span=10).any()


def test_span_longer_than_the_row() -> None:
    assert not span_mask(torch.tensor([5, 3]), 5, prob=0.9, span=64).any()


def test_follows_torchs_seed_alone() -> None:
    lengths = torch.tensor([80, 60])
    torch.manual_seed(3)
    np.random.seed(1)
    first = span_mask(lengths, 80, 0.5, 10)
    torch.manual_seed(3)
    np.random.seed(2)
    assert torch.equal(first, span_mask(lengths, 80, 0.5, 10))
    assert not torch.equal(first, span_mask(lengths, 80, 0.5, 10))
