"""Partial training inside the models."""

import gc
import logging
import multiprocessing
import socket
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import fairseq_samu.models  # noqa: F401  (registers the models)
from fairseq_samu import compat
from fairseq_samu.optim.skipped_parameters import drop_gradients
from fairseq_samu.pretrained.text_decoder import TextDecoderCheckpoint
from fairseq_samu.pretrained.wav2vec2 import Wav2VecCheckpoint
from helpers.tiny_models import (
    ADAPTERS,
    LNA,
    SAMU,
    SIZES,
    STYLES,
    TOKENS,
    TRANSLATOR,
    batch,
    build,
    randomize,
    save,
    trained,
)


@pytest.mark.parametrize("style", STYLES)
def test_lna_is_that_of_fairseq(style):
    """fairseq finds the parts by substrings, and so misses the norm of the decoder's embeddings."""
    xm_transformer = pytest.importorskip("fairseq.models.speech_to_text.xm_transformer")
    model = build(TRANSLATOR, **style, **LNA)[0]
    expected = {
        name
        for part, chosen in (
            (model.encoder.wav2vec2, "layer_norm,self_attn"),
            (model.decoder, "encoder_attn,layer_norm,self_attn"),
        )
        for name, _ in part.named_parameters()
        if xm_transformer.need_finetuning(chosen, name)
    }
    found = {
        name.replace("encoder.wav2vec2.", "", 1).replace("decoder.", "", 1)
        for name in trained(model)
        if name.startswith(("encoder.wav2vec2.", "decoder."))
    }
    embedding_norm = {"layernorm_embedding.weight", "layernorm_embedding.bias"}
    assert found == expected | embedding_norm
    outside = {name for name, _ in model.named_parameters() if name.startswith("encoder.adaptor")}
    assert outside and outside <= trained(model)


CHOICES = [
    {"train_encoder": "adapters", "train_decoder": "adapters"},
    {"train_encoder": "top-1", "train_decoder": "top-2"},
    LNA,
    {"train_encoder": "none", "train_decoder": "none"},
    {"train_encoder": "all", "train_decoder": "cross-attention"},
]
LATE = {"freeze_encoder_updates": 2, "freeze_decoder_updates": 1, "train_encoder": "layernorm"}
LIVELY = {
    "ctc": True, "encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5, "mask_prob": 0.3,
    "encoder_layer_weighting": True, **ADAPTERS,
}  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("layerdrop", [0.0, 1.0])
def test_what_trains_gets_gradients_and_moves_and_nothing_else(choice, layerdrop):
    options = {**LIVELY, "encoder_layerdrop": layerdrop, "decoder_layerdrop": layerdrop}
    model = randomize(build(TRANSLATOR, **options, **choice)[0]).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = trained(model)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5
    )
    logits, extra = model(*batch(), TOKENS)
    (logits.square().sum() + extra["encoder_out"]["ctc_logits"][0].square().sum()).backward()
    graded = {name for name, p in model.named_parameters() if p.grad is not None}
    assert graded == names, "distributed training would wait for the others for ever"
    optimizer.step()
    after = dict(model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # A weight that starts at zero may stay there; layers that are dropped move by decay alone.
    assert moved <= names
    assert {n for n in names if n.startswith(("encoder.adaptor", "encoder.ctc_head"))} <= moved
    if choice["train_encoder"] == "adapters" and layerdrop == 0.0:
        assert "encoder.wav2vec2.encoder.layers.0.attention_adapter.up.weight" in moved


def test_the_adapter_variant_of_samu_trains_adapters_and_head():
    model, _ = build(SAMU, encoder_adapter_dim=256, train_encoder="adapters")
    names = trained(model)
    adapters = {n for n in names if "_adapter." in n}
    assert names - adapters == {f"head.{name}" for name, _ in model.head.named_parameters()}
    assert len(adapters) == 3 * 2 * 6


def test_a_frozen_network_computes_as_in_evaluation():
    model = build(TRANSLATOR, **LIVELY, train_encoder=" none", train_decoder="none")[0].train()
    assert model.encoder.training and not model.encoder.wav2vec2.training
    assert not model.decoder.training and not model.decoder.layers[0].training
    frames = [model.encoder.wav2vec2(*batch())[0] for _ in range(2)]
    assert torch.equal(*frames)
    # The layers have no graph; their weights do, as in SUPERB.
    assert frames[0].requires_grad
    frames[0].sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        "encoder.wav2vec2.layer_weighting.logits"
    }


