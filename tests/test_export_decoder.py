"""Decoders of translators, exported and read by those they are for."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import tasks
from omegaconf import OmegaConf
from torch import Tensor

from data_prep.manifest import ManifestRow, ManifestWriter
from fairseq_samu.export import main

REPOSITORY = Path(__file__).resolve().parents[1]
SIZES = {
    "encoder_conv_layers": "[(8, 20, 10), (16, 8, 4), (16, 4, 4)]", "encoder_layers": 1,
    "encoder_embed_dim": 24, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2,
    "encoder_conv_pos": 4, "encoder_conv_pos_groups": 2, "encoder_extractor_mode": "layer_norm",
    "decoder_layers": 2, "decoder_embed_dim": 24, "decoder_ffn_embed_dim": 20,
    "decoder_attention_heads": 3,
}  # fmt: skip
MBART = {
    "decoder_learned_pos": True,
    "decoder_layernorm_embedding": True,
    "decoder_activation_fn": "gelu",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a vocabulary with two languages."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("data")
    words = "the cat eats bread"
    with ManifestWriter(folder / "train.tsv") as writer:
        writer.write(ManifestRow("u", "u.wav", 16000, words, "s", words, "en", "en"))
    subprocess.run(
        [sys.executable, "-m", "data_prep.build_vocab", "--manifests", str(folder / "train.tsv"),
         "--model-type", "char", "--vocab-size", "15", "--langs", "en", "fr", "--out", str(folder)],
        check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return folder


def build(data: Path, arch: str = "xlsr_mbart_st", task: Any = None, **options: Any) -> Any:
    """The configuration, task and model of a training with these options."""
    cfg = OmegaConf.create(
        {
            "task": {
                "_name": "speech_to_text_samu",
                "data": str(data),
                "normalize": "utterance",
                "max_target_positions": 60,
                **(task or {}),
            },
            "model": {"_name": arch, **options},
            "common": {"seed": 1},
            "dataset": {"train_subset": "train"},
            "checkpoint": {"best_checkpoint_metric": "loss"},
        }
    )
    built = tasks.setup_task(cfg.task)
    return cfg, built, built.build_model(cfg.model).eval()


def save(folder: Path, data: Path, *args: Any, **options: Any) -> tuple[str, Any, Any]:
    """A checkpoint with large random weights, and its task and model."""
    torch.manual_seed(0)
    cfg, task, model = build(data, *args, **{**SIZES, **options})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            # Else one symbol is the likeliest whatever comes before it.
            if "norm" in name:
                parameter.add_(1) if name.endswith("weight") else parameter.zero_()
    path = str(folder / "trained.pt")
    content = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    torch.save({"args": None, "cfg": content, "model": model.state_dict()}, path)
    return path, task, model


def export(path: str, out: Path, data: Path) -> None:
    main(["--to", "hf", "--path", path, "--out", str(out), "--data", str(data)])


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, L), encoder states (T, B, C) and their padding mask (B, T), all of them padded."""
    torch.manual_seed(4)
    tokens = torch.randint(4, 15, (3, 9))
    tokens[:, 0] = 2
    tokens[1, 6:] = 1
    tokens[2, 2:] = 1
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[0, 5:] = True
    mask[2, 3:] = True
    return tokens, torch.randn(7, 3, 24), mask


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["MBart", "M2M100"])
@torch.no_grad()
def test_logits_of_transformers_and_of_the_way_back(
    family: str, tied: bool, data: Path, tmp_path: Path
) -> None:
    import transformers

    shape = MBART if family == "MBart" else {"decoder_no_scale_embedding": True}
    path, _, model = save(tmp_path, data, decoder_separate_output_embed=not tied, **shape)
    out = tmp_path / "out"
    export(path, out, data)

    theirs, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        out / "decoder", output_loading_info=True
    )
    assert type(theirs).__name__ == f"{family}ForConditionalGeneration"
    assert not any(report.values()), report  # nothing missing, nothing left over
    tokens, states, mask = batch()
    encoder_out = {"encoder_out": [states], "encoder_padding_mask": [mask]}
    expected = model.decoder(tokens, encoder_out=encoder_out)[0]
    found = theirs.eval()(
        encoder_outputs=(states.transpose(0, 1),), attention_mask=(~mask).long(),
        decoder_input_ids=tokens, decoder_attention_mask=tokens.ne(1).long(),
    ).logits  # fmt: skip
    real = tokens.ne(1)
    assert expected[real].std() > 0.1
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=0)

    given = {"text_decoder_path": str(out / "decoder"), "speech_encoder_path": str(out)}
    back = build(data, **given)[2]
    assert (back.decoder.output_projection.weight is back.decoder.embed_tokens.weight) == tied
    assert torch.equal(back.decoder(tokens, encoder_out=encoder_out)[0], expected)


