"""Tests of the speech encoder."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_samu.models import speech_frames
from fairseq_samu.models.speech_encoder import SpeechEncoder, build_speech_frames
from fairseq_samu.models.speech_encoder_config import SpeechEncoderConfig
from fairseq_samu.models.speech_frames import SpeechFrames
from fairseq_samu.modules.length_adaptor import ConvGLUAdaptor
from fairseq_samu.modules.padding import padding_mask

BASE = Wav2Vec2Config(
    extractor_mode="default",
    conv_feature_layers="[(12, 10, 5), (12, 3, 2), (16, 3, 2), (16, 2, 2)]",
    encoder_layers=3,
    encoder_embed_dim=24,
    encoder_ffn_embed_dim=48,
    encoder_attention_heads=4,
    conv_pos=8,
    conv_pos_groups=4,
    mask_prob=0.0,
)
XLSR = replace(BASE, extractor_mode="layer_norm", conv_bias=True, layer_norm_first=True)
STYLES = [BASE, XLSR, replace(BASE, layer_norm_first=True)]
STYLE_NAMES = ["base", "xlsr", "tiny"]


def fairseqs_and_ours(cfg: Wav2Vec2Config) -> tuple[Wav2Vec2Model, SpeechFrames]:
    """fairseq's network with random norms and biases, and ours with its weights."""
    torch.manual_seed(0)
    fairseqs = Wav2Vec2Model(cfg)
    fairseqs.remove_pretraining_modules()
    for parameter in fairseqs.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.3)
    ours = SpeechFrames(cfg)
    ours.load_state_dict(fairseqs.state_dict())
    return fairseqs.eval(), ours.eval()


def batch_of(lengths: list[int]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    wave = torch.randn(len(lengths), max(lengths))
    sizes = torch.tensor(lengths)
    return wave.masked_fill(padding_mask(sizes, wave.size(1)), 0.0), sizes


def ungraded(module: nn.Module) -> list[str]:
    return [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]


# --- Against fairseq ------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", STYLES, ids=STYLE_NAMES)
@pytest.mark.parametrize("samples", [400, 2000, 2045])
def test_frames_equal_fairseqs_without_padding(cfg: Wav2Vec2Config, samples: int) -> None:
    fairseqs, ours = fairseqs_and_ours(cfg)
    wave, lengths = batch_of([samples, samples])
    expected = fairseqs.extract_features(wave, None)["x"].transpose(0, 1)
    found, mask = ours(wave, lengths)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)
    assert mask.shape == (2, found.size(0)) and not mask.any()


@pytest.mark.parametrize("cfg", STYLES, ids=STYLE_NAMES)
def test_lengths_equal_fairseqs(cfg: Wav2Vec2Config) -> None:
    fairseqs, ours = fairseqs_and_ours(cfg)
    wave, lengths = batch_of([3000, 2999, 1777, 403])
    expected = fairseqs.extract_features(wave, padding_mask(lengths, 3000))["padding_mask"]
    _, found = ours(wave, lengths)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("cfg", [*STYLES, replace(BASE, conv_pos=7)], ids=[*STYLE_NAMES, "odd"])
def test_gradients_equal_fairseqs(cfg: Wav2Vec2Config) -> None:
    fairseqs, ours = fairseqs_and_ours(cfg)
    wave, lengths = batch_of([2000, 2000])
    # In double precision fairseq's does not run into the kernel that some versions of torch get
    # wrong.
    fairseqs.double().extract_features(wave.double(), None)["x"].pow(2).sum().backward()
    ours(wave, lengths)[0].pow(2).sum().backward()
    expected = {n: p.grad for n, p in fairseqs.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, gradient.abs().max().item())
        assert torch.allclose(found[name].double(), gradient, atol=1e-4 * scale), name


def test_pretraining_parts_are_gone() -> None:
    names = SpeechFrames(replace(BASE, quantize_targets=True, target_glu=True)).state_dict()
    assert not [
        n for n in names if n.startswith(("quantizer", "project_q", "final_proj", "target"))
    ]


