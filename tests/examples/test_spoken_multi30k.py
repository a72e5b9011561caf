"""Spoken Multi30k: what is spoken in which language, and configurations that build their models."""

import gzip
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import models
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import OmegaConf

import fairseq_samu  # noqa: F401  (registers)

EXAMPLE = Path(__file__).parents[2] / "examples" / "spoken_multi30k"
CAPTIONS = {
    "en": ["A dog\truns.", "Two  men sit.", "at at", "A red ball."],
    "de": ["Ein Hund\trennt.", "Zwei Männer sitzen.", "@@", "Ein roter Ball."],
    "fr": ["Un chien court.", "Deux hommes assis.", "à à", "Un ballon rouge."],
    "cs": ["Pes běží.", "Dva muži sedí.", "u u", "Červený míč."],
}


def prepare(multi30k, out, *options):
    return subprocess.run(
        [sys.executable, EXAMPLE / "prepare.py", "--multi30k", multi30k, "--out", out, *options],
        cwd=EXAMPLE.parents[1], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def multi30k(tmp_path):
    folder = tmp_path / "multi30k"
    folder.mkdir()
    for language, lines in CAPTIONS.items():
        for split in ("train", "val", "test_2016_flickr"):
            text = "".join(f"{line}\n" for line in lines).encode()
            (folder / f"{split}.{language}.gz").write_bytes(gzip.compress(text))
    return folder


def test_every_training_caption_is_spoken_in_two_languages(multi30k, tmp_path):
    assert prepare(multi30k, tmp_path / "text").returncode == 0

    def lines(name):
        return (tmp_path / "text" / name).read_text(encoding="utf-8").splitlines()

    # The first caption not in German, the second not in French, the third not in Czech, …; and "@@",
    # the third in German, cannot be spoken.
    assert lines("train.de-en.de") == ["Zwei Männer sitzen."]
    assert lines("train.de-en.en") == ["Two men sit."]
    assert lines("train.fr-en.fr") == ["Un chien court.", "à à", "Un ballon rouge."]
    assert lines("train.fr-en.en") == ["A dog runs.", "at at", "A red ball."]
    assert lines("train.cs-en.cs") == ["Pes běží.", "Dva muži sedí.", "Červený míč."]


def test_other_splits_have_every_language_and_end_where_asked(multi30k, tmp_path):
    assert prepare(multi30k, tmp_path, "--dev-lines", "1", "--test-lines", "2").returncode == 0
    for language in CAPTIONS:
        clean = [" ".join(line.split()) for line in CAPTIONS[language]]
        for split, count in (("dev", 1), ("test", 2), ("test_unseen_voices", 2)):
            written = (tmp_path / f"{split}.{language}").read_text(encoding="utf-8")
            assert written.splitlines() == clean[:count]


def test_captions_that_do_not_go_together(multi30k, tmp_path):
    (multi30k / "val.cs").write_text("Jeden řádek.\n", encoding="utf-8")  # before val.cs.gz
    result = prepare(multi30k, tmp_path / "text")
    assert result.returncode == 1
    assert (
        "expected val with as many lines a language, found de 4, fr 4, cs 1, en 4" in result.stderr
    )
    (multi30k / "train.fr.gz").unlink()
    result = prepare(multi30k, tmp_path / "text")
    assert result.returncode == 1 and "train.fr.gz" in result.stderr


# --- Configurations ---


def read(size, name):
    return OmegaConf.load(EXAMPLE / size / f"{name}.yaml")


@pytest.mark.parametrize("size", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["encoder", "translation"])
def test_configurations_hold_nothing_that_fairseq_does_not_know(size, name):
    for section, given in read(size, name).items():
        if section == "model":
            known = MODEL_DATACLASS_REGISTRY[given["_name"]]()
        elif section == "task":
            known = TASK_DATACLASS_REGISTRY[given["_name"]]()
        elif section in REGISTRIES:
            known = REGISTRIES[section]["dataclass_registry"][given["_name"]]()
        else:
            known = FairseqConfig.__dataclass_fields__[section].type()
        typed = OmegaConf.structured(known)
        OmegaConf.set_struct(typed, True)
        OmegaConf.merge(typed, given)  # unknown names and wrong types raise


def build(size, name, **given):
    dictionary = Dictionary()
    for i in range(500):
        dictionary.add_symbol(f"s{i}")
    task = SimpleNamespace(
        target_dictionary=dictionary, transcript_dictionary=dictionary, teacher_dim=192,
        input_normalization="utterance", tag_settings={}, cfg=SimpleNamespace(max_target_positions=128),
    )  # fmt: skip
    cfg = OmegaConf.create({"model": OmegaConf.merge(read(size, name).model, given)})
    return models.build_model(cfg.model, task), cfg.model


@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_translators_build_on_the_encoder_with_what_they_may_read_of_it(size, tmp_path):
    encoder, cfg = build(size, "encoder")
    sizes = sum(parameter.numel() for parameter in encoder.parameters())
    assert round(sizes / 1e6, 1) == {"cpu": 2.1, "gpu": 39.6}[size]
    path = tmp_path / "samu.pt"
    whole = {"model": OmegaConf.to_container(cfg), "task": {"normalize": "utterance"}}
    torch.save({"cfg": whole, "model": encoder.state_dict()}, path)
    for view in ("hidden", "projected", "pooled") if size == "cpu" else ("projected",):
        model, _ = build(size, "translation", speech_encoder_path=str(path), encoder_view=view,
                         encoder_view_noise=0.7)  # fmt: skip
        trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {"adaptor", "embed_tokens", "layers", "layer_norm"}
