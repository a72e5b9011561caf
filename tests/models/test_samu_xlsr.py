"""SAMU-XLS-R: padding, gradients, checkpoints, and a head that is really trained."""

from types import SimpleNamespace

import pytest
import torch
from fairseq import models
from fairseq.data import Dictionary
from fairseq.dataclass.utils import merge_with_parent
from fairseq.models import ARCH_MODEL_NAME_REGISTRY
from omegaconf import OmegaConf

import fairseq_samu.models  # noqa: F401  (registers the model)
from fairseq_samu.criterions import MseToLabseCriterion
from fairseq_samu.models import SamuXlsrConfig
from fairseq_samu.models.architectures import PRESETS

SIZES = {
    "encoder_conv_layers": "[(8, 20, 10), (16, 8, 4), (16, 4, 4)]", "encoder_layers": 2,
    "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2,
    "encoder_conv_pos": 4, "encoder_conv_pos_groups": 2, "encoder_dropout": 0.0,
    "encoder_attention_dropout": 0.0,
}  # fmt: skip


def make_task(teacher_dim=6, transcripts=False):
    dictionary = Dictionary()
    dictionary.add_symbol("a")
    return SimpleNamespace(
        target_dictionary=Dictionary(), transcript_dictionary=dictionary if transcripts else None,
        input_normalization="utterance", tag_settings={}, teacher_dim=teacher_dim, pairs=[("es", "en")],
        cfg=SimpleNamespace(teacher="labse", max_target_positions=10),
    )  # fmt: skip


def make_model(task=None, **options):
    torch.manual_seed(1)
    cfg = OmegaConf.create(
        {"_name": "samu_xlsr", "input_normalization": "utterance", **SIZES, **options}
    )
    return models.build_model(cfg, task or make_task())


@pytest.mark.parametrize("pooling", ["attention", "mean", "max", "transformer"])
def test_an_utterance_alone_and_in_a_padded_batch_is_one_vector(pooling):
    model = make_model(pooling=pooling).eval()
    wave = torch.randn(2, 4000)
    wave[1, 2500:] = 0
    batch = model(wave, torch.tensor([4000, 2500]))["embedding"]
    alone = model(wave[1:, :2500], torch.tensor([2500]))["embedding"]
    assert batch.shape == (2, 6)
    torch.testing.assert_close(batch[1:], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ctc", [False, True])
def test_a_step_moves_head_and_encoder(ctc):
    """The public implementations have a pooling head that no optimiser ever steps.

    Without CTC, which reaches the encoder by itself, the distance alone has to move it.
    """
    task = make_task(transcripts=True)
    model = make_model(task, ctc=ctc).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sample = {
        "net_input": {"src_tokens": torch.randn(3, 4000), "src_lengths": torch.tensor([4000] * 3)},
        "teacher": torch.nn.functional.normalize(torch.randn(3, 6), dim=1),
        "ntokens": 3, "nsentences": 3, "pair": torch.zeros(3, dtype=torch.long),
        "transcript": torch.full((3, 2), 4), "transcript_lengths": torch.tensor([2, 2, 2]),
    }  # fmt: skip
    MseToLabseCriterion(task, "cosine", 10.0, float(ctc))(model, sample)[0].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [], "distributed training would wait for these for ever"
    optimizer.step()
    after = dict(model.named_parameters())
    parts = ["head.pooling", "head.projection", "encoder.wav2vec2.encoder"]
    for part in [*parts, "encoder.ctc_head"] if ctc else parts:
        moved = [not torch.equal(before[n], after[n]) for n in before if n.startswith(part)]
        assert any(moved), part


def test_width_comes_from_the_teacher_and_is_checked():
    assert make_model(make_task(teacher_dim=9)).head.projection.out_features == 9
    assert make_model(make_task(teacher_dim=None), sentence_dim=4).head.projection.out_features == 4
    with pytest.raises(ValueError, match="width 4 .*found 6"):
        make_model(sentence_dim=4)
    with pytest.raises(ValueError, match="--teacher"):
        make_model(make_task(teacher_dim=None))


@pytest.mark.parametrize(("options", "message"), [
    ({"encoder_layers": -1}, "--encoder-layers: expected at least 1, found -1"),
    ({"encoder_conv_pos": 0}, "--encoder-conv-pos: expected at least 1, found 0"),
    ({"mask_prob": -0.5}, "--mask-prob: expected a share between 0 and 1, found -0.5"),
    ({"encoder_layerdrop": 1.5}, "--encoder-layerdrop: expected a share between 0 and 1, found 1.5"),
    ({"encoder_dropout": float("nan")}, "--encoder-dropout: expected a share"),
    ({"encoder_conv_pos_groups": 3}, "--encoder-conv-pos-groups: .* divides --encoder-embed-dim 16, fou"),
])  # fmt: skip
def test_numbers_that_mean_nothing_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_settled_options_are_saved():
    whole = OmegaConf.create(
        {"model": {"_name": "samu_xlsr", "input_normalization": "utterance", **SIZES}}
    )
    models.build_model(whole.model, make_task())
    assert whole.model.sentence_dim == 6
    assert merge_with_parent(SamuXlsrConfig(), whole.model, True).sentence_dim == 6


def test_checkpoint_of_other_transcripts_is_refused():
    task = make_task(transcripts=True)
    weights = make_model(task, ctc=True).state_dict()
    other = make_task(transcripts=True)
    other.transcript_dictionary.add_symbol("b")
    with pytest.raises(ValueError, match="transcript vocabulary of 5 symbols"):
        make_model(other, ctc=True).load_state_dict(weights)
    make_model(make_task(), ctc=True).load_state_dict(weights)  # without transcripts: no CTC head


def test_the_preset_builds():
    preset = OmegaConf.load(PRESETS / "samu_xlsr_tiny.yaml")
    cfg = OmegaConf.create({"model": {**preset.model, "input_normalization": "utterance"}})
    model = models.build_model(cfg.model, make_task(transcripts=True))
    assert sum(p.numel() for p in model.encoder.wav2vec2.parameters()) < 800_000
    assert ARCH_MODEL_NAME_REGISTRY["samu_xlsr_tiny"] == "samu_xlsr"
