"""An update of a connector between frozen models: from waveforms, and from stored states of the encoder.

A wav2vec 2.0 and a T5 with random weights, an STE of the published size between them, noise for speech.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import soundfile

from benchmarks.comparison import Comparison, in_turn, seconds
from benchmarks.sizes import Size
from benchmarks.training import start, train
from data_prep.text_model_vocab import adopt_text_model_vocab

RATE = 16_000
WORDS = ["one", "two", "three", "four", "five", "six", "red", "green", "blue", "black", "white"]
#: Of a sentence: about 20 tokens, which is what people say in as many seconds as utterances last.
WORDS_A_SENTENCE = 5
SECONDS = (4, 7)
BATCH_SIZE = 4
BATCHES_AN_EPOCH = 4
PEER = "connector_st from waveforms"

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
    return [
        row
        for number, (names, speech, text) in enumerate(PAIRS[size.name])
        for row in _measure_pair(out / f"pair{number}", names, speech, text, device, repeats)
    ]


def _measure_pair(
    out: Path, names: str, speech: Entries, text: Entries, device: str, repeats: int
) -> list[Comparison]:
    shutil.rmtree(out / "states", ignore_errors=True)
    out.mkdir(exist_ok=True)
    _write_corpus(out, BATCHES_AN_EPOCH * BATCH_SIZE)
    _write_models(out, speech, text)
    line = [
        str(out), "--task", "speech_to_text_samu", "--dictionary", "dict.json", "--lang-tag-template", "",
        "--normalize", "none", "--arch", "connector_st", "--speech-encoder-path", str(out / "speech"),
        "--text-model-path", str(out / "text"), "--criterion", "label_smoothed_nll",
        "--optimizer", "adam", "--lr", "2e-4", "--lr-scheduler", "fixed", "--clip-norm", "5",
        "--batch-size", str(BATCH_SIZE), "--num-workers", "0", "--seed", "1",
    ]  # fmt: skip
    trainers = {
        "theirs": start(line, device),
        "ours": start([*line, "--cache-encoder-states", str(out / "states")], device),
    }
    filling = seconds(lambda: trainers["ours"].get_train_iterator(1), device)()
    steps = {name: train(trainer) for name, trainer in trainers.items()}
    losses: dict[str, list[float]] = {name: [] for name in trainers}
    times = in_turn(
        {
            name: seconds(lambda name=name: losses[name].append(next(steps[name])), device)
            for name in trainers
        },
        repeats,
    )
    difference = max(abs(a - b) for a, b in zip(losses["ours"], losses["theirs"]))
    same = (
        f"losses of {repeats + 1} updates, {losses['ours'][0]:.4f} to {losses['ours'][-1]:.4f}, differ by "
        f"{difference:.1e} at most"
    )
    hours = trainers["ours"].task.dataset("train").manifest.n_frames.sum() / RATE / 3600
    stored = sum(path.stat().st_size for path in (out / "states").rglob("*") if path.is_file())
    epoch = [BATCHES_AN_EPOCH * time for time in times["theirs"]]
    work = f"connector update, {names}"
    update = f"{BATCH_SIZE} utterances of {SECONDS[0]} to {SECONDS[1]} s, from stored states"
    store = (
        f"storing states ({stored / 1e6 / hours:.1f} MB an hour of speech) beside an uncached epoch"
    )
    return [
        Comparison(work, update, "s", times["ours"], times["theirs"], PEER, 10, same),
        Comparison(work, store, "s", [filling] * repeats, epoch, PEER, None, ""),
    ]


def _write_corpus(folder: Path, utterances: int) -> None:
    """Write noise with words in random order, as the split ``train``."""
    rng = np.random.default_rng(0)
    rows = ["id audio n_frames tgt_text speaker src_text src_lang tgt_lang".replace(" ", "\t")]
    for i in range(utterances):
        samples = int(rng.integers(SECONDS[0] * RATE, SECONDS[1] * RATE))
        soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.1, samples), RATE)
        text = " ".join(rng.choice(WORDS, WORDS_A_SENTENCE))
        rows.append(f"{i}\t{i}.wav\t{samples}\t{text}\tnoise\t{text}\tes\ten")
    (folder / "train.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


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