def test_a_partly_frozen_network_keeps_its_dropout():
    options = {"train_encoder": "top-1", "train_decoder": "top-1"}
    model = build(TRANSLATOR, **options)[0].train()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    "chosen, first",
    [("top-1", 2), ("top-2", 1), ("adapters", 0), ("attention", 0), ("none", None), ("all", None)],
)
def test_nothing_is_kept_below_the_first_layer_that_trains(chosen, first):
    """What a gradient needs is most of the memory, and computing it two thirds of the time."""
    options = {"mask_prob": 0.0, "encoder_adapter_dim": 4, "train_encoder": chosen}
    frames = build(TRANSLATOR, **options)[0].train().encoder.wav2vec2
    kept, below = [], []
    for layer in frames.encoder.layers:
        layer.register_forward_pre_hook(
            lambda _, inputs: below.append((inputs[0].requires_grad, len(kept)))
        )
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        frames(*batch())
    if chosen == "all":
        assert below[0][0] and below[0][1] > 0
    elif first is None:
        assert below == [(False, 0)] * 3 and not kept
    else:
        assert below[: first + 1] == [(False, 0)] * (first + 1)
        assert all(graph and count for graph, count in below[first + 1 :]) and kept


@pytest.mark.skipif(not compat.CPU_BF16_TRAINS, reason="torch 1 cannot")
@pytest.mark.parametrize("frozen", [True, False])
def test_under_autocast_no_activation_and_no_frozen_weight_is_kept_in_float32(frozen):
    widths = {"encoder_ffn_embed_dim": 44, "decoder_ffn_embed_dim": 28, **ADAPTERS}
    chosen = CHOICES[0] if frozen else {}
    model = build(TRANSLATOR, decoder_activation_fn="gelu", **widths, **chosen)[0].train()
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model(*batch(), TOKENS)
    own = {p.data_ptr() for p in model.parameters()}
    activations = [t.dtype for t in kept if t.shape[-1] in (44, 28) and t.dim() == 3]
    assert {*activations} == {torch.bfloat16}
    copies = [
        t for t in kept if sorted(t.shape) in ([16, 44], [12, 28]) and t.data_ptr() not in own
    ]
    assert bool(copies) != frozen


def graded(model):
    """Names of the parameters that a backward pass reaches."""
    model.zero_grad(set_to_none=True)
    logits, extra = model(*batch(), TOKENS)
    (logits.square().sum() + extra["encoder_out"]["ctc_logits"][0].square().sum()).backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("view", ["hidden", "projected", "pooled"])
def test_parts_that_wait_are_frozen_and_then_exactly_the_chosen_ones_train(view):
    options = {**LIVELY, "encoder_view": view, "sentence_dim": 6, **LNA}
    options.update(encoder_layerdrop=0.0, decoder_layerdrop=0.0)
    model = randomize(
        build(TRANSLATOR, **options, freeze_encoder_updates=2, freeze_decoder_updates=1)[0]
    ).train()
    assert trained(model) == trained(build(TRANSLATOR, **options)[0])  # optimisers ask once
    # The head that a frozen encoder is read through waits with it, and the mixture that it reads.
    head = ("encoder.view.", "encoder.wav2vec2.layer_weighting.") if view != "hidden" else ()
    with_encoder = {
        n for n in trained(model) if n.startswith(("encoder.wav2vec2.", "encoder.view."))
        if n.startswith(head) or "layer_weighting" not in n
    }  # fmt: skip
    with_decoder = {n for n in trained(model) if n.startswith("decoder.")}
    assert with_encoder and with_decoder
    for updates, waiting in ((0, with_encoder | with_decoder), (1, with_encoder), (2, set())):
        model.set_num_updates(updates)
        frames = model.encoder.wav2vec2
        assert frames.training == frames.encoder.layers[0].training == (updates == 2)
        assert model.decoder.layers[0].training == (updates >= 1)
        assert model.encoder.view is None or model.encoder.view.training == (updates == 2)
        assert model.encoder.adaptor.training
        assert graded(model) == trained(model) - waiting
        listed = {id(p) for p in model.waiting_parameters()}
        assert listed == {id(p) for n, p in model.named_parameters() if n in waiting}


