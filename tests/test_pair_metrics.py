"""Values logged per language pair against sacreBLEU and hand-computed ones."""

import math

import pytest
import sacrebleu
import torch
from fairseq.logging import metrics

from fairseq_samu.pair_metrics import log_pair_losses, log_translation_scores
from fairseq_samu.scoring import PairScorer


def test_statistics_of_batches_become_scores_of_the_whole():
    texts = {
        0: (["a cat", "the dog runs"], ["the cat", "the dog runs fast"]),
        1: (["x"], ["a house"]),
    }
    logs = []
    for pair, (hypotheses, references) in texts.items():
        for hypothesis, reference in zip(hypotheses, references):
            statistics = torch.zeros(2, 28, dtype=torch.double)
            statistics[pair] = torch.from_numpy(
                PairScorer("en").statistics([hypothesis], [reference])
            )
            logs.append({"pair_statistics": statistics})
    with metrics.aggregate(new_root=True) as found:
        for log in logs:  # fairseq calls it once a batch
            log_translation_scores([log], ["es-en", "fr-en"], [PairScorer("en")] * 2)
    values = found.get_smoothed_values()
    for pair, name in enumerate(("es-en", "fr-en")):
        hypotheses, references = texts[pair]
        bleu = sacrebleu.corpus_bleu(hypotheses, [references]).score
        chrf = sacrebleu.corpus_chrf(hypotheses, [references]).score
        assert values[f"bleu_{name}"] == pytest.approx(bleu, abs=0.01)
        assert values[f"chrf_{name}"] == pytest.approx(chrf, abs=0.01)
    assert values["chrf"] == pytest.approx(
        (values["chrf_es-en"] + values["chrf_fr-en"]) / 2, abs=0.01
    )


def test_losses_are_divided_by_the_tokens_of_their_pair():
    logs = [
        {"pair_nll": torch.tensor([2.0]), "pair_correct": torch.tensor([1.0]),
         "pair_ntokens": torch.tensor([2.0])},
        {"pair_nll": torch.tensor([1.0, 6.0]), "pair_correct": torch.tensor([1.0, 3.0]),
         "pair_ntokens": torch.tensor([2.0, 4.0])},
    ]  # fmt: skip
    with metrics.aggregate(new_root=True) as found:
        log_pair_losses(logs, ["es-en", "fr-en", "de-en"])
    values = found.get_smoothed_values()
    assert values["nll_es-en"] == pytest.approx(3 / 4 / math.log(2), abs=1e-3)
    assert values["nll_fr-en"] == pytest.approx(6 / 4 / math.log(2), abs=1e-3)
    assert values["accuracy_es-en"] == 50 and values["accuracy_fr-en"] == 75
    assert "nll_de-en" not in values
