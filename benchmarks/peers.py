"""fairseq's own ``speech_to_text`` and ``xm_transformer``, and ``xlsr_mbart_st`` with the same weights.

:func:`prepare` writes a corpus of noise, a vocabulary, an untrained ``xm_transformer`` and what
``fairseq_samu.import_xm_transformer`` makes of it; :func:`xm_transformer` and :func:`xlsr_mbart_st` are
fairseq's trainer with either, on the same rows.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import types
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
import soundfile
import torch
from fairseq import options, tasks
from fairseq.models import register_model_architecture
from fairseq.models.speech_to_text.xm_transformer import base_architecture
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer

from benchmarks.sizes import LONGER, Size
from benchmarks.training import start
from data_prep.manifest import ManifestRow, ManifestWriter
from fairseq_samu import compat
from fairseq_samu.import_xm_transformer import import_xm_transformer
from fairseq_samu.tasks import SpeechToTextSamuTask

RATE = 16_000
WORDS_A_TARGET = 12
#: Of the vocabulary, what SentencePiece learned; the rest stands for the words of other languages.
PIECES = 4_000
SPLIT = "train"
#: Utterances and targets that are half as long, and those that are longer.
SHORT_SPLIT = "short"
LONG_SPLIT = "long"

#: What the peer's decoder and adaptor have, as those of Li et al. 2021 with mBART.
XM_MODEL = [
    "--normalize", "--encoder-proj", "--adaptor-proj", "--adaptor-layernorm", "--adaptor-n-layers", "3",
    "--decoder-normalize-before", "--layernorm-embedding", "--decoder-learned-pos",
    "--share-decoder-input-output-embed", "--activation-fn", "gelu",
]  # fmt: skip
#: What both criterions and optimisers have.
TRAINING = [
    "--label-smoothing", "0.1", "--sentence-avg", "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)",
    "--lr", "1e-4", "--lr-scheduler", "fixed", "--clip-norm", "10", "--batch-size", "1", "--num-workers", "0",
    "--seed", "1", "--no-progress-bar",
]  # fmt: skip


@register_model_architecture("xm_transformer", "xm_transformer_trainable")
def _trainable(args: Namespace) -> None:
    """Options that some versions of fairseq ask for and do not give their own model."""
    args.load_ema, args.freeze_regex = False, None
    base_architecture(args)


@dataclass(frozen=True)
class Peers:
    """Files of one pair of models.

    Attributes:
        data: folder of the splits, ``config.yaml`` and the vocabulary.
        wav2vec2: the speech encoder that the peer is built from.
        xm: fairseq's model.
        imported: this project's, with the same weights.
    """

    data: Path
    wav2vec2: Path
    xm: Path
    imported: Path


def prepare(folder: Path, size: Size, words: int, seconds: tuple[float, float]) -> Peers:
    """Write data and models, unless they are there.

    Args:
        folder: for all of them.
        size: of the models.
        words: of the target vocabulary.
        seconds: length of the shortest and of the longest utterance; equal ones leave no padding.

    Returns:
        Where they are.
    """
    data = folder / "data"
    peers = Peers(data, folder / "w2v.pt", folder / "xm.pt", folder / "imported.pt")
    if peers.imported.is_file():  # which is written last, and at once
        return peers
    data.mkdir(parents=True, exist_ok=True)
    spoken = _write_vocabulary(data, words)
    rows = max(2 * size.utterances, *(utterances for utterances, _ in size.memory))
    for split, factor in ((SPLIT, 1), (SHORT_SPLIT, 0.5), (LONG_SPLIT, LONGER)):
        low, high = (limit * factor for limit in seconds)
        write_corpus(data, split, rows, spoken, int(WORDS_A_TARGET * factor), (low, high))
    write_wav2vec2(peers.wav2vec2, size)
    line = _xm_line(peers, size)
    args = options.parse_args_and_arch(options.get_training_parser(), line)
    torch.manual_seed(1)
    with contextlib.redirect_stdout(io.StringIO()):  # fairseq prints it
        model = tasks.setup_task(args).build_model(args)
    torch.save({"args": args, "model": model.state_dict()}, peers.xm)
    import_xm_transformer(str(peers.xm), data, peers.imported)
    return peers


def xm_transformer(
    peers: Peers, size: Size, device: str, *more: str, precision: str = "fp32"
) -> Trainer:
    """The peer's trainer, its data loaded.

    Args:
        peers: its files.
        size: they were made at.
        device: ``cpu`` or ``cuda``.
        *more: further options.
        precision: see :func:`benchmarks.training.start`.
    """
    stand_in_for_torchaudio()
    weights = compat.load_checkpoint(str(peers.xm))["model"]
    return _loaded(start([*_xm_line(peers, size), *more], device, precision), weights)


def xlsr_mbart_st(peers: Peers, device: str, *more: str, precision: str = "fp32") -> Trainer:
    """This project's trainer with the same weights, its data loaded; arguments as above."""
    state = compat.load_checkpoint(str(peers.imported))
    line = [
        str(peers.data), "--task", "speech_to_text_samu", "--dictionary", "symbols.txt",
        "--sentencepiece-model", "pieces.model", "--train-subset", SPLIT, "--arch", "xlsr_mbart_st",
        "--speech-encoder-path", str(peers.imported), "--text-decoder-path", str(peers.imported),
        "--adaptor-layers", "3", "--adaptor-blocks", state["cfg"]["model"]["adaptor_blocks"],
        # The peer's is not to be set.
        "--encoder-feature-grad-mult", "0.1",
        "--criterion", "label_smoothed_nll", *TRAINING, *more,
    ]  # fmt: skip
    return _loaded(start(line, device, precision), state["model"])