def test_a_waiting_encoder_has_no_graph_at_all(caplog):
    model = build(
        TRANSLATOR, **LIVELY | {"encoder_layer_weighting": False}, freeze_encoder_updates=2
    )[0]
    assert not model.train().encoder(*batch())["speech_out"][0].requires_grad
    with caplog.at_level(logging.INFO):
        model.set_num_updates(2)
    assert caplog.messages[-1] == "the encoder trains from update 2 on"
    assert model.encoder(*batch())["speech_out"][0].requires_grad


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_encoder": "cross-attention"}, "--train-encoder: .*adapters, attention, layernorm"),
        ({"train_encoder": "adapters"}, "--train-encoder adapters.*--encoder-adapter-dim"),
        ({"train_decoder": "adapters"}, "--train-decoder adapters.*--decoder-adapter-dim"),
        ({"train_decoder": "top-4"}, "--train-decoder: .*cross-attention, .*last N of 3 layers"),
        ({"encoder_adapter_dim": -2}, "at least 1, found -2"),
        ({"freeze_encoder_updates": -1}, "--freeze-encoder-updates: expected 0 or more.*found -1"),
        (
            {"train_decoder": "none", "freeze_decoder_updates": 5},
            "--freeze-decoder-updates: .* 0 with --train-decoder none, found 5",
        ),
    ],
)  # fmt: skip
def test_wrong_choices_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        build(TRANSLATOR, **wrong)


def test_the_log_says_what_trains(caplog):
    with caplog.at_level(logging.INFO):
        model, _ = build(
            SAMU, encoder_adapter_dim=5, train_encoder="adapters", encoder_layer_weighting=True
        )
    rows = {line[:20].strip(): line.split()[-3:] for line in caplog.text.splitlines()}
    # 6 adapters: norm 32, down 16·5 + 5, up 5·16 + 16
    assert rows["encoder.adapters"] == [f"{6 * 213:,}", f"{6 * 213:,}", "100.0%"]
    assert rows["encoder.attention"] == [f"{3 * 4 * (16 * 16 + 16):,}", "0", "0.0%"]
    # pooling 16 + 1 or so, projection 17·6, and the weights of three layers and their input
    head = sum(p.numel() for p in model.head.parameters())
    assert rows["outside"] == [str(head + 4), str(head + 4), "100.0%"]
    total = sum(p.numel() for p in model.parameters())
    assert rows["total"][0] == f"{total:,}"


# --- Checkpoints ----------------------------------------------------------------------------------


def test_a_samu_encoder_with_additions_goes_on_in_a_translator(tmp_path):
    samu, whole = build(
        SAMU, encoder_adapter_dim=5, encoder_layer_weighting=True, train_encoder="adapters"
    )
    randomize(samu).eval()
    path = save(tmp_path / "samu.pt", samu, whole)
    # What it has need not be said again, and more can be added.
    small = {k: v for k, v in TRANSLATOR.items() if k not in SIZES}
    model, whole = build(
        small, speech_encoder_path=path, encoder_view="projected", train_encoder="none",
        decoder_adapter_dim=3,
    )  # fmt: skip
    assert whole.model.encoder_adapter_dim == 5 and whole.model.encoder_layer_weighting
    speech = model.train().encoder(*batch())["speech_out"][0]
    torch.testing.assert_close(speech, samu.encoder(*batch())["speech_out"][0])
    # Read through the frozen head, the mixture that it was trained on is frozen too.
    inside = ("encoder.wav2vec2", "encoder.view")
    assert not [name for name in trained(model) if name.startswith(inside)]
    Path(path).unlink()
    again, _ = build(OmegaConf.to_container(whole.model))
    again.load_state_dict(model.state_dict())
    expected = model.eval()(*batch(), TOKENS)[0]
    torch.testing.assert_close(again.eval()(*batch(), TOKENS)[0], expected)


