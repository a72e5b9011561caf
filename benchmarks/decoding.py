"""Beam search: with the states of the encoder given, and from waveforms.

The searches run on decoders with the same random weights, which hardly ever end by themselves: every
hypothesis has as many tokens as it may have.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel
from fairseq.models.speech_to_text.xm_transformer import set_default_transformer_decoder_args
from fairseq.models.transformer import Embedding, TransformerDecoder
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from benchmarks import peers
from benchmarks.comparison import Comparison, in_turn, seconds
from benchmarks.sizes import Size
from fairseq_samu import compat
from fairseq_samu.data.text_model_dictionary import TextModelDictionary
from fairseq_samu.generator import FastSequenceGenerator, TaggedSequenceGenerator
from fairseq_samu.models.frozen_text_model import FrozenTextModel
from fairseq_samu.models.xlsr_mbart_st import TextDecoder
from fairseq_samu.modules.linear import use_fast_products
from fairseq_samu.pretrained.huggingface_decoder import config_of, huggingface_weights
from fairseq_samu.pretrained.text_decoder import TextDecoderCheckpoint

WORK = "beam search"
FAIRSEQ = "fairseq's generator, xm_transformer"
HUGGING_FACE = "Hugging Face's SpeechEncoderDecoderModel.generate()"
TEXT_MODEL = "Hugging Face's T5ForConditionalGeneration.generate()"
TARGET = 2.5
#: Tokens of every hypothesis, the one that ends it left out.
TOKENS = 16
#: Frames of the shortest and of the longest sentence: 3 to 5 s of speech behind an adaptor of stride 8.
FRAMES = (19, 32)
#: Searches before those that count: weights are packed in the first.
WARM_UP = 1
TAG = 5


class Shape(NamedTuple):
    """A decoder's sizes; its feed-forward layers are four times as wide as the others."""

    layers: int
    dim: int
    heads: int
    words: int

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.dim}, {self.words:,} words"


MBART = (12, 1024, 16)


class Given(FairseqEncoder):  # type: ignore[misc]
    """Hands on the encoder states of a batch."""

    def forward(self, src_tokens: Tensor, src_lengths: Tensor) -> dict[str, list[Tensor]]:
        """States (B, T, C) and how many there are of each sentence (B,) → what decoders read."""
        places = torch.arange(src_tokens.size(1), device=src_tokens.device)
        padding = places >= src_lengths.unsqueeze(1)
        return {"encoder_out": [src_tokens.transpose(0, 1)], "encoder_padding_mask": [padding]}

    def reorder_encoder_out(
        self, encoder_out: dict[str, list[Tensor]], new_order: Tensor
    ) -> dict[str, list[Tensor]]:
        """Sentences as a search wants them."""
        states, padding = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]
        return {
            "encoder_out": [states.index_select(1, new_order)],
            "encoder_padding_mask": [padding.index_select(0, new_order)],
        }


