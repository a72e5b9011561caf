"""The fast beam search beside fairseq's own, on models with random weights."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoderDecoderModel
from fairseq.models.transformer import Embedding
from fairseq.search import BeamSearch, DiverseBeamSearch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor
from torch.nn import functional

from fairseq_samu import compat
from fairseq_samu.generator import (
    FastSequenceGenerator,
    TaggedSequenceGenerator,
    choose_generator,
)
from fairseq_samu.models.text_decoder import TextDecoder
from fairseq_samu.modules import few_rows_linear
from helpers.given_states import Given

needs_fast_path = pytest.mark.skipif(
    not hasattr(functional, "scaled_dot_product_attention"), reason="needs torch 2.0"
)
WIDTH = 16


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's product, which packs weights, also on processors where it is not faster."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("needs oneDNN's product of torch 2")
    monkeypatch.setattr(few_rows_linear, "onednn_is_faster", lambda: True)


class Slow(TaggedSequenceGenerator):
    """fairseq's own search, where tags are not scored."""

    def _is_plain(self, *_: Any) -> bool:
        return False


class Fast(TaggedSequenceGenerator):
    """The fast search, and nothing else."""

    def _is_plain(self, *given: Any) -> bool:
        assert super()._is_plain(*given)
        return True


class FastScored(FastSequenceGenerator):
    """The fast search, where prefixes are scored."""

    def _is_plain(self, *given: Any) -> bool:
        assert super()._is_plain(*given)
        return True


def make_dictionary(symbols: int) -> Dictionary:
    dictionary = Dictionary()
    for i in range(symbols - len(dictionary)):
        dictionary.add_symbol(f"w{i}")
    return dictionary


def make_model(
    seed: int, symbols: int = 60, learned_pos: bool = False
) -> FairseqEncoderDecoderModel:
    """A decoder that attends to the states it is given, and is sure enough to end now and then."""
    torch.manual_seed(seed)
    cfg = compat.fresh_transformer_config()
    cfg.share_decoder_input_output_embed = True
    cfg.max_target_positions = 64
    cfg.encoder.embed_dim = WIDTH
    cfg.decoder.layers, cfg.decoder.attention_heads, cfg.decoder.ffn_embed_dim = 2, 2, 24
    cfg.decoder.embed_dim = cfg.decoder.input_dim = cfg.decoder.output_dim = WIDTH
    cfg.decoder.learned_pos = learned_pos
    dictionary = make_dictionary(symbols)
    decoder = TextDecoder(cfg, dictionary, Embedding(symbols, WIDTH, dictionary.pad()), 0.0)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if "encoder_attn" in name:
                weight.mul_(2)
        decoder.embed_tokens.weight.mul_(4)
        decoder.embed_tokens.weight[dictionary.eos()] *= 2
    return FairseqEncoderDecoderModel(Given(None), decoder).eval()


def make_batch(seed: int, sentences: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (sentences,), generator=generator)
    lengths[0] = 8
    states = torch.randn(sentences, 8, WIDTH, generator=generator)
    return {"net_input": {"src_tokens": states, "src_lengths": lengths}}


def compare(
    model: FairseqEncoderDecoderModel,
    batch: dict[str, Any],
    prefix: Tensor | None = None,
    classes: tuple[type, type] = (Slow, Fast),
    tolerance: float = 1e-5,
    **options: Any,
) -> list[list[dict[str, Tensor]]]:
    """Check that both find the same; returns that."""
    dictionary = model.decoder.dictionary
    expected, found = (
        made([model], dictionary, **options).generate([model], batch, prefix_tokens=prefix)
        for made in classes
    )
    for their_row, our_row in zip(expected, found):
        assert [h["tokens"].tolist() for h in our_row] == [h["tokens"].tolist() for h in their_row]
        for theirs, ours in zip(their_row, our_row):
            assert float(ours["score"]) == pytest.approx(
                float(theirs["score"]), rel=tolerance, abs=tolerance
            )
            assert torch.allclose(
                ours["positional_scores"], theirs["positional_scores"], tolerance, tolerance
            )
            assert theirs.keys() == ours.keys()
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one beam": {"beam_size": 1},
    "long": {"max_len_b": 25, "min_len": 8},
    "short": {"max_len_b": 3},
    "no length": {"max_len_b": 1, "min_len": 0},
    "by source": {"max_len_a": 0.5, "max_len_b": 2},
    "penalties": {"unk_penalty": -3.0, "len_penalty": 0.3},
    "sums": {"normalize_scores": False, "temperature": 1.7},
    "n-grams": {"no_repeat_ngram_size": 2, "max_len_b": 20},
}


@needs_fast_path
@pytest.mark.parametrize("symbols", [40, 700])
@pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))
def test_hypotheses_are_those_of_fairseq(options: dict[str, Any], symbols: int) -> None:
    given = {"beam_size": 5, "max_len_b": 12, **options}
    lengths = set()
    for seed in range(4):
        model = make_model(seed, symbols, learned_pos=bool(seed % 2))
        tags = torch.arange(5, 9).unsqueeze(1)
        for prefix in (None, tags, tags + torch.arange(2)):
            if prefix is not None and prefix.size(1) > given["max_len_b"]:
                continue
            found = compare(model, make_batch(seed), prefix, **given)
            lengths |= {len(row[0]["tokens"]) for row in found}
            if prefix is not None and given["max_len_b"] > prefix.size(1):
                assert all(h["tokens"][: prefix.size(1)].tolist() == p.tolist()
                           for row, p in zip(found, prefix) for h in row)  # fmt: skip
    if not options:
        assert len(lengths) > 3  # sentences end at different steps


