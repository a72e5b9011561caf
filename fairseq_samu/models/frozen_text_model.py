"""A frozen text-to-text model of transformers, as fairseq's decoder and beam search want it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

from fairseq_samu.models.frozen_text_search import FrozenTextSearch
from fairseq_samu.pretrained.kept_rows import read_kept_rows
from fairseq_samu.pretrained.seq2seq import keep_rows, load_seq2seq

logger = logging.getLogger(__name__)

#: Where a beam search keeps the keys and values of earlier steps.
CACHE = "frozen_text_model"


class FrozenTextModel(FairseqIncrementalDecoder):  # type: ignore[misc]
    """MarianMT, T5, mBART or NLLB: reads vectors for its encoder, or in place of its encoder's output.

    Gradients pass through it to the vectors; its own weights stay as they are, and it computes as in
    evaluation even while what surrounds it trains.

    Args:
        model: a model of transformers with a head for generation.
        dictionary: its vocabulary, whose indices are its own.

    Raises:
        ValueError: the vocabulary has another size than the model's.
    """

    def __init__(self, model: Any, dictionary: Dictionary) -> None:
        super().__init__(dictionary)
        rows = int(model.config.vocab_size)
        if rows != len(dictionary):
            raise ValueError(
                f"the text model has a vocabulary of {rows} symbols, the task's has "
                f"{len(dictionary)}: expected the files that "
                "`python -m data_prep.build_vocab --pretrained` makes of that model"
            )
        self.model: Any = model.eval().requires_grad_(False)
        start = model.generation_config.decoder_start_token_id
        if start is None:
            start = getattr(model.config, "decoder_start_token_id", None)
        if start is not None and not (isinstance(start, int) and 0 <= start < rows):
            raise ValueError(
                f"the text model's decoder_start_token_id: expected a number from 0 to {rows - 1}, found "
                f"{start!r}"
            )
        #: What its decoder begins with; None = the tag of the language that it writes.
        self.start: int | None = start

    def train(self, mode: bool = True) -> FrozenTextModel:
        """Leave what is inside in evaluation mode, where it is; to say so to all of it takes time."""
        self.training = mode
        return self

    @property
    def width(self) -> int:
        """Width of its encoder's input and output."""
        return int(self.model.config.d_model)

    def max_positions(self) -> int:
        """Longest target in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 1024))

    def embed(self, tokens: Tensor) -> Tensor:
        """Vectors (…, C) of source tokens (…), as its encoder makes them before adding positions."""
        encoder = self.model.get_encoder()
        vectors: Tensor = encoder.get_input_embeddings()(tokens)
        return vectors * float(getattr(encoder, "embed_scale", 1.0))

    def encode(
        self, vectors: Tensor, padding_mask: Tensor | None, prefix: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run its encoder on vectors in place of embedded tokens.

        Args:
            vectors: shape (T, B, C).
            padding_mask: True where padded, shape (B, T), or None without padding.
            prefix: source tokens that go before the vectors, shape (P,), or None.

        Returns:
            The encoder's output (P + T, B, C) and its padding mask, or None without padding.

        Raises:
            ValueError: more vectors than the model has positions.
        """
        if prefix is not None:
            before = self.embed(prefix).to(vectors).unsqueeze(1).expand(-1, vectors.size(1), -1)
            vectors = torch.cat([before, vectors])
            if padding_mask is not None:
                padding_mask = nn.functional.pad(padding_mask, (len(prefix), 0))
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and vectors.size(0) > longest:
            raise ValueError(
                f"the text model's encoder has positions for {longest} vectors, found "
                f"{vectors.size(0)}: leave out longer speech (--max-source-positions) and transcripts "
                "that are as long, or use a connector that shortens more"
            )
        states = self.model.get_encoder()(
            inputs_embeds=vectors.transpose(0, 1), attention_mask=_attend(padding_mask)
        ).last_hidden_state
        return states.transpose(0, 1), padding_mask

    def source_batch(
        self, pieces: Tensor, lengths: Tensor, tags: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Make of the pieces of texts what its encoder was trained to read.

        Args:
            pieces: padded, shape (B, L).
            lengths: pieces of every text, shape (B,).
            tags: of the texts' languages, shape (B,), or None.

        Returns:
            ``[tag] pieces </s>``, or ``pieces </s> [tag]`` where its decoder begins with a tag (mBART-25),
            padded, shape (B, L + 1) or (B, L + 2), and the lengths (B,).
        """
        tokens = nn.functional.pad(pieces, (0, 1), value=self.dictionary.pad())
        tokens = tokens.scatter(1, lengths.unsqueeze(1), self.dictionary.eos())
        lengths = lengths + 1
        if tags is None:
            return tokens, lengths
        if self.start is not None:
            return torch.cat([tags.unsqueeze(1), tokens], 1), lengths + 1
        tokens = nn.functional.pad(tokens, (0, 1), value=self.dictionary.pad())
        return tokens.scatter(1, lengths.unsqueeze(1), tags.unsqueeze(1)), lengths + 1

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: dict[str, Any] | None = None,
        **_unused: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Predict every token from the ones before it.

        fairseq puts the end-of-sentence symbol in front of a target; here stands what the model was
        trained with instead. If that is the language's tag, the next symbol of the target, then nothing
        stands there, and the logits of the tag, which is given, are zero.

        Args:
            prev_output_tokens: target tokens shifted by one, shape (B, L).
            encoder_out: ``encoder_out`` (T, B, C) and ``encoder_padding_mask`` (B, T), each in a list
                that is empty without one.
            incremental_state: of a beam search; only the last token is new then.

        Returns:
            Logits (B, L, V), with L = 1 in a beam search, and fairseq's extras.
        """
        assert encoder_out is not None
        tokens = prev_output_tokens.clone()
        if self.start is not None:
            tokens[:, 0] = self.start
        else:
            tokens = tokens[:, 1:]
            if tokens.size(1) == 0:
                states = encoder_out["encoder_out"][0]
                return states.new_zeros(len(tokens), 1, len(self.dictionary)), {"attn": [None]}
        cache = None
        if incremental_state is not None:
            tokens = tokens[:, -1:]
            cache = incremental_state.setdefault(CACHE, _empty_cache())
        masks = encoder_out["encoder_padding_mask"]
        found = self.model(
            encoder_outputs=(encoder_out["encoder_out"][0].transpose(0, 1),),
            attention_mask=_attend(masks[0] if masks else None),
            decoder_input_ids=tokens,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        logits = found.logits
        if self.start is None and incremental_state is None:
            logits = nn.functional.pad(logits, (0, 0, 1, 0))
        return logits, {"attn": [None]}

    def begin_search(
        self, encoder_out: dict[str, list[Tensor]], _linear: Any, _memory: Any
    ) -> FrozenTextSearch:
        """Begin to decode for ``fairseq_samu.generator``."""
        return FrozenTextSearch(self, encoder_out)

    def reorder_incremental_state_scripting(
        self, incremental_state: dict[str, Any], new_order: Tensor
    ) -> None:
        """Let every hypothesis go on from the cache of the one it continues."""
        if CACHE in incremental_state:
            incremental_state[CACHE].reorder_cache(new_order)


def load_frozen_text_model(path: str, task: Any) -> FrozenTextModel:
    """Load a text model to be used as it is.

    Args:
        path: what ``load_seq2seq`` takes.
        task: gives ``target_dictionary``, where it lies (``cfg.data``, ``cfg.dictionary``), and ``tags``.

    Returns:
        The model, its vocabulary pruned if the dictionary is.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it holds something else, or has another vocabulary than the task.
    """
    model = load_seq2seq(path)
    whole, symbols = int(model.config.vocab_size), len(task.target_dictionary)
    if whole != symbols:
        kept = read_kept_rows(Path(task.cfg.data) / task.cfg.dictionary)
        if kept is not None and kept.of == whole:
            keep_rows(model, kept.rows)
            logger.info("%s: kept %d of %d embeddings", path, symbols, whole)
    text = FrozenTextModel(model, task.target_dictionary)
    if task.tags.prefix_size == 0 and text.start is None:
        raise ValueError(
            f"{path}: its decoder begins with the tag of a language: expected --lang-tag-template, found "
            "none (one that begins otherwise says so with decoder_start_token_id in its config.json)"
        )
    if text.start in [task.tags.index(lang) for lang in task.tags.valid()]:
        text.start = None  # the tag of each target in place of one for all
    return text


def _attend(padding_mask: Tensor | None) -> Tensor | None:
    return None if padding_mask is None else (~padding_mask).long()


def _empty_cache() -> Any:
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())