def _loaded(trainer: Trainer, weights: Mapping[str, Any]) -> Trainer:
    """Give a trainer weights, as ``--finetune-from-model`` does, and its data."""
    trainer.get_model().load_state_dict(weights, strict=True)
    trainer.get_train_iterator(1)
    return trainer


def _xm_line(peers: Peers, size: Size) -> list[str]:
    return [
        str(peers.data), "--task", "speech_to_text", "--max-source-positions", "10000000",
        "--train-subset", xm_split(SPLIT), "--arch", "xm_transformer_trainable",
        "--w2v-path", str(peers.wav2vec2),
        *XM_MODEL, "--decoder-layers", str(size.decoder_layers), "--decoder-embed-dim", str(size.decoder_dim),
        "--decoder-ffn-embed-dim", str(4 * size.decoder_dim),
        "--decoder-attention-heads", str(size.decoder_heads),
        "--criterion", "label_smoothed_cross_entropy", "--ignore-prefix-size", "1", *TRAINING,
    ]  # fmt: skip


def _write_vocabulary(data: Path, words: int) -> list[str]:
    """Write pieces of random words, as a dictionary with language tags and words beside them."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnop")
    spoken = ["".join(rng.choice(letters, 6)) for _ in range(min(3_000, words))]
    pieces = min(PIECES, words // 2)
    with open(data / "pieces.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(spoken * 3), model_writer=file, vocab_size=pieces,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(data / "pieces.model"))
    symbols = [model.id_to_piece(i) for i in range(3, model.get_piece_size())]
    symbols += ["<lang:en>", "<lang:fr>"]
    symbols += [f"word{i}" for i in range(words - len(symbols) - 4)]  # fairseq has four of its own
    text = "".join(f"{symbol} 1\n" for symbol in symbols)
    (data / "symbols.txt").write_text(text, encoding="utf-8")
    (data / "config.yaml").write_text(
        "use_audio_input: true\nvocab_filename: symbols.txt\nprepend_tgt_lang_tag: true\n"
        f"bpe_tokenizer: {{bpe: sentencepiece, sentencepiece_model: {data / 'pieces.model'}}}\n",
        encoding="utf-8",
    )
    return spoken


class Batch(NamedTuple):
    """The first utterances of a split.

    Attributes:
        split: its name.
        utterances: how many.
        seconds: length of the shortest and of the longest that the split may have.
    """

    split: str
    utterances: int
    seconds: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.utterances} × {self.seconds[0]:g} to {self.seconds[1]:g} s"

    @property
    def rows(self) -> range:
        """Its rows in the split."""
        return range(self.utterances)


def batches(size: Size) -> list[Batch]:
    """The batch of a size, then one of half as many utterances, and one of utterances half as long."""
    low, high = size.seconds
    return [
        Batch(SPLIT, size.utterances, (low, high)),
        Batch(SPLIT, size.utterances // 2, (low, high)),
        Batch(SHORT_SPLIT, size.utterances, (low / 2, high / 2)),
    ]


def memory_batches(size: Size) -> list[Batch]:
    """The batch of a size, and those that more memory is measured with."""
    low, high = size.seconds
    longer = LONG_SPLIT, (low * LONGER, high * LONGER)
    found = [batches(size)[0]]
    for utterances, are_longer in size.memory:
        split, seconds = longer if are_longer else (SPLIT, size.seconds)
        found.append(Batch(split, utterances, seconds))
    return found


def xm_split(split: str) -> str:
    """Name of a split as fairseq's own task reads it: the same rows in a file of its own."""
    return f"{split}_xm"