def test_additions_to_a_samu_encoder_that_has_none(tmp_path):
    samu, whole = build(SAMU)
    path = save(tmp_path / "samu.pt", randomize(samu).eval(), whole)
    model, _ = build({"_name": "samu_xlsr"}, speech_encoder_path=path, encoder_adapter_dim=2)
    expected = samu(*batch())["embedding"]
    torch.testing.assert_close(model.eval()(*batch())["embedding"], expected)
    weighted, _ = build(
        {"_name": "samu_xlsr"}, speech_encoder_path=path, encoder_layer_weighting=True
    )
    assert weighted.encoder.wav2vec2.layer_weighting.logits.tolist() == [0.0] * 4


def test_a_decoder_goes_on_with_its_adapters_or_gets_new_ones(tmp_path):
    for saved in ({}, {"decoder_adapter_dim": 3}):
        old, whole = build(TRANSLATOR, **saved)
        path = save(tmp_path / "translator.pt", randomize(old).eval(), whole)
        new, whole = build(TRANSLATOR, text_decoder_path=path, **({} if saved else ADAPTERS))
        assert whole.model.decoder_adapter_dim == (3 if saved else 4)
        encoder_out = old.encoder(*batch())
        expected = old.decoder(TOKENS, encoder_out)[0]
        torch.testing.assert_close(new.eval().decoder(TOKENS, encoder_out)[0], expected)


def test_another_adapter_width_than_the_checkpoints_is_refused(tmp_path):
    path = save(tmp_path / "samu.pt", *build(SAMU, encoder_adapter_dim=5))
    with pytest.raises(ValueError, match="--encoder-adapter-dim: the checkpoint has 5, .* says 3"):
        build({"_name": "samu_xlsr"}, speech_encoder_path=path, encoder_adapter_dim=3)


# --- Distributed training -------------------------------------------------------------------------


def train_distributed(rank: int, port: int) -> None:
    """One of two workers: four updates under each choice, with torch's own wrapper."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2
    )
    for choice in [*CHOICES, LATE]:
        model = randomize(build(TRANSLATOR, **LIVELY, **choice)[0]).train()
        frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        parallel = nn.parallel.DistributedDataParallel(model)
        chosen = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(chosen, lr=0.01, weight_decay=0.5)
        wave, lengths = batch()
        for update in range(4):
            torch.manual_seed(update)  # fairseq seeds workers alike: they drop the same layers
            optimizer.zero_grad(set_to_none=True)
            model.set_num_updates(update)
            waiting = {
                n: p.clone()
                for n, p in model.named_parameters()
                if p in {*model.waiting_parameters()}
            }
            assert bool(waiting) == (update < choice.get("freeze_encoder_updates", 0))
            logits, extra = parallel(wave * (rank + 1), lengths, TOKENS)
            ctc = extra["encoder_out"]["ctc_logits"][0]
            (logits.square().mean() + ctc.square().mean()).backward()
            drop_gradients(optimizer, model.waiting_parameters())
            optimizer.step()
            for name, p in model.named_parameters():
                assert name not in waiting or torch.equal(p, waiting[name]), name
        for name, p in model.named_parameters():
            assert name not in frozen or torch.equal(p, frozen[name]), name
            both = [torch.empty_like(p) for _ in range(2)]
            torch.distributed.all_gather(both, p.detach().contiguous())
            assert torch.equal(*both), f"{name} differs between the workers"
        # The last wrapper must be gone before the connection it was made with.
        del parallel
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
def test_two_workers_wait_for_nothing_that_does_not_train():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=train_distributed, args=(rank, port)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert codes == [0, 0]


def test_weights_that_were_copied_are_freed(tmp_path):
    path = save(tmp_path / "model.pt", *build(TRANSLATOR))
    gc.collect()
    gc.disable()
    try:
        model = build(TRANSLATOR, speech_encoder_path=path, text_decoder_path=path)
        held = [
            o for o in gc.get_objects() if isinstance(o, TextDecoderCheckpoint | Wav2VecCheckpoint)
        ]
    finally:
        gc.enable()
    assert model and not held