@needs_fast_path
def test_prefixes_are_scored_as_fairseq_scores_them() -> None:
    prefix = torch.tensor([[5, 3], [6, 3], [7, 8], [8, 9]])  # 3 is the unknown symbol
    for seed in range(4):
        batch, classes = make_batch(seed), (SequenceGenerator, FastScored)
        compare(make_model(seed), batch, prefix, classes, beam_size=5, max_len_b=9, unk_penalty=0.5)


@needs_fast_path
def test_a_search_may_begin_with_another_symbol() -> None:
    model, batch = make_model(3), make_batch(3)
    found, expected, other = (
        made([model], model.decoder.dictionary, beam_size=3, max_len_b=9).generate(
            [model], batch, bos_token=begin
        )
        for made, begin in ((Fast, 7), (Slow, 7), (Fast, None))
    )
    tokens = [
        [[h["tokens"].tolist() for h in row] for row in rows] for rows in (found, expected, other)
    ]
    assert tokens[0] == tokens[1] != tokens[2]


@needs_fast_path
def test_numbers_that_are_none_have_no_chance() -> None:
    """One sentence's states are broken: fairseq finds nothing for it and says so."""
    model, batch = make_model(1), make_batch(1)
    compare(model, batch, beam_size=3, max_len_b=5)
    batch["net_input"]["src_tokens"][2] = torch.nan
    slow, fast = (
        made([model], model.decoder.dictionary, beam_size=3, max_len_b=5) for made in (Slow, Fast)
    )
    with pytest.raises(AssertionError):
        slow.generate([model], batch)
    with pytest.raises(FloatingPointError, match=r"sentences \[2\] of a batch"):
        fast.generate([model], batch)


def test_too_long_a_minimum_is_refused_as_by_fairseq() -> None:
    model = make_model(1)
    generator = TaggedSequenceGenerator([model], model.decoder.dictionary, min_len=9, max_len_b=5)
    with pytest.raises(AssertionError, match="min_len cannot be larger than max_len"):
        generator.generate([model], make_batch(1))


@needs_fast_path
@pytest.mark.usefixtures("onednn")
def test_one_entry_changed_behind_torchs_back_changes_hypotheses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As optimizers change weights: between validations, or by whoever pleases in between searches."""
    packed = []
    pack = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda *x: packed.append(1) or pack(*x)
    )
    model, batch = make_model(2), make_batch(2)
    decoder: Any = model.decoder
    limits: dict[str, Any] = {"beam_size": 3, "max_len_b": 9, "min_len": 9}
    ours, theirs = (made([model], decoder.dictionary, **limits) for made in (Fast, Slow))

    def found(generator: Any) -> list[list[int]]:
        return [h["tokens"].tolist() for row in generator.generate([model], batch) for h in row]

    before: list[list[int]] = []
    for turn, keeps in enumerate((False, False, True, True)):
        if keeps:
            model.train()
            decoder.keep_weights()
            model.eval()
        for _ in range(2):
            now = found(ours)
            assert now == found(theirs) != before
        assert bool(packed) == keeps
        before = now
        if keeps:  # an update follows the validation
            model.train()
            model.eval()
        decoder.layers[-1].fc2.weight.data[3 + turn, 5] += 400
    assert found(ours) == found(theirs) != before


@needs_fast_path
@pytest.mark.usefixtures("onednn")
def test_weights_are_packed_for_models_that_will_not_be_trained() -> None:
    model = make_model(2)
    model.make_generation_fast_()  # as fairseq-generate asks for
    generator = Fast([model], model.decoder.dictionary, beam_size=3, max_len_b=9)
    generator.generate([model], make_batch(2))
    assert len(generator._linear._packed) > 10
    compare(model, make_batch(2), beam_size=3, max_len_b=9)


def is_fast(generator: FastSequenceGenerator, **given: Any) -> bool:
    """Whether a search takes the fast path; it must work either way."""
    taken = []
    plain = generator._is_plain
    generator._is_plain = lambda *x: taken.append(plain(*x)) or taken[-1]
    assert len(generator.generate(None, make_batch(0), **given)) == 4
    return bool(taken and taken[0])


@needs_fast_path
def test_what_the_fast_path_does_not_know_is_left_to_fairseq() -> None:
    model = make_model(0)
    dictionary = model.decoder.dictionary
    equal = torch.tensor([[5], [6], [7], [8]])
    ragged = torch.tensor([[5, 1], [6, 9], [7, 1], [8, 9]])
    ending = torch.tensor([[5, 2], [6, 9], [7, 9], [8, 9]])

    def make(models: Any = None, symbols: Any = dictionary, **options: Any) -> Any:
        return TaggedSequenceGenerator(
            models or [model], symbols, **{"beam_size": 4, "max_len_b": 6, **options}
        )

    assert is_fast(make())
    assert is_fast(make(), prefix_tokens=equal)
    assert is_fast(make(search_strategy=BeamSearch(dictionary)))
    assert not is_fast(make(), prefix_tokens=ragged)
    assert not is_fast(make(), prefix_tokens=ending)
    assert not is_fast(make([model, make_model(1)]))
    assert not is_fast(make(search_strategy=DiverseBeamSearch(dictionary, 2, 0.5)))
    assert not is_fast(make(tokens_to_suppress=["w3"]))
    assert not is_fast(make(beam_size=15))
    recomputing = make()
    recomputing.model.has_incremental = False
    assert not is_fast(recomputing)


def test_alignments_are_left_to_the_class_that_has_them() -> None:
    assert choose_generator(Namespace(), 1) is TaggedSequenceGenerator
    assert choose_generator(Namespace(beam=3), 0) is FastSequenceGenerator
    assert choose_generator(Namespace(print_alignment="hard"), 1) is None