# --- Padding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", STYLES, ids=STYLE_NAMES)
def test_padding_changes_nothing(cfg: Wav2Vec2Config) -> None:
    _, ours = fairseqs_and_ours(cfg)
    wave, lengths = batch_of([3001, 2222, 1500, 420])
    batch, mask = ours(wave, lengths)
    for row, samples in enumerate(lengths.tolist()):
        alone, alone_mask = ours(wave[row : row + 1, :samples], lengths[row : row + 1])
        frames = alone.size(0)
        assert not alone_mask.any() and (~mask[row]).sum() == frames
        assert torch.allclose(batch[:frames, row], alone[:, 0], atol=1e-5)


def test_fairseqs_group_norm_does_see_padding() -> None:
    """The reason for our own; if this fails, ours can go."""
    fairseqs, _ = fairseqs_and_ours(BASE)
    wave, lengths = batch_of([3000, 1500])
    batch = fairseqs.extract_features(wave, padding_mask(lengths, 3000))["x"]
    alone = fairseqs.extract_features(wave[1:, :1500], None)["x"]
    assert not torch.allclose(batch[1, : alone.size(1)], alone[0], atol=1e-3)


@pytest.mark.parametrize("cfg", STYLES, ids=STYLE_NAMES)
def test_too_short_for_a_frame_is_as_if_silence_followed(cfg: Wav2Vec2Config) -> None:
    _, ours = fairseqs_and_ours(cfg)
    assert ours.receptive_field == 60  # one frame back to front: 2, 5, 11, 60
    wave, lengths = batch_of([900, 20])
    batch, mask = ours(wave, lengths)
    alone, _ = ours(wave[1:, :20], lengths[1:])
    assert (~mask[1]).sum() == 1 and alone.shape == (1, 1, 24)
    assert torch.isfinite(alone).all()
    assert torch.allclose(batch[:1, 1:], alone, atol=1e-5)


# --- Masking and layer drop -----------------------------------------------------------------------


def test_masks_only_in_training() -> None:
    plain, masked = (
        SpeechFrames(
            replace(
                XLSR, dropout=0.0, attention_dropout=0.0, mask_prob=prob, mask_channel_prob=prob
            )
        )
        for prob in (0.0, 0.5)
    )
    masked.load_state_dict(plain.state_dict())
    wave, lengths = batch_of([4000, 3000])
    assert torch.equal(masked.eval()(wave, lengths)[0], plain.eval()(wave, lengths)[0])
    assert torch.equal(plain.train()(wave, lengths)[0], plain.eval()(wave, lengths)[0])
    assert not torch.allclose(masked.train()(wave, lengths)[0], plain(wave, lengths)[0], atol=0.1)


@pytest.mark.parametrize("time,channel", [(0.5, 0.0), (0.0, 0.5)])
def test_masks_what_they_say(time: float, channel: float) -> None:
    cfg = replace(
        XLSR, mask_prob=time, mask_length=5, mask_channel_prob=channel, mask_channel_length=4
    )
    frames = SpeechFrames(cfg)
    x = torch.randn(2, 60, 24)
    masked = frames._mask(x, torch.tensor([60, 40]))
    changed = masked != x
    if time:
        assert (changed.any(2) == changed.all(2)).all()  # whole frames
        assert torch.equal(masked[changed], frames.mask_emb.expand_as(x)[changed])
        assert changed[1].any() and not changed[1, 40:].any()
    else:
        assert (changed.any(1) == changed.all(1)).all()  # whole channels
        assert changed.any() and not masked[changed].any()


