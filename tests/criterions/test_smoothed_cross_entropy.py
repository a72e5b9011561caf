"""The loss of logits against fairseq's, which makes log-probabilities of all of them."""

import math

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

from fairseq_samu.criterions import smoothed_cross_entropy as module
from fairseq_samu.criterions.smoothed_cross_entropy import smoothed_cross_entropy

PAD = 1


def fairseq_loss(logits, target, smoothing):
    """In double precision: in single, its gradients have errors of 10⁻⁵ of theirs."""
    lprobs = logits.double().log_softmax(-1)
    loss, nll = label_smoothed_nll_loss(lprobs, target, smoothing, PAD, reduce=False)
    return loss.squeeze(1), nll.squeeze(1), lprobs.argmax(-1).eq(target) & target.ne(PAD)


def draw(words, dtype=torch.float32):
    torch.manual_seed(0)
    target = torch.randint(2, words, (7,))
    target[3] = PAD
    logits = torch.randn(7, words) * 3
    logits[0, target[0]] = 99.0
    return logits.to(dtype).requires_grad_(), target


def test_by_hand():
    """p = (0.7, 0.1, 0.1, 0.1), y = 0 and ε = 0.3: 0.7·(−ln .7) + 3·(0.1·(−ln .1)), and ∂ℓ/∂z = p − q."""
    logits = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log().requires_grad_()
    target, trained = torch.tensor([0]), torch.tensor([True])
    loss, nll, correct = smoothed_cross_entropy(logits, target, trained, 0.3)
    assert loss.item() == pytest.approx(-0.7 * math.log(0.7) - 0.3 * math.log(0.1), rel=1e-6)
    assert nll.item() == pytest.approx(-math.log(0.7), rel=1e-6)
    assert correct.tolist() == [True] and not nll.requires_grad
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 4))
    logits.grad = None
    smoothed_cross_entropy(logits, target, trained, 0.15)[0].mul(2).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.3, 0.1, 0.1, 0.1]]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("words", "at_once"), [(11, 2**18), (5003, 2 * 5003), (5003, 100)])
def test_equals_fairseq(monkeypatch, smoothing, words, at_once):
    monkeypatch.setattr(module, "CHUNK_IN_CACHE", at_once)
    weights = torch.linspace(0.5, 2.0, 7)
    results = []
    for of in (
        lambda *given: smoothed_cross_entropy(*given, smoothing),
        lambda logits, target, trained: fairseq_loss(logits, target, smoothing),
    ):
        logits, target = draw(words)
        found = of(logits, target, target.ne(PAD))
        (found[0] * weights).sum().backward()
        results.append((*found, logits.grad))
    (loss, nll, correct, grad), expected = results
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(nll.double(), expected[1], rtol=1e-6, atol=1e-6)
    assert correct.equal(expected[2]) and correct[0]
    torch.testing.assert_close(grad, expected[3], rtol=2e-6, atol=1e-7)
    assert grad[3].abs().max() == 0 == loss[3] == nll[3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_single(dtype):
    logits, target = draw(500, dtype)
    single = logits.detach().float().requires_grad_()
    for z in (logits, single):
        smoothed_cross_entropy(z, target, target.ne(PAD), 0.1)[0].sum().backward()
    with torch.no_grad():
        assert smoothed_cross_entropy(logits, target, target.ne(PAD), 0.1)[0].dtype == torch.float32
    assert logits.grad.dtype == dtype and logits.grad.equal(single.grad.to(dtype))


def test_of_words_as_probable_the_first_is_taken():
    logits = torch.tensor([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [2.0, 3.0, 3.0]])
    _, _, correct = smoothed_cross_entropy(
        logits, torch.tensor([0, 1, 1]), torch.ones(3, dtype=torch.bool), 0.1
    )
    assert correct.tolist() == [True, False, True]


def test_logits_as_large_as_a_vocabulary_are_made_once_more_only():
    """What autograd keeps: the logits themselves, and rows; no log-probabilities."""
    logits, target = draw(5003)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        smoothed_cross_entropy(logits, target, target.ne(PAD), 0.1)
    large = [x for x in kept if x.numel() >= logits.numel()]
    assert [x.data_ptr() for x in large] == [logits.data_ptr()]
