"""Tests of frozen text models, against the same models in transformers."""

from typing import Any

import pytest
import torch
from fairseq.models import FairseqEncoderDecoderModel
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from fairseq_samu.data.text_model_dictionary import TextModelDictionary
from fairseq_samu.generator import FastSequenceGenerator, TaggedSequenceGenerator
from fairseq_samu.models.frozen_text_model import FrozenTextModel
from fairseq_samu.modules.padding import padding_mask
from fairseq_samu.pretrained.seq2seq import keep_rows
from helpers.given_states import Given

transformers = pytest.importorskip("transformers")

SYMBOLS, WIDTH, LONGEST = 40, 16, 40
#: Settings, and indices of the decoder's start, padding, end and the unknown symbol.
FAMILIES = ["marian", "t5", "mt5", "mbart", "m2m_100"]


def make_text_model(family: str) -> FrozenTextModel:
    """A random model; its weights are so large that it has opinions."""
    bart = {
        "vocab_size": SYMBOLS, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32, "max_position_embeddings": 64, "scale_embedding": True,
    }  # fmt: skip
    t5 = {"vocab_size": SYMBOLS, "d_model": WIDTH, "d_kv": 8, "num_layers": 2, "num_heads": 2,
          "d_ff": 32, "decoder_start_token_id": 0}  # fmt: skip
    special = {"bos": 0, "pad": 1, "eos": 2, "unk": 3}
    torch.manual_seed(0)
    if family == "marian":
        special = {"bos": 39, "pad": 39, "eos": 0, "unk": 1}
        config = transformers.MarianConfig(
            **bart, pad_token_id=39, eos_token_id=0, decoder_start_token_id=39
        )
        model = transformers.MarianMTModel(config)
    elif family in ("t5", "mt5"):
        special = {"bos": 0, "pad": 0, "eos": 1, "unk": 2}
        if family == "t5":
            model = transformers.T5ForConditionalGeneration(transformers.T5Config(**t5))
        else:
            config = transformers.MT5Config(**t5, tie_word_embeddings=False)
            model = transformers.MT5ForConditionalGeneration(config)
    elif family == "mbart":
        config = transformers.MBartConfig(**bart, decoder_start_token_id=2)
        model = transformers.MBartForConditionalGeneration(config)
    else:
        config = transformers.M2M100Config(**bart, decoder_start_token_id=2)
        model = transformers.M2M100ForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias[0, special["eos"]] = 1.0  # ends now and then
    else:
        with torch.no_grad():
            model.get_output_embeddings().weight[special["eos"]] *= 1.5
    model.tie_weights()
    symbols = [f"s{i}" for i in range(SYMBOLS)]
    return FrozenTextModel(model, TextModelDictionary(symbols, **special))


def make_batch(size: int = 32) -> dict[str, Tensor]:
    torch.manual_seed(1)
    lengths = torch.randint(3, 10, (size,))
    return {"src_tokens": torch.randn(size, 9, WIDTH), "src_lengths": lengths}


