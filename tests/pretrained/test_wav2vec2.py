"""Tests of reading wav2vec 2.0 checkpoints."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model
from omegaconf import OmegaConf

from fairseq_samu.pretrained.wav2vec2 import ARCHITECTURE, PRETRAINING, load_wav2vec2

SMALL = Wav2Vec2Config(
    extractor_mode="layer_norm",
    conv_feature_layers="[(8, 10, 5)] + [(8, 3, 2)] * 2",
    conv_bias=True,
    encoder_layers=2,
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=32,
    encoder_attention_heads=4,
    layer_norm_first=True,
    conv_pos=8,
    conv_pos_groups=4,
    quantize_targets=True,
    latent_vars=4,
    final_dim=6,
    target_glu=True,
)

EXPECTED = {
    "extractor_mode": "layer_norm",
    "conv_feature_layers": "[(8, 10, 5), (8, 3, 2), (8, 3, 2)]",
    "conv_bias": True,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 4,
    "layer_norm_first": True,
    "conv_pos": 8,
    "conv_pos_groups": 4,
}


def plain_options() -> dict[str, Any]:
    options = {k: v for k, v in asdict(SMALL).items() if k != "_name"}
    return {**options, "latent_temp": list(SMALL.latent_temp)}


def weights(prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: weight for name, weight in Wav2Vec2Model(SMALL).state_dict().items()}


def with_cfg() -> dict[str, Any]:
    cfg = {
        "task": {"_name": "audio_pretraining", "normalize": True},
        "model": {"_name": "wav2vec2", **plain_options()},
    }
    return {"args": None, "cfg": cfg, "model": weights()}


def with_args() -> dict[str, Any]:
    return {
        "args": Namespace(arch="wav2vec2", normalize=True, **plain_options()),
        "model": weights(),
    }


def fine_tuned_with_args() -> dict[str, Any]:
    inner = Namespace(arch="wav2vec2", normalize=True, **plain_options())
    args = Namespace(arch="wav2vec_ctc", normalize=True, w2v_path="gone.pt", w2v_args=inner)
    state = {**weights("w2v_encoder.w2v_model."), "w2v_encoder.proj.weight": torch.zeros(3, 16)}
    return {"args": args, "model": state}


def fine_tuned_with_cfg() -> dict[str, Any]:
    model = {"_name": "wav2vec_ctc", "w2v_path": "gone.pt", "w2v_args": with_cfg()["cfg"]}
    cfg = {"task": {"_name": "audio_finetuning", "normalize": True}, "model": model}
    state = {**weights("w2v_encoder.w2v_model."), "w2v_encoder.proj.weight": torch.zeros(3, 16)}
    return {"args": None, "cfg": cfg, "model": state}


def cfg_of_namespaces() -> dict[str, Any]:
    state = with_cfg()
    state["cfg"] = {name: Namespace(**section) for name, section in state["cfg"].items()}
    return state


def cfg_of_containers() -> dict[str, Any]:
    state = with_cfg()
    state["cfg"]["common"] = {"seed": 1}
    state["cfg"]["task"]["seed"] = "${common.seed}"
    state["cfg"] = OmegaConf.create(state["cfg"])
    return state


def xm_transformer() -> dict[str, Any]:
    args = Namespace(arch="xm_transformer", w2v_path="gone.pt", w2v_args=with_cfg()["cfg"])
    state = {
        **weights("encoder.w2v_encoder.w2v_model."),
        "decoder.embed_tokens.weight": torch.zeros(5, 16),
    }
    return {"args": args, "model": state}


def save(state: dict[str, Any], folder: Path) -> str:
    path = str(folder / "w2v.pt")
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "make_state",
    [
        with_cfg,
        with_args,
        fine_tuned_with_args,
        fine_tuned_with_cfg,
        cfg_of_namespaces,
        cfg_of_containers,
        xm_transformer,
    ],
)
def test_reads_every_vintage(make_state: Any, tmp_path: Path) -> None:
    state = make_state()
    found = load_wav2vec2(save(state, tmp_path))
    assert found.options == {ARCHITECTURE[name]: value for name, value in EXPECTED.items()}
    assert found.head == {}
    assert found.normalize is True
    model = Wav2Vec2Model(SMALL)
    model.remove_pretraining_modules()
    model.load_state_dict(found.state_dict)  # strict
    assert not any(name.split(".")[0] in PRETRAINING for name in found.state_dict)
    first = found.state_dict["feature_extractor.conv_layers.0.0.weight"]
    assert any(first.shape == w.shape and torch.equal(first, w) for w in state["model"].values())


def test_options_that_older_checkpoints_lack_get_fairseqs_defaults(tmp_path: Path) -> None:
    state = with_args()
    for option in ("conv_bias", "conv_pos_groups", "extractor_mode"):
        delattr(state["args"], option)
    found = load_wav2vec2(save(state, tmp_path)).options
    assert (found["encoder_conv_bias"], found["encoder_conv_pos_groups"]) == (False, 16)
    assert found["encoder_extractor_mode"] == "default"


@pytest.mark.parametrize("normalize,expected", [(True, True), (False, False), (None, None)])
def test_normalisation(normalize: Any, expected: Any, tmp_path: Path) -> None:
    state = with_cfg()
    state["cfg"]["task"] = {} if normalize is None else {"normalize": normalize}
    assert load_wav2vec2(save(state, tmp_path)).normalize is expected


def no_weights() -> dict[str, Any]:
    return {"cfg": {}, "vocabulary": []}


def no_options() -> dict[str, Any]:
    return {"args": None, "model": weights()}


def other_model() -> dict[str, Any]:
    return {"args": Namespace(arch="bart_large"), "model": {"encoder.version": torch.zeros(1)}}


def forgotten_shape() -> dict[str, Any]:
    state = fine_tuned_with_cfg()
    state["cfg"]["model"]["w2v_args"] = None
    return state


def conformer() -> dict[str, Any]:
    state = with_cfg()
    state["cfg"]["model"]["layer_type"] = "conformer"
    return state


def hostile_layers() -> dict[str, Any]:
    state = with_cfg()
    state["cfg"]["model"]["conv_feature_layers"] = "__import__('os').getpid() and [(8, 10, 5)]"
    return state


@pytest.mark.parametrize(
    "make_state,message",
    [
        (no_weights, "found no weights under 'model'"),
        (no_options, "found neither 'cfg' nor 'args'"),
        (other_model, "expected one wav2vec 2.0 encoder .*found 0"),
        (forgotten_shape, "fine-tuned from gone.pt .*give the pre-trained checkpoint"),
        (conformer, "layer_type=transformer expected, found conformer"),
        (hostile_layers, 'expected a list of .*found "__import__'),
    ],
)
def test_errors_name_the_file_and_what_is_wrong(
    make_state: Any, message: str, tmp_path: Path
) -> None:
    path = save(make_state(), tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load_wav2vec2(path)
    assert str(error.value).startswith(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        load_wav2vec2(str(tmp_path / "nowhere.pt"))
