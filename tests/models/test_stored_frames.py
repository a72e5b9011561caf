"""Translators over a frozen encoder read its stored frames as they read waveforms."""

from types import SimpleNamespace

import pytest
import torch

from helpers.tiny_translator import make_batch, make_model

#: What the blocks of an E-Branchformer have no use for, as it is where nobody sets it.
E_BRANCHFORMER = {
    "encoder_blocks": "e_branchformer", "encoder_features": "log_mel", "encoder_conv_pos": 128,
    "encoder_conv_pos_groups": 16, "encoder_attention_heads": 4,
    "encoder_conv_layers": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2",
}  # fmt: skip
LIVELY = {"mask_prob": 0.5, "encoder_dropout": 0.3, "encoder_layerdrop": 0.3}


@pytest.mark.parametrize("encoder", [{}, E_BRANCHFORMER], ids=["wav2vec2", "e_branchformer"])
def test_frames_come_in_place_of_waveforms(encoder):
    given = {**encoder, **LIVELY, "decoder_dropout": 0.0, "ctc": True, "train_encoder": "none"}
    model = make_model(**given).train()
    wave, lengths, tokens = make_batch([9000, 6100])
    frames = model.frozen_speech_encoder
    states = []
    for row, length in zip(wave, lengths):
        alone, _ = frames(row[None, :length], length[None])
        states.append(alone[:, 0].half())
        assert alone.size(2) == frames.width == 24 and not alone.requires_grad
    stored = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    outputs = []
    for source, size in ((wave, lengths), (stored, torch.tensor(list(map(len, states))))):
        model.zero_grad()
        torch.manual_seed(2)
        logits, extra = model(source, size, tokens)
        (ctc, counts) = model.get_ctc_output(extra["encoder_out"])
        (logits.square().mean() + ctc[: counts[1]].square().mean()).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        outputs.append([logits, ctc[: counts[1]], counts, *gradients])
    assert len(gradients) > 5
    for heard, read in zip(*outputs):
        torch.testing.assert_close(read, heard, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize(
    "given",
    [
        {"train_encoder": "all"},
        {"train_encoder": "top-1"},
        {"freeze_encoder_updates": 5},
        {"train_encoder": "none", "encoder_layer_weighting": True},
    ],
)
def test_an_encoder_of_which_something_trains_is_not_stored(given):
    assert make_model(**given).frozen_speech_encoder is None


def test_the_digest_follows_what_decides_on_the_frames():
    model = make_model(train_encoder="none")
    digest = model.frozen_speech_weights
    assert len(digest) == 16
    with torch.no_grad():
        model.decoder.embed_tokens.weight.add_(1.0)
    assert model.frozen_speech_weights == digest
    fused = make_model(train_encoder="none")
    fused.prepare_for_inference_(SimpleNamespace(generation=None))  # as fairseq-generate does
    assert not hasattr(fused.encoder.wav2vec2.encoder.pos_conv[0], "weight_v")
    assert fused.frozen_speech_weights == digest and fused.frozen_speech_encoder is not None
    assert model.half().frozen_speech_weights != digest
    other = make_model(encoder_attention_heads=2, train_encoder="none")
    other.encoder.wav2vec2.load_state_dict(make_model().encoder.wav2vec2.state_dict())
    assert other.frozen_speech_weights != digest
    read_otherwise = {"adaptor": "linear", "encoder_view": "projected", "sentence_dim": 6}
    same = make_model(train_encoder="none", **read_otherwise)
    same.encoder.wav2vec2.load_state_dict(make_model().encoder.wav2vec2.state_dict())
    assert same.frozen_speech_weights == digest
    with torch.no_grad():
        next(same.encoder.wav2vec2.parameters())[0] += 1e-3
    assert same.frozen_speech_weights != digest
