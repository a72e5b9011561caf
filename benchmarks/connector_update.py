"""An update of a connector between frozen models: from waveforms, and from stored states of the encoder.

A wav2vec 2.0 and a T5 with random weights, an STE of the published size between them, noise for speech.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import soundfile
from fairseq.trainer import Trainer

from benchmarks import peers
from benchmarks.comparison import Comparison, in_turn, seconds
from benchmarks.memory import peak_mib
from benchmarks.peers import Batch
from benchmarks.sizes import Size
from benchmarks.training import start, update
from data_prep.text_model_vocab import adopt_text_model_vocab

RATE = 16_000
WORDS = ["one", "two", "three", "four", "five", "six", "red", "green", "blue", "black", "white"]
PEER = "connector_st from waveforms"
#: Of a sentence: about 20 tokens, which is what people say in as many seconds as utterances last.
WORDS_A_SENTENCE = 5
#: Utterances of a split, and their shortest and longest seconds.
UTTERANCES = 8
SECONDS = (4.0, 7.0)
SHORT_SECONDS = (2.0, 3.5)
BATCHES = [
    Batch(peers.SPLIT, 4, SECONDS),
    Batch(peers.SPLIT, 2, SECONDS),
    Batch(peers.SHORT_SPLIT, 4, SHORT_SECONDS),
]

TINY_SPEECH = {
    "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16,
    "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
XLSR_300M = {
    "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096,
    "conv_bias": True, "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip
TINY_TEXT = {
    "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "d_kv": 8, "vocab_size": 300,
}  # fmt: skip
T5_BASE = {"d_model": 768, "num_layers": 12, "num_heads": 12, "d_ff": 3072}

#: Pairs by size: names, and entries of ``config.json`` of speech encoder and text model where they differ
#: from wav2vec 2.0 base (94 M weights) and T5 small (60 M).
Entries = dict[str, Any]
PAIRS: dict[str, list[tuple[str, Entries, Entries]]] = {
    "tiny": [("a tiny wav2vec 2.0 and T5", TINY_SPEECH, TINY_TEXT)],
    "small": [
        ("wav2vec 2.0 base and T5 small", {}, {}),
        ("XLS-R 300M and T5 small", XLSR_300M, {}),
    ],
    "large": [("XLS-R 300M and T5 base", XLSR_300M, T5_BASE)],
}


def measure(out: Path, size: Size, device: str, repeats: int) -> list[Comparison]:
    """Train a connector between each pair of models twice, in turn.

    Args:
        out: folder for models, data and states.
        size: of the frozen models.
        device: ``cpu`` or ``cuda``.
        repeats: timed updates.
    """
    rows = []
    for number, (names, speech, text) in enumerate(PAIRS[size.name]):
        batches = BATCHES[:1] if number else BATCHES  # costs grow alike for all
        folder = out / f"pair{number}"
        folder.mkdir(exist_ok=True)
        shutil.rmtree(folder / "states", ignore_errors=True)
        _write_corpus(folder, peers.SPLIT, WORDS_A_SENTENCE, SECONDS)
        _write_corpus(folder, peers.SHORT_SPLIT, WORDS_A_SENTENCE // 2, SHORT_SECONDS)
        _write_models(folder, speech, text)
        rows += _measure_pair(folder, names, batches, device, repeats)
    return rows


def _measure_pair(
    out: Path, names: str, batches: Sequence[Batch], device: str, repeats: int
) -> list[Comparison]:
    """Time and memory of updates between one pair of models, whose files are there."""
    work = f"connector update, {names}"
    splits = list(dict.fromkeys(batch.split for batch in batches))
    theirs = _trainer(out, device, "waveforms", splits)
    theirs.get_train_iterator(1)
    ours = _trainer(out, device, "states", splits)
    # Before the first batch everything is encoded.
    filling = seconds(partial(ours.get_train_iterator, 1), device)()
    rows: list[Comparison] = []
    for batch in batches:
        losses: dict[str, list[float]] = {}
        runs = {}
        for side, trainer in (("ours", ours), ("theirs", theirs)):
            sample = peers.batch(trainer.task, batch.split, batch.rows)
            losses[side] = []
            runs[side] = seconds(partial(_record, losses[side], trainer, sample), device)
        times = in_turn(runs, repeats if not rows else max(2, repeats // 2))
        rows.append(
            Comparison(
                work,
                f"{batch}, from stored states",
                "s",
                times["ours"],
                times["theirs"],
                PEER,
                10,
                _same(losses),
            )
        )
    rows.append(_storing(out, filling, ours, rows[0]))
    del ours, theirs, trainer
    runs = {side: partial(peak_mib, device, build_step, out, device, source, BATCHES[0])
            for side, source in (("ours", "states"), ("theirs", "waveforms"))}  # fmt: skip
    memory = in_turn(runs, 1, warm_up=0)
    figure = f"memory: {BATCHES[0]}"
    rows.append(Comparison(work, figure, "MiB", memory["ours"], memory["theirs"], PEER, None, ""))
    return rows


def build_step(out: Path, device: str, source: str, batch: Batch) -> Callable[[], float]:
    """An update from ``waveforms`` or from ``states``, which are there."""
    trainer = _trainer(out, device, source, [batch.split])
    trainer.get_train_iterator(1)
    return partial(update, trainer, peers.batch(trainer.task, batch.split, batch.rows))


def _trainer(out: Path, device: str, source: str, splits: Sequence[str]) -> Trainer:
    """The trainer of either side, that of ``states`` without them before its first batch."""
    line = [
        str(out), "--task", "speech_to_text_samu", "--dictionary", "dict.json", "--lang-tag-template", "",
        "--normalize", "none", "--arch", "connector_st", "--speech-encoder-path", str(out / "speech"),
        "--text-model-path", str(out / "text"), "--criterion", "label_smoothed_nll",
        "--optimizer", "grouped_adam", "--lr", "2e-4", "--lr-scheduler", "fixed", "--clip-norm", "5",
        "--batch-size", "1", "--num-workers", "0", "--seed", "1", "--no-progress-bar",
    ]  # fmt: skip
    if source == "states":
        line += ["--cache-encoder-states", str(out / "states")]
    trainer = start(line, device)
    for split in splits:
        trainer.task.load_dataset(split)
    return trainer


def _record(losses: list[float], trainer: Trainer, sample: dict[str, Any]) -> None:
    losses.append(update(trainer, sample))


def _same(losses: dict[str, list[float]]) -> str:
    """How far the losses of both trainings are from each other."""
    ours, theirs = losses["ours"], losses["theirs"]
    difference = max(abs(a - b) for a, b in zip(ours, theirs))
    return (
        f"losses of {len(ours)} updates, {ours[0]:.4f} to {ours[-1]:.4f}, differ by "
        f"{difference:.1e} at most"
    )


def _storing(out: Path, filling: float, ours: Trainer, timed: Comparison) -> Comparison:
    """What storing all states takes, beside an epoch from waveforms of as much speech."""
    samples = sum(int(each.manifest.n_frames.sum()) for each in ours.task.datasets.values())
    stored = sum(path.stat().st_size for path in (out / "states").rglob("*") if path.is_file())
    megabytes = stored / 1e6 / (samples / RATE / 3600)
    batch = ours.task.dataset(peers.SPLIT).manifest.n_frames[: BATCHES[0].utterances].sum()
    epoch = [time * samples / int(batch) for time in timed.theirs]
    figure = (
        f"storing the states, {megabytes:.1f} MB an hour of speech, beside an epoch from waveforms"
    )
    return Comparison(timed.work, figure, "s", [filling] * len(epoch), epoch, PEER, None, "")


def _write_corpus(folder: Path, split: str, words: int, seconds: tuple[float, float]) -> None:
    """Write noise with ``words`` words in random order, as a split."""
    rng = np.random.default_rng(0)
    rows = ["id audio n_frames tgt_text speaker src_text src_lang tgt_lang".replace(" ", "\t")]
    for i in range(UTTERANCES):
        samples = int(RATE * rng.uniform(*seconds))
        soundfile.write(folder / f"{split}-{i}.wav", rng.normal(0, 0.1, samples), RATE)
        text = " ".join(rng.choice(WORDS, words))
        rows.append(f"{i}\t{split}-{i}.wav\t{samples}\t{text}\tnoise\t{text}\tes\ten")
    (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_models(folder: Path, speech: dict[str, Any], text: dict[str, Any]) -> None:
    """Write the frozen models, of base and small size but for the given entries of ``config.json``."""
    import torch
    import transformers

    torch.manual_seed(1)
    config = transformers.Wav2Vec2Config(**speech)
    transformers.Wav2Vec2Model(config).save_pretrained(folder / "speech")
    config = transformers.T5Config(decoder_start_token_id=0, **text)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder / "text")
    with open(folder / "text" / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(WORDS)] * 10), model_writer=file, vocab_size=60,
            hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        )  # fmt: skip
    adopt_text_model_vocab(folder / "text", folder)