def greedy(model: Any, states: Tensor, tag: int, longest: int) -> list[int]:
    """What a decoder says is likeliest after a tag, up to </s>."""
    mask = torch.zeros(states.size(1), states.size(0), dtype=torch.bool)
    encoder_out = {"encoder_out": [states], "encoder_padding_mask": [mask]}
    tokens = [2, tag]
    while tokens[-1] != 2 and len(tokens) < longest:
        scores = model.decoder(torch.tensor([tokens]), encoder_out=encoder_out)[0][0, -1]
        scores[1] = float("-inf")
        tokens.append(int(scores.argmax()))
    return tokens


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adaptor": "linear", "adaptor_stride": 3, "adaptor_positions": True},
        {"encoder_view": "projected", "sentence_dim": 6, "adaptor": "linear", "adaptor_stride": 1},
        {"encoder_view": "projected", "sentence_dim": 6, "pooling": "mean"},
        {"encoder_view": "projected", "sentence_dim": 24, "pooling": "max", "adaptor": "none"},
        {"encoder_view": "pooled", "sentence_dim": 6, "adaptor": "linear", "adaptor_stride": 1},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()) or "conv",
)
@torch.no_grad()
def test_the_lines_of_the_readme_translate(
    options: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {**MBART, "decoder_separate_output_embed": True, **options}
    path, task, model = save(tmp_path, data, **shape)
    export(path, tmp_path / "out", data)
    wave = torch.nn.functional.layer_norm(torch.randn(1, 9000), (9000,))
    encoded = model.encoder(wave, torch.tensor([9000]))
    readme = (tmp_path / "out" / "decoder" / "README.md").read_text(encoding="utf-8")
    code = re.search("```python\n(.*?)```", readme, re.S)
    assert code and "`trained.pt`" in readme and "MBartForConditionalGeneration" in readme
    tag = "<lang:en>"
    assert f'forced_bos_token_id=vocabulary["{tag}"]' in code[1]
    names = {"frames": encoded["speech_out"][0].transpose(0, 1)}
    if options.get("encoder_view") == "pooled":
        frames = encoded["speech_out"][0].transpose(0, 1)
        names["embedding"] = model.encoder.view.head(frames)[0]
    monkeypatch.chdir(tmp_path)
    translating, symbols, reading = code[1].partition("symbols = ")
    exec(translating.replace("num_beams=5", "num_beams=1"), names)

    states = encoded["encoder_out"][0]
    torch.testing.assert_close(names["x"].transpose(0, 1), states, atol=1e-4, rtol=0)
    expected = greedy(model, states, task.target_dictionary.index(tag), longest=60)
    assert names["tokens"][0].tolist() == expected and len({*expected}) > 2
    names["tokens"] = torch.tensor([[2, *task.codec.encode_tokens("the cat eats", "en")]])
    exec(symbols + reading, names)
    assert names["text"] == "the cat eats"


def test_a_decoder_of_one_language_is_told_to_speak_it(data: Path, tmp_path: Path) -> None:
    path, task, _ = save(
        tmp_path, data, task={"lang_tag_template": "{}", "lang_tag_map": "fr=<lang:fr>"}
    )
    export(path, tmp_path / "out", data)
    settings = json.loads((tmp_path / "out" / "decoder" / "generation_config.json").read_text())
    assert settings == {
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "suppress_tokens": [1],
        "forced_bos_token_id": task.target_dictionary.index("<lang:fr>"),
    }
    lines = (data / "dict.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = json.loads((tmp_path / "out" / "decoder" / "vocab.json").read_text("utf-8"))
    expected = ["<s>", "<pad>", "</s>", "<unk>", *(line.split(" ")[0] for line in lines)]
    assert list(vocabulary) == expected and list(vocabulary.values()) == [*range(len(expected))]
    model = (tmp_path / "out" / "decoder" / "spm.model").read_bytes()
    assert model == (data / "spm.model").read_bytes()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decoder_adapter_dim": 4}, "have no adapters; found --decoder-adapter-dim 4"),
        ({"decoder_post_norm": True}, "before the blocks; found --decoder-post-norm True"),
        (
            {"decoder_learned_pos": True},
            "found --decoder-learned-pos True, --decoder-layernorm-embedding False",
        ),
        (
            {"decoder_layernorm_embedding": True},
            "found --decoder-learned-pos False, --decoder-layernorm-embedding True",
        ),
    ],
)
def test_what_transformers_cannot_hold_is_refused(
    options: dict[str, Any], message: str, data: Path, tmp_path: Path, capsys: Any
) -> None:
    path, _, _ = save(tmp_path, data, **options)
    with pytest.raises(SystemExit):
        export(path, tmp_path / "out", data)
    error = capsys.readouterr().err
    assert path in error and message in error
    assert not (tmp_path / "out").exists()


def test_only_translators_with_their_vocabulary_have_decoders(
    data: Path, tmp_path: Path, capsys: Any
) -> None:
    path, _, _ = save(tmp_path, data)
    with pytest.raises(SystemExit):
        export(path, tmp_path / "out", tmp_path)
    assert "dict.txt: expected a fairseq dictionary, found no file" in capsys.readouterr().err
    encoder = {name: size for name, size in SIZES.items() if name.startswith("encoder")}
    cfg, _, model = build(data, "samu_xlsr", sentence_dim=6, **encoder)
    content = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    torch.save({"args": None, "cfg": content, "model": model.state_dict()}, path)
    with pytest.raises(SystemExit):
        export(path, tmp_path / "out", data)
    assert path in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