@pytest.mark.parametrize("generator_class", [SequenceGenerator, FastSequenceGenerator])
@pytest.mark.parametrize("family", FAMILIES)
def test_beam_search_finds_the_hypotheses_of_generate(family: str, generator_class: Any) -> None:
    decoder = make_text_model(family)
    dictionary, batch = decoder.dictionary, make_batch()
    model = FairseqEncoderDecoderModel(Given(None), decoder).eval()
    generator = generator_class([model], dictionary, beam_size=5, max_len_a=0, max_len_b=LONGEST)
    found = generator.generate([model], {"net_input": batch})
    expected = decoder.model.generate(
        encoder_outputs=transformers.modeling_outputs.BaseModelOutput(batch["src_tokens"]),
        attention_mask=(~padding_mask(batch["src_lengths"], 9)).long(),
        num_beams=5, length_penalty=1.0, early_stopping=True,
        max_new_tokens=LONGEST + 1, min_new_tokens=1,  # fairseq never ends at once
        bad_words_ids=[[dictionary.pad()]],  # nor does it write padding
        forced_eos_token_id=None, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    sequences = expected.sequences[:, 1:].tolist()
    compared = 0
    for hypotheses, theirs, score in zip(found, sequences, expected.sequences_scores.tolist()):
        theirs = _until(theirs, dictionary.eos())
        if len(theirs) > LONGEST:
            continue  # at the limit fairseq ends a hypothesis, and transformers cuts it off
        compared += len(theirs) > 2
        assert hypotheses[0]["tokens"].tolist() == theirs
        assert float(hypotheses[0]["score"]) == pytest.approx(score, abs=1e-4)
    assert compared >= 3


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("begins", ["start", "tag"])
def test_the_fast_search_finds_what_fairseqs_does(
    monkeypatch: pytest.MonkeyPatch, begins: str, padded: bool
) -> None:
    """Every hypothesis with its score, behind the decoder's start and a tag, or behind a tag alone."""
    decoder = make_text_model("mbart")
    batch = make_batch()
    if begins == "tag":
        decoder.start = None
    if not padded:
        batch["src_lengths"][:] = 9
    searches = []
    begin = decoder.begin_search
    monkeypatch.setattr(
        decoder, "begin_search", lambda *a: searches.append(begin(*a)) or searches[0]
    )
    model = FairseqEncoderDecoderModel(Given(None), decoder).eval()
    generator = TaggedSequenceGenerator([model], decoder.dictionary, beam_size=4, max_len_b=12)
    sample, tags = {"net_input": batch}, torch.arange(4, 36).unsqueeze(1)
    fast = generator.generate([model], sample, prefix_tokens=tags)
    assert len(searches) == 1
    monkeypatch.setattr(TaggedSequenceGenerator, "_is_plain", lambda *given: False)
    slow = generator.generate([model], sample, prefix_tokens=tags)
    assert len(searches) == 1
    assert len({len(hypotheses[0]["tokens"]) for hypotheses in slow}) > 3, "they end apart"
    for mine, theirs in zip(fast, slow, strict=True):
        assert [h["tokens"].tolist() for h in mine] == [h["tokens"].tolist() for h in theirs]
        for a, b in zip(mine, theirs):
            torch.testing.assert_close(a["positional_scores"], b["positional_scores"])


@torch.no_grad()
def test_hypotheses_of_the_one_sentence_that_goes_on_read_that_sentence() -> None:
    """Four sentences with a hypothesis each, then one with four: as many rows, of another sentence."""
    decoder = make_text_model("t5")
    encoder_out = Given(None)(**make_batch(4))
    search = decoder.begin_search(encoder_out, None, None)
    search.advance(torch.full((4, 1), decoder.dictionary.eos()), None)
    search.keep(torch.tensor([2]))
    found = search.logits(search.advance(torch.tensor([[5, 6, 7, 8]]), torch.full((4,), 2)))
    tokens = torch.tensor([[1, token] for token in (5, 6, 7, 8)])
    states = Given(None).reorder_encoder_out(encoder_out, torch.full((4,), 2))
    torch.testing.assert_close(found[0], decoder(tokens, states)[0][:, 1], rtol=1e-4, atol=1e-4)


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_step_by_step_too(family: str) -> None:
    decoder = make_text_model(family)
    encoder_out = Given(None)(**make_batch())
    target = torch.randint(4, 38, (32, 6))
    target[3, 4:] = decoder.dictionary.pad()
    previous, labels = (
        torch.cat([torch.full((32, 1), first), target[:, :-1]], 1)
        for first in (decoder.dictionary.eos(), decoder.model.config.decoder_start_token_id)
    )
    with torch.no_grad():
        whole, _ = decoder(previous, encoder_out)
        expected = decoder.model(
            encoder_outputs=(encoder_out["encoder_out"][0].transpose(0, 1),),
            attention_mask=(~encoder_out["encoder_padding_mask"][0]).long(),
            decoder_input_ids=labels,
        ).logits
        assert torch.equal(whole, expected)
        state: dict[str, Any] = {}
        steps = [decoder(previous[:, : i + 1], encoder_out, state)[0] for i in range(6)]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_embedded_tokens_are_encoded_as_the_tokens_themselves(family: str) -> None:
    decoder = make_text_model(family)
    tokens = torch.randint(4, 38, (2, 7))
    mask = padding_mask(torch.tensor([7, 5]), 7)
    with torch.no_grad():
        encoder = decoder.model.get_encoder()
        expected = encoder(tokens, attention_mask=(~mask).long()).last_hidden_state
        vectors = torch.stack([decoder.embed(row) for row in tokens], 1)
        found, found_mask = decoder.encode(vectors, mask)
        assert torch.allclose(found.transpose(0, 1), expected, atol=1e-5)
        assert found_mask is mask
        tokens[:] = tokens[0]
        expected = encoder(tokens, attention_mask=(~mask).long()).last_hidden_state
        vectors = decoder.embed(tokens[0]).unsqueeze(1).expand(-1, 2, -1)
        found, found_mask = decoder.encode(vectors[3:], mask[:, 3:], tokens[0, :3])
    assert torch.allclose(found.transpose(0, 1)[~mask], expected[~mask], atol=1e-5)
    assert torch.equal(found_mask, mask)


@torch.no_grad()
def test_a_pruned_vocabulary_has_the_tag_that_the_decoder_begins_with() -> None:
    whole = make_text_model("mbart")
    model, rows, tag = whole.model, [0, 1, 2, 3, 7, 9, 37], 37  # as of mbart-large-en-ro
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = tag
    encoder_out = Given(None)(**make_batch())
    kept = torch.randint(4, len(rows), (32, 5))
    expected, _ = FrozenTextModel(model, whole.dictionary)(torch.tensor(rows)[kept], encoder_out)
    keep_rows(model, rows)
    pruned = FrozenTextModel(model, TextModelDictionary([f"s{i}" for i in rows], 0, 1, 2, 3))
    assert torch.allclose(pruned(kept, encoder_out)[0], expected[:, :, rows], atol=1e-5)


def test_it_stays_frozen_and_lets_gradients_pass() -> None:
    decoder = make_text_model("marian").train()
    assert not any(module.training for module in decoder.model.modules())
    batch = make_batch()
    encoder_out = Given(None)(batch["src_tokens"].requires_grad_(), batch["src_lengths"])
    logits, _ = decoder(torch.randint(4, 38, (32, 6)), encoder_out)
    logits.logsumexp(2).sum().backward()
    assert batch["src_tokens"].grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_bad_input_is_refused() -> None:
    decoder = make_text_model("mbart")
    with pytest.raises(ValueError, match="positions for 64 vectors, found 65"):
        decoder.encode(torch.zeros(65, 1, WIDTH), None)
    dictionary = TextModelDictionary(["a", "b"], 0, 0, 1, 1)
    with pytest.raises(ValueError, match="vocabulary of 40 symbols, the task's has 2"):
        FrozenTextModel(decoder.model, dictionary)
    for wrong in (40, -1, [2, 3]):
        decoder.model.generation_config.decoder_start_token_id = wrong
        with pytest.raises(
            ValueError, match="decoder_start_token_id: expected a number from 0 to 39"
        ):
            FrozenTextModel(decoder.model, decoder.dictionary)
