"""An update of ``xlsr_mbart_st`` and of fairseq's ``xm_transformer``: time and memory, whatever trains.

Both have the same weights and meet the same batches, in fairseq's trainer, with the dropout that users train
with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fairseq.trainer import Trainer

from benchmarks import peers
from benchmarks.comparison import Comparison, in_turn, seconds
from benchmarks.memory import peaks_mib
from benchmarks.peers import Batch, Peers
from benchmarks.sizes import Size
from benchmarks.training import update
from fairseq_samu import compat

WORK = "translation update"
PEER = "fairseq xm_transformer"


class Way(NamedTuple):
    """How a side computes.

    Attributes:
        name: for the table.
        precision: of weights and activations, ``fp32``, ``fp16`` or ``bf16``.
        options: further options.
    """

    name: str
    precision: str = "fp32"
    options: tuple[str, ...] = ()


#: Our way, the peer's, ratio to reach for full training.
Pair = tuple[Way, Way, float]
BEST_ON_CPU: Pair = (
    Way(
        "each at its best (bf16 autocast and grouped_adam, fp32)",
        options=("--cpu-bf16", "--optimizer", "grouped_adam"),
    ),
    Way("fp32"), 2.0,
)  # fmt: skip
#: By device, in groups that are measured in turn. fairseq has no bfloat16 on a CPU, and one Adam there.
WAYS: dict[str, list[list[Pair]]] = {
    "cpu": [
        [(Way("fp32"), Way("fp32"), 1.3), *([BEST_ON_CPU] if compat.CPU_BF16_TRAINS else [])],
    ],
    "cuda": [
        [(Way("bf16", "bf16"), Way("bf16", "bf16"), 1.3)],
        [(Way("fp16", "fp16"), Way("fp16", "fp16"), 1.3)],
    ],
}


#: Layers computed again in the backward pass, an option of both sides; measured where memory has a target.
RECOMPUTED = ("--checkpoint-activations",)


class Choice(NamedTuple):
    """What trains.

    Attributes:
        name: for the table.
        ours: options of ``xlsr_mbart_st``.
        theirs: options of ``xm_transformer``.
        target: ratio of times to reach; None for that of ``WAYS``.
        memory_target: ratio of memory to reach.
        peer_recomputes: whether the peer trains the same with ``RECOMPUTED``: its encoder layers get no
            gradient where nothing below them trains. Else it is measured without.
    """

    name: str
    ours: list[str]
    theirs: list[str]
    target: float | None = None
    memory_target: float | None = None
    peer_recomputes: bool = False


def choices(size: Size, states: Path) -> list[Choice]:
    """What of the network trains; fairseq's own has no adapters, there users take LNA."""
    encoder, decoder = size.encoder_layers, size.decoder_layers
    top_encoder, top_decoder = max(1, encoder // 3), max(1, decoder // 3)
    lna = [
        "--finetune-w2v-params", "layer_norm,self_attn",
        "--finetune-decoder-params", "encoder_attn,layer_norm,self_attn",
    ]  # fmt: skip
    return [
        Choice("full", [], []),
        Choice(
            "LNA",
            ["--train-encoder", "layernorm,attention",
             "--train-decoder", "cross-attention,layernorm,attention"],
            lna, 1.5, 2.0, True,
        ),
        Choice(
            "adapters, beside LNA",
            ["--encoder-adapter-dim", "256", "--train-encoder", "adapters",
             "--decoder-adapter-dim", "256", "--train-decoder", "adapters"],
            lna, 1.5, 2.0, True,
        ),
        Choice(
            f"top {top_encoder} and {top_decoder} layers",
            ["--train-encoder", f"top-{top_encoder}", "--train-decoder", f"top-{top_decoder}"],
            ["--finetune-w2v-params", _layers("encoder.layers", encoder - top_encoder, encoder),
             "--finetune-decoder-params", _layers("layers", decoder - top_decoder, decoder)],
            1.5, 2.0,
        ),
        Choice(
            "frozen encoder, from stored states",
            ["--train-encoder", "none", "--cache-encoder-states", str(states)],
            ["--finetune-w2v-params", "none"], 10.0,
        ),
    ]  # fmt: skip


def _layers(prefix: str, begin: int, end: int) -> str:
    """Layers as fairseq's options name what trains: by parts of the parameters' names."""
    return ",".join(f"{prefix}.{i}." for i in range(begin, end))


def measure(out: Path, size: Size, device: str, repeats: int) -> list[Comparison]:
    """Compare updates of every kind.

    Args:
        out: folder for data and models.
        size: of models and batches.
        device: ``cpu`` or ``cuda``.
        repeats: timed updates.
    """
    files, large_files = (
        peers.prepare(out / f"{words}_words", size, words, size.seconds)
        for words in size.vocabularies
    )
    full, *partial_choices = choices(size, out / "states")
    batches = peers.batches(size)
    base = batches[0]
    small, large = (f"{words:,} words" for words in size.vocabularies)
    rows = compare_times(files, size, device, full, batches, small, repeats)
    rows += compare_times(large_files, size, device, full, [base], large, max(2, repeats // 2))
    for choice in partial_choices:
        rows += compare_times(files, size, device, choice, [base], small, repeats)
    rows += compare_memory(files, size, device, choices(size, out / "states"), small)
    rows += compare_memory(large_files, size, device, [full], large)
    return rows


def build(side: str, files: Peers, size: Size, device: str, choice: Choice, way: Way) -> Trainer:
    """One side's trainer, with the same dropout on both."""
    if side == "ours":
        return peers.xlsr_mbart_st(
            files, device, "--encoder-dropout", "0.1", "--encoder-attention-dropout", "0.1",
            "--decoder-dropout", "0.1", *choice.ours, *way.options, precision=way.precision,
        )  # fmt: skip
    return peers.xm_transformer(
        files, size, device, "--dropout", "0.1", "--attention-dropout", "0.1",
        "--decoder-dropout", "0.1", *choice.theirs, *way.options, precision=way.precision,
    )  # fmt: skip


def build_steps(
    side: str, files: Peers, size: Size, device: str, choice: Choice, way: Way, batches: list[Batch]
) -> list[Callable[[], float]]:
    """One side's updates."""
    trainer = build(side, files, size, device, choice, way)
    samples = (peers.batch(trainer.task, batch.split, batch.rows) for batch in batches)
    return [partial(update, trainer, sample) for sample in samples]


def compare_times(
    files: Peers,
    size: Size,
    device: str,
    choice: Choice,
    batches: Sequence[Batch],
    words: str,
    repeats: int,
) -> list[Comparison]:
    """Time updates of both sides, in all ways of a group in turn; ``words`` names the vocabulary."""
    rows = []
    for group in _groups(device, choice):
        trainers = {
            (side, way): build(side, files, size, device, choice, way)
            for side, way in _sides(group)
        }
        losses = {
            key: peers.loss_without_dropout(trainer, peers.SPLIT, range(2))
            for key, trainer in trainers.items()
        }
        for batch in batches:
            runs = {}
            for key, trainer in trainers.items():
                sample = peers.batch(trainer.task, batch.split, batch.rows)
                runs[key] = seconds(partial(update, trainer, sample), device)
            times = in_turn(runs, repeats if batch is batches[0] else max(2, repeats // 2))
            for our_way, their_way, target in group:
                ours, theirs = ("ours", our_way), ("theirs", their_way)
                difference = abs(losses[ours] / losses[theirs] - 1)
                rows.append(
                    Comparison(
                        WORK, f"{choice.name}, {our_way.name}, {batch}, {words}", "s", times[ours],
                        times[theirs], _peer(their_way), choice.target or target,
                        f"loss without dropout differs by {difference:.0e} of it",
                    )
                )  # fmt: skip
        # Before the next ones are built.
        del trainers, runs, trainer
    return rows


def compare_memory(
    files: Peers, size: Size, device: str, choices: Sequence[Choice], words: str
) -> list[Comparison]:
    """Measure the memory of updates: of the size's batch, and of further ones where there is a target."""
    rows = []
    peaks: dict[tuple[object, ...], list[float]] = {}
    for choice in choices:
        batches = peers.memory_batches(size)[: 1 if choice.memory_target is None else None]
        pairs = [pair for group in _groups(device, choice) for pair in group]
        # Some choices have the peer in common.
        keys = {place: (*place, *getattr(choice, place[0])) for place in _sides(pairs)}
        for place, key in keys.items():
            if key not in peaks:
                peaks[key] = peaks_mib(
                    device, build_steps, place[0], files, size, device, choice, place[1], batches
                )
        rows += [
            Comparison(
                WORK, f"memory: {choice.name}, {ours.name}, {batch}, {words}", "MiB",
                [peaks[keys["ours", ours]][n]], [peaks[keys["theirs", theirs]][n]],
                _peer(theirs), choice.memory_target, "",
            )
            for n, batch in enumerate(batches)
            for ours, theirs, _ in pairs
        ]  # fmt: skip
    return rows


def _peer(way: Way) -> str:
    return " ".join((PEER, *way.options))


def _groups(device: str, choice: Choice) -> list[list[Pair]]:
    """Ways to measure in turn."""
    groups = WAYS[device]
    if choice.memory_target is None:
        return groups
    return [
        [*group, *((_recomputing(ours), _recomputing(theirs) if choice.peer_recomputes else theirs, target)
                   for ours, theirs, target in group)]
        for group in groups
    ]  # fmt: skip


def _recomputing(way: Way) -> Way:
    name = f"{way.name}, {' '.join(RECOMPUTED)}"
    return way._replace(name=name, options=(*way.options, *RECOMPUTED))


def _sides(group: Sequence[Pair]) -> list[tuple[str, Way]]:
    """What is measured in turn, each once."""
    named = [(side, way) for *ways, _ in group for side, way in zip(("ours", "theirs"), ways)]
    return list(dict.fromkeys(named))
