"""Tests of the padding mask."""

import torch

from fairseq_samu.modules.padding import padding_mask


def test_marks_what_lies_behind_the_end() -> None:
    mask = padding_mask(torch.tensor([3, 1, 4]), 4)
    assert mask.int().tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]


def test_lengths_beyond_the_size_have_no_padding() -> None:
    assert not padding_mask(torch.tensor([5]), 3).any()