def test_randomness_of_training_is_torchs_alone() -> None:
    """fairseq restores torch's seed when training resumes, NumPy's not."""
    cfg = replace(XLSR, mask_prob=0.5, mask_channel_prob=0.3, encoder_layerdrop=0.5)
    frames = SpeechFrames(cfg).train()
    wave, lengths = batch_of([4000, 3000])
    outputs = []
    for torch_seed, numpy_seed in ((5, 1), (5, 2), (6, 2)):
        torch.manual_seed(torch_seed)
        np.random.seed(numpy_seed)
        outputs.append(frames(wave, lengths)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_layer_drop_skips_whole_layers() -> None:
    quiet = replace(XLSR, dropout=0.0, attention_dropout=0.0)
    frames = SpeechFrames(replace(quiet, encoder_layerdrop=1.0))
    none = SpeechFrames(replace(quiet, encoder_layers=0))
    none.load_state_dict(
        {k: v for k, v in frames.state_dict().items() if not k.startswith("encoder.layers.")}
    )
    wave, lengths = batch_of([2001, 1500])
    assert torch.equal(frames.train()(wave, lengths)[0], none(wave, lengths)[0])
    assert not torch.allclose(frames.eval()(wave, lengths)[0], none(wave, lengths)[0], atol=0.1)


@pytest.mark.parametrize("cfg", STYLES, ids=STYLE_NAMES)
def test_a_frozen_extractor_reads_some_utterances_at_a_time(
    cfg: Wav2Vec2Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = fairseqs_and_ours(cfg)
    wave, lengths = batch_of([3001, 2222, 1500, 900, 420])
    read = []
    extract = ours._extract
    monkeypatch.setattr(ours, "_extract", lambda *part: read.append(len(part[0])) or extract(*part))
    with torch.no_grad():
        expected, mask = ours(wave, lengths)
        monkeypatch.setattr(speech_frames, "SAMPLES_AT_A_TIME", 7000)
        found, same_mask = ours(wave, lengths)
    assert read == [5, 2, 2, 1]
    assert torch.allclose(found, expected, atol=1e-5) and torch.equal(mask, same_mask)


# --- Gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES, ids=STYLE_NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_prob": 0.5, "mask_channel_prob": 0.2},
        {"mask_prob": 1e-9},  # no span is ever drawn
        {"encoder_layerdrop": 0.7},
        {"encoder_layerdrop": 1.0},
        {"feature_grad_mult": 0.0},
        {"feature_grad_mult": 0.1},
    ],
)
def test_everything_that_asks_for_a_gradient_gets_one(
    style: Wav2Vec2Config, options: dict[str, float]
) -> None:
    torch.manual_seed(0)
    frames = SpeechFrames(replace(style, **options)).train()
    wave, lengths = batch_of([3000, 2000])
    frames(wave, lengths)[0].sum().backward()
    assert ungraded(frames) == []
    assert frames.mask_emb.requires_grad == (options.get("mask_prob", 0) > 0)


def test_zero_feature_grad_mult_freezes_the_extractor_and_nothing_else() -> None:
    frames = SpeechFrames(replace(BASE, feature_grad_mult=0.0)).train()
    wave, lengths = batch_of([3000, 2000])
    before = {n: p.detach().clone() for n, p in frames.named_parameters()}
    optimizer = torch.optim.SGD([p for p in frames.parameters() if p.requires_grad], lr=1.0)
    frames(wave, lengths)[0].pow(2).sum().backward()
    optimizer.step()
    moved = {n for n, p in frames.named_parameters() if not torch.equal(p, before[n])}
    still = set(before) - moved
    assert still == {n for n in before if n.startswith("feature_extractor.")} | {"mask_emb"}


def test_feature_grad_mult_scales_the_extractors_gradient_alone() -> None:
    gradients = []
    for factor in (1.0, 0.25):
        _, ours = fairseqs_and_ours(replace(BASE, feature_grad_mult=factor))
        wave, lengths = batch_of([3000, 2000])
        ours(wave, lengths)[0].pow(2).sum().backward()
        gradients.append({n: p.grad for n, p in ours.named_parameters() if p.grad is not None})
    for name, full in gradients[0].items():
        factor = 0.25 if name.startswith("feature_extractor.") else 1.0
        scale = max(1.0, full.abs().max().item())
        assert torch.allclose(gradients[1][name], factor * full, atol=1e-4 * scale), name


