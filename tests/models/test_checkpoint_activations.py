"""Layers that are computed again in the backward pass train as those that are not."""

import pytest
import torch

from helpers.tiny_models import ADAPTERS, LNA, TOKENS, TRANSLATOR, batch, build, randomize

LIVELY = {
    "encoder_dropout": 0.2, "encoder_attention_dropout": 0.2, "decoder_dropout": 0.2,
    "decoder_attention_dropout": 0.2, "encoder_layerdrop": 0.4, "decoder_layerdrop": 0.4,
    "mask_prob": 0.3, "encoder_layer_weighting": True, **ADAPTERS,
}  # fmt: skip
E_BRANCHFORMER = {
    "_name": "xlsr_mbart_st", "encoder_blocks": "e_branchformer", "encoder_features": "log_mel",
    "encoder_layers": 2, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2, "encoder_cgmlp_dim": 24, "encoder_cgmlp_kernel": 5,
    "encoder_merge_kernel": 3,
    **{name: value for name, value in TRANSLATOR.items() if name.startswith(("adaptor", "decoder"))},
}  # fmt: skip
LATE = {"freeze_encoder_updates": 2, "freeze_decoder_updates": 1}


def update(options, seed, updates_so_far=5, **more):
    """Logits and gradients of an update, and how many numbers were kept for the backward pass."""
    model = randomize(build({**LIVELY, **options}, **more)[0]).train()
    model.set_num_updates(updates_so_far)
    torch.manual_seed(seed)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        logits, _ = model(*batch(), TOKENS)
    torch.manual_seed(99)  # what is computed again must not draw from where the generator is now
    logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients, sum(kept)


@pytest.mark.parametrize(
    "options", [TRANSLATOR, E_BRANCHFORMER], ids=["wav2vec2", "e_branchformer"]
)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chosen", [{}, LNA, {"train_encoder": "top-1"}], ids=str)
def test_gradients_are_the_same(options, seed, chosen):
    logits, gradients, kept = update(options, seed, **chosen)
    again = update(options, seed, checkpoint_activations=True, **chosen)
    assert torch.equal(again[0], logits)
    assert again[1].keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[1][name], gradient, msg=name)
    assert again[2] < kept


def test_only_what_enters_layers_is_kept():
    still = {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "encoder_feature_grad_mult": 0.0}
    kept = {}
    for layers in (2, 12):
        options = {**TRANSLATOR, **still, "encoder_layers": layers, "decoder_layers": layers}
        for again in (True, False):
            kept[layers, again] = update(options, 1, checkpoint_activations=again)[2]
    assert kept[12, True] - kept[2, True] < (kept[12, False] - kept[2, False]) / 10


@pytest.mark.parametrize("updates_so_far", [0, 1, 2])
def test_parts_that_wait(updates_so_far):
    logits, gradients, _ = update(TRANSLATOR, 1, updates_so_far, **LATE)
    again = update(TRANSLATOR, 1, updates_so_far, checkpoint_activations=True, **LATE)
    assert torch.equal(again[0], logits) and again[1].keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[1][name], gradient, msg=name)


def test_evaluation_is_as_ever():
    models = [build(TRANSLATOR, checkpoint_activations=again)[0].eval() for again in (True, False)]
    found = [model(*batch(), TOKENS)[0] for model in models]
    assert torch.equal(*found) and found[0].requires_grad
