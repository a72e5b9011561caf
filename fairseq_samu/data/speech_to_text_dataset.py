"""Utterances with their target texts, as fairseq batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils
from numpy.typing import NDArray
from torch import Tensor

from fairseq_samu.data.audio import (
    SAMPLE_RATE,
    AudioError,
    change_speed,
    normalize_utterance,
    read_audio,
)
from fairseq_samu.data.encoder_states import EncoderStates
from fairseq_samu.data.manifest import Manifest, pair_name
from fairseq_samu.data.manifest_index import ManifestError
from fairseq_samu.data.overlong_rows import OverlongRow, overlong_report
from fairseq_samu.data.sampling import draw_rows
from fairseq_samu.data.segment_languages import (
    check_segments,
    group_segments,
    read_segments,
    stack_segments,
)
from fairseq_samu.data.teacher_embeddings import TeacherEmbeddings
from fairseq_samu.data.training_stages import StagedRows, StageSchedule
from fairseq_samu.data.waveform_dataset import WaveformDataset, collate_sources

#: Shuffled epochs blur lengths by up to this share before sorting: batches change, padding hardly.
LENGTH_NOISE = 0.03

#: A file's length may differ from the manifest's by this many samples (mp3 encoders pad) …
LENGTH_TOLERANCE = SAMPLE_RATE // 10

#: … and by this share of it.
LENGTH_TOLERANCE_SHARE = 0.01


class SpeechToTextSamuDataset(WaveformDataset):
    """Rows of a manifest as training, validation or test examples.

    Rows are numbered as in the manifest, always. Re-sampling language pairs repeats and omits
    numbers in ``ordered_indices``. Audio is read and text tokenised when a row is drawn.

    Args:
        manifest: the rows.
        audio_root: folder that relative audio paths start from.
        encode_target: (text, target language) → LongTensor (L,) = [tag] pieces </s>; None = there are no
            targets, whatever the manifest says: transcripts and the teacher's vectors are enough.
        pad: padding index of the dictionaries.
        eos: their end-of-sentence index.
        prefix_size: tokens in front of every target that are given, not predicted: 1 for a language
            tag.
        normalize: shift and scale utterances to zero mean and unit variance.
        encode_transcript: text → LongTensor (L',), for batches with transcripts.
        shuffle: new order every epoch; False = sorted by length, the same every time.
        seed: of order, re-sampling and speed.
        alpha: exponent of the re-sampling of language pairs, when shuffling; 1 = none.
        speed_factors: speeds drawn from, a new one for every row and epoch; empty = as recorded.
        min_samples: rows shorter than that at any speed are left out.
        max_samples: rows longer than that at any speed are left out.
        max_target_tokens: rows with more target tokens are left out.
        pair_codes: number of each of ``manifest.pairs`` in batches; None = its position there.
        rows: numbers of the rows to use, rising; None = all.
        language_groups: language of every group of experts; without any, batches do not say who speaks what.
        schedule: which rows an epoch draws, by their training stage; None = all rows in every epoch.

    Attributes:
        speeds: those that occur, shape (F,).
        overlong: those of them that are left out.
        kept: numbers of the others, rising.
        stages: draws the rows of a training in stages, else None.

    Raises:
        ManifestError: no row is left, of a training stage either, or a row has no text to train on.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        audio_root: str | None,
        encode_target: Callable[[str, str], Tensor] | None,
        pad: int,
        eos: int,
        prefix_size: int,
        normalize: bool,
        encode_transcript: Callable[[str], Tensor] | None = None,
        shuffle: bool,
        seed: int = 1,
        alpha: float = 1.0,
        speed_factors: tuple[float, ...] = (),
        min_samples: int,
        max_samples: int,
        max_target_tokens: int,
        teacher: TeacherEmbeddings | None = None,
        pair_codes: Sequence[int] | None = None,
        rows: NDArray[np.int64] | None = None,
        language_groups: Sequence[str] = (),
        schedule: StageSchedule | None = None,
    ) -> None:
        super().__init__()
        self.manifest = manifest
        self.audio_root = audio_root
        self.encode_target = encode_target
        self.encode_transcript = encode_transcript
        self.teacher = teacher
        self.language_groups = language_groups
        self.pad = pad
        self.eos = eos
        self.prefix_size = prefix_size
        self.normalize = normalize
        self.shuffle = shuffle
        self.seed = seed
        self.alpha = alpha
        self.speed_factors = speed_factors
        self.max_target_tokens = max_target_tokens
        self._states: EncoderStates | None = None
        self.pair_codes = list(range(len(manifest.pairs)) if pair_codes is None else pair_codes)
        rows = np.arange(len(manifest)) if rows is None else rows
        if language_groups:
            check_segments(manifest, language_groups, all_spoken=shuffle)
        if shuffle:
            self._check_targets(rows)
        self.overlong, self.kept = self._part_rows(rows, min_samples, max_samples)
        if len(self.kept) == 0:
            raise ManifestError(
                f"{manifest.path}: expected rows within the limits, found none: "
                f"{self.overlong_report()}"
            )
        self.speeds = np.array(speed_factors or (1.0,))
        self.stages = StagedRows(manifest, schedule, self.kept, alpha) if schedule else None
        self.epoch = 0
        self.set_epoch(1)

    # Rows of an epoch

    def set_epoch(self, epoch: int) -> None:
        """Draw the rows and the speeds of an epoch, which only the seed and its number decide."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        self._rows = self.kept
        if self.stages is not None:
            self._rows = self.stages.draw(epoch, self.seed)
        elif self.shuffle and self.alpha != 1.0:
            pair_ids = self.manifest.pair_ids[self.kept]
            self._rows = draw_rows(self.kept, pair_ids, self.alpha, len(self.kept), self._rng(""))
        if self.speed_factors:
            self._speed_draws = self._rng("speed").integers(
                len(self.speeds), size=len(self.manifest), dtype=np.int8
            )

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Whether every epoch has the same batches."""
        return not self.shuffle and not self.speed_factors

    def __len__(self) -> int:
        """Number of examples in this epoch."""
        return len(self._rows)

    def ordered_indices(self) -> NDArray[np.int64]:
        """Rows of this epoch by length: exactly and in order, or blurred when shuffling."""
        # A generator of our own: the global one, which fairseq seeds for this call, gets the same
        # seed in every epoch from fairseq 0.12.2.
        lengths = self.num_tokens_vec(self._rows).astype(np.float64)
        if self.shuffle:
            rng = self._rng("order")
            lengths *= rng.uniform(1 - LENGTH_NOISE, 1 + LENGTH_NOISE, len(lengths))
            # Blurred lengths are hardly ever alike, and then this order, found in a fifth of the time, is
            # the stable one.
            order = np.argsort(lengths)
            ordered = lengths[order]
            if (ordered[1:] > ordered[:-1]).all():
                return self._rows[order]
        return self._rows[np.argsort(lengths, kind="stable")]

    def num_tokens_vec(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Lengths of rows in 16 kHz samples, at this epoch's speeds."""
        n_frames: NDArray[np.int64] = self.manifest.n_frames[indices]
        if not self.speed_factors:
            return n_frames
        return _at_speed(n_frames, self.speeds[self._speed_draws[indices]])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Length of every row of the manifest in 16 kHz samples, at this epoch's speeds."""
        return self.num_tokens_vec(np.arange(len(self.manifest)))

    def size(self, index: int) -> tuple[int, int]:
        """Length of a row in 16 kHz samples and in target tokens."""
        return self.num_tokens(index), len(self._target(index))

    def padding_share(self, batches: Sequence[Sequence[int]]) -> float:
        """Share of padding in the samples of all batches: 1 − Σ samples / Σ (rows × longest).

        Args:
            batches: row numbers of each.
        """
        counts = np.fromiter(map(len, batches), dtype=np.int64)
        samples = self.num_tokens_vec(np.concatenate(batches))
        longest = np.maximum.reduceat(samples, np.cumsum(counts) - counts)
        return float(1 - samples.sum() / (counts * longest).sum())

    def drawn_report(self) -> str:
        """Rows of every language pair that there are and that this epoch draws, for the log."""
        pairs = len(self.manifest.pairs)
        there = np.bincount(self.manifest.pair_ids[self.kept], minlength=pairs)
        drawn = np.bincount(self.manifest.pair_ids[self._rows], minlength=pairs)
        return ", ".join(
            f"{pair_name(pair)} {before} → {after}"
            for pair, before, after in zip(self.manifest.pairs, there, drawn)
            if before > 0
        )

    # Rows left out

    def overlong_report(self) -> str:
        """How many rows and hours are left out, why, and the first ids of each reason."""
        return overlong_report(self.manifest, self.overlong)

    def _part_rows(
        self, rows: NDArray[np.int64], min_samples: int, max_samples: int
    ) -> tuple[list[OverlongRow], NDArray[np.int64]]:
        """Rows outside the limits, and the numbers of the others."""
        shortest = longest = n_frames = self.manifest.n_frames[rows]
        if self.speed_factors:
            longest = _at_speed(n_frames, np.float64(min(self.speed_factors)))
            shortest = _at_speed(n_frames, np.float64(max(self.speed_factors)))
        left_out = {}
        limit = self.max_target_tokens
        for i in np.flatnonzero(self._exceeds_target_limit(rows, limit)).tolist():
            left_out[i] = f"target longer than {limit} tokens: {len(self._target(int(rows[i])))}"
        for i in np.flatnonzero(shortest < min_samples).tolist():
            left_out[i] = f"shorter than {min_samples} samples: {shortest[i]}"
        for i in np.flatnonzero(longest > max_samples).tolist():
            left_out[i] = f"longer than {max_samples} samples: {longest[i]}"
        overlong = [
            OverlongRow(int(rows[i]), self.manifest.cell(int(rows[i]), "id"), left_out[i])
            for i in sorted(left_out)
        ]
        return overlong, np.delete(rows, sorted(left_out))

    def _has_long_target(self, indices: NDArray[np.int64], limit: int) -> NDArray[np.bool_]:
        if limit >= self.max_target_tokens:
            return np.zeros(len(indices), dtype=bool)
        return self._exceeds_target_limit(indices, limit)

    def _exceeds_target_limit(self, rows: NDArray[np.int64], limit: int) -> NDArray[np.bool_]:
        """Which rows have more target tokens than a limit; only doubtful ones are tokenised."""
        if self.encode_target is None:
            return np.zeros(len(rows), dtype=bool)
        # At most one piece a byte, SentencePiece's leading "▁", the language tag and </s>.
        exceeds = self.manifest.byte_lengths("tgt_text")[rows] + 2 + self.prefix_size > limit
        for i in np.flatnonzero(exceeds):
            exceeds[i] = len(self._target(int(rows[i]))) > limit
        return exceeds

    def _check_targets(self, rows: NDArray[np.int64]) -> None:
        columns = {"tgt_text": self.encode_target, "src_text": self.encode_transcript}
        for column in (name for name, encode in columns.items() if encode is not None):
            empty = self.manifest.byte_lengths(column)[rows] == 0
            if empty.any():
                location = self.manifest.location(int(rows[empty.argmax()]))
                raise ManifestError(
                    f"{location}: expected a {column} to train on, found an empty cell"
                )

    def check_examples(self, count: int) -> None:
        """Read some rows, evenly spread: what is wrong with all audio is found before training.

        Raises:
            ManifestError: audio that cannot be read or is not as long as ``n_frames`` says.
        """
        for position in np.linspace(0, len(self.kept) - 1, min(count, len(self.kept))):
            self.read_wave(int(self.kept[int(position)]))

    # Examples

    def read_states(self, states: EncoderStates, numbers: NDArray[np.int64]) -> None:
        """Give the stored frames of a speech encoder as ``source`` from now on, not waveforms.

        Lengths, and with them batches, are those of the waveforms as before.

        Args:
            states: the stored frames.
            numbers: of every row's utterance among them at each of ``speeds``, shape (speeds, rows of the
                manifest).
        """
        self._states, self._state_numbers = states, numbers

    @property
    def reads_states(self) -> bool:
        """Whether ``read_states`` was called."""
        return self._states is not None

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read an example.

        Returns:
            ``index``, ``source`` FloatTensor (S,), or HalfTensor (T, D) after ``read_states``, ``target``
            LongTensor (L,), empty if there are no targets, ``transcript`` LongTensor (L',) or None, ``pair``
            (number of the language pair), ``tgt_text``, ``src_text`` or None and, with language groups,
            ``segments`` LongTensor (N, 3) and ``samples``, both as in batches.

        Raises:
            ManifestError: audio that cannot be used or is not as long as ``n_frames`` says, or a
                target that turns out too long.
        """
        index = int(index)
        source = self._read_source(index)
        target = self._target(index)
        if len(target) > self.max_target_tokens:
            raise ManifestError(
                f"{self.manifest.location(index)}: expected at most {self.max_target_tokens} "
                f"target tokens, found {len(target)}"
            )
        src_text = transcript = None
        if self.encode_transcript is not None:
            src_text = self.manifest.cell(index, "src_text")
            transcript = self.encode_transcript(src_text)
        return {
            "index": index,
            "source": source,
            "target": target,
            "transcript": transcript,
            "src_text": src_text,
            "pair": self.pair_codes[self.manifest.pair_ids[index]],
            "tgt_text": self.manifest.cell(index, "tgt_text"),
            "teacher": None if self.teacher is None else self.teacher[index],
            "segments": self._segments(index) if self.language_groups else None,
            "samples": self.num_tokens(index),
        }

    def collater(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch, in the order given.

        Args:
            items: from ``__getitem__``.

        Returns:
            {} for no items, else (without targets, ``target`` and ``prefix_tokens`` are None, there are no
            ``prev_output_tokens``, and ``ntokens`` counts samples)
            ``id`` LongTensor (B,): rows; ``nsentences``: B; ``ntokens``: target tokens that are trained;
            ``net_input``: ``src_tokens`` FloatTensor (B, S), or HalfTensor (B, T, D) after ``read_states``,
            padded with zeros, ``src_lengths`` LongTensor (B,), ``prev_output_tokens`` LongTensor (B, L):
            targets with </s> in front;
            ``target`` LongTensor (B, L); ``prefix_tokens`` LongTensor (B, prefix_size) or None;
            ``pair`` LongTensor (B,); ``tgt_text``: B strings; ``manifest``: its path;
            with transcripts ``transcript`` LongTensor (B, L'), ``transcript_lengths`` LongTensor (B,) and
            ``src_text``, B strings; with a teacher ``teacher`` FloatTensor (B, E); with language groups
            ``group_segments`` LongTensor (B, N, 3): (group or −1, first sample, sample behind the last),
            padded with (−1, 0, 0), and ``source_samples`` LongTensor (B,).
        """
        if not items:
            return {}
        batch = collate_sources(
            [item["index"] for item in items], [item["source"] for item in items]
        )
        batch.update(target=None, prefix_tokens=None)
        if self.encode_target is not None:
            targets = [item["target"] for item in items]
            target = data_utils.collate_tokens(targets, self.pad)
            batch["net_input"]["prev_output_tokens"] = data_utils.collate_tokens(
                targets, self.pad, self.eos, move_eos_to_beginning=True
            )
            batch.update(
                ntokens=sum(map(len, targets)) - self.prefix_size * len(items),
                target=target,
                prefix_tokens=target[:, : self.prefix_size] if self.prefix_size else None,
            )
        batch.update(
            pair=torch.tensor([item["pair"] for item in items]),
            tgt_text=[item["tgt_text"] for item in items],
            manifest=self.manifest.path,
        )
        if self.encode_transcript is not None:
            transcripts = [item["transcript"] for item in items]
            batch["transcript"] = data_utils.collate_tokens(transcripts, self.pad)
            batch["src_text"] = [item["src_text"] for item in items]
            batch["transcript_lengths"] = torch.tensor([len(tokens) for tokens in transcripts])
        if self.teacher is not None:
            batch["teacher"] = torch.stack([item["teacher"] for item in items])
        if self.language_groups:
            batch["group_segments"] = stack_segments([item["segments"] for item in items])
            batch["source_samples"] = torch.tensor([item["samples"] for item in items])
        return batch

    def _segments(self, row: int) -> Tensor:
        n_frames, samples = int(self.manifest.n_frames[row]), self.num_tokens(row)
        segments = read_segments(self.manifest, row)
        return group_segments(segments, self.language_groups, n_frames, samples)

    def _read_source(self, row: int) -> Tensor:
        if self._states is None:
            return torch.from_numpy(self.read_wave(row))
        speed = int(self._speed_draws[row]) if self.speed_factors else 0
        # A copy: what is mapped cannot be written to, which torch wants of its tensors.
        return torch.from_numpy(np.array(self._states[int(self._state_numbers[speed, row])]))

    def read_wave(self, row: int, speed: float | None = None) -> NDArray[np.float32]:
        """Waveform (S,) of a row, normalised if wanted, at a speed (default: this epoch's).

        Raises:
            ManifestError: audio that cannot be used or is not as long as ``n_frames`` says.
        """
        try:
            wave = read_audio(self.manifest.cell(row, "audio"), self.audio_root)
        except AudioError as error:
            raise ManifestError(f"{self.manifest.location(row)}: {error}") from error
        expected = int(self.manifest.n_frames[row])
        tolerance = max(LENGTH_TOLERANCE, LENGTH_TOLERANCE_SHARE * expected)
        if abs(len(wave) - expected) > tolerance:
            raise ManifestError(
                f"{self.manifest.location(row)}: expected n_frames = {expected} samples at 16 kHz, "
                f"found {len(wave)} in {self.manifest.cell(row, 'audio')}"
            )
        if speed is None:
            speed = float(self.speeds[self._speed_draws[row]]) if self.speed_factors else 1.0
        if speed != 1.0:
            wave = change_speed(wave, speed)
        return normalize_utterance(wave) if self.normalize else wave

    def _target(self, row: int) -> Tensor:
        if self.encode_target is None:
            return torch.zeros(0, dtype=torch.long)
        text = self.manifest.cell(row, "tgt_text")
        return self.encode_target(text, self.manifest.cell(row, "tgt_lang"))

    def _rng(self, purpose: str) -> np.random.Generator:
        """Generator of its own for each purpose, the same again for the same seed and epoch."""
        return np.random.default_rng((self.seed, self.epoch, *purpose.encode()))


def _at_speed(
    n_frames: NDArray[np.int64], speeds: NDArray[np.float64] | np.float64
) -> NDArray[np.int64]:
    """Lengths in samples when played at some speeds, halves going up."""
    return np.floor(n_frames / speeds + 0.5).astype(np.int64)