def batch(task: FairseqTask, split: str, rows: Sequence[int]) -> dict[str, Any]:
    """Rows of a split as one batch of either side's task."""
    name = split if isinstance(task, SpeechToTextSamuTask) else xm_split(split)
    if name not in task.datasets:
        task.load_dataset(name)
    dataset = task.dataset(name)
    found: dict[str, Any] = dataset.collater([dataset[row] for row in rows])
    return found


def loss_without_dropout(trainer: Trainer, split: str, rows: Sequence[int]) -> float:
    """Summed loss of utterances one at a time: the padding of a batch changes fairseq's."""
    trainer.model.eval()
    total = 0.0
    for row in rows:
        sample, _ = trainer._prepare_sample(batch(trainer.task, split, [row]))
        total += float(trainer.task.valid_step(sample, trainer.model, trainer.criterion)[0])
    return total


def write_corpus(
    data: Path,
    split: str,
    rows: int,
    words: Sequence[str],
    length: int,
    seconds: tuple[float, float],
) -> None:
    """Write ``rows`` of noise with ``length`` random words, as a split of either task."""
    rng = np.random.default_rng(0)
    written = []
    for number in range(rows):
        samples = int(RATE * rng.uniform(*seconds))
        path = data / f"{split}-{number}.wav"
        soundfile.write(path, rng.normal(0, 0.1, samples), RATE)
        text = " ".join(rng.choice(words, length))
        written.append((str(number), str(path.absolute()), samples, text, "noise"))
    lines = ["\t".join(map(str, (*row, "en"))) + "\n" for row in written]
    header = "id\taudio\tn_frames\ttgt_text\tspeaker\ttgt_lang\n"
    (data / f"{xm_split(split)}.tsv").write_text(header + "".join(lines), encoding="utf-8")
    with ManifestWriter(data / f"{split}.tsv") as writer:
        for row in written:
            writer.write(ManifestRow(*row, row[3], "es", "en"))


def write_wav2vec2(path: Path, size: Size) -> None:
    """Write an untrained encoder of XLS-R's shape, as fairseq writes pre-trained ones."""
    config = Wav2Vec2Config(
        extractor_mode="layer_norm", conv_bias=True, layer_norm_first=True,
        conv_feature_layers=size.convolutions, encoder_layers=size.encoder_layers,
        encoder_embed_dim=size.encoder_dim, encoder_ffn_embed_dim=4 * size.encoder_dim,
        encoder_attention_heads=size.encoder_heads, quantize_targets=True, latent_vars=4, final_dim=8,
    )  # fmt: skip
    given = {**asdict(config), "_name": "wav2vec2", "latent_temp": list(config.latent_temp)}
    task = {"_name": "audio_pretraining", "data": "none", "normalize": True}
    torch.manual_seed(0)
    torch.save(
        {
            "args": None,
            "cfg": {"task": task, "model": given, "criterion": None, "lr_scheduler": None},
            "model": Wav2Vec2Model(config).state_dict(),
            "optimizer_history": [
                {"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}
            ],
            "extra_state": {"train_iterator": {}},
        },
        path,
    )


def stand_in_for_torchaudio() -> None:
    """Let fairseq read audio without torchaudio, which it imports and calls only to resample."""
    if importlib.util.find_spec("torchaudio") is None:
        for name in ("torchaudio", "torchaudio.sox_effects"):
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = module
        vars(sys.modules["torchaudio"])["sox_effects"] = sys.modules["torchaudio.sox_effects"]
