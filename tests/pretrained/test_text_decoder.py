"""Text decoders of fairseq and Hugging Face, read and compared with the models that wrote them."""

import json
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models.bart.model import BARTModel, mbart_large_architecture
from omegaconf import OmegaConf
from torch import Tensor, nn

from data_prep.vocabulary_files import KeptRows, write_vocabulary
from fairseq_samu import compat
from fairseq_samu.models.pretrained_decoder import adopt_text_decoder, load_weights
from fairseq_samu.models.xlsr_mbart_st import XlsrMbartStConfig, XlsrMbartStModel, _build_decoder
from fairseq_samu.pretrained import text_decoder
from fairseq_samu.pretrained.text_decoder import load_text_decoder

VOCABULARY = 37
#: Reduced; the width is not a power of two, so that a wrong scale shows.
SIZES = {
    "decoder_layers": 3,
    "decoder_embed_dim": 24,
    "decoder_ffn_embed_dim": 40,
    "decoder_attention_heads": 3,
}


def make_dictionary(symbols: int = VOCABULARY) -> Dictionary:
    dictionary = Dictionary()
    for i in range(symbols - len(dictionary)):
        dictionary.add_symbol(f"w{i}")
    return dictionary


def make_cfg(path: Any, **given: Any) -> Any:
    """Options of the model, of which the decoder's sizes are those of nobody's choice."""
    options = OmegaConf.structured(XlsrMbartStConfig(text_decoder_path=str(path)))
    options.max_target_positions = 20
    for name, value in given.items():
        options[name] = value
    return options


def make_task(dictionary: Dictionary, data: Any = "nowhere") -> Any:
    return Namespace(
        target_dictionary=dictionary, transcript_dictionary=None, input_normalization="utterance",
        tag_settings={},
        cfg=Namespace(max_target_positions=20, data=str(data), dictionary="dict.txt"),
    )  # fmt: skip


def our_decoder(path: Any, symbols: int = VOCABULARY, **given: Any) -> Any:
    cfg = make_cfg(path, **given)
    dictionary = make_dictionary(symbols)
    checkpoint = adopt_text_decoder(cfg, XlsrMbartStConfig(), make_task(dictionary))
    assert checkpoint is not None and cfg.text_decoder_path is None
    decoder = _build_decoder(cfg, dictionary)
    load_weights(decoder, checkpoint)
    return decoder.eval()


def randomised(model: nn.Module) -> Any:
    """Norms and biases too: at their initial values a missing one would not show."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
            if "embed" in name or "shared" in name:
                parameter[1] = 0.0  # padding
    return model.eval()


def batch(width: int, symbols: int = VOCABULARY) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, L), encoder states (T, B, C) and their padding mask (B, T), all of them padded."""
    torch.manual_seed(4)
    tokens = torch.randint(4, symbols, (3, 9))
    tokens[:, 0] = 2
    tokens[1, 6:] = 1
    tokens[2, 2:] = 1
    states = torch.randn(7, 3, width)
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[0, 5:] = True
    mask[2, 3:] = True
    return tokens, states, mask


