"""An update of ``samu_xlsr``, and of transformers' ``Wav2Vec2Model`` with the same head in plain PyTorch.

Both have the same weights and meet the same batches, with a frozen extractor and dropout, and minimise
100 (1 - cos) to vectors of a teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fairseq import tasks
from fairseq.trainer import Trainer
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.comparison import Comparison, in_turn, seconds
from benchmarks.flops import peak_flops, update_flops
from benchmarks.memory import peak_mib
from benchmarks.peers import Batch
from benchmarks.sizes import Size
from benchmarks.training import configuration, start, update
from data_prep.embed_text import Teacher, embed_manifest
from fairseq_samu import compat
from fairseq_samu.export import export
from fairseq_samu.modules.sentence_head import SentenceHead

WORK = "SAMU update"
PEER = "transformers Wav2Vec2Model in plain PyTorch"
TEACHER_DIM = 768
LEARNING_RATE, BETAS, CLIP_NORM, DISTANCE_WEIGHT = 1e-4, (0.9, 0.98), 10.0, 100.0


class Way(NamedTuple):
    """How both sides compute.

    Attributes:
        name: for the table.
        precision: of this project's weights and activations in fairseq's trainer.
        options: its further options.
        autocast: whether the peer computes under ``torch.autocast`` in bfloat16.
    """

    name: str
    precision: str
    options: tuple[str, ...]
    autocast: bool


WAYS = {
    "cpu": [
        Way("fp32", "fp32", (), False),
        *([Way("bf16 autocast", "fp32", ("--cpu-bf16",), True)] if compat.CPU_BF16_TRAINS else []),
    ],
    "cuda": [Way("bf16", "bf16", (), True)],
}


class PooledWav2Vec2(nn.Module):
    """What is written to train SAMU-XLS-R with transformers.

    Args:
        folder: of the encoder.
        dropout: probability, of hidden states and attention.
    """

    def __init__(self, folder: Path, dropout: float) -> None:
        from transformers import Wav2Vec2Model

        super().__init__()
        self.encoder = Wav2Vec2Model.from_pretrained(
            folder, hidden_dropout=dropout, attention_dropout=dropout, activation_dropout=0.0,
            feat_proj_dropout=0.0, layerdrop=0.0, apply_spec_augment=False,
        )  # fmt: skip
        self.encoder.freeze_feature_encoder()
        self.score = nn.Linear(self.encoder.config.hidden_size, 1)
        self.projection = nn.Linear(self.encoder.config.hidden_size, TEACHER_DIM)

    def forward(self, waves: Tensor, padding_mask: Tensor) -> Tensor:
        """Embed waveforms (B, S), True where padded: vectors of length one (B, E)."""
        frames = self.encoder(waves, attention_mask=(~padding_mask).long()).last_hidden_state
        valid = self.encoder._get_feature_vector_attention_mask(frames.size(1), ~padding_mask)
        scores = self.score(frames).squeeze(-1).masked_fill(~valid.bool(), float("-inf"))
        pooled = (scores.softmax(dim=1).unsqueeze(-1) * frames).sum(dim=1)
        return nn.functional.normalize(self.projection(pooled).tanh().float(), dim=-1)


class PlainTraining:
    """The peer's training loop.

    Args:
        model: what trains.
        device: where.
        autocast: compute in bfloat16.
    """

    def __init__(self, model: PooledWav2Vec2, device: str, autocast: bool) -> None:
        self.model = model.to(device).train()
        self.device, self.autocast = device, autocast
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE, betas=BETAS)

    def loss(self, sample: dict[str, Any]) -> Tensor:
        """Mean loss of a batch of this project's dataset."""
        waves = sample["net_input"]["src_tokens"].to(self.device)
        lengths = sample["net_input"]["src_lengths"].to(self.device)
        padding_mask = torch.arange(waves.size(1), device=self.device) >= lengths[:, None]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            embedding = self.model(waves, padding_mask)
        cosine = (embedding * sample["teacher"].to(self.device).float()).sum(dim=-1)
        return DISTANCE_WEIGHT * (1 - cosine).mean()

    def update(self, sample: dict[str, Any]) -> float:
        """Make an update; its loss."""
        self.optimizer.zero_grad()
        loss = self.loss(sample)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        return float(loss)


def measure(out: Path, size: Size, device: str, repeats: int) -> list[Comparison]:
    """Compare updates.

    Args:
        out: folder for data and models.
        size: of encoder and batches.
        device: ``cpu`` or ``cuda``.
        repeats: timed updates.
    """
    prepare(out, size)
    rows = []
    for way in WAYS[device]:
        rows += compare_times(out, size, device, way, repeats)
    batch = peers.batches(size)[0]
    for way in WAYS[device]:
        runs = {side: partial(peak_mib, device, build_step, side, out, size, device, way, batch)
                for side in ("ours", "theirs")}  # fmt: skip
        memory = in_turn(runs, 1, warm_up=0)
        figure = f"memory: {way.name}, {batch}"
        rows.append(
            Comparison(WORK, figure, "MiB", memory["ours"], memory["theirs"], PEER, None, "")
        )
    return rows


