"""The task's own decisions: iterators, language pairs, options that contradict each other."""

from argparse import Namespace

import numpy as np
import pytest
import soundfile
import torch
from fairseq.models import BaseFairseqModel
from omegaconf import OmegaConf

import fairseq_samu  # noqa: F401  (compat before fairseq's iterators)
from data_prep.embed_text import Teacher, embed_manifest
from data_prep.join_manifests import Source, join_manifests
from fairseq_samu.criterions import LabelSmoothedNllCriterion
from fairseq_samu.models import SamuXlsrModel, XlsrMbartStModel
from fairseq_samu.tasks import SpeechToTextSamuConfig, SpeechToTextSamuTask
from helpers.tiny_models import TRANSLATOR, build


def setup(data, **options):
    """A task over a data folder; interpolated options get fairseq's defaults."""
    cfg = SpeechToTextSamuConfig(data=str(data), train_subset="train", seed=1, **options)
    return SpeechToTextSamuTask.setup_task(cfg)


class Encoder:
    """Has a CTC head."""

    ctc_head = True

    def __call__(self, wave, lengths):
        return "frames"


def test_splits_share_one_numbering_of_language_pairs(corpus, tmp_path):
    header, *rows = (corpus / "dev.tsv").read_text(encoding="utf-8").splitlines()
    french = [row for row in rows if row.split("\t")[6:8] == ["fr", "en"]]
    assert french
    for name in ("dict.txt", "spm.model"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    (tmp_path / "dev.tsv").write_text("\n".join([header, *french]) + "\n", encoding="utf-8")
    (tmp_path / "train.tsv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    task = setup(tmp_path)
    task.load_dataset("dev")
    task.load_dataset("train")
    assert task.pairs == [("fr", "en"), ("en", "fr"), ("es", "en")]
    for split in ("dev", "train"):
        dataset = task.dataset(split)
        batch = dataset.collater([dataset[i] for i in range(len(dataset.manifest))])
        named = [task.pairs[i] for i in batch["pair"].tolist()]
        assert named == [dataset.manifest.pairs[i] for i in dataset.manifest.pair_ids]


def test_transcripts_are_ctc_labels_without_eos(corpus):
    task = setup(
        corpus,
        transcript_dictionary="dict_src.txt",
        transcript_sentencepiece_model="spm_src.model",
    )
    task.load_dataset("dev")
    dataset = task.dataset("dev")
    transcript = dataset.collater([dataset[0]])["transcript"][0]
    spelled = task.transcript_dictionary.string(transcript).replace(" ", "").replace("▁", " ")
    assert spelled.strip() == dataset.manifest.cell(0, "src_text")
    assert task.transcript_dictionary.eos() not in transcript


def test_validation_scores_what_the_ctc_head_hears_against_transcripts(corpus, monkeypatch):
    """It hears every word of the source language; the decoder says nothing."""
    task = setup(
        corpus,
        transcript_dictionary="dict_src.txt",
        transcript_sentencepiece_model="spm_src.model",
        eval_wer=True,
        wer_text="raw",
    )
    task.load_dataset("dev")
    dataset = task.dataset("dev")
    batch = dataset.collater([dataset[i] for i in range(len(dataset.manifest))])
    blank, size = task.transcript_dictionary.bos(), len(task.transcript_dictionary)
    path = torch.full((len(batch["id"]), 2 * batch["transcript"].size(1)), blank)
    path[:, ::2] = batch["transcript"]
    log_probs = torch.nn.functional.one_hot(path, size).transpose(0, 1).float().log()
    model = Namespace(
        eval=lambda: None,
        encoder=Encoder(),
        get_ctc_output=lambda encoder_out: (log_probs, 2 * batch["transcript_lengths"]),
    )
    silence = [[{"tokens": torch.tensor([task.target_dictionary.eos()])}] for _ in batch["id"]]
    monkeypatch.setattr(task, "inference_step", lambda *_: silence)
    _, _, log = task.valid_step(batch, model, lambda model, sample: (torch.tensor(0.0), 1, {}))
    words = {name: [0] * len(task.pairs) for name in ("src_text", "tgt_text")}
    for column, counts in words.items():
        for pair, text in zip(batch["pair"].tolist(), batch[column]):
            counts[pair] += len(text.split())
    assert log["pair_ctc_errors"][:, 0].tolist() == [0] * len(task.pairs)
    assert log["pair_ctc_errors"][:, 1].tolist() == words["src_text"] != words["tgt_text"]
    for column in (0, 1):
        assert log["pair_errors"][:, column].tolist() == words["tgt_text"]


def test_only_the_training_split_of_a_training_run_is_shuffled(corpus):
    task = setup(corpus, speed_perturbation="0.9,1.1", sampling_alpha=0.5)
    task.load_dataset("train")
    assert task.dataset("train").shuffle and task.dataset("train").speed_factors == (0.9, 1.1)
    task.load_dataset("dev")
    assert not task.dataset("dev").shuffle and not task.dataset("dev").speed_factors
    task.load_dataset("train", task_cfg=Namespace())  # as fairseq-generate does
    assert not task.dataset("train").shuffle and task.dataset("train").alpha == 1.0


def test_training_on_some_source_languages_scores_all(corpus, caplog):
    """Rows keep their numbers in the manifest, and fairseq-generate still sees those left out."""
    task = setup(corpus, source_langs="es, fr", sampling_alpha=0.5)
    with caplog.at_level("INFO"):
        for split in ("train", "dev"):
            task.load_dataset(split)
    assert "dev.tsv: rows of other source languages left out: 8" in caplog.text
    for split in ("train", "dev"):
        dataset = task.dataset(split)
        manifest = dataset.manifest
        rows = np.unique(dataset.ordered_indices())
        wanted = [row for row in range(len(manifest)) if manifest.cell(row, "src_lang") != "en"]
        assert 0 < len(wanted) < len(manifest)
        assert rows.tolist() == wanted and dataset[wanted[-1]]["index"] == wanted[-1]
    task.load_dataset("dev", task_cfg=Namespace())
    assert len(task.dataset("dev")) == len(task.dataset("dev").manifest) > len(rows)


def test_a_source_language_that_is_not_there(corpus, tmp_path):
    found = r"train\.tsv: expected .* none of de; source languages there: en, es, fr"
    with pytest.raises(ValueError, match=found):
        setup(corpus, source_langs="es,de").load_dataset("train")
    setup(corpus, source_langs="es,de").load_dataset("dev")  # a split may be one language's
    with pytest.raises(ValueError, match=r"dev\.tsv: expected .* none of de; "):
        setup(corpus, source_langs="de").load_dataset("dev")


def embed(data, split, sha256="abc", width=4):
    """Vectors of a teacher that gives every text the same one."""
    teacher = Teacher("some/model", sha256, width, lambda texts: np.ones((len(texts), width)))
    embed_manifest(data / f"{split}.tsv", teacher, "small", "src_text")


@pytest.mark.parametrize("other", [{"sha256": "abd"}, {"width": 5}])
def test_splits_share_their_teacher(corpus, tmp_path, other):
    for name in ("dict.txt", "spm.model", "train.tsv", "dev.tsv", "test.tsv"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    embed(tmp_path, "train")
    embed(tmp_path, "test")
    embed(tmp_path, "dev", **other)
    task = setup(tmp_path, teacher="small")
    assert task.teacher_dim == 4
    task.load_dataset("test")
    found = r"dev\.small\.npy: expected the teacher of .*train\.small\.npy.*embed both"
    with pytest.raises(ValueError, match=found):
        task.load_dataset("dev")


def transcripts_only(corpus, folder, splits=("train", "dev")):
    """Copy of a corpus without its translations and vocabularies, embedded by a teacher."""
    for split in splits:
        rows = (corpus / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
        for i, row in enumerate(rows[1:], start=1):
            cells = row.split("\t")
            cells[3] = cells[7] = ""
            rows[i] = "\t".join(cells)
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        embed(folder, split)
    return folder


def test_transcripts_alone_need_no_target_vocabulary(corpus, tmp_path):
    transcripts_only(corpus, tmp_path)
    task = setup(tmp_path, teacher="small")
    assert task.target_dictionary is None and task.teacher_dim == 4
    for split in ("train", "dev"):
        task.load_dataset(split)
    assert task.pairs == [("en", ""), ("es", ""), ("fr", "")]
    dataset = task.dataset("train")
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["target"] is None and batch["teacher"].shape == (2, 4)
    with pytest.raises(ValueError, match="expected a target vocabulary, dict.txt and spm.model"):
        task.build_generator([], Namespace())
    with pytest.raises(ValueError, match="label_smoothed_nll needs target texts"):
        LabelSmoothedNllCriterion(task, False, 0.1, 0.0, 0.0)
    with pytest.raises(ValueError, match="xlsr_mbart_st needs target texts"):
        XlsrMbartStModel.build_model(None, task)


@pytest.mark.parametrize(("there", "options", "message"), [
    ((), {}, r"dict\.txt: expected a fairseq dictionary"),
    (("spm.model",), {"teacher": "small"}, r"dict\.txt: expected a fairseq dictionary"),
    (("dict.txt",), {"teacher": "small"}, r"spm\.model: expected a SentencePiece model"),
    ((), {"teacher": "small", "dictionary": "named.txt"}, r"named\.txt: expected a fairseq"),
    ((), {"teacher": "small", "eval_bleu": True}, "--eval-bleu: expected a target vocabulary"),
])  # fmt: skip
def test_a_vocabulary_that_is_missing_by_mistake(corpus, tmp_path, there, options, message):
    for name in there:
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        setup(tmp_path, **options)


def test_the_dictionary_of_a_text_model_has_another_name(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dict\.txt: .*data_prep.build_vocab` writes one"):
        setup(tmp_path)
    (tmp_path / "dict.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"dict\.json, .* is there: give --dictionary dict.json"
    ):
        setup(tmp_path)


@pytest.mark.parametrize("template", ["<lang:{}>", ""])
def test_rows_without_translation_are_no_translation_data(corpus, tmp_path, template):
    transcripts_only(corpus, tmp_path)
    for name in ("dict.txt", "spm.model"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    task = setup(tmp_path, lang_tag_template=template)
    with pytest.raises(ValueError, match=r"train\.tsv:\d+: expected a tgt_lang and a tgt_text"):
        task.load_dataset("train")


def model_options(name):
    return OmegaConf.create({"_name": name, "input_normalization": "utterance"})


def test_weights_stay_for_the_searches_of_a_validation(corpus):
    """Until the next update; without scores nothing is translated."""
    model = build(TRANSLATOR)[0]
    setup(corpus).begin_valid_epoch(1, model)
    assert model.decoder._weights is None
    seen = set()
    for _ in range(2):
        setup(corpus, eval_bleu=True).begin_valid_epoch(1, model.eval())
        seen.add(model.decoder._weights)
        assert model.eval().decoder._weights in seen - {None}
        assert model.train().decoder._weights is None
    assert len(seen) == 2


def test_a_model_without_decoder_reads_no_targets(corpus, tmp_path, monkeypatch):
    transcripts_only(corpus, tmp_path)
    for name in ("dict.txt", "spm.model"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    monkeypatch.setattr(SamuXlsrModel, "build_model", lambda cfg, task: torch.nn.Linear(1, 1))
    task = setup(tmp_path, teacher="small")
    task.build_model(model_options("samu_xlsr"))
    for split in ("train", "dev"):
        task.load_dataset(split)
    batch = task.dataset("train").collater([task.dataset("train")[0]])
    assert batch["target"] is None and batch["teacher"].shape == (1, 4)
    with pytest.raises(ValueError, match="translating: expected a decoder, found a Linear"):
        setup(tmp_path, eval_bleu=True).build_model(model_options("samu_xlsr"))
    with pytest.raises(ValueError, match="--beam: expected at least 1, found 0"):
        setup(tmp_path).build_generator([], Namespace(beam=0))


def test_workers_of_an_old_epoch_are_stopped_before_the_next(corpus):
    """Left to the garbage collector they would hold up training for 5 s each."""
    task = setup(corpus)
    task.load_dataset("train")
    old_workers = []
    for epoch in (1, 2):
        itr = task.get_batch_iterator(
            task.dataset("train"), max_tokens=10**6, num_workers=1, epoch=epoch
        )
        assert not any(worker.is_alive() for worker in old_workers)
        assert sum(batch["nsentences"] for batch in itr.next_epoch_itr()) == len(
            task.dataset("train")
        )
        old_workers = list(itr.dataloader._iterator._workers)
        assert len(old_workers) == 1 and old_workers[0].is_alive()


@pytest.mark.parametrize(("options", "message"), [
    ({"sampling_alpha": 0.5, "sampling_temperature": 2.0}, "one of them"),
    ({"sampling_temperature": 0.0}, "--sampling-temperature > 0"),
    ({"speed_perturbation": "0.9;1.1"}, "--speed-perturbation"),
    ({"speed_perturbation": "0.1,1"}, "between 0.5 and 2"),
    ({"source_langs": "es,,fr"}, "--source-langs: expected"),
    ({"transcript_dictionary": "dict_src.txt"}, "go together"),
    ({"dictionary": "absent.txt"}, "absent.txt"),
    ({"lang_tag_template": "<lang>"}, "one {}"),
    ({"target_lang": "klingon"}, "<lang:klingon>"),
    ({"eval_beam": 0}, "--eval-beam: expected at least 1"),
    ({"max_target_positions": -1}, "--max-target-positions"),
    ({"best_checkpoint_metric": "bleu"}, "needs --eval-bleu"),
    ({"best_checkpoint_metric": "wer_es-es"}, "needs --eval-wer"),
    ({"best_checkpoint_metric": "cer", "eval_wer": True, "maximize_best_checkpoint_metric": True},
     "--best-checkpoint-metric cer: fewer errors are better"),
])  # fmt: skip
def test_unusable_options(corpus, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        setup(corpus, **options)


def test_no_data_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        setup(tmp_path / "absent")


def test_audio_of_another_length_is_found_when_a_split_is_opened(corpus, tmp_path):
    header, *rows = (corpus / "dev.tsv").read_text(encoding="utf-8").splitlines()
    rows = ["\t".join([*row.split("\t")[:2], "100000", *row.split("\t")[3:]]) for row in rows]
    for name in ("dict.txt", "spm.model"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    (tmp_path / "dev.tsv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dev\.tsv:\d+: expected n_frames = 100000"):
        setup(tmp_path).load_dataset("dev")


def test_transcripts_to_train_on_are_not_empty(corpus, tmp_path):
    header, *rows = (corpus / "train.tsv").read_text(encoding="utf-8").splitlines()
    cells = rows[4].split("\t")
    cells[header.split("\t").index("src_text")] = ""
    rows[4] = "\t".join(cells)
    for name in ("dict.txt", "spm.model", "dict_src.txt", "spm_src.model"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    (tmp_path / "train.tsv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    names = {"transcript_dictionary": "dict_src.txt"}
    names["transcript_sentencepiece_model"] = "spm_src.model"
    with pytest.raises(ValueError, match=r"train\.tsv:6: expected a src_text to train on"):
        setup(tmp_path, **names).load_dataset("train")
    setup(tmp_path).load_dataset("train")


def test_interactive_input_is_checked_line_by_line(corpus, tmp_path):
    task = setup(corpus)
    soundfile.write(tmp_path / "short.wav", np.ones(10, dtype="float32"), 16000)
    with pytest.raises(ValueError, match="line 2: expected a path of an audio file"):
        soundfile.write(tmp_path / "long.wav", np.ones(800, dtype="float32"), 16000)
        task.get_interactive_tokens_and_lengths([str(tmp_path / "long.wav"), " "], None)
    with pytest.raises(ValueError, match=r"short\.wav: expected 400 to 480000 samples.*found 10"):
        task.get_interactive_tokens_and_lengths([str(tmp_path / "short.wav")], None)


class Linear(BaseFairseqModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("cpu_bf16", [False, True])
def test_products_in_bfloat16_on_a_cpu(corpus, cpu_bf16):
    task, model = setup(corpus, cpu_bf16=cpu_bf16), Linear()
    products = []

    def criterion(model, sample):
        products.append(model.layer(sample["net_input"]["src_tokens"]))
        return products[-1].float().sum(), 1, {}

    optimizer = Namespace(backward=torch.Tensor.backward)
    sample = {"net_input": {"src_tokens": torch.full((1, 2), 1 + 2**-12)}}
    task.train_step(sample, model, criterion, optimizer, update_num=0)
    task.valid_step(sample, model, criterion)
    expected = torch.bfloat16 if cpu_bf16 else torch.float32
    assert [product.dtype for product in products] == [expected] * 2
    assert model.layer.weight.dtype == model.layer.weight.grad.dtype == torch.float32


def test_bfloat16_is_refused_where_torch_cannot_train_with_it(corpus, monkeypatch):
    monkeypatch.setattr("fairseq_samu.compat.CPU_BF16_TRAINS", False)
    task = setup(corpus, cpu_bf16=True)
    task.load_dataset("train", task_cfg=Namespace())  # as fairseq-generate does
    with pytest.raises(ValueError, match="--cpu-bf16: expected torch 2"):
        task.load_dataset("train")


class Staged:
    """What the task knows of a model with a transition loss."""

    def __init__(self):
        self.begun = []
        self.stage_progress = 0.5

    def begin_stage(self, stage):
        self.begun.append(stage)


def test_a_model_hears_of_training_stages(corpus, tmp_path, caplog):
    for name in ("dict.txt", "spm.model"):
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    sources = [Source("a", corpus / "train.tsv"), Source("b", corpus / "dev.tsv")]
    join_manifests(sources, tmp_path / "train.tsv")
    task = setup(tmp_path, stages="a:1,b:3", stage_transition_epochs=1)
    task.load_dataset("train")
    model, seen = Staged(), []
    with caplog.at_level("INFO"):
        for epoch in (1, 2, 3, 9):
            task.begin_epoch(epoch, model)
            seen.append(model.stage_progress)
    assert model.begun == [1, 2, 2, 2] and seen == [1, 0.5, 1, 1]
    assert (
        "epoch 2: stage 2 of 2, b, its epoch 1 of 3; share of the stage before: 0.500"
        in caplog.text
    )
    task.begin_epoch(1, torch.nn.Identity())  # others are left alone
    task.load_dataset("train", task_cfg=Namespace())  # as fairseq-generate does: all rows
    assert len(task.dataset("train")) == len(task.dataset("train").manifest)
    unstaged = setup(tmp_path)
    unstaged.load_dataset("train")
    unstaged.begin_epoch(1, model)
    assert len(model.begun) == 4
    with pytest.raises(ValueError, match="--stages: expected NAME:EPOCHS"):
        setup(tmp_path, stages="a")
