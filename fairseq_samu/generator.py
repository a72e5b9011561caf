"""fairseq's beam search, done faster where that is possible, and with scores that do not count the tag."""

from __future__ import annotations

import math
from typing import Any

import torch
from fairseq.search import BeamSearch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor
from torch.nn import functional

from fairseq_samu.modules.beam_decoder import SearchMemory
from fairseq_samu.modules.few_rows_linear import FewRowsLinear
from fairseq_samu.modules.top_candidates import Candidates, log_normalizers, top_candidates


class FastSequenceGenerator(SequenceGenerator):  # type: ignore[misc]
    """fairseq's generator; one model's plain beam search takes a path with the same results in less time.

    That path needs a decoder whose ``begin_search(encoder_out, linear, memory)`` returns something like
    ``fairseq_samu.modules.beam_decoder.BeamDecoder``. It goes as fairseq's: of the best 2 x beam
    continuations of a sentence, those among the first ``beam`` that end are done, the first ``beam`` of
    those that do not are continued, and a sentence is done when ``beam`` hypotheses are. The differences:

    - what every hypothesis of a sentence has in common is computed and kept once: the first steps, until
      hypotheses differ, and the keys and values of the encoder's output;
    - symbols that are given need no output projection unless their scores count;
    - log-probabilities are worked out for candidates alone, which few passes over the logits find;
    - hypotheses have no attention, which fairseq's alignments need: ask for its own class for them.

    Ensembles, other searches than ``BeamSearch``, constraints, language models, prefixes of unequal
    lengths, decoders that cannot and torch before 2.0 are left to fairseq.

    Attributes:
        prefix_counts: whether the model's log-probabilities of prefix tokens are part of the scores.
    """

    prefix_counts = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._linear, self._memory = FewRowsLinear(), SearchMemory()

    def _generate(
        self,
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        bos_token: int | None = None,
    ) -> Any:
        net_input = sample["net_input"]
        if constraints is None and self._is_plain(net_input, prefix_tokens):
            (encoder_out,) = self.model.forward_encoder(net_input)
            begin = self.model.single_model.decoder.begin_search
            decoder = begin(encoder_out, self._linear, self._memory)
            try:
                return _Search(self, decoder, net_input, prefix_tokens, bos_token).run()
            finally:
                decoder.end()
        return super()._generate(sample, prefix_tokens, constraints, bos_token)

    def _is_plain(self, net_input: dict[str, Any], prefix_tokens: Tensor | None) -> bool:
        """Whether this is a search that the fast path knows."""
        if not {"src_tokens", "src_lengths"} <= net_input.keys():
            return False
        if prefix_tokens is not None and (
            prefix_tokens.eq(self.pad).any() or prefix_tokens.eq(self.eos).any()
        ):
            return False
        decoder: Any = getattr(self.model.single_model, "decoder", None)
        return (
            self.model.models_size == 1
            and self.model.has_incremental_states()
            and hasattr(decoder, "begin_search")
            and not decoder.training
            and hasattr(functional, "scaled_dot_product_attention")
            and type(self.search) is BeamSearch
            and self.lm_model is None
            and not self.match_source_len
            and self.token_indices_to_suppress is None
            # Fewer symbols would leave less than 2 x beam continuations that can be.
            and self.vocab_size > 4 * self.beam_size
        )