def measure(out: Path, size: Size, device: str, repeats: int) -> list[Comparison]:
    """Compare searches with given states, for decoders, beams and batches of several sizes, and whole ones.

    Args:
        out: folder for data and models of the whole ones.
        size: of the models.
        device: ``cpu`` or ``cuda``, where weights are half precision's.
        repeats: timed searches.
    """
    own = size.decoder_layers, size.decoder_dim, size.decoder_heads
    small, large = size.vocabularies
    shapes = [Shape(*own, small)]
    if size.name != "tiny" and own != MBART:
        shapes.append(Shape(*MBART, small))
    shapes.append(Shape(*(own if size.name == "tiny" else MBART), large))
    rows = []
    for shape in shapes:
        theirs, ours = decoders(shape, device)
        sizes = [(5, 8)]
        if shape is shapes[0]:
            sizes += [(5, 1), (5, 32), (1, 8), (10, 8)]
        for beam, sentences in sizes:
            count = repeats if (beam, sentences) == (5, 8) else max(2, repeats // 2)
            rows.append(search_alone(shape, theirs, ours, beam, sentences, count))
        if shape is shapes[0] and importlib.util.find_spec("transformers") is not None:
            rows.append(beside_hugging_face(shape, ours, 5, 8, repeats))
            rows.append(text_model(shape, device, 5, 8, repeats))
    rows.append(from_waveforms(out, size, device, repeats))
    return rows


def decoders(
    shape: Shape, device: str
) -> tuple[FairseqEncoderDecoderModel, FairseqEncoderDecoderModel]:
    """fairseq's decoder of ``xm_transformer`` and ours with the same weights, both behind given states."""
    dictionary = Dictionary()
    for number in range(shape.words - len(dictionary)):
        dictionary.add_symbol(f"word{number}")
    args = Namespace(
        encoder_embed_dim=shape.dim, decoder_embed_dim=shape.dim, decoder_ffn_embed_dim=4 * shape.dim,
        decoder_layers=shape.layers, decoder_attention_heads=shape.heads, decoder_normalize_before=True,
        decoder_learned_pos=True, layernorm_embedding=True, share_decoder_input_output_embed=True,
        max_target_positions=1024, activation_fn="gelu",
    )  # fmt: skip
    set_default_transformer_decoder_args(args)
    torch.manual_seed(0)
    embedding = Embedding(len(dictionary), shape.dim, dictionary.pad())
    theirs = TransformerDecoder(args, dictionary, embedding)
    cfg = compat.fresh_transformer_config()
    cfg.share_decoder_input_output_embed = cfg.layernorm_embedding = True
    cfg.activation_fn, cfg.encoder.embed_dim = "gelu", shape.dim
    cfg.decoder.layers, cfg.decoder.attention_heads = shape.layers, shape.heads
    cfg.decoder.ffn_embed_dim, cfg.decoder.embed_dim = 4 * shape.dim, shape.dim
    cfg.decoder.input_dim = cfg.decoder.output_dim = shape.dim
    cfg.decoder.learned_pos = cfg.decoder.normalize_before = True
    ours = TextDecoder(cfg, dictionary, embedding, layerdrop=0.0)
    ours.load_state_dict(theirs.state_dict())
    models = []
    for decoder in (theirs, ours):
        model = FairseqEncoderDecoderModel(Given(None), decoder).to(device)
        model.make_generation_fast_()  # as fairseq-generate does
        models.append(model.half() if device == "cuda" else model)
    return models[0], models[1]


def states_like(decoder: TextDecoder, sentences: int, shortest: int) -> dict[str, Any]:
    """A batch of random encoder states."""
    weight = decoder.output_projection.weight
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, FRAMES[1] + 1, (sentences,), generator=generator)
    lengths[0] = FRAMES[1]
    states = torch.randn(sentences, FRAMES[1], weight.size(1), generator=generator)
    net_input = {"src_tokens": states.to(weight), "src_lengths": lengths.to(weight.device)}
    return {"net_input": net_input}


def search_alone(
    shape: Shape,
    theirs: FairseqEncoderDecoderModel,
    ours: FairseqEncoderDecoderModel,
    beam: int,
    sentences: int,
    repeats: int,
) -> Comparison:
    """Time both searches in the same states."""
    batch = states_like(ours.decoder, sentences, FRAMES[0])
    dictionary = ours.decoder.dictionary
    limits = {"beam_size": beam, "max_len_b": TOKENS, "min_len": TOKENS}
    runs = {
        "ours": partial(
            FastSequenceGenerator([ours], dictionary, **limits).generate, [ours], batch
        ),
        "theirs": partial(
            SequenceGenerator([theirs], dictionary, **limits).generate, [theirs], batch
        ),
    }
    speed, found = sentences_a_second(runs, sentences, batch, repeats)
    figure = f"{shape}; beam {beam}, {sentences} sentences, states given"
    same = compare(found["ours"], found["theirs"])
    target = TARGET if beam == 5 else None
    return Comparison(
        WORK, figure, "sentences/s", speed["ours"], speed["theirs"], FAIRSEQ, target, same, True
    )


def beside_hugging_face(
    shape: Shape, ours: FairseqEncoderDecoderModel, beam: int, sentences: int, repeats: int
) -> Comparison:
    """Time our search and transformers' in the same states, without padding."""
    batch = states_like(ours.decoder, sentences, FRAMES[1])
    states = batch["net_input"]["src_tokens"]
    dictionary = ours.decoder.dictionary
    generator = TaggedSequenceGenerator(
        [ours], dictionary, beam_size=beam, max_len_b=TOKENS, min_len=TOKENS
    )
    tags = torch.full((sentences, 1), TAG, device=states.device)
    model = hugging_face(shape, ours.decoder).eval().to(states)
    search = partial(generator.generate, [ours], batch, prefix_tokens=tags)
    figure = f"{shape}; beam {beam}, {sentences} sentences, states given"
    generate = _generate(model, states, dictionary, beam, forced_bos_token_id=TAG)
    return _beside_generate(figure, search, generate, beam, batch, repeats, HUGGING_FACE)