def logits_of(decoder: Any, tokens: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    encoder_out = {"encoder_out": [states], "encoder_padding_mask": [mask]}
    logits: Tensor = decoder(tokens, encoder_out=encoder_out)[0]
    return logits


def assert_same(ours: Tensor, theirs: Tensor, tokens: Tensor) -> None:
    real = tokens.ne(1)
    difference = (ours[real] - theirs[real]).abs().max().item()
    assert difference < 1e-4
    # Logits that hardly vary would agree whatever was loaded.
    assert theirs[real].std() > 0.1


# --- Hugging Face ---------------------------------------------------------------------------------


def hugging_face(family: str, **given: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config_class, model_class = {
        "mbart": (transformers.MBartConfig, transformers.MBartForConditionalGeneration),
        "nllb": (transformers.M2M100Config, transformers.M2M100ForConditionalGeneration),
    }[family]
    shape = {
        "vocab_size": VOCABULARY, "d_model": 24, "decoder_layers": 3, "decoder_ffn_dim": 40,
        "decoder_attention_heads": 3, "encoder_layers": 1, "encoder_ffn_dim": 8,
        "encoder_attention_heads": 2, "max_position_embeddings": 30, "scale_embedding": True,
    }  # fmt: skip
    return randomised(model_class(config_class(**{**shape, **given})))


def their_logits(model: Any, tokens: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(
            encoder_outputs=(states.transpose(0, 1),),
            attention_mask=(~mask).long(),
            decoder_input_ids=tokens,
            decoder_attention_mask=tokens.ne(1).long(),
        ).logits
    return output


@pytest.mark.parametrize("family", ["mbart", "nllb"])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_transformers(
    tmp_path: Path, family: str, scaled: bool, tied: bool
) -> None:
    model = hugging_face(family, scale_embedding=scaled, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    decoder = our_decoder(tmp_path)
    assert (decoder.output_projection.weight is decoder.embed_tokens.weight) == tied
    tokens, states, mask = batch(24)
    theirs = their_logits(model, tokens, states, mask)
    assert_same(logits_of(decoder, tokens, states, mask), theirs, tokens)


@pytest.mark.parametrize("family", ["mbart", "nllb"])
def test_shards_and_pickles_are_read_too(tmp_path: Path, family: str) -> None:
    model = hugging_face(family)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    model.save_pretrained(tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    tokens, states, mask = batch(24)
    theirs = their_logits(model, tokens, states, mask)
    for folder in ("shards", "pickle"):
        assert_same(logits_of(our_decoder(tmp_path / folder), tokens, states, mask), theirs, tokens)


@pytest.mark.parametrize("family", ["mbart", "nllb"])
def test_a_layer_of_the_published_width(tmp_path: Path, family: str) -> None:
    model = hugging_face(
        family, d_model=1024, decoder_ffn_dim=4096, decoder_attention_heads=16, decoder_layers=1,
        max_position_embeddings=1024,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.1)
    model.save_pretrained(tmp_path)
    tokens, states, mask = batch(1024)
    theirs = their_logits(model, tokens, states, mask)
    assert_same(logits_of(our_decoder(tmp_path), tokens, states, mask), theirs, tokens)


@pytest.mark.parametrize(
    "family, symbols", [("mbart", 250_027), ("mbart", 250_054), ("nllb", 256_206)]
)
def test_published_shapes_fit(
    tmp_path: Path, family: str, symbols: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mBART-25, mBART-50 and NLLB 600M whole, without the numbers, which would fill the memory."""
    pytest.importorskip("transformers")
    with torch.device("meta"):
        model = hugging_face(
            family, vocab_size=symbols, d_model=1024, decoder_ffn_dim=4096, decoder_layers=12,
            decoder_attention_heads=16, max_position_embeddings=1024,
        )  # fmt: skip
    model.config.save_pretrained(tmp_path)
    weights = {k: v for k, v in model.state_dict().items() if k != "final_logits_bias"}
    monkeypatch.setattr(
        text_decoder,
        "read_weights",
        lambda path, wanted: {k: v for k, v in weights.items() if wanted(k)},
    )
    cfg = make_cfg(tmp_path, max_target_positions=1024)
    dictionary = make_dictionary(symbols)
    checkpoint = adopt_text_decoder(cfg, XlsrMbartStConfig(), make_task(dictionary))
    assert checkpoint is not None and checkpoint.max_target_positions == 1024
    with torch.device("meta"):
        decoder = _build_decoder(cfg, dictionary)
    shapes = {k: tuple(v.shape) for k, v in decoder.state_dict().items() if k != "version"}
    assert shapes == {k: tuple(v.shape) for k, v in checkpoint.state_dict.items()}


def test_a_bias_on_the_logits_is_refused(tmp_path: Path) -> None:
    model = hugging_face("mbart")
    model.final_logits_bias[0, 5] = 0.5
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected no bias on the logits, found final_logits_bias"):
        load_text_decoder(str(tmp_path))


def test_other_families_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model of type mbart or m2m_100 .* found t5"):
        load_text_decoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mbart"}), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="model.safetensors or pytorch_model.bin"):
        load_text_decoder(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="config.json: expected the configuration"):
        load_text_decoder(str(tmp_path.parent))


# --- fairseq --------------------------------------------------------------------------------------


def fairseq_mbart(**given: Any) -> tuple[Any, Any]:
    """fairseq's own model with the flags that mBART is trained with, and its options."""
    flags = {"encoder_normalize_before": True, "decoder_normalize_before": True}
    encoder = {"encoder_layers": 1, "encoder_embed_dim": 24, "encoder_ffn_embed_dim": 8,
               "encoder_attention_heads": 2}  # fmt: skip
    args = Namespace(
        **{
            **SIZES, **encoder, **flags, "layernorm_embedding": True, "max_target_positions": 30,
            "max_source_positions": 30, **given,
        }
    )  # fmt: skip
    mbart_large_architecture(args)
    dictionary = make_dictionary()
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return randomised(BARTModel.build_model(args, task)), args


@pytest.mark.parametrize("vintage", ["args", "cfg"])
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"no_scale_embedding": True},
        {"activation_fn": "relu"},
        {"decoder_learned_pos": False},
        {"layernorm_embedding": False},
        {"decoder_normalize_before": False},
        {"share_all_embeddings": False, "share_decoder_input_output_embed": False},
    ],
    ids=lambda variant: "-".join(variant) or "mbart",
)
def test_logits_equal_those_of_fairseq(tmp_path: Path, vintage: str, variant: Any) -> None:
    model, args = fairseq_mbart(**variant)
    stored = args if vintage == "args" else OmegaConf.create({"model": vars(args)})
    path = tmp_path / "model.pt"
    torch.save({"args": None, "cfg": None, "model": model.state_dict(), vintage: stored}, path)
    decoder = our_decoder(path)
    tokens, states, mask = batch(24)
    theirs = logits_of(model.decoder, tokens, states, mask)
    assert_same(logits_of(decoder, tokens, states, mask), theirs, tokens)


def test_the_first_layout_of_the_published_file(tmp_path: Path) -> None:
    """mBART-25 was saved without an output projection, in half precision, its sinusoids a stub."""
    model, args = fairseq_mbart()
    weights = {k: v.half() for k, v in model.state_dict().items() if "output_proj" not in k}
    weights["decoder.embed_positions._float_tensor"] = torch.zeros(1)
    torch.save({"args": args, "model": weights}, tmp_path / "model.pt")
    decoder = our_decoder(tmp_path / "model.pt")
    tokens, states, mask = batch(24)
    theirs = logits_of(model.half().float().decoder, tokens, states, mask)
    assert_same(logits_of(decoder, tokens, states, mask), theirs, tokens)


def save_mbart(path: Path, **given: Any) -> Path:
    model, args = fairseq_mbart(**given)
    torch.save({"args": args, "model": model.state_dict()}, path)
    return path


def test_fewer_positions_are_the_first(tmp_path: Path) -> None:
    path = save_mbart(tmp_path / "model.pt")
    decoder = our_decoder(path, max_target_positions=10)
    assert decoder.embed_positions.weight.shape == (12, 24)  # padding_idx + 1 before the first
    stored = load_text_decoder(str(path)).state_dict["embed_positions.weight"]
    assert torch.equal(decoder.embed_positions.weight, stored[:12])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"decoder_layers": 5}, "--decoder-layers: the checkpoint has 3, the option says 5"),
        ({"decoder_embed_dim": 16}, "--decoder-embed-dim: the checkpoint has 24, .* says 16"),
        ({"decoder_ffn_embed_dim": 16}, "--decoder-ffn-embed-dim: .* has 40, .* says 16"),
        ({"decoder_attention_heads": 2}, "--decoder-attention-heads: .* has 3, .* says 2"),
        ({"decoder_post_norm": True}, "--decoder-post-norm: .* has False, .* says True"),
        ({"max_target_positions": 31}, "--max-target-positions: .* has 30 .* asks for 31"),
    ],
)
def test_options_that_contradict_the_checkpoint(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    cfg = make_cfg(save_mbart(tmp_path / "model.pt"), **given)
    with pytest.raises(ValueError, match=message) as raised:
        adopt_text_decoder(cfg, XlsrMbartStConfig(), make_task(make_dictionary()))
    assert str(tmp_path / "model.pt") in str(raised.value)


def test_a_choice_that_contradicts_the_checkpoint(tmp_path: Path) -> None:
    path = save_mbart(tmp_path / "model.pt", activation_fn="relu", decoder_learned_pos=False)
    cfg = make_cfg(path, decoder_activation_fn="gelu", decoder_learned_pos=True)
    with pytest.raises(ValueError) as raised:
        adopt_text_decoder(cfg, XlsrMbartStConfig(), make_task(make_dictionary()))
    assert "--decoder-activation-fn: the checkpoint has relu, the option says gelu" in str(
        raised.value
    )
    assert "--decoder-learned-pos: the checkpoint has False, the option says True" in str(
        raised.value
    )


def test_the_dictionary_has_a_symbol_for_every_row(tmp_path: Path) -> None:
    cfg = make_cfg(save_mbart(tmp_path / "model.pt"))
    with pytest.raises(
        ValueError, match=r"rows, 37; nowhere/dict.txt has 35\. .*build_vocab --pretrained"
    ):
        adopt_text_decoder(cfg, XlsrMbartStConfig(), make_task(make_dictionary(35)))


# --- Pruned vocabularies --------------------------------------------------------------------------


ROWS = [0, 1, 2, 3, 9, 5, 20, 36]


def pruned_task(folder: Path, whole: int = VOCABULARY) -> Any:
    """A dictionary of some symbols of ``make_dictionary``, with the rows that it keeps."""
    everything, dictionary = make_dictionary(), Dictionary()
    for row in ROWS[4:]:
        dictionary.add_symbol(everything[row])
    write_vocabulary(folder, "", b"", dictionary.symbols[4:], KeptRows(ROWS, whole))
    return make_task(dictionary, folder)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_follow_a_pruned_dictionary(
    tmp_path: Path, tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_mbart(
        tmp_path / "model.pt", share_all_embeddings=tied, share_decoder_input_output_embed=tied
    )
    whole, cfg, task = our_decoder(path), make_cfg(path), pruned_task(tmp_path)
    with caplog.at_level(logging.INFO):
        checkpoint = adopt_text_decoder(cfg, XlsrMbartStConfig(), task)
    saved = "696" if tied else "1,392"  # 29 rows of 24 numbers, in one table or two
    assert f"kept 8 of 37 embeddings, {saved} parameters less" in caplog.text
    decoder = _build_decoder(cfg, task.target_dictionary).eval()
    assert checkpoint is not None
    load_weights(decoder, checkpoint)
    tokens, states, mask = batch(24, len(ROWS))
    theirs = logits_of(whole, torch.tensor(ROWS)[tokens], states, mask)[..., ROWS]
    assert_same(logits_of(decoder, tokens, states, mask), theirs, tokens)


def test_rows_of_another_dictionary_or_checkpoint_are_refused(tmp_path: Path) -> None:
    path = save_mbart(tmp_path / "model.pt")
    task = pruned_task(tmp_path, whole=40)
    with pytest.raises(ValueError, match=r"rows, 37; \S+dict.txt has 8, pruned from 40"):
        adopt_text_decoder(make_cfg(path), XlsrMbartStConfig(), task)
    pruned_task(tmp_path)
    with open(tmp_path / "dict.txt", "a", encoding="utf-8") as file:
        file.write("another 1\n")
    with pytest.raises(ValueError, match="rows.json: expected to be written together with"):
        adopt_text_decoder(make_cfg(path), XlsrMbartStConfig(), task)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s["model"].pop("decoder.layers.1.fc1.bias"), r"layers\.1\.fc1\.bias"),
        (lambda s: s["model"].update({"decoder.extra.weight": torch.ones(1)}), r"extra\.weight"),
        (lambda s: setattr(s["args"], "adaptive_input", True), "adaptive_input=False expected"),
        (lambda s: setattr(s["args"], "activation_fn", "swish"), "relu or gelu, found swish"),
        (lambda s: delattr(s["args"], "decoder_attention_heads"), "no decoder_attention_heads"),
        (lambda s: s.pop("args"), "found neither 'cfg' nor 'args'"),
        (lambda s: s.pop("model"), "found no weights under 'model'"),
    ],
)
def test_what_is_no_such_decoder_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = save_mbart(tmp_path / "model.pt")
    state = compat.load_checkpoint(str(path))
    change(state)
    torch.save(state, path)
    with pytest.raises(ValueError, match=message) as raised:
        load_text_decoder(str(path))
    assert str(raised.value).startswith(str(path))


