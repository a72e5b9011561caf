"""Distance between the utterance vector and the teacher's sentence embedding."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from fairseq_samu.criterions.contrastive_loss import contrastive_loss
from fairseq_samu.criterions.ctc_loss import ctc_loss

DISTANCES = ChoiceEnum(["cosine", "mse"])


@dataclass
class MseToLabseConfig(FairseqDataclass):
    """Options of ``--criterion mse_to_labse``."""

    distance: DISTANCES = field(  # type: ignore[valid-type]
        default="cosine",
        metadata={"help": "1 - cosine similarity (SAMU-XLS-R), or the mean squared difference"},
    )
    distance_weight: float = field(
        default=100.0,
        metadata={
            "help": "factor beta on the distance; the authors' code has 100, SpeechBrain 50; 0 trains "
            "by CTC alone, as the start or the baseline of a small encoder"
        },
    )
    transcript_ctc_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the CTC loss on the transcript, added to the distance; needs a model "
            "with --ctc and a task with --transcript-dictionary"
        },
    )
    contrastive_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the contrastive loss (symmetric InfoNCE) with the other sentences of all "
            "workers' batches, added to the distance"
        },
    )
    contrastive_temperature: float = field(
        default=0.05,
        metadata={"help": "what the contrastive loss divides cosines by; small = hard negatives"},
    )


@register_criterion("mse_to_labse", dataclass=MseToLabseConfig)
class MseToLabseCriterion(FairseqCriterion):  # type: ignore[misc]
    r"""How far utterance vectors are from the teacher's, summed over utterances.

    For the student's vector s and the teacher's t of one utterance, both of length one and width E,

    .. math:: \ell_{cosine} = β (1 - s \cdot t), \qquad \ell_{mse} = \frac{β}{E} \lVert s - t \rVert^2,

    plus ``transcript_ctc_weight`` times −log p(transcript) under CTC, plus ``contrastive_weight`` times
    symmetric InfoNCE (:func:`~fairseq_samu.criterions.contrastive_loss.contrastive_loss`). Since both
    vectors have length one, the squared difference is 2 (1 − s·t): the two distances have one direction
    and differ in scale by 2/E.
    The gradient is divided by the number of utterances over all workers and accumulated batches.

    Negatives of the contrastive term are the other sentences in the batches that all workers have at one
    time: ``--update-freq`` adds up gradients of several such batches and does not enlarge them. In
    validation, where workers may have different numbers of batches, they are those of the own batch.

    Source: Khurana et al. 2022 (arXiv 2205.08180), Eq. 2; β as in the authors' code.

    Args:
        task: gives the transcripts' dictionary and the language pairs.
        distance: ``cosine`` or ``mse``.
        distance_weight: β.
        transcript_ctc_weight: weight of the CTC term.
        contrastive_weight: weight of the contrastive term.
        contrastive_temperature: its temperature.

    Raises:
        ValueError: a weight or the temperature out of range, no teacher, or a CTC weight without transcripts.
    """

    def __init__(
        self,
        task: Any,
        distance: str,
        distance_weight: float,
        transcript_ctc_weight: float,
        contrastive_weight: float = 0.0,
        contrastive_temperature: float = 0.05,
    ) -> None:
        super().__init__(task)
        if task.teacher_dim is None:
            raise ValueError("mse_to_labse needs the teacher's embeddings: give the task --teacher")
        weights = (distance_weight, transcript_ctc_weight, contrastive_weight)
        if not all(0 <= weight < math.inf for weight in weights) or max(weights) == 0:
            raise ValueError(
                "expected --distance-weight, --transcript-ctc-weight and --contrastive-weight ≥ 0, and "
                f"one of them above 0, found {', '.join(map(str, weights))}"
            )
        if not 0 < contrastive_temperature < math.inf:
            raise ValueError(
                f"--contrastive-temperature: expected a value > 0, found {contrastive_temperature}"
            )
        if transcript_ctc_weight > 0 and task.transcript_dictionary is None:
            raise ValueError(
                f"--transcript-ctc-weight {transcript_ctc_weight} needs transcripts: give the task "
                "--transcript-dictionary and --transcript-sentencepiece-model"
            )
        self.distance = str(distance)
        self.distance_weight = distance_weight
        self.ctc_weight = transcript_ctc_weight
        self.contrastive_weight = contrastive_weight
        self.temperature = contrastive_temperature

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Compute the loss of one batch.

        Args:
            model: gives ``embedding`` (B, E) and ``encoder_out``.
            sample: a batch with ``teacher`` (B, E), and ``ignored`` where it stands in for one that this
                worker lacks.
            reduce: has to be True; kept for fairseq's interface.

        Returns:
            The summed loss, the number of utterances, and what to log. With the contrastive term, which is
            that of all workers, the value of the loss is not the logged one; its gradient is.
        """
        output = model(**sample["net_input"])
        if not isinstance(output, dict):
            raise ValueError(
                "mse_to_labse: expected a model with utterance vectors, --arch samu_xlsr"
            )
        teacher = sample["teacher"].float()
        distances = self.distances(output["embedding"], teacher)
        loss = self.distance_weight * distances.sum()
        per_pair = torch.zeros(2, len(self.task.pairs), device=distances.device)
        ones = torch.ones_like(distances)
        per_pair.index_add_(1, sample["pair"], torch.stack([distances.detach(), ones]))
        logging_output: dict[str, Any] = {
            "distance": distances.sum().data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "pair_distance": per_pair[0],
            "pair_nsentences": per_pair[1],
        }
        if not model.training:
            logging_output["embedding"] = output["embedding"]  # for the task, which takes it out
        if self.ctc_weight > 0:
            blank = self.task.transcript_dictionary.bos()
            ctc = ctc_loss(model, output["encoder_out"], sample, blank)
            loss = loss + self.ctc_weight * ctc
            logging_output["ctc_loss"] = ctc.data
            logging_output["transcript_ntokens"] = sample["transcript_lengths"].sum()
        logging_output["loss"] = loss.data
        if self.contrastive_weight > 0:
            contrastive, own_share = contrastive_loss(
                output["embedding"],
                teacher,
                self.temperature,
                gather=model.training,
                counts=not sample.get("ignored", False),
            )
            loss = loss + self.contrastive_weight * contrastive
            logging_output["loss"] = logging_output["loss"] + self.contrastive_weight * own_share
            logging_output["contrastive_loss"] = own_share
        sample_size = sample["nsentences"]
        logging_output["sample_size"] = sample_size
        return loss, sample_size, logging_output

    def distances(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Distances without β, float32.

        Args:
            student: vectors of length one, shape (B, E).
            teacher: vectors of length one, shape (B, E).

        Returns:
            Shape (B,).
        """
        if self.distance == "mse":
            return (student - teacher).square().mean(dim=-1)
        return 1.0 - (student * teacher).sum(dim=-1)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log per utterance the loss, distance and contrastive loss (nats), per symbol CTC (bits)."""

        def total(key: str) -> float:
            return float(sum(log.get(key, 0) for log in logging_outputs))

        sentences = total("nsentences")
        if sentences == 0:
            return
        metrics.log_scalar("loss", total("loss") / sentences, sentences, round=3)
        metrics.log_scalar("distance", total("distance") / sentences, sentences, round=4)
        if any("contrastive_loss" in log for log in logging_outputs):
            nats = total("contrastive_loss") / sentences
            metrics.log_scalar("contrastive_loss", nats, sentences, round=4)
        symbols = total("transcript_ntokens")
        if symbols > 0:
            bits = total("ctc_loss") / symbols / math.log(2)
            metrics.log_scalar("ctc_loss", bits, symbols, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All logged values are sums, so fairseq may add them up over workers before logging."""
        return True
