"""The distance to the teacher by hand; a head that nobody trains would be noticed."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.logging import metrics

from fairseq_samu.criterions import MseToLabseCriterion

STUDENT = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
TEACHER = torch.tensor([[0.0, 1.0], [0.8, 0.6]])


class FixedModel(torch.nn.Module):
    """Gives the same vectors whatever it hears."""

    def __init__(self, vectors):
        super().__init__()
        self.vectors = torch.nn.Parameter(vectors.clone())

    def forward(self, **net_input):
        return {"embedding": self.vectors, "encoder_out": {}}

    def get_ctc_output(self, encoder_out):
        torch.manual_seed(0)
        return torch.randn(4, 2, 8).log_softmax(-1), torch.tensor([4, 4])


def task(teacher_dim=2, transcripts=False):
    return SimpleNamespace(
        target_dictionary=Dictionary(),
        transcript_dictionary=Dictionary() if transcripts else None,
        teacher_dim=teacher_dim,
        pairs=[("es", "en"), ("fr", "en")],
    )


def sample():
    return {
        "net_input": {}, "teacher": TEACHER, "ntokens": 7, "nsentences": 2,
        "pair": torch.tensor([1, 1]), "transcript": torch.tensor([[4, 5], [6, 1]]),
        "transcript_lengths": torch.tensor([2, 1]),
    }  # fmt: skip


@pytest.mark.parametrize(("distance", "by_hand"), [
    # cosines 0 and 0.96
    ("cosine", 50 * (1.0 + 0.04)),
    # squared differences 2 and 0.08 over two dimensions
    ("mse", 50 * (2.0 + 0.08) / 2),
])  # fmt: skip
def test_by_hand(distance, by_hand):
    criterion = MseToLabseCriterion(task(), distance, 50.0, 0.0)
    loss, sample_size, log = criterion(FixedModel(STUDENT), sample())
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert sample_size == 2
    assert log["pair_distance"].tolist() == pytest.approx([0.0, by_hand / 50])
    assert log["pair_nsentences"].tolist() == [0, 2]


def test_cosine_equals_torch_and_moves_towards_the_teacher():
    model = FixedModel(STUDENT)
    loss, _, _ = MseToLabseCriterion(task(), "cosine", 1.0, 0.0)(model, sample())
    expected = F.cosine_embedding_loss(STUDENT, TEACHER, torch.ones(2), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    torch.testing.assert_close(model.vectors.grad, -TEACHER)


def test_ctc_is_added_with_its_weight():
    model = FixedModel(STUDENT)
    plain, _, _ = MseToLabseCriterion(task(), "cosine", 1.0, 0.0)(model, sample())
    both, _, _ = MseToLabseCriterion(task(transcripts=True), "cosine", 1.0, 0.5)(model, sample())
    log_probs, lengths = model.get_ctc_output(None)
    ctc = F.ctc_loss(
        log_probs, sample()["transcript"], lengths, torch.tensor([2, 1]), reduction="sum"
    )
    assert both.item() == pytest.approx(plain.item() + 0.5 * ctc.item(), rel=1e-5)


def test_halves_on_two_workers_log_what_one_batch_does():
    criterion = MseToLabseCriterion(task(), "cosine", 10.0, 0.0)

    def log(rows):
        batch = {k: v[rows] if torch.is_tensor(v) else v for k, v in sample().items()}
        batch.update(nsentences=len(STUDENT[rows]), net_input={})
        return criterion(FixedModel(STUDENT[rows]), batch)[2]

    values = []
    for logs in ([log(slice(0, 1)), log(slice(1, 2))], [log(slice(0, 2))]):
        for entry in logs:
            entry.pop("embedding", None)
        with metrics.aggregate(new_root=True) as found:
            criterion.reduce_metrics(logs)
        values.append(found.get_smoothed_values())
    assert values[0] == values[1]
    assert values[0]["loss"] == pytest.approx(10 * values[0]["distance"], abs=1e-3)


@pytest.mark.parametrize(("arguments", "message"), [
    ((task(teacher_dim=None), "cosine", 1.0, 0.0), "--teacher"),
    ((task(), "cosine", 0.0, 0.0), "--distance-weight"),
    ((task(), "cosine", 1.0, -1.0), "--transcript-ctc-weight"),
    ((task(), "cosine", 1.0, 0.1), "--transcript-dictionary"),
    ((task(), "cosine", 1.0, 0.0, -1.0), "--contrastive-weight"),
    ((task(), "cosine", 1.0, 0.0, 1.0, 0.0), "--contrastive-temperature"),
    ((task(), "cosine", math.nan, 0.0), "--distance-weight"),
    ((task(), "cosine", 1.0, 0.0, math.inf), "--contrastive-weight"),
    ((task(), "cosine", 1.0, 0.0, 1.0, math.nan), "--contrastive-temperature"),
])  # fmt: skip
def test_wrong_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        MseToLabseCriterion(*arguments)


def test_a_translator_has_no_utterance_vectors():
    with pytest.raises(ValueError, match="expected a model with utterance vectors"):
        MseToLabseCriterion(task(), "cosine", 1.0, 0.0)(lambda: (STUDENT, {}), sample())
