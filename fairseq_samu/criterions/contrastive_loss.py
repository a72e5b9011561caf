"""The contrastive term between utterances and sentence embeddings of the batches of all workers."""

import torch
import torch.nn.functional as F
from fairseq.distributed import utils as distributed_utils
from torch import Tensor


def contrastive_loss(
    speech: Tensor, text: Tensor, temperature: float, *, gather: bool, counts: bool = True
) -> tuple[Tensor, Tensor]:
    r"""Symmetric InfoNCE: every utterance has to find its text among all, every text its utterance.

    For the vectors s and t of N pairs, of length one, and the temperature τ,

    .. math:: \frac{1}{2} \sum_{i=1}^N
        \left[ -\log \frac{e^{s_i t_i / τ}}{\sum_j e^{s_i t_j / τ}}
        - \log \frac{e^{s_i t_i / τ}}{\sum_j e^{s_j t_i / τ}} \right],

    where pairs that share the text t_i (a sentence spoken twice) are left out of both sums over j.

    Source: van den Oord et al. 2018 (arXiv 1807.03748), Eq. 4, in both directions as in CLIP, Radford
    et al. 2021 (arXiv 2103.00020), Figure 3, and summed instead of averaged.

    Args:
        speech: vectors of this worker's utterances, shape (B, E).
        text: the teacher's vectors of their texts, shape (B, E), which get no gradient.
        temperature: τ.
        gather: take the pairs of all workers, each of which has to call this and may have another B.
        counts: False = this worker's pairs are no part of the batch (nor negatives of others).

    Returns:
        The loss of the N pairs of all workers, to be differentiated: the gradients for each worker's own
        utterances are those that one process with all pairs would find. And the share of this worker's
        pairs in its value; the shares add up to the loss.
    """
    speech, text = (speech.float(), text.float()) if counts else (speech[:0], text[:0])
    own = slice(0, len(speech))
    if gather and torch.distributed.is_initialized():
        width = speech.size(1)
        parts = _gather_rows(torch.cat([speech.detach(), text], dim=1))
        rank = distributed_utils.get_data_parallel_rank()
        own = slice(sum(map(len, parts[:rank])), sum(map(len, parts[: rank + 1])))
        text = torch.cat(parts)[:, width:]
        speech = torch.cat(
            [part[:, :width] if i != rank else speech for i, part in enumerate(parts)]
        )
    # Half precision has three digits, which the temperature would multiply.
    with torch.autocast(speech.device.type, enabled=False):
        logits = speech @ text.T / temperature
    sentence = text.unique(dim=0, return_inverse=True)[1]
    positive = torch.arange(len(speech), device=speech.device)
    repeated = (sentence[:, None] == sentence) & (positive[:, None] != positive)
    logits = logits.masked_fill(repeated, float("-inf"))
    losses = 0.5 * (
        F.cross_entropy(logits, positive, reduction="none")
        + F.cross_entropy(logits.T, positive, reduction="none")
    )
    return losses.sum(), losses[own].sum().detach()


def _gather_rows(rows: Tensor) -> list[Tensor]:
    """Rows (B, D) of every worker, in the order of their ranks, whatever each one's B is."""
    group = distributed_utils.get_data_parallel_group()
    size = torch.tensor([len(rows)], device=rows.device)
    sizes = torch.cat(distributed_utils.all_gather(size, group)).tolist()
    padded = F.pad(rows, (0, 0, 0, max(sizes) - len(rows)))
    parts = distributed_utils.all_gather(padded, group)
    return [part[:count] for part, count in zip(parts, sizes)]