# --- Precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", STYLES, ids=STYLE_NAMES)
def test_bfloat16_weights_take_float32_waveforms(cfg: Wav2Vec2Config) -> None:
    _, ours = fairseqs_and_ours(replace(cfg, mask_prob=0.3, encoder_layerdrop=0.3))
    wave, lengths = batch_of([3000, 2000])
    expected, mask = ours(wave, lengths)
    found, _ = ours.bfloat16()(wave, lengths)
    assert found.dtype == torch.bfloat16
    difference = (found.float() - expected).transpose(0, 1)[~mask]
    assert difference.abs().mean() < 0.05 * expected.abs().mean()
    ours.train()(wave, lengths)[0].sum().backward()


@pytest.mark.skipif(
    torch.__version__.startswith("1."),
    reason="torch 1 cannot differentiate fairseq's layers under CPU autocast",
)
def test_autocast_trains() -> None:
    frames = SpeechFrames(replace(BASE, mask_prob=0.3)).train()
    wave, lengths = batch_of([3000, 2000])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = frames(wave, lengths)
    out.float().sum().backward()
    assert ungraded(frames) == [] and torch.isfinite(out).all()


# --- The encoder around it ------------------------------------------------------------------------


def make_encoder(cfg: Wav2Vec2Config = BASE) -> SpeechEncoder:
    _, frames = fairseqs_and_ours(cfg)
    return SpeechEncoder(frames, ConvGLUAdaptor(24, 10, n_layers=2), nn.Linear(24, 7)).eval()


@pytest.mark.parametrize("cfg", STYLES, ids=STYLE_NAMES)
def test_encoder_output_does_not_depend_on_padding(cfg: Wav2Vec2Config) -> None:
    encoder = make_encoder(cfg)
    wave, lengths = batch_of([3001, 2222, 700])
    batch = encoder(wave, lengths)
    for row, samples in enumerate(lengths.tolist()):
        alone = encoder(wave[row : row + 1, :samples], lengths[row : row + 1])
        for values, mask in (
            ("encoder_out", "encoder_padding_mask"),
            ("speech_out", "speech_padding_mask"),
            ("ctc_logits", "speech_padding_mask"),
        ):
            size = alone[values][0].size(0)
            assert not alone[mask][0].any() and (~batch[mask][0][row]).sum() == size
            assert torch.allclose(batch[values][0][:size, row], alone[values][0][:, 0], atol=1e-5)


def test_reordering_selects_rows_of_what_the_decoder_reads() -> None:
    encoder = make_encoder()
    wave, lengths = batch_of([2000, 1500])
    out = encoder(wave, lengths)
    found = encoder.reorder_encoder_out(out, torch.tensor([1, 1, 0]))
    assert found.keys() == out.keys()
    assert torch.equal(found["encoder_out"][0], out["encoder_out"][0][:, [1, 1, 0]])
    assert torch.equal(found["encoder_padding_mask"][0], out["encoder_padding_mask"][0][[1, 1, 0]])
    assert all(
        found[k] == [] for k in found if not k.startswith(("encoder_out", "encoder_padding"))
    )


# --- Building from options and checkpoints --------------------------------------------------------


def make_options(**given: Any) -> Any:
    return OmegaConf.merge(SpeechEncoderConfig(), {"input_normalization": "utterance", **given})


SIZES = {
    "encoder_extractor_mode": "layer_norm",
    "encoder_conv_layers": "[(12, 10, 5)] + [(12, 3, 2), (16, 3, 2), (16, 2, 2)]",
    "encoder_conv_bias": True,
    "encoder_layers": 3,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "encoder_layer_norm_first": True,
    "encoder_conv_pos": 8,
    "encoder_conv_pos_groups": 4,
}


