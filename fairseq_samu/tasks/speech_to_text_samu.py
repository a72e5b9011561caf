"""Speech → text with language tags: the one task of every stage."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.tasks import FairseqTask, register_task

from fairseq_samu import compat
from fairseq_samu.data.audio import SAMPLE_RATE
from fairseq_samu.data.audio_paths_dataset import AudioPathsDataset, measure_paths
from fairseq_samu.data.audio_presence import check_audio_present
from fairseq_samu.data.language_tags import LanguageTags
from fairseq_samu.data.manifest import Manifest, pair_name
from fairseq_samu.data.source_languages import rows_of_source_langs
from fairseq_samu.data.speech_to_text_dataset import SpeechToTextSamuDataset
from fairseq_samu.data.teacher_embeddings import TeacherEmbeddings
from fairseq_samu.data.text_codec import TextCodec
from fairseq_samu.data.training_stages import parse_stages
from fairseq_samu.generator import choose_generator
from fairseq_samu.optim.skipped_parameters import drop_gradients
from fairseq_samu.pair_metrics import log_pair_distances, log_pair_losses
from fairseq_samu.retrieval import EmbeddingCollector, log_retrieval
from fairseq_samu.tasks.ctc_recognition import recognise
from fairseq_samu.tasks.encoder_state_cache import EncoderStateCache
from fairseq_samu.tasks.prompt_languages import with_languages
from fairseq_samu.tasks.speech_to_text_config import (
    SpeechToTextSamuConfig,
    check_options,
    languages,
    sampling_alpha,
    speed_factors,
)
from fairseq_samu.tasks.validation_scores import ValidationScores
from fairseq_samu.tasks.vocabularies import check_target_langs, load_vocabularies

logger = logging.getLogger(__name__)

#: Rows of every split whose audio is read when the split is opened.
CHECKED_EXAMPLES = 20


@register_task("speech_to_text_samu", dataclass=SpeechToTextSamuConfig)
class SpeechToTextSamuTask(FairseqTask):  # type: ignore[misc]
    """Reads manifests, encodes text, translates and scores.

    Attributes:
        pairs: (source language, target language) of every pair seen in the splits loaded so far; the
            ``pair`` of a batch counts in this list.
        tags: the language tags of the target dictionary.
        transcript_dictionary: dictionary of the transcripts, None unless the options name one.
        language_groups: language of every group of experts; empty without ``--language-groups``.
    """

    def __init__(
        self,
        cfg: SpeechToTextSamuConfig,
        codec: Optional[TextCodec],
        tags: LanguageTags,
        transcript_codec: Optional[TextCodec],
    ) -> None:
        super().__init__(cfg)
        self.codec = codec
        self.tags = tags
        self.transcript_codec = transcript_codec
        self.transcript_dictionary = transcript_codec.dictionary if transcript_codec else None
        self.pairs: List[Tuple[str, str]] = []
        self._reads_targets = codec is not None  # until a model without a decoder is built
        self.alpha = sampling_alpha(cfg)
        self.speed_factors = speed_factors(cfg.speed_perturbation)
        self.source_langs = languages("--source-langs", cfg.source_langs)
        self.schedule = parse_stages(cfg.stages, cfg.stage_transition_epochs)
        self.language_groups = languages("--language-groups", cfg.language_groups)
        self._validation_generator: Any = None
        self._scores = ValidationScores(cfg)
        self._epoch_itrs: Dict[Any, Any] = {}
        self._collectors: Dict[str, EmbeddingCollector] = {}
        self._first_teacher: Optional[TeacherEmbeddings] = None
        self._state_cache: Optional[EncoderStateCache] = None
        if cfg.cache_encoder_states is not None:
            folder = cfg.cache_encoder_states
            self._state_cache = EncoderStateCache(folder, self.input_normalization, cfg.cpu_bf16)

    @classmethod
    def setup_task(cls, cfg: SpeechToTextSamuConfig, **kwargs: Any) -> "SpeechToTextSamuTask":
        """Load the vocabularies.

        Raises:
            FileNotFoundError: the data folder or a vocabulary file is missing.
            ValueError: vocabulary files that do not belong together, or unusable options.
        """
        check_options(cfg)
        data = Path(cfg.data)
        if not data.is_dir():
            raise FileNotFoundError(f"{data}: expected the folder of the manifests, found none")
        codec, tags, transcript_codec = load_vocabularies(cfg)
        if codec is None and (cfg.eval_bleu or cfg.eval_wer):
            option = "--eval-bleu" if cfg.eval_bleu else "--eval-wer"
            raise ValueError(f"{option}: {_no_target_vocabulary(cfg)}")
        return cls(cfg, codec, tags, transcript_codec)

    @property
    def target_dictionary(self) -> Optional[Dictionary]:
        """Dictionary of the target text; None where there are transcripts only."""
        return None if self.codec is None else self.codec.dictionary

    @property
    def source_dictionary(self) -> None:
        """None: the source is a waveform."""
        return None

    @property
    def teacher_dim(self) -> Optional[int]:
        """Width of the sentence embeddings of ``--teacher``; None without one."""
        if self.cfg.teacher is not None and self._first_teacher is None:
            self._open_teacher(Manifest(Path(self.cfg.data) / f"{self.cfg.train_subset}.tsv"))
        return None if self._first_teacher is None else self._first_teacher.dim

    def _open_teacher(self, manifest: Manifest) -> Optional[TeacherEmbeddings]:
        """Embeddings of a split by ``--teacher``, which has to be the same model for all."""
        if self.cfg.teacher is None:
            return None
        teacher = TeacherEmbeddings(manifest, self.cfg.teacher)
        if self._first_teacher is None:
            self._first_teacher = teacher
        teacher.check_same_teacher(self._first_teacher)
        return teacher

    @property
    def tag_settings(self) -> Dict[str, str]:
        """Options that decide on language tags; models keep them with their weights."""
        return {
            "--lang-tag-template": self.cfg.lang_tag_template,
            "--lang-tag-map": self.cfg.lang_tag_map,
        }

    @property
    def input_normalization(self) -> str:
        """How waveforms are normalised, ``utterance`` or ``none``; models check it."""
        return str(self.cfg.normalize)

    def max_positions(self) -> Tuple[int, int]:
        """Longest source in samples and longest target in tokens."""
        return self.cfg.max_source_positions, self.cfg.max_target_positions

    # Data

    def load_dataset(
        self,
        split: str,
        epoch: int = 1,
        combine: bool = False,
        task_cfg: Any = None,
        **kwargs: Any,
    ) -> None:
        """Open ``SPLIT.tsv``; report the rows that cannot be used.

        Args:
            split: name of the manifest without ``.tsv``.
            epoch: not used: the dataset is told when an epoch begins.
            combine: not used: a split is one manifest, of any number of language pairs.
            task_cfg: given by fairseq-generate and fairseq-validate only, which want every split as it
                is: no shuffling, re-sampling or speed perturbation, and all source languages.
            **kwargs: what fairseq gives to other tasks.

        Raises:
            FileNotFoundError: there is no such manifest.
            ManifestError: the manifest breaks its format, audio is missing, or there are no rows of a
                language of ``--source-langs``.
            ValueError: a target language without a tag in the dictionary, or embeddings by another
                teacher than another split's.
        """
        path = Path(self.cfg.data) / f"{split}.tsv"
        if not path.is_file():
            there = ", ".join(sorted(other.name for other in path.parent.glob("*.tsv"))) or "none"
            raise FileNotFoundError(
                f"{path}: expected a manifest, found no file; manifests there: {there}"
            )
        manifest = Manifest(path)
        audio_root = self.cfg.audio_root or self.cfg.data
        check_audio_present(manifest, audio_root)
        if self._reads_targets:
            check_target_langs(manifest, self.tags)
        self.pairs += [pair for pair in manifest.pairs if pair not in self.pairs]

        training = split == self.cfg.train_subset and task_cfg is None
        if training and self.cfg.cpu_bf16 and not compat.CPU_BF16_TRAINS:
            raise ValueError(f"--cpu-bf16: expected torch 2 or newer, found {torch.__version__}")
        rows = None
        if self.source_langs and task_cfg is None:
            rows = rows_of_source_langs(manifest, self.source_langs, need_all=training)
            others = len(manifest) - len(rows)
            logger.info("%s: rows of other source languages left out: %d", path, others)
        transcripts = self.transcript_codec
        dictionary = self.target_dictionary or Dictionary()  # the special symbols of all are alike
        dataset = SpeechToTextSamuDataset(
            manifest,
            audio_root=audio_root,
            encode_target=self.codec.encode_tokens if self.codec and self._reads_targets else None,
            pad=dictionary.pad(),
            eos=dictionary.eos(),
            prefix_size=self.tags.prefix_size,
            normalize=self.cfg.normalize == "utterance",
            encode_transcript=transcripts.encode_symbols if transcripts else None,
            shuffle=training,
            seed=self.cfg.seed,
            alpha=self.alpha if training else 1.0,
            speed_factors=self.speed_factors if training else (),
            min_samples=self.cfg.min_source_positions,
            max_samples=self.cfg.max_source_positions,
            max_target_tokens=self.cfg.max_target_positions,
            teacher=self._open_teacher(manifest),
            pair_codes=[self.pairs.index(pair) for pair in manifest.pairs],
            rows=rows,
            language_groups=self.language_groups,
            schedule=self.schedule if training else None,
        )
        hours = manifest.n_frames.sum() / SAMPLE_RATE / 3600
        pairs = ", ".join(_names(manifest.pairs))
        logger.info("%s: %d rows, %.2f hours, %s", path, len(manifest), hours, pairs)
        if dataset.overlong:
            logger.warning("%s: %s", path, dataset.overlong_report())
        if dataset.stages is not None:
            logger.info("%s: --stages: %s", path, self.schedule)
        elif training and self.alpha != 1.0:
            drawn = dataset.drawn_report()
            logger.info("%s: re-sampled with alpha %g: %s", path, self.alpha, drawn)
        dataset.check_examples(CHECKED_EXAMPLES)
        self._scores.check_languages(self.pairs)
        self.datasets[split] = dataset

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Batches of a split, as fairseq makes them, with the share of padding in the log."""
        if self._state_cache is not None:  # now that the model is on its device
            self._state_cache.serve(self.datasets.values(), kwargs.get("num_workers", 0))
        epoch_itr = super().get_batch_iterator(dataset, *args, **kwargs)
        previous = self._epoch_itrs.get(dataset)
        if previous is not None and previous is not epoch_itr:
            compat.stop_workers(previous)
        self._epoch_itrs[dataset] = epoch_itr
        batches = epoch_itr.frozen_batches
        if isinstance(dataset, SpeechToTextSamuDataset) and len(batches) > 0:
            share, path = 100 * dataset.padding_share(batches), dataset.manifest.path
            logger.info("%s: %d batches, %.1f %% padding", path, len(batches), share)
        return epoch_itr

    def get_interactive_tokens_and_lengths(
        self, lines: Sequence[str], encode_fn: Any
    ) -> Tuple[List[str], List[int]]:
        """Paths from standard input and their lengths in 16 kHz samples."""
        paths = [line.strip() for line in lines]
        limits = self.cfg.min_source_positions, self.cfg.max_source_positions
        return paths, measure_paths(paths, self.cfg.audio_root, *limits)

    def build_dataset_for_inference(
        self, src_tokens: List[str], src_lengths: List[int], **kwargs: Any
    ) -> AudioPathsDataset:
        """Dataset over audio paths, for fairseq-interactive."""
        return AudioPathsDataset(
            src_tokens,
            src_lengths,
            normalize=self.cfg.normalize == "utterance",
            audio_root=self.cfg.audio_root,
        )

    # Training

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """Log the training stage of an epoch, and tell it a model whose losses depend on it."""
        super().begin_epoch(epoch, model)
        if self.schedule is None:
            return
        stages = self.datasets[self.cfg.train_subset].stages
        logger.info("epoch %d: %s", epoch, stages.report(epoch, self.cfg.seed))
        if hasattr(model, "begin_stage"):
            where = self.schedule.at(epoch)
            model.begin_stage(where.stage)
            model.stage_progress = 1 - where.share

    def train_step(
        self,
        sample: Dict[str, Any],
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> Tuple[Any, int, Dict[str, Any]]:
        """fairseq's step, with ``--cpu-bf16`` under autocast.

        ``ignored`` tells criterions of batches that only stand in for one that a worker lacks.
        """
        sample = with_languages({**sample, "ignored": ignore_grad}, [model], self)
        with self._autocast(sample):
            step: Tuple[Any, int, Dict[str, Any]] = super().train_step(
                sample, model, criterion, optimizer, update_num, ignore_grad
            )
        return step

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """Update the weights, but for those that do not train yet."""
        drop_gradients(optimizer, getattr(model, "waiting_parameters", list)())
        super().optimizer_step(optimizer, model, update_num)

    def _autocast(self, sample: Dict[str, Any]) -> torch.autocast:
        """Context in which models meet a batch."""
        on_cpu = sample["net_input"]["src_tokens"].device.type == "cpu"
        return torch.autocast("cpu", torch.bfloat16, enabled=self.cfg.cpu_bf16 and on_cpu)

    # Translation

    def build_tokenizer(self, args: Any) -> None:
        """None: the text codec does the whole way from pieces to plain text."""
        return None

    def build_bpe(self, args: Any) -> Optional[TextCodec]:
        """The task's own codec; ``--bpe`` has nothing to add to it."""
        return self.codec

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model, and the generator that translates at validation."""
        model = super().build_model(cfg, from_checkpoint)
        self._reads_targets &= hasattr(model, "decoder")
        if self._state_cache is not None:
            self._state_cache.add_model(model)
        if self._scores.wanted:
            options = Namespace(beam=self.cfg.eval_beam, max_len_b=self.cfg.eval_max_len)
            self._validation_generator = self.build_generator([model], options)
        return model

    def build_generator(
        self,
        models: Sequence[Any],
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: Optional[Dict[str, Any]] = None,
        **kwargs: Any,
    ) -> Any:
        """fairseq's generator; tags are not scored, and stay in its output for the codec to read."""
        if self.codec is None:
            raise ValueError(f"translating: {_no_target_vocabulary(self.cfg)}")
        for model in models:
            if not hasattr(model, "decoder"):
                raise ValueError(f"translating: expected a decoder, found a {type(model).__name__}")
        if self._state_cache is not None:
            self._state_cache.check_generation(args)
        seq_gen_cls = seq_gen_cls or choose_generator(args, self.tags.prefix_size)
        return super().build_generator(models, args, seq_gen_cls, extra_gen_cls_kwargs, **kwargs)

    def inference_step(
        self,
        generator: Any,
        models: Sequence[Any],
        sample: Dict[str, Any],
        prefix_tokens: Optional[torch.Tensor] = None,
        constraints: Any = None,
    ) -> Any:
        """Translate a batch into the language of each row (of ``--target-lang`` without rows)."""
        sample = with_languages(sample, models, self)
        if prefix_tokens is None and self.tags.prefix_size:
            prefix_tokens = sample.get("prefix_tokens")
            if prefix_tokens is None:
                source = sample["net_input"]["src_tokens"]
                tag = self.tags.index(self._interactive_target_lang())
                prefix_tokens = torch.full(
                    (source.size(0), 1), tag, dtype=torch.long, device=source.device
                )
        return super().inference_step(
            generator, models, sample, prefix_tokens=prefix_tokens, constraints=constraints
        )

    def _interactive_target_lang(self) -> str:
        """Language of ``--target-lang``, or the only one in the dictionary."""
        if self.cfg.target_lang is not None:
            return str(self.cfg.target_lang)
        valid = self.tags.valid()
        if len(valid) == 1:
            return valid[0]
        raise ValueError(f"--target-lang: expected one of {', '.join(valid)}, found none")

    # Validation

    def valid_step(
        self, sample: Dict[str, Any], model: Any, criterion: Any
    ) -> Tuple[Any, int, Dict[str, Any]]:
        """Loss of a validation batch and, where scores are wanted, statistics of its translation."""
        sample = with_languages(sample, [model], self)
        with self._autocast(sample):
            loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        if "embedding" in logging_output:
            collector = self._collectors.setdefault(sample["manifest"], EmbeddingCollector())
            collector.add(sample["id"], logging_output.pop("embedding"))
            self._log_retrieval(sample["manifest"])
        if self._scores.wanted:
            logging_output.update(self._score(sample, model))
        return loss, sample_size, logging_output

    def _score(self, sample: Dict[str, Any], model: Any) -> Dict[str, torch.Tensor]:
        """Statistics of a batch's translation, summed by language pair."""
        assert self.codec is not None and self.target_dictionary is not None  # see setup_task
        hypotheses = self.inference_step(self._validation_generator, [model], sample)
        texts = [
            self.codec.decode(self.target_dictionary.string(hypos[0]["tokens"].int().cpu()))
            for hypos in hypotheses
        ]
        pair, references = sample["pair"], sample["tgt_text"]
        rows = pair.tolist()
        statistics = self._scores.statistics(self.pairs, rows, texts, references)
        if self._scores.wants_transcripts and self.transcript_codec and model.encoder.ctc_head:
            heard = recognise(model, sample, self.transcript_codec)
            errors = self._scores.errors(len(self.pairs), rows, heard, sample["src_text"])
            statistics["pair_ctc_errors"] = errors
        if texts:
            logger.debug("example hypothesis: %s | reference: %s", texts[0], references[0])
        return {name: sums.to(pair.device) for name, sums in statistics.items()}

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """Forget the utterance vectors of the last validation; weights stay until the end of this one."""
        self._collectors.clear()
        if self._scores.wanted and hasattr(model.decoder, "keep_weights"):
            model.decoder.keep_weights()

    def _log_retrieval(self, path: str) -> None:
        """Log retrieval over a whole split, to be worked out when all its vectors are there."""
        dataset = next(d for d in self.datasets.values() if d.manifest.path == path)
        collector, manifest = self._collectors[path], dataset.manifest
        pairs = np.unique(manifest.pair_ids[dataset.kept]).tolist()
        names = {pair: pair_name(manifest.pairs[pair]) for pair in pairs}
        log_retrieval(collector, dataset.teacher.vectors, manifest.pair_ids, names)

    def reduce_metrics(self, logging_outputs: List[Dict[str, Any]], criterion: Any) -> None:
        """Log the criterion's values, then those of every language pair."""
        super().reduce_metrics(logging_outputs, criterion)
        log_pair_losses(logging_outputs, _names(self.pairs))
        log_pair_distances(logging_outputs, _names(self.pairs))
        self._scores.log(logging_outputs, self.pairs, _names(self.pairs))


def _names(pairs: Sequence[Tuple[str, str]]) -> List[str]:
    return [pair_name(pair) for pair in pairs]


def _no_target_vocabulary(cfg: SpeechToTextSamuConfig) -> str:
    files = f"{cfg.dictionary} and {cfg.sentencepiece_model}"
    return f"expected a target vocabulary, {files} in {cfg.data}, found none"