class TaggedSequenceGenerator(FastSequenceGenerator):
    """fairseq's generator, with probability one for prefix tokens: they are given, not predicted.

    fairseq adds the model's log-probability of a forced token to the hypothesis. The tag is not
    trained, so that number means nothing, and divided by the length it favours long hypotheses.
    """

    prefix_counts = False

    def _prefix_tokens(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor,
        tokens: Tensor,
        prefix_tokens: Tensor,
        beam_size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        lprobs, tokens, scores = super()._prefix_tokens(
            step, lprobs, scores, tokens, prefix_tokens, beam_size
        )
        forced = prefix_tokens[:, step].ne(self.pad).repeat_interleave(beam_size)
        # What is forced has the only finite score of its row.
        only = forced.unsqueeze(1) & lprobs.isfinite()
        return lprobs.masked_fill(only, 0.0), tokens, scores


class _Search:
    """One search of a ``FastSequenceGenerator``.

    Args:
        options: the generator.
        decoder: see there.
        net_input: the batch, whose first tensor gives the lengths of the source.
        prefix_tokens: what hypotheses begin with, shape (B, P), or None.
        bos_token: what stands before them; None = the end-of-sentence symbol.
    """

    def __init__(
        self,
        options: FastSequenceGenerator,
        decoder: Any,
        net_input: dict[str, Tensor],
        prefix_tokens: Tensor | None,
        bos_token: int | None,
    ) -> None:
        self.options, self.decoder, self.prefix = options, decoder, prefix_tokens
        self.source_lengths = net_input["src_lengths"]
        self.count, length = net_input["src_tokens"].shape[:2]
        self.beam = options.beam_size
        self.max_len = min(int(options.max_len_a * length + options.max_len_b), options.max_len - 1)
        if options.min_len > self.max_len:
            raise AssertionError("min_len cannot be larger than max_len, please adjust these!")
        device = net_input["src_tokens"].device
        rows = self.count * self.beam
        #: Sums of log-probabilities up to every token, and the tokens behind the first.
        self.scores = torch.zeros(rows, self.max_len + 1, device=device)
        self.tokens = torch.full(
            (rows, self.max_len + 2), options.pad, dtype=torch.long, device=device
        )
        self.tokens[:, 0] = options.eos if bos_token is None else bos_token
        #: Hypotheses of a sentence that differ.
        self.width = 1
        self.finalized: list[list[dict[str, Tensor]]] = [[] for _ in range(self.count)]
        self.finished = [False] * self.count
        self._numbers = torch.arange(self.count, device=device)
        self._places = torch.arange(2 * self.beam, device=device)

    def run(self) -> list[list[dict[str, Tensor]]]:
        """Find the hypotheses of every sentence, best first.

        Raises:
            FloatingPointError: no hypothesis of a sentence has a score that is a number.
        """
        rows: Tensor | None = None
        for step in range(self.max_len + 1):
            newest = self.tokens.view(self.count, self.beam, -1)[:, : self.width, step]
            features = self.decoder.advance(newest, rows)
            if self._is_given(step):
                self._give(step, features)
                rows = None
                continue
            found = self._candidates(step, self.decoder.logits(features))
            ends = found.tokens.eq(self.options.eos) & found.scores.ne(-math.inf)
            if not ends.any():
                rows = self._continue(
                    step, Candidates(*(x[:, : self.beam] for x in found)), self._numbers
                )
                continue
            sentences = self._finish(step, found, ends)
            if len(sentences) == 0:
                break
            # Those that do not end, best first, stand before those that do.
            order = self._places + len(self._places) * ends[sentences]
            order = order.topk(self.beam, largest=False).indices
            going_on = Candidates(*(x[sentences].gather(1, order) for x in found))
            rows = self._continue(step, going_on, sentences)
        if not all(self.finished):
            broken = [row for row, done in enumerate(self.finished) if not done]
            raise FloatingPointError(
                f"sentences {broken} of a batch: expected scores that are numbers, found none; the input or "
                "the model's weights are not finite"
            )
        for hypotheses in self.finalized:
            scores = torch.tensor([float(hypothesis["score"]) for hypothesis in hypotheses])
            ranking = scores.sort(descending=True).indices.tolist()
            hypotheses[:] = [hypotheses[place] for place in ranking]
        return self.finalized

    def _is_given(self, step: int) -> bool:
        return self.prefix is not None and step < min(self.prefix.size(1), self.max_len)

    def _give(self, step: int, features: Tensor) -> None:
        """Add the prefix's next token; all hypotheses of a sentence are the same until it ends."""
        assert self.prefix is not None
        given = self.prefix[:, step]
        total = self._scores_before(step)[:, 0]
        if self.options.prefix_counts:
            logits, normalizers = self._normalized(self.decoder.logits(features))
            log_probs = logits[:, 0].gather(1, given.unsqueeze(1)) - normalizers
            total = total + log_probs.squeeze(1)
        self.scores[:, step] = total.repeat_interleave(self.beam)
        self.tokens[:, step + 1] = given.repeat_interleave(self.beam)

    def _normalized(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, W, V) of what may follow, and their normalisers (B, W)."""
        options = self.options
        logits = logits.float()
        if options.temperature != 1.0:
            logits = logits / options.temperature
        normalizers = log_normalizers(logits)
        finite = normalizers.isfinite()
        if not finite.all():
            # fairseq, too, gives no chance to what follows numbers that are none.
            broken = ~finite
            logits = logits.masked_fill(broken.unsqueeze(-1), -math.inf)
            normalizers = normalizers.masked_fill(broken, 0.0)
        logits.select(-1, options.pad).fill_(-math.inf)
        if options.unk_penalty:
            logits[..., options.unk] -= options.unk_penalty
        return logits, normalizers

    def _candidates(self, step: int, logits: Tensor) -> Candidates:
        options = self.options
        logits, normalizers = self._normalized(logits)
        if step >= self.max_len:
            ends = logits[..., options.eos].clone()
            logits.fill_(-math.inf)
            logits[..., options.eos] = ends
        if step < options.min_len:
            logits[..., options.eos] = -math.inf
        if options.repeat_ngram_blocker is not None:
            tokens = self.tokens.view(self.count, self.beam, -1)[:, : self.width].flatten(0, 1)
            flat = logits.flatten(0, 1)
            flat = options.repeat_ngram_blocker(tokens, flat, self.count, self.width, step)
            logits = flat.view_as(logits)
        return top_candidates(logits, normalizers, self._scores_before(step), 2 * self.beam)

    def _scores_before(self, step: int) -> Tensor:
        """Scores of the hypotheses that differ, shape (B, W)."""
        if step == 0:
            return self.scores.new_zeros(self.count, self.width)
        return self.scores[:, step - 1].view(self.count, self.beam)[:, : self.width]

    def _finish(self, step: int, found: Candidates, ends: Tensor) -> Tensor:
        """Take out hypotheses that end, and sentences that are done.

        Args:
            step: number of the token before their last.
            found: candidates.
            ends: which of them end, shape (B, 2 x beam).

        Returns:
            Numbers of the sentences that go on.
        """
        beam = self.beam
        ends = ends[:, :beam]  # what ends behind the first ``beam`` is given up
        finished: list[int] = []
        if ends.any():
            rows = self._numbers.unsqueeze(1) * beam + found.beams[:, :beam]
            finished = self.options.finalize_hypos(
                step,
                rows[ends],
                found.scores[:, :beam][ends],
                self.tokens,
                self.scores,
                self.finalized,
                self.finished,
                beam,
                None,
                self.source_lengths,
                self.max_len,
            )
        if not finished:
            return self._numbers
        going_on = torch.ones(self.count, dtype=torch.bool, device=ends.device)
        going_on[finished] = False
        sentences = going_on.nonzero().squeeze(1)
        self._keep(sentences)
        return sentences

    def _keep(self, sentences: Tensor) -> None:
        """Go on with these sentences alone."""
        before, self.count = self.count, len(sentences)
        for name in ("scores", "tokens"):
            rows = getattr(self, name).view(before, self.beam, -1)[sentences]
            setattr(self, name, rows.flatten(0, 1))
        if self.prefix is not None:
            self.prefix = self.prefix[sentences]
        self.source_lengths = self.source_lengths[sentences]
        self._numbers = self._numbers[: self.count]
        self.decoder.keep(sentences)

    def _continue(self, step: int, found: Candidates, sentences: Tensor) -> Tensor:
        """Let hypotheses have their next token.

        Args:
            step: number of the token before it.
            found: what follows, shape (B, beam), of the sentences that go on.
            sentences: numbers of these before others were done.

        Returns:
            Rows of the decoder's last step that they continue, shape (B x beam,).
        """
        rows = (self._numbers.unsqueeze(1) * self.beam + found.beams).flatten()
        continued = (sentences.unsqueeze(1) * self.width + found.beams).flatten()
        for past, now, length in (
            (self.tokens, found.tokens, step + 1),
            (self.scores, found.scores, step),
        ):
            so_far = past.narrow(1, 0, length)
            so_far.copy_(so_far.index_select(0, rows))
            past.select(1, length).copy_(now.flatten())
        self.width = self.beam
        return continued


def choose_generator(args: Any, prefix_size: int) -> Any:
    """Class for a task's generator; None for fairseq's own choice, which alignments need.

    Raises:
        ValueError: a beam of none.
    """
    if getattr(args, "beam", 1) < 1:
        raise ValueError(f"--beam: expected at least 1, found {args.beam}")
    if getattr(args, "print_alignment", None):
        return None
    return TaggedSequenceGenerator if prefix_size else FastSequenceGenerator
