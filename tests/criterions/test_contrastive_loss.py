"""The contrastive term by hand, and on two workers as on one."""

import math
import socket
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary

from fairseq_samu.criterions import MseToLabseCriterion
from fairseq_samu.criterions.contrastive_loss import contrastive_loss


def vectors(count, width, seed):
    return F.normalize(torch.randn(count, width, generator=torch.manual_seed(seed)), dim=1)


def test_by_hand():
    speech = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Cosines over 0.5: rows (2, 0), (1.2, 1.6). Speech → text: log(1 + e^-2), log(1 + e^-0.4);
    # text → speech, down the columns: log(1 + e^-0.8), log(1 + e^-1.6).
    by_hand = [(0.126928 + 0.371101) / 2, (0.513015 + 0.183900) / 2]
    loss, own_share = contrastive_loss(speech, text, 0.5, gather=False)
    assert loss.item() == own_share.item() == pytest.approx(sum(by_hand), abs=1e-5)


def test_is_the_mean_of_two_classifications():
    """As in Figure 3 of CLIP's paper, summed over the batch instead of averaged."""
    speech, text = vectors(9, 5, seed=1), vectors(9, 5, seed=2)
    logits, labels = speech @ text.T / 0.05, torch.arange(9)
    expected = 9 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    loss, _ = contrastive_loss(speech, text, 0.05, gather=True)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_sentence_spoken_twice_is_no_negative():
    speech, text = vectors(4, 5, seed=1), vectors(4, 5, seed=2)
    text[3] = text[1]
    expected = 0.0
    for i in range(4):
        others = [j for j in range(4) if {i, j} != {1, 3}]
        for a, b in ((speech, text), (text, speech)):
            total = sum(math.exp(float(a[i] @ b[j]) / 0.1) for j in others)
            expected += 0.5 * (math.log(total) - float(a[i] @ b[i]) / 0.1)
    loss, _ = contrastive_loss(speech, text, 0.1, gather=False)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    speech.requires_grad_()
    contrastive_loss(speech, text, 0.1, gather=False)[0].backward()
    assert speech.grad.isfinite().all()
    alone, _ = contrastive_loss(speech[:1], text[:1], 0.1, gather=False)
    assert alone.item() == 0


class Model(torch.nn.Module):
    """One matrix, so that the gradients of workers can be added up."""

    def __init__(self):
        super().__init__()
        self.projection = torch.nn.Linear(6, 5, bias=False)
        with torch.no_grad():
            self.projection.weight.copy_(vectors(5, 6, seed=3))

    def forward(self, features):
        return {"embedding": F.normalize(self.projection(features), dim=1), "encoder_out": {}}


FEATURES, TEACHER = vectors(5, 6, seed=4), vectors(5, 5, seed=5)
TEACHER[4] = TEACHER[0]  # a sentence of the first worker's that the second one has too


def step(rows, distance_weight=0.0, ignored=False):
    """Gradient and log of a worker with some of the rows."""
    task = SimpleNamespace(
        target_dictionary=Dictionary(), transcript_dictionary=None, teacher_dim=5, pairs=[("es", "en")]
    )  # fmt: skip
    criterion = MseToLabseCriterion(task, "cosine", distance_weight, 0.0, 2.0, 0.05)
    sample = {
        "net_input": {"features": FEATURES[rows]}, "teacher": TEACHER[rows], "ntokens": len(rows),
        "nsentences": len(rows), "pair": torch.zeros(len(rows), dtype=torch.long), "ignored": ignored,
    }  # fmt: skip
    model = Model()
    loss, sample_size, log = criterion(model, sample)
    (loss * (0 if ignored else 1)).backward()  # as fairseq's train_step
    assert sample_size == len(rows)
    evaluated = criterion(model.eval(), sample)[2] if len(rows) > 2 else None
    return model.projection.weight.grad, log, evaluated


def worker(rank, port, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2
    )
    found = {
        "contrastive": step([[0, 1, 2], [3, 4]][rank]),
        "both": step([[0, 1, 2], [3, 4]][rank], distance_weight=10.0),
        # fairseq gives a worker without a batch one that it has seen, and ignores its gradient.
        "dummy": step([[0, 1, 2], [3, 4]][rank], ignored=rank == 1),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # the first one's store outlives the second's last message
    torch.distributed.destroy_process_group()


def test_two_workers_equal_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(tmp_path)), nprocs=2)
    workers = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, expected in (
        ("contrastive", step([0, 1, 2, 3, 4])),
        ("both", step([0, 1, 2, 3, 4], distance_weight=10.0)),
        ("dummy", step([0, 1, 2])),
    ):
        gradients, logs, evaluated = zip(*(found[name] for found in workers))
        torch.testing.assert_close(sum(gradients), expected[0], atol=1e-5, rtol=1e-5)
        counted = logs[:1] if name == "dummy" else logs
        for key in ("loss", "contrastive_loss"):
            total = sum(float(log[key]) for log in counted)
            assert total == pytest.approx(float(expected[1][key]), rel=1e-5), (name, key)
        # In validation the second worker may have no batch left: it did not take part.
        alone = step([0, 1, 2], distance_weight=10.0 if name == "both" else 0.0)[1]
        assert float(evaluated[0]["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-5)
