"""Label-smoothed negative log-likelihood of the target text, with optional CTC and alignment terms."""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from fairseq_samu.criterions.alignment_loss import alignment_loss, refuse_unused_pooling
from fairseq_samu.criterions.ctc_loss import ctc_loss
from fairseq_samu.criterions.routing_losses import RoutingLosses, log_routing
from fairseq_samu.criterions.smoothed_cross_entropy import smoothed_cross_entropy


@dataclass
class LabelSmoothedNllConfig(FairseqDataclass):
    """Options of ``--criterion label_smoothed_nll``."""

    label_smoothing: float = field(
        default=0.1,
        metadata={"help": "probability mass moved from the right token to all others, in [0, 1)"},
    )
    ctc_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the CTC loss of an utterance, added to its translation loss (the log "
            "shows both per symbol, which do not add up); "
            "needs a model with --ctc and a task with --transcript-dictionary"
        },
    )
    alignment_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the distance of an utterance's pooled states from those of its transcript, "
            "added to its translation loss; needs connector_st with --alignment-pooling and a task with "
            "--transcript-dictionary"
        },
    )
    language_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the mean of -log p(the experts of the language that is spoken), nats a frame "
            "against nats a target token; needs connector_st with --connector moe and a task with "
            "--language-groups"
        },
    )
    balance_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the load balancing loss inside groups of experts, which is 1 when even; needs "
            "connector_st with --connector moe"
        },
    )
    transition_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the mean divergence of the router from where it was when the training stage "
            "began, in nats a frame, which fades over the stage; needs connector_st with --connector moe"
        },
    )
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("label_smoothed_nll", dataclass=LabelSmoothedNllConfig)
class LabelSmoothedNllCriterion(FairseqCriterion):  # type: ignore[misc]
    r"""Label-smoothed negative log-likelihood, summed over the target tokens of the batch.

    For a vocabulary of V words, smoothing ε and the target word y of one position,

    .. math:: \ell = -(1-ε) \log p(y) - \frac{ε}{V-1} \sum_{k \ne y} \log p(k),

    summed over every position that is neither padding nor the language tag in front. ``ctc_weight`` times
    −log p(transcript) under CTC (Graves et al. 2006) and ``alignment_weight`` times ``alignment_loss`` are
    added, both summed over utterances, and the terms of ``RoutingLosses``. The gradient is divided by the
    number of those target tokens over all workers and accumulated batches (by the number of sentences with
    ``--sentence-avg``).

    Source: Szegedy et al. 2016 (arXiv 1512.00567), Section 7, with the uniform mass spread over the
    V − 1 wrong words as in fairseq.

    Args:
        task: gives the dictionaries, the size of the prefix that is not trained and the language pairs.
        sentence_avg: normalise by sentences instead of tokens.
        label_smoothing: ε.
        ctc_weight: weight of the CTC term.
        alignment_weight: weight of the alignment term.
        language_loss_weight: weight of the language loss of ``RoutingLosses``.
        balance_loss_weight: weight of its balance loss.
        transition_loss_weight: weight of its transition loss.

    Raises:
        ValueError: a value out of range, no target vocabulary, or terms that need transcripts without them.
    """

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ctc_weight: float,
        alignment_weight: float,
        language_loss_weight: float = 0.0,
        balance_loss_weight: float = 0.0,
        transition_loss_weight: float = 0.0,
    ) -> None:
        super().__init__(task)
        if task.target_dictionary is None:
            raise ValueError(
                "label_smoothed_nll needs target texts: give the data folder a target vocabulary "
                "(--dictionary, --sentencepiece-model)"
            )
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"--label-smoothing: expected 0 ≤ ε < 1, found {label_smoothing}")
        for option, weight in (
            ("--ctc-weight", ctc_weight),
            ("--alignment-weight", alignment_weight),
        ):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{option}: expected a value ≥ 0, found {weight}")
            if weight > 0 and task.transcript_dictionary is None:
                raise ValueError(
                    f"{option} {weight} needs transcripts: give the task "
                    "--transcript-dictionary and --transcript-sentencepiece-model"
                )
        self.sentence_avg = sentence_avg
        self.label_smoothing = label_smoothing
        self.ctc_weight = ctc_weight
        self.alignment_weight = alignment_weight
        self.routing_losses = RoutingLosses(
            task, language_loss_weight, balance_loss_weight, transition_loss_weight
        )

    def forward(
        self, model: Any, sample: Dict[str, Any], reduce: bool = True
    ) -> Tuple[Tensor, int, Dict[str, Any]]:
        """Compute the loss of one batch.

        Args:
            model: a model whose forward gives logits (B, L, V) and a dict with ``encoder_out``.
            sample: a batch as collated by the task's dataset.
            reduce: has to be True; kept for fairseq's interface.

        Returns:
            The summed loss, the number to divide its gradient by, and what to log.
        """
        if sample["target"] is None:
            raise ValueError(
                "label_smoothed_nll: expected a model that translates, such as --arch xlsr_mbart_st; "
                "samu_xlsr trains with --criterion mse_to_labse"
            )
        net_output = model(**sample["net_input"])
        logits, target = net_output[0], sample["target"]
        trained = target.ne(self.padding_idx)
        trained[:, : self.task.tags.prefix_size] = False
        token_loss, token_nll, correct = smoothed_cross_entropy(
            logits.flatten(0, 1), target.flatten(), trained.flatten(), self.label_smoothing
        )
        loss = token_loss.sum()

        logging_output: Dict[str, Any] = {
            "nll_loss": token_nll.sum(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "n_correct": correct.sum(),
        }
        # A vector entry per language pair, so that workers with different pairs in their batch still
        # log tensors of one shape, which fairseq sums in a single all-reduce.
        for name, values in (
            ("pair_nll", token_nll.view(target.shape).sum(1)),
            ("pair_correct", correct.view(target.shape).sum(1)),
            ("pair_ntokens", trained.sum(1)),
        ):
            per_pair = torch.zeros(len(self.task.pairs), device=target.device)
            logging_output[name] = per_pair.index_add_(
                0, sample["pair"], values.detach().to(per_pair.dtype)
            )

        if self.ctc_weight > 0:
            blank = self.task.transcript_dictionary.bos()
            ctc = ctc_loss(model, net_output[1]["encoder_out"], sample, blank)
            loss = loss + self.ctc_weight * ctc
            logging_output["ctc_loss"] = ctc.data
            logging_output["transcript_ntokens"] = sample["transcript_lengths"].sum()
        if self.alignment_weight > 0:
            distance = alignment_loss(model, net_output[1]["encoder_out"], sample, self.task)
            loss = loss + self.alignment_weight * distance
            logging_output["align_loss"] = distance.data
        elif model.training:
            refuse_unused_pooling(model)

        sample_size = sample["nsentences"] if self.sentence_avg else sample["ntokens"]
        routing_loss, routing_log = self.routing_losses(model, net_output[1]["encoder_out"], sample)
        if routing_loss is not None:
            loss = loss + sample_size * routing_loss
            logging_output.update(routing_log)
        logging_output["loss"] = loss.data
        logging_output["sample_size"] = sample_size
        return loss, sample_size, logging_output

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Dict[str, Any]]) -> None:
        """Log loss and nll in bits per token, perplexity and accuracy; the task logs those per pair."""

        def total(key: str) -> float:
            return float(sum(log.get(key, 0) for log in logging_outputs))

        ntokens = total("ntokens")
        sample_size = total("sample_size")
        if ntokens == 0:
            return
        metrics.log_scalar("loss", total("loss") / sample_size / math.log(2), sample_size, round=3)
        metrics.log_scalar("nll_loss", total("nll_loss") / ntokens / math.log(2), ntokens, round=3)
        metrics.log_scalar("accuracy", 100.0 * total("n_correct") / ntokens, ntokens, round=2)
        metrics.log_derived("ppl", lambda meters: round(2 ** min(meters["nll_loss"].avg, 100), 2))
        symbols = total("transcript_ntokens")
        if symbols > 0:
            metrics.log_scalar(
                "ctc_loss", total("ctc_loss") / symbols / math.log(2), symbols, round=3
            )
        if any("align_loss" in log for log in logging_outputs):
            sentences = total("nsentences")
            metrics.log_scalar("align_loss", total("align_loss") / sentences, sentences, round=5)
        log_routing(logging_outputs)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All logged values are sums, so fairseq may add them up over workers before logging."""
        return True