# --- The whole model ------------------------------------------------------------------------------


def build(path: Any, dictionary: Dictionary) -> tuple[XlsrMbartStModel, Any]:
    speech = {"encoder_conv_layers": "[(8, 10, 5), (8, 4, 4)]", "encoder_layers": 1,
              "encoder_embed_dim": 8, "encoder_ffn_embed_dim": 8, "encoder_attention_heads": 2,
              "encoder_conv_pos": 4, "encoder_conv_pos_groups": 2}  # fmt: skip
    cfg = make_cfg(path, **speech)
    whole = OmegaConf.create({})
    whole.model = cfg
    whole.model.input_normalization = "utterance"
    return XlsrMbartStModel.build_model(whole.model, make_task(dictionary)), whole.model


def test_our_checkpoint_needs_the_file_no_more_and_starts_another(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model, cfg = build(save_mbart(tmp_path / "mbart.pt"), make_dictionary())
    assert cfg.text_decoder_path is None and cfg.decoder_layers == 3
    own = tmp_path / "checkpoint_best.pt"
    options = {**OmegaConf.to_container(cfg, enum_to_str=True), "_name": "xlsr_mbart_st"}
    torch.save({"cfg": {"model": options}, "model": model.state_dict()}, own)
    (tmp_path / "mbart.pt").unlink()
    again, _ = build(own, make_dictionary())
    for name, weight in model.decoder.state_dict().items():
        assert torch.equal(again.decoder.state_dict()[name], weight), name
    others = make_dictionary(VOCABULARY - 1)
    others.add_symbol("another")
    with pytest.raises(
        ValueError, match="target vocabulary of 37 symbols, the task's has 37 other"
    ):
        build(own, others)