def text_model(shape: Shape, device: str, beam: int, sentences: int, repeats: int) -> Comparison:
    """Time the search of ``connector_st`` in a T5 and transformers' own, as above."""
    import transformers

    config = transformers.T5Config(
        d_model=shape.dim, num_layers=shape.layers, num_heads=shape.heads, d_ff=4 * shape.dim,
        d_kv=shape.dim // shape.heads, vocab_size=shape.words, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs, inner = (transformers.T5ForConditionalGeneration(config).eval() for _ in range(2))
    inner.load_state_dict(theirs.state_dict())
    symbols = [f"word{number}" for number in range(shape.words)]
    dictionary = TextModelDictionary(symbols, bos=0, pad=0, eos=1, unk=2)
    ours = FairseqEncoderDecoderModel(Given(None), FrozenTextModel(inner, dictionary)).eval()
    use_fast_products(ours)
    dtype = torch.float16 if device == "cuda" else torch.float32
    theirs, ours = theirs.to(device, dtype), ours.to(device, dtype)
    states = torch.randn(sentences, FRAMES[1], shape.dim).to(device, dtype)
    lengths = torch.full((sentences,), FRAMES[1], device=device)
    batch = {"net_input": {"src_tokens": states, "src_lengths": lengths}}
    generator = FastSequenceGenerator(
        [ours], dictionary, beam_size=beam, max_len_b=TOKENS, min_len=TOKENS
    )
    search = partial(generator.generate, [ours], batch)
    figure = f"T5, {shape}; beam {beam}, {sentences} sentences, states given"
    generate = _generate(theirs, states, dictionary, beam)
    return _beside_generate(figure, search, generate, beam, batch, repeats, TEXT_MODEL)


def _generate(
    model: Any, states: Tensor, dictionary: Dictionary, beam: int, **more: Any
) -> Callable[[], Tensor]:
    """transformers' search in given states."""
    from transformers.modeling_outputs import BaseModelOutput

    def generate() -> Tensor:
        # What is given is expanded where it lies.
        given = BaseModelOutput(states)
        found: Tensor = model.generate(
            encoder_outputs=given, num_beams=beam, num_return_sequences=beam, early_stopping=True,
            max_new_tokens=TOKENS, do_sample=False, forced_eos_token_id=None,
            suppress_tokens=[dictionary.pad(), dictionary.eos()], **more,
        )  # fmt: skip
        return found

    return generate


def _beside_generate(
    figure: str,
    search: Callable[[], Any],
    generate: Callable[[], Tensor],
    beam: int,
    batch: dict[str, Any],
    repeats: int,
    peer: str,
) -> Comparison:
    sentences = len(batch["net_input"]["src_lengths"])
    runs = {"ours": search, "theirs": generate}
    speed, found = sentences_a_second(runs, sentences, batch, repeats)
    theirs = found["theirs"][:, 1:].reshape(sentences, beam, -1).tolist()
    # Only ours counts what it costs to end, which changes the order.
    pairs = zip(found["ours"], theirs)
    equal = sum(
        sorted(h["tokens"].tolist()[:-1] for h in row) == sorted(their_row)
        for row, their_row in pairs
    )
    same = f"the {beam} hypotheses of {equal} of {sentences} sentences are the same"
    return Comparison(
        WORK, figure, "sentences/s", speed["ours"], speed["theirs"], peer, None, same, True
    )


def hugging_face(shape: Shape, decoder: TextDecoder) -> Any:
    """The decoder as transformers has it, behind a speech encoder that is not used."""
    import transformers

    checkpoint = TextDecoderCheckpoint(
        {"decoder_layers": shape.layers, "decoder_embed_dim": shape.dim,
         "decoder_ffn_embed_dim": 4 * shape.dim, "decoder_attention_heads": shape.heads,
         "decoder_learned_pos": True, "decoder_layernorm_embedding": True,
         "decoder_no_scale_embedding": False, "decoder_separate_output_embed": False,
         "decoder_activation_fn": "gelu"},
        decoder.state_dict(), decoder.max_target_positions, None,
    )  # fmt: skip
    config = transformers.MBartConfig(
        **{**config_of(checkpoint, "decoder"), "is_decoder": True, "is_encoder_decoder": False}
    )
    text = transformers.MBartForCausalLM(config)
    weights = huggingface_weights(checkpoint, "decoder")
    weights = {k: v for k, v in weights.items() if k.startswith("model.decoder.")}
    shared = checkpoint.state_dict["embed_tokens.weight"]
    weights |= {"model.decoder.embed_tokens.weight": shared, "lm_head.weight": shared}
    known = text.state_dict().keys()
    text.load_state_dict({k: v for k, v in weights.items() if k in known}, strict=True)
    speech = transformers.Wav2Vec2Config(
        hidden_size=shape.dim, num_hidden_layers=1, num_attention_heads=shape.heads,
        intermediate_size=8, conv_dim=(8,) * 7, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = transformers.SpeechEncoderDecoderModel(
        encoder=transformers.Wav2Vec2Model(speech), decoder=text
    )
    eos, pad = decoder.dictionary.eos(), decoder.dictionary.pad()
    model.generation_config.decoder_start_token_id = eos
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = eos, pad
    return model


def from_waveforms(out: Path, size: Size, device: str, repeats: int) -> Comparison:
    """Time both tasks from waveforms of one length, because padding changes fairseq's hypotheses."""
    length = size.seconds[1]
    files = peers.prepare(out / "pair", size, size.vocabularies[0], (length, length))
    trainers = {
        "ours": peers.xlsr_mbart_st(files, device),
        "theirs": peers.xm_transformer(files, size, device),
    }
    options = Namespace(
        beam=5, max_len_a=0, max_len_b=TOKENS, min_len=TOKENS, prefix_size=1, sampling=False
    )
    runs, rows = {}, range(2 * size.utterances)
    sample: dict[str, Any] = {}
    for side, trainer in trainers.items():
        model = trainer.get_model()
        model.make_generation_fast_()
        sample, _ = trainer._prepare_sample(peers.batch(trainer.task, peers.SPLIT, rows))
        tags = sample["target"][:, :1]
        generator = trainer.task.build_generator([model], options)
        runs[side] = partial(
            trainer.task.inference_step, generator, [model], sample, prefix_tokens=tags
        )
    speed, found = sentences_a_second(runs, len(rows), sample, repeats)
    figure = (
        f"{size.encoder_layers} + {size.decoder_layers} layers, {size.vocabularies[0]:,} words; beam 5, "
        f"{len(rows)} utterances of {length:g} s"
    )
    same = compare(found["ours"], found["theirs"], scores=False)
    return Comparison(
        WORK, figure, "sentences/s", speed["ours"], speed["theirs"], FAIRSEQ, None, same, True
    )


def sentences_a_second(
    runs: dict[str, Callable[[], Any]], sentences: int, batch: dict[str, Any], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Run searches in turn; sentences a second of each, and what it found the last time."""
    found: dict[str, Any] = {}
    device = batch["net_input"]["src_tokens"].device.type

    def search(name: str) -> None:
        found[name] = runs[name]()

    timed = {name: seconds(partial(search, name), device) for name in runs}
    times = in_turn(timed, repeats, WARM_UP)
    return {name: [sentences / time for time in values] for name, values in times.items()}, found


def compare(
    ours: Sequence[Sequence[dict[str, Tensor]]],
    theirs: Sequence[Sequence[dict[str, Tensor]]],
    scores: bool = True,
) -> str:
    """Say how many hypotheses are the same, place by place, and how far scores are apart."""
    pairs = list(zip(itertools.chain(*ours), itertools.chain(*theirs)))
    equal = sum(a["tokens"].tolist() == b["tokens"].tolist() for a, b in pairs)
    text = f"{equal} of {len(pairs)} hypotheses are the same"
    if not scores:
        return text
    apart = max((abs(float(a["score"]) - float(b["score"])) for a, b in pairs), default=math.nan)
    return f"{text}, scores differ by {apart:.0e} at most"