def prepare(out: Path, size: Size) -> None:
    """Write a corpus with a teacher's vectors, and the encoder as fairseq and transformers read it."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(1000)]
    data = out / "data"
    data.mkdir(exist_ok=True)

    def encode(texts: list[str]) -> np.ndarray:
        return rng.normal(size=(len(texts), TEACHER_DIM)).astype(np.float32)

    for batch in peers.batches(size)[::2]:
        rows = 2 * batch.utterances
        peers.write_corpus(data, batch.split, rows, words, peers.WORDS_A_TARGET, batch.seconds)
        teacher = Teacher("random vectors", "0" * 64, TEACHER_DIM, encode)
        embed_manifest(data / f"{batch.split}.tsv", teacher, "labse", "src_text")
    peers.write_wav2vec2(out / "w2v.pt", size)
    export(str(out / "w2v.pt"), out / "transformers")


def ours(out: Path, device: str, way: Way, dropout: float = 0.1) -> Trainer:
    """This project's trainer, its data loaded."""
    trainer = start(_line(out, way, dropout), device, way.precision)
    trainer.get_train_iterator(1)
    return trainer


def _line(out: Path, way: Way, dropout: float = 0.1) -> list[str]:
    return [
        str(out / "data"), "--task", "speech_to_text_samu", "--teacher", "labse", "--arch", "samu_xlsr",
        "--speech-encoder-path", str(out / "w2v.pt"), "--encoder-dropout", str(dropout),
        "--encoder-attention-dropout", str(dropout), "--encoder-feature-grad-mult", "0",
        "--criterion", "mse_to_labse", "--distance-weight", str(DISTANCE_WEIGHT), "--optimizer", "adam",
        "--adam-betas", str(BETAS), "--lr", str(LEARNING_RATE), "--lr-scheduler", "fixed",
        "--clip-norm", str(CLIP_NORM), "--batch-size", "1", "--num-workers", "0", "--seed", "1",
        "--no-progress-bar", *way.options,
    ]  # fmt: skip


def theirs(
    out: Path, device: str, way: Way, head: nn.Module, dropout: float = 0.1
) -> PlainTraining:
    """The peer's training, with the weights of a sentence head of this project."""
    model = PooledWav2Vec2(out / "transformers", dropout)
    with torch.no_grad():
        for layer, same in ((model.score, head.pooling.score), (model.projection, head.projection)):
            for name, weight in layer.named_parameters():
                weight.copy_(getattr(same, name))
    return PlainTraining(model, device, way.autocast)


def build_step(
    side: str, out: Path, size: Size, device: str, way: Way, batch: Batch
) -> Callable[[], float]:
    """One side's update."""
    if side == "ours":
        trainer = ours(out, device, way)
        return partial(update, trainer, peers.batch(trainer.task, batch.split, batch.rows))
    # The data come from this project's task on both sides.
    task = tasks.setup_task(configuration(_line(out, way), device).task)
    head = SentenceHead(size.encoder_dim, TEACHER_DIM)
    peer = theirs(out, device, way, head)
    return partial(peer.update, peers.batch(task, batch.split, batch.rows))


def compare_times(out: Path, size: Size, device: str, way: Way, repeats: int) -> list[Comparison]:
    """Time updates of both sides, in turn."""
    trainer = ours(out, device, way)
    peer = theirs(out, device, way, trainer.model.head)
    rows = []
    same = ""
    for batch in peers.batches(size):
        sample = peers.batch(trainer.task, batch.split, batch.rows)
        if not rows:
            same = f"loss without dropout differs by {loss_difference(trainer, peer, sample):.0e} of it"
        runs = {
            "ours": seconds(partial(update, trainer, sample), device),
            "theirs": seconds(partial(peer.update, sample), device),
        }
        times = in_turn(runs, repeats if not rows else max(2, repeats // 2))
        figure = f"{way.name}, {batch}"
        rows.append(Comparison(WORK, figure, "s", times["ours"], times["theirs"], PEER, None, same))
        rows += _utilisation(size, device, figure, sample, times["ours"])
    return rows


def loss_difference(trainer: Trainer, peer: PlainTraining, sample: dict[str, Any]) -> float:
    """Difference of the losses of a batch without dropout, as a share of the peer's."""
    trainer.model.eval()
    prepared, _ = trainer._prepare_sample(sample)
    loss, sentences, _ = trainer.task.valid_step(prepared, trainer.model, trainer.criterion)
    peer.model.eval()
    with torch.no_grad():
        expected = float(peer.loss(sample))
    peer.model.train()
    return abs(float(loss) / sentences / expected - 1)


def _utilisation(
    size: Size, device: str, figure: str, sample: dict[str, Any], times: list[float]
) -> list[Comparison]:
    """Model FLOP utilisation, where the device's peak is known: the ratio, to a target of a half."""
    peak = peak_flops(torch.cuda.get_device_name()) if device == "cuda" else None
    if peak is None:
        return []
    work = update_flops(size, sample["net_input"]["src_lengths"].tolist())
    return [
        Comparison(
            WORK, f"model FLOP utilisation, {figure}", "TFLOP/s", [work / t / 1e12 for t in times],
            [peak / 1e12] * len(times), "the device's bf16 peak", 0.5, "", more_is_better=True,
        )
    ]  # fmt: skip