def save_pretrained(path: Path, normalize: bool = True) -> Wav2Vec2Model:
    torch.manual_seed(4)
    model = Wav2Vec2Model(replace(XLSR, quantize_targets=True))
    options = {k: v for k, v in asdict(XLSR).items() if k not in ("_name", "latent_temp")}
    cfg = {"task": {"normalize": normalize}, "model": options}
    torch.save({"args": None, "cfg": cfg, "model": model.state_dict()}, path)
    return model.eval()


def test_builds_from_options() -> None:
    frames, _ = build_speech_frames(make_options(**SIZES, encoder_layerdrop=0.2, mask_prob=0.3))
    reference = Wav2Vec2Model(XLSR)
    reference.remove_pretraining_modules()
    shapes = {name: weight.shape for name, weight in reference.state_dict().items()}
    assert {name: weight.shape for name, weight in frames.state_dict().items()} == shapes
    assert frames.mask_prob == 0.3 and frames.encoder.layers[0].layerdrop == 0.2


def test_sizes_and_weights_come_from_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "w2v.pt"
    model = save_pretrained(path)
    cfg = make_options(speech_encoder_path=str(path), encoder_dropout=0.25)
    frames = build_speech_frames(cfg)[0].eval()
    assert cfg.speech_encoder_path is None
    plain = {**SIZES, "encoder_conv_layers": "[(12, 10, 5), (12, 3, 2), (16, 3, 2), (16, 2, 2)]"}
    assert {name: cfg[name] for name in SIZES} == plain
    assert cfg.encoder_dropout == 0.25 and frames.encoder.layers[0].dropout1.p == 0.25
    wave, lengths = batch_of([2000])
    expected = model.extract_features(wave, None)["x"].transpose(0, 1)
    assert torch.allclose(frames(wave, lengths)[0], expected, atol=1e-5)
    path.unlink()
    build_speech_frames(cfg)  # the file is needed no more


def test_options_that_repeat_the_checkpoint_are_fine(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "w2v.pt")
    build_speech_frames(make_options(speech_encoder_path=str(tmp_path / "w2v.pt"), **SIZES))


def test_options_that_contradict_the_checkpoint_are_all_named(tmp_path: Path) -> None:
    path = str(tmp_path / "w2v.pt")
    save_pretrained(tmp_path / "w2v.pt")
    wrong = {**SIZES, "encoder_layers": 5, "encoder_conv_layers": "[(12, 10, 5)]"}
    with pytest.raises(ValueError) as error:
        build_speech_frames(make_options(speech_encoder_path=path, **wrong))
    message = str(error.value)
    assert message.startswith(path)
    assert "--encoder-layers: the checkpoint has 3, the option says 5" in message
    assert "--encoder-conv-layers: the checkpoint has [(12, 10, 5), (12" in message
    assert "embed-dim" not in message


def test_normalisation_that_contradicts_the_checkpoint_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "w2v.pt")
    save_pretrained(tmp_path / "w2v.pt", normalize=False)
    with pytest.raises(
        ValueError, match="'none', the task gives 'utterance': pass --normalize none"
    ):
        build_speech_frames(make_options(speech_encoder_path=path))


def test_weights_that_do_not_fit_their_own_options_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w2v.pt"
    save_pretrained(path)
    state = torch.load(path)
    del state["model"]["encoder.layer_norm.weight"]
    torch.save(state, path)
    with pytest.raises(
        ValueError, match="w2v.pt: the weights do not fit [^$]*encoder.layer_norm.weight"
    ):
        build_speech_frames(make_options(speech_encoder_path=str(path)))


def test_extractor_layers_are_not_evaluated() -> None:
    with pytest.raises(ValueError, match="convolutional layers: expected a list"):
        build_speech_frames(make_options(encoder_conv_layers="__import__('os').getpid()"))
