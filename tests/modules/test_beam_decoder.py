"""Decoding token by token beside the decoder's forward pass over whole targets."""

from typing import Any

import pytest
import torch
from fairseq.models.transformer import TransformerDecoderBase
from torch import Tensor
from torch.nn import functional

from fairseq_samu.modules.beam_decoder import BeamDecoder, SearchMemory
from fairseq_samu.modules.few_rows_linear import FewRowsLinear
from helpers.tiny_models import TRANSLATOR, build, randomize

pytestmark = pytest.mark.skipif(
    not hasattr(functional, "scaled_dot_product_attention"), reason="needs torch 2.0"
)
KINDS: dict[str, dict[str, Any]] = {
    "pre-norm": {},
    "post-norm": {"decoder_post_norm": True},
    "mbart": {
        "decoder_learned_pos": True,
        "decoder_activation_fn": "gelu",
        "decoder_adapter_dim": 4,
    },
    "separate": {"decoder_separate_output_embed": True, "decoder_no_scale_embedding": True},
}


def make(**options: Any) -> Any:
    decoder = randomize(build(TRANSLATOR, **options)[0]).decoder.eval()
    assert isinstance(decoder, TransformerDecoderBase)
    return decoder


def make_states(sentences: int) -> tuple[Tensor, Tensor]:
    states = torch.randn(6, sentences, 12)
    padding_mask = torch.zeros(sentences, 6, dtype=torch.bool)
    padding_mask[1, 4:] = True
    return states, padding_mask


def whole(decoder: Any, tokens: Tensor, states: Tensor, padding_mask: Tensor) -> Tensor:
    """Logits of every token, without any state."""
    logits: Tensor = decoder(
        tokens, encoder_out={"encoder_out": [states], "encoder_padding_mask": [padding_mask]}
    )[0]
    return logits


@pytest.mark.parametrize("kind", list(KINDS))
@torch.no_grad()
def test_token_by_token_is_as_all_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairseq_samu.modules.beam_decoder.FIRST_LENGTH", 2)  # it has to grow
    decoder = make(**KINDS[kind])
    states, padding_mask = make_states(3)
    tokens = torch.randint(4, 7, (3, 9))
    search = BeamDecoder(decoder, states, padding_mask, FewRowsLinear(), SearchMemory())
    logits = [search.logits(search.advance(tokens[:, i : i + 1], None)) for i in range(9)]
    expected = whole(decoder, tokens, states, padding_mask)
    assert expected.std() > 0.1
    assert torch.allclose(torch.cat(logits, 1), expected, atol=1e-5)


@torch.no_grad()
def test_hypotheses_go_on_from_those_they_continue() -> None:
    """One hypothesis a sentence, then two, which change places, and then fewer sentences."""
    decoder = make()
    states, padding_mask = make_states(3)
    search = BeamDecoder(decoder, states, padding_mask, FewRowsLinear(), SearchMemory())
    so_far = torch.randint(4, 7, (3, 1, 2))
    for i in range(2):
        search.advance(so_far[..., i], None)

    def advance(kept: Tensor, beams: Tensor) -> None:
        nonlocal so_far
        width = so_far.size(1)
        rows = (kept.unsqueeze(1) * width + beams).flatten()
        newest = torch.randint(4, 7, (len(kept), 2))
        so_far = torch.cat(
            [so_far.flatten(0, 1)[rows].view(len(kept), 2, -1), newest[..., None]], 2
        )
        found = search.logits(search.advance(newest, rows))
        tokens = so_far.flatten(0, 1)
        expected = whole(
            decoder, tokens, states.repeat_interleave(2, 1), padding_mask.repeat_interleave(2, 0)
        )[:, -1]
        assert torch.allclose(found.flatten(0, 1), expected, atol=1e-5)

    everything = torch.arange(3)
    advance(everything, torch.zeros(3, 2, dtype=torch.long))
    advance(everything, torch.tensor([[1, 0], [0, 0], [1, 1]]))
    kept = torch.tensor([0, 2])
    search.keep(kept)
    states, padding_mask = states[:, kept], padding_mask[kept]
    advance(kept, torch.tensor([[0, 1], [1, 0]]))
    advance(torch.arange(2), torch.tensor([[1, 0], [1, 0]]))


@torch.no_grad()
def test_searches_leave_their_memory_to_the_next() -> None:
    """Whatever their sizes: what lies there from the last one counts for nothing."""
    decoder, linear, memory = make(), FewRowsLinear(), SearchMemory()
    for sentences, length in ((3, 4), (2, 3), (4, 2), (4, 40)):
        states, padding_mask = make_states(sentences)
        tokens = torch.randint(4, 7, (sentences, length))
        search = BeamDecoder(decoder, states, padding_mask, linear, memory)
        found = [search.logits(search.advance(tokens[:, i : i + 1], None)) for i in range(length)]
        expected = whole(decoder, tokens, states, padding_mask)
        assert torch.allclose(torch.cat(found, 1), expected, atol=1e-5)
        search.end()
    left = memory.take(states, 2, 4, 40)
    memory.give(left)
    assert memory.take(states, 2, 4, 40) is left  # used again
    assert memory.take(states, 2, 5, 40) is not left  # too small
    assert memory.take(states.double(), 2, 4, 40)._all.dtype == torch.float64
