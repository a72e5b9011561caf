"""A SAMU checkpoint as the encoder of a translator: weights, head, views, freezing."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import models
from fairseq.data import Dictionary
from omegaconf import OmegaConf

import fairseq_samu.models  # noqa: F401  (registers the models)
from fairseq_samu.pretrained.wav2vec2 import load_wav2vec2

SAMU = {
    "_name": "samu_xlsr", "encoder_features": "log_mel",
    "encoder_conv_layers": "[(16, 3, 2), (16, 3, 2)]", "encoder_layers": 2,
    "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2,
    "encoder_layer_norm_first": True, "encoder_conv_pos": 4, "encoder_conv_pos_groups": 2,
    "pooling": "attention",
}  # fmt: skip
TRANSLATOR = {
    "_name": "xlsr_mbart_st", "adaptor_layers": 1, "decoder_layers": 1, "decoder_embed_dim": 12,
    "decoder_ffn_embed_dim": 24, "decoder_attention_heads": 2, "encoder_layers": 2,
}  # fmt: skip
WAVE, LENGTHS = (
    torch.randn(2, 9000, generator=torch.Generator().manual_seed(3)),
    torch.tensor([9000, 6000]),
)
WAVE[1, 6000:] = 0.0
TOKENS = torch.tensor([[2, 4, 5], [2, 5, 4]])


def make_task(teacher_dim=6):
    dictionary = Dictionary()
    for symbol in "abc":
        dictionary.add_symbol(symbol)
    return SimpleNamespace(
        target_dictionary=dictionary, transcript_dictionary=None, input_normalization="utterance",
        tag_settings={}, teacher_dim=teacher_dim,
        cfg=SimpleNamespace(teacher="labse", max_target_positions=20),
    )  # fmt: skip


def build(options, **more):
    torch.manual_seed(1)
    whole = OmegaConf.create(
        {"model": {"input_normalization": "utterance", **options, **more}, "task": {}}
    )
    return models.build_model(whole.model, make_task()), whole


@pytest.fixture
def samu(tmp_path: Path):
    """A SAMU model and its checkpoint."""
    model, whole = build(SAMU)
    path = tmp_path / "samu.pt"
    torch.save({"cfg": OmegaConf.to_container(whole), "model": model.state_dict()}, path)
    return model.eval(), path


def translator(path, **more):
    return build(TRANSLATOR, speech_encoder_path=str(path) if path else None, **more)


def test_the_decoder_reads_what_the_head_sees(samu):
    samu_model, path = samu
    model = translator(path, encoder_view="projected")[0].eval()
    frames = samu_model.encoder(WAVE, LENGTHS)
    speech, mask = frames["speech_out"][0], frames["speech_padding_mask"][0]
    _, weights = samu_model.head.pooling(speech.transpose(0, 1), mask)
    scale = (weights * (~mask).sum(1, keepdim=True) + 1e-6).sqrt()
    expected = samu_model.head.projection(speech).tanh() * scale.t()[:, :, None]
    expected, _ = model.encoder.adaptor(expected, mask)
    found = model.encoder(WAVE, LENGTHS)["encoder_out"][0]
    torch.testing.assert_close(found, expected)


def test_the_pooled_view_is_one_vector_an_utterance(samu):
    samu_model, path = samu
    model = translator(path, encoder_view="pooled", adaptor="none")[0].eval()
    encoder_out = model.encoder(WAVE, LENGTHS)
    assert encoder_out["encoder_out"][0].shape == (1, 2, 12)
    vectors = samu_model(WAVE, LENGTHS)["embedding"] * 6**0.5
    expected, _ = model.encoder.adaptor(vectors[None], encoder_out["encoder_padding_mask"][0])
    torch.testing.assert_close(encoder_out["encoder_out"][0], expected)


@pytest.mark.parametrize("view", ["hidden", "projected", "pooled"])
def test_the_translator_needs_the_file_no_more(samu, view):
    _, path = samu
    model, whole = translator(path, encoder_view=view)
    path.unlink()
    assert whole.model.speech_encoder_path is None
    again, _ = build(OmegaConf.to_container(whole.model))
    again.load_state_dict(model.state_dict())
    expected = model.eval()(WAVE, LENGTHS, TOKENS)[0]
    torch.testing.assert_close(again.eval()(WAVE, LENGTHS, TOKENS)[0], expected)


@pytest.mark.parametrize("view", ["hidden", "projected", "pooled"])
def test_a_frozen_encoder_stays_as_it_is(samu, view):
    samu_model, path = samu
    options = {"encoder_view": view, "train_encoder": "none", "encoder_view_noise": 0.5}
    model = translator(path, **options, mask_prob=0.5)[0].train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model(WAVE, LENGTHS, TOKENS)[0].square().sum().backward()
    optimizer.step()
    moved = {n for n, weight in model.state_dict().items() if not torch.equal(weight, before[n])}
    assert not [name for name in moved if name.startswith(("encoder.wav2vec2", "encoder.view"))]
    assert {"encoder.adaptor", "decoder.embed_tokens"} <= {
        ".".join(n.split(".")[:2]) for n in moved
    }
    # neither dropout nor masks: the frames are those of the SAMU model
    frames = model.train().encoder(WAVE, LENGTHS)["speech_out"][0]
    torch.testing.assert_close(frames, samu_model.encoder(WAVE, LENGTHS)["speech_out"][0])


def test_noise_only_in_training(samu):
    _, path = samu
    model = translator(path, encoder_view_noise=0.5, train_encoder="none", adaptor="none")[0]
    first, second = (model.train().encoder(WAVE, LENGTHS)["encoder_out"][0] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.eval().encoder(WAVE, LENGTHS)["encoder_out"][0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_translators_encoder_and_head_can_be_taken_on(samu, tmp_path):
    samu_model, path = samu
    model, whole = translator(path, encoder_view="projected")
    onward = tmp_path / "translator.pt"
    torch.save({"cfg": OmegaConf.to_container(whole), "model": model.state_dict()}, onward)
    found = load_wav2vec2(str(onward))
    assert found.options["encoder_features"] == "log_mel" and found.options["sentence_dim"] == 6
    assert {*found.head} == {*samu_model.head.state_dict()}
    plain, whole = translator(path)
    torch.save({"cfg": OmegaConf.to_container(whole), "model": plain.state_dict()}, onward)
    assert load_wav2vec2(str(onward)).head == {}


def test_samu_goes_on_from_samu(samu):
    samu_model, path = samu
    again, _ = build({"_name": "samu_xlsr"}, speech_encoder_path=str(path))
    expected = samu_model(WAVE, LENGTHS)["embedding"]
    torch.testing.assert_close(again.eval()(WAVE, LENGTHS)["embedding"], expected)


@pytest.mark.parametrize(
    "options,message",
    [
        (
            {"encoder_features": "log_mel", "pooling": "mean"},
            "--pooling: the checkpoint has attention",
        ),
        ({"sentence_dim": 9}, "--sentence-dim: the checkpoint has 6, the option says 9"),
        ({"encoder_view_noise": -1.0}, "--encoder-view-noise: expected 0 or more"),
    ],
)
def test_contradictions_are_named(samu, options, message):
    with pytest.raises(ValueError, match=message):
        translator(samu[1], **options)


def test_views_need_a_sentence_head(samu):
    with pytest.raises(ValueError, match="samu_xlsr as --speech-encoder-path"):
        translator(None, encoder_view="pooled")
