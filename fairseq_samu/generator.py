"""Beam search whose scores do not count the language tag."""

from typing import Any, Tuple

from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor


class TaggedSequenceGenerator(SequenceGenerator):  # type: ignore[misc]
    """fairseq's generator, with probability one for prefix tokens: they are given, not predicted.

    fairseq adds the model's log-probability of a forced token to the hypothesis. The tag is not
    trained, so that number means nothing, and divided by the length it favours long hypotheses.
    """

    def _prefix_tokens(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor,
        tokens: Tensor,
        prefix_tokens: Tensor,
        beam_size: int,
    ) -> Tuple[Tensor, Tensor, Tensor]:
        lprobs, tokens, scores = super()._prefix_tokens(
            step, lprobs, scores, tokens, prefix_tokens, beam_size
        )
        forced = prefix_tokens[:, step].ne(self.pad).repeat_interleave(beam_size)
        # What is forced has the only finite score of its row.
        only = forced.unsqueeze(1) & lprobs.isfinite()
        return lprobs.masked_fill(only, 0.0), tokens, scores


def choose_generator(args: Any, prefix_size: int) -> Any:
    """Class for a task's generator; None for fairseq's own choice, which alignments need.

    Raises:
        ValueError: a beam of none.
    """
    if getattr(args, "beam", 1) < 1:
        raise ValueError(f"--beam: expected at least 1, found {args.beam}")
    if prefix_size == 0 or getattr(args, "print_alignment", None):
        return None
    return TaggedSequenceGenerator
