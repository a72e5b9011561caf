"""Tests of the translation model."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.models.ema import EMA
from fairseq.models.speech_to_text.xm_transformer import set_default_transformer_decoder_args
from fairseq.models.transformer import Embedding, TransformerConfig, TransformerDecoder
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_samu.models.xlsr_mbart_st import XlsrMbartStModel
from fairseq_samu.modules.length_adaptor import ConvGLUAdaptor, LinearAdaptor, NoAdaptor
from helpers.tiny_translator import (
    MBART,
    NO_DROPOUT,
    XLSR,
    Task,
    make_batch,
    make_cfg,
    make_dictionary,
    make_model,
)

# --- Padding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", [{}, XLSR], ids=["base", "xlsr"])
@pytest.mark.parametrize("adaptor", ["none", "linear", "conv"])
@pytest.mark.parametrize("decoder", [{}, MBART], ids=["transformer", "mbart"])
def test_logits_and_ctc_do_not_depend_on_padding(
    style: dict[str, Any], adaptor: str, decoder: dict[str, Any]
) -> None:
    model = make_model(adaptor=adaptor, ctc=True, **style, **decoder).eval()
    wave, lengths, tokens = make_batch([3001, 2222, 700])
    logits, extra = model(wave, lengths, tokens)
    ctc, frames = model.get_ctc_output(extra["encoder_out"])
    for row, samples in enumerate(lengths.tolist()):
        just = slice(row, row + 1)
        alone, alone_extra = model(wave[just, :samples], lengths[just], tokens[just])
        assert torch.allclose(logits[just], alone, atol=1e-5)
        alone_ctc, alone_frames = model.get_ctc_output(alone_extra["encoder_out"])
        assert frames[row] == alone_frames[0] == alone_ctc.size(0)
        assert torch.allclose(ctc[: frames[row], row], alone_ctc[:, 0], atol=1e-5)


# --- The decoder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("extras", [{}, MBART], ids=["transformer", "mbart"])
def test_decoder_equals_fairseqs(post_norm: bool, separate: bool, extras: dict[str, Any]) -> None:
    model = make_model(
        decoder_post_norm=post_norm, decoder_separate_output_embed=separate, **extras
    ).eval()
    args = Namespace(
        encoder_embed_dim=20,
        decoder_embed_dim=20,
        decoder_ffn_embed_dim=40,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_normalize_before=not post_norm,
        decoder_learned_pos=bool(extras),
        layernorm_embedding=bool(extras),
        activation_fn="gelu" if extras else "relu",
        share_decoder_input_output_embed=not separate,
        max_target_positions=50,
        dropout=0.0,
    )
    set_default_transformer_decoder_args(args)
    dictionary = make_dictionary(30)
    fairseqs = TransformerDecoder(args, dictionary, Embedding(len(dictionary), 20, 1)).eval()
    fairseqs.load_state_dict(model.decoder.state_dict())
    wave, lengths, tokens = make_batch([3000, 2000])
    logits, extra = model(wave, lengths, tokens)
    expected, _ = fairseqs(tokens, encoder_out=extra["encoder_out"])
    assert torch.allclose(logits, expected, atol=1e-6)


def generate(
    model: XlsrMbartStModel, wave: Tensor, lengths: Tensor, incremental: bool = True
) -> tuple[list[Any], Tensor]:
    """Tokens and scores of the four best hypotheses of every utterance."""
    dictionary = make_dictionary(30)
    generator = SequenceGenerator([model], dictionary, beam_size=4, max_len_b=15, min_len=3)
    generator.model.has_incremental = incremental
    sample = {"net_input": {"src_tokens": wave, "src_lengths": lengths}}
    found = generator.generate([model], sample)
    tokens = [[beam["tokens"].tolist() for beam in row] for row in found]
    return tokens, torch.tensor([[float(beam["score"]) for beam in row] for row in found])


@pytest.mark.parametrize("extras", [{}, {**XLSR, **MBART, "ctc": True}], ids=["base", "mbart"])
def test_beam_search_is_the_same_without_state_and_without_batching(extras: dict[str, Any]) -> None:
    model = make_model(**extras).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "encoder_attn" in name or "adaptor" in name:
                weight.mul_(8)  # untrained, it would hardly listen
    wave, lengths, _ = make_batch([3001, 2222, 700])
    tokens, scores = generate(model, wave, lengths)
    assert scores.shape == (3, 4) and tokens[0] != tokens[1] != tokens[2]
    recomputed = generate(model, wave, lengths, incremental=False)
    assert recomputed[0] == tokens and torch.allclose(recomputed[1], scores, atol=1e-5)
    for row, samples in enumerate(lengths.tolist()):
        just = slice(row, row + 1)
        alone = generate(model, wave[just, :samples], lengths[just])
        assert alone[0] == tokens[just] and torch.allclose(alone[1], scores[just], atol=1e-5)


def test_preparing_for_inference_changes_nothing() -> None:
    model = make_model().eval()
    wave, lengths, tokens = make_batch([3000, 2000])
    before, _ = model(wave, lengths, tokens)
    model.prepare_for_inference_(OmegaConf.create({"generation": {"beam": 4}}))
    assert torch.allclose(model(wave, lengths, tokens)[0], before, atol=1e-5)


def test_a_config_leaves_no_trace_in_the_next() -> None:
    make_model(decoder_layers=3, decoder_ffn_embed_dim=12)
    assert TransformerConfig().decoder.layers == 6
    assert TransformerConfig().decoder.ffn_embed_dim == 2048


# --- Gradients ------------------------------------------------------------------------------------

TRAINING = [
    {},
    {"ctc": True},
    {"adaptor": "none"},
    {"adaptor": "linear", "adaptor_stride": 3},
    {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5, "mask_prob": 0.4, "ctc": True},
    {"encoder_layerdrop": 1.0, "decoder_layerdrop": 1.0},
    {"encoder_feature_grad_mult": 0.0, "decoder_separate_output_embed": True, **XLSR, **MBART},
]


def training_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    logits, extra = model(*batch)
    loss = logits.float().log_softmax(-1)[..., 5].sum()
    if extra["encoder_out"]["ctc_logits"]:
        loss = loss + extra["encoder_out"]["ctc_logits"][0].float().log_softmax(-1)[..., 2].sum()
    return loss


@pytest.mark.parametrize("given", TRAINING)
def test_everything_that_asks_for_a_gradient_gets_one(given: dict[str, Any]) -> None:
    model = make_model(**given).train()
    training_loss(model, make_batch([3000, 2000])).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("given", TRAINING)
def test_distributed_training_finds_no_unused_parameter(
    given: dict[str, Any], one_process_group: None
) -> None:
    model = make_model(**given).train()
    parallel = nn.parallel.DistributedDataParallel(model)  # does not look for unused parameters
    for _ in range(3):  # a forward pass complains of what the last one left unused
        training_loss(parallel, make_batch([3000, 2000])).backward()


def test_the_decoders_dropout_remembers_a_byte_and_may_be_retained() -> None:
    decoder = make_model(decoder_dropout=0.5).decoder
    kept: list[Tensor] = []
    for module in (decoder.dropout_module, *(layer.dropout_module for layer in decoder.layers)):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            dropped = module.train()(torch.ones(1000, requires_grad=True))
        assert kept.pop().dtype == torch.bool and not kept
        assert sorted(dropped.unique().tolist()) == [0, 2]
        assert module.eval()(dropped) is dropped
        module.make_generation_fast_("decoder", retain_dropout=True)
        assert (module(torch.ones(1000)) == 0).any()


def test_layer_drop_in_the_decoder_skips_whole_layers() -> None:
    model = make_model(decoder_layerdrop=1.0, **NO_DROPOUT)
    wave, lengths, tokens = make_batch([3000])
    everything, _ = model.eval()(wave, lengths, tokens)
    skipped, _ = model.train()(wave, lengths, tokens)
    model.decoder.layers = nn.ModuleList()
    assert torch.equal(skipped, model.eval()(wave, lengths, tokens)[0])
    assert not torch.allclose(skipped, everything, atol=0.1)


@pytest.mark.parametrize("given", [{}, {"adaptor": "linear"}, {**XLSR, **MBART}])
def test_gradients_in_single_precision_equal_those_in_double(given: dict[str, Any]) -> None:
    gradients = []
    for dtype in (torch.float32, torch.float64):
        model = make_model(ctc=True, **NO_DROPOUT, **given).to(dtype).train()
        wave, lengths, tokens = make_batch([3001, 2000])
        training_loss(model, (wave.to(dtype), lengths, tokens)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, exact in gradients[1].items():
        scale = max(1.0, exact.abs().max().item())
        assert torch.allclose(gradients[0][name].double(), exact, atol=1e-4 * scale), name


@pytest.mark.parametrize("given", [{}, {**XLSR, **MBART}], ids=["base", "xlsr"])
def test_bfloat16_model_trains(given: dict[str, Any]) -> None:
    model = make_model(ctc=True, mask_prob=0.3, **given).bfloat16().train()
    wave, lengths, tokens = make_batch([3000, 2000])
    _, extra = model(wave.bfloat16(), lengths, tokens)
    assert model.get_ctc_output(extra["encoder_out"])[0].dtype == torch.float32
    loss = training_loss(model, (wave.bfloat16(), lengths, tokens))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_moving_averages_spare_the_vocabulary() -> None:
    model = make_model(ctc=True)
    nn.utils.remove_weight_norm(model.encoder.wav2vec2.encoder.pos_conv[0])  # cannot be copied
    config = Namespace(
        ema_decay=0.9,
        ema_start_update=0,
        ema_fp32=False,
        ema_seed_model=None,
        ema_update_freq=1,
        store_ema=True,
    )
    ema = EMA(model, config)
    ema.step(model, updates=1)
    average = ema.get_model().state_dict()
    for name in ("vocabulary_version", "transcript_vocabulary_version"):
        assert torch.equal(average[name], model.state_dict()[name])


# --- Building -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given,kind",
    [
        ({"adaptor": "conv"}, ConvGLUAdaptor),
        ({"adaptor": "linear"}, LinearAdaptor),
        ({"adaptor": "none"}, LinearAdaptor),  # the widths differ
        ({"adaptor": "none", "decoder_embed_dim": 24}, NoAdaptor),
    ],
)
def test_adaptors(given: dict[str, Any], kind: type) -> None:
    model = make_model(**given).eval()
    assert type(model.encoder.adaptor) is kind
    wave, lengths, tokens = make_batch([3000])
    _, extra = model(wave, lengths, tokens)
    shortened = extra["encoder_out"]["encoder_out"][0].size(0)
    frames = extra["encoder_out"]["speech_out"][0].size(0)
    factor = {"conv": 4, "linear": 2, "none": 1}[given["adaptor"]]
    assert shortened == -(-frames // factor)


@pytest.mark.parametrize("given", [{}, {**XLSR, **MBART, "ctc": True}], ids=["base", "mbart"])
def test_one_seed_builds_one_model(given: dict[str, Any]) -> None:
    states = []
    for junk in (1e30, -7.0):
        del_me = [torch.full((n,), junk) for n in (1, 1, 1, 20, 24, 48, 1024)]
        del del_me  # memory that is handed out uninitialised now differs
        states.append(make_model(**given).state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_what_the_task_settles_is_recorded() -> None:
    cfg = make_cfg()
    Task(input_normalization="none").build_model(cfg.model)
    assert cfg.model.input_normalization == "none"
    assert cfg.model.max_target_positions == 50
    assert cfg.model.encoder_conv_pos == 8 and cfg.model.adaptor_stride == 2  # given, default


def test_positions() -> None:
    assert make_model().max_positions() == (1_000_000_000, 50)
    assert make_model().max_decoder_positions() == 50


def test_ctc_output_without_head_is_an_error() -> None:
    model = make_model()
    wave, lengths, tokens = make_batch([3000])
    with pytest.raises(ValueError, match="without a CTC head: give it --ctc"):
        model.get_ctc_output(model(wave, lengths, tokens)[1]["encoder_out"])
