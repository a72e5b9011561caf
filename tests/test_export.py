"""What is exported, read by those it is for."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import models
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from torch.nn.functional import normalize

from fairseq_samu.export import main
from fairseq_samu.pretrained.speech_encoder import load_speech_encoder

SIZES = {
    "encoder_conv_layers": "[(12, 10, 5), (16, 3, 2), (16, 2, 2)]", "encoder_layers": 2,
    "encoder_embed_dim": 24, "encoder_ffn_embed_dim": 40, "encoder_attention_heads": 4,
    "encoder_conv_pos": 8, "encoder_conv_pos_groups": 4,
}  # fmt: skip
XLSR = {
    "encoder_extractor_mode": "layer_norm",
    "encoder_conv_bias": True,
    "encoder_layer_norm_first": True,
}
DECODER = {
    "decoder_layers": 1, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 16,
    "decoder_attention_heads": 2, "sentence_dim": 6, "encoder_view": "projected",
}  # fmt: skip


def save(folder: Path, arch: str = "samu_xlsr", **given: Any) -> tuple[str, Any]:
    """A checkpoint of a model with large random weights, and the model."""
    task = SimpleNamespace(
        target_dictionary=Dictionary(), transcript_dictionary=None, tag_settings={}, teacher_dim=None,
        input_normalization=given.get("input_normalization", "utterance"),
        cfg=SimpleNamespace(teacher=None, max_target_positions=10),
    )  # fmt: skip
    options = {
        "_name": arch,
        "input_normalization": "utterance",
        "sentence_dim": 6,
        **SIZES,
        **given,
    }
    if arch == "xlsr_mbart_st":
        options["max_target_positions"] = 10
    cfg = OmegaConf.create({"model": options})
    torch.manual_seed(0)
    model = models.build_model(cfg.model, task).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    path = str(folder / "trained.pt")
    cfg = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    torch.save({"args": None, "cfg": cfg, "model": model.state_dict()}, path)
    return path, model


def export(path: str, out: Path) -> None:
    main(["--to", "hf", "--path", path, "--out", str(out)])


@pytest.mark.parametrize("style", [{}, XLSR], ids=["base", "xlsr"])
@torch.no_grad()
def test_transformers_reads_the_encoder_and_the_readme_the_head(
    style: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    path, model = save(tmp_path, **style)
    export(path, tmp_path / "out")
    theirs, report = transformers.Wav2Vec2Model.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report  # nothing missing, nothing left over
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    samples = torch.randn(1500) * 3 + 1
    inputs = extractor(samples.numpy(), sampling_rate=16000, return_tensors="pt")
    expected = theirs.eval()(**inputs).last_hidden_state
    wave = torch.nn.functional.layer_norm(samples, samples.shape)[None]
    output = model(wave, torch.tensor([1500]))
    found = output["encoder_out"]["speech_out"][0].transpose(0, 1)
    torch.testing.assert_close(expected, found, atol=1e-4, rtol=0)

    # As README.md says
    head = safetensors.load_file(tmp_path / "out" / "sentence_head.safetensors")
    frames = expected[0]
    w, b = head["pooling.score.weight"], head["pooling.score.bias"]
    pooled = (torch.softmax(frames @ w.T + b, dim=0).T @ frames)[0]
    vector = torch.tanh(pooled @ head["projection.weight"].T + head["projection.bias"])
    torch.testing.assert_close(normalize(vector, dim=-1), output["embedding"][0], atol=1e-4, rtol=0)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "`trained.pt`" in readme and "6 × 24" in readme and "attention" in readme
    assert ("one at a time" in readme) == (style == {})


@pytest.mark.parametrize("arch", ["samu_xlsr", "xlsr_mbart_st"])
@pytest.mark.parametrize("normalization", ["utterance", "none"])
def test_there_and_back(arch: str, normalization: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    given = {**XLSR, **(DECODER if arch == "xlsr_mbart_st" else {})}
    path, model = save(tmp_path, arch, input_normalization=normalization, **given)
    export(path, tmp_path / "out")
    found = load_speech_encoder(str(tmp_path / "out"))
    assert found.normalize == (normalization == "utterance")
    expected = model.encoder.wav2vec2.state_dict()
    assert found.state_dict.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.state_dict.items())
    original = load_speech_encoder(path).options
    assert found.options == {name: original[name] for name in found.options}
    assert (tmp_path / "out" / "sentence_head.safetensors").exists()


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path, _ = save(tmp_path)
    state = torch.load(path)
    state["model"] = {
        k: w.half() if w.is_floating_point() else w for k, w in state["model"].items()
    }
    torch.save(state, path)
    export(path, tmp_path / "out")
    weights = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    "given,message",
    [
        (
            {"encoder_features": "log_mel", "encoder_conv_layers": "[(16, 3, 2)]"},
            "expected an encoder that reads waveforms, found one that reads log_mel",
        ),
        ({"encoder_adapter_dim": 4}, "no place for .* of its weights, such as .*adapter"),
        ({"encoder_layer_weighting": True}, "no place for .* such as layer_weighting"),
    ],
)
def test_what_wav2vec2_cannot_hold_is_refused(
    given: dict[str, Any], message: str, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("safetensors")
    path, _ = save(tmp_path, **given)
    with pytest.raises(SystemExit):
        export(path, tmp_path / "out")
    error = capsys.readouterr().err
    assert path in error
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()
