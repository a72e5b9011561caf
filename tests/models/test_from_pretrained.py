"""Trained models in Python, after everything they came from is gone."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import tasks
from omegaconf import OmegaConf

from data_prep.manifest import ManifestRow, ManifestWriter
from fairseq_samu.models import SamuXlsrModel, XlsrMbartStModel

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = {
    "encoder_conv_layers": "[(8, 20, 10), (16, 8, 4), (16, 4, 4)]", "encoder_layers": 1,
    "encoder_embed_dim": 24, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2,
    "encoder_conv_pos": 4, "encoder_conv_pos_groups": 2,
}  # fmt: skip
DECODER = {
    "decoder_layers": 1, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 16,
    "decoder_attention_heads": 2,
}  # fmt: skip


def make_data(folder: Path, words: str = "the cat eats bread") -> Path:
    folder.mkdir()
    with ManifestWriter(folder / "train.tsv") as writer:
        writer.write(ManifestRow("u", "u.wav", 16000, words, "s", words, "en", "en"))
    subprocess.run(
        [sys.executable, "-m", "data_prep.build_vocab", "--manifests", str(folder / "train.tsv"),
         "--model-type", "char", "--vocab-size", "15", "--langs", "en", "--out", str(folder)],
        check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return folder


def train(arch: str, data: Path, out: Path, **options: Any) -> Any:
    """A checkpoint as training writes it."""
    cfg = OmegaConf.create(
        {
            "task": {
                "_name": "speech_to_text_samu",
                "data": str(data),
                "eval_bleu": arch == "xlsr_mbart_st",
                "best_checkpoint_metric": "bleu" if arch == "xlsr_mbart_st" else "loss",
            },
            "model": {"_name": arch, **options},
            "common": {"seed": 1},
            "dataset": {"train_subset": "train"},
            "checkpoint": {"best_checkpoint_metric": "loss"},
        }
    )
    task = tasks.setup_task(cfg.task)
    cfg.task.normalize, cfg.task.max_target_positions = "utterance", 1024
    torch.manual_seed(0)
    model = task.build_model(cfg.model)
    content = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    torch.save({"args": None, "cfg": content, "model": model.state_dict()}, out)
    return model.eval()


@torch.no_grad()
def test_checkpoints_need_nothing_they_were_made_of(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    samu = train("samu_xlsr", data, tmp_path / "samu.pt", sentence_dim=6, **SIZES)
    translator = train(
        "xlsr_mbart_st", data, tmp_path / "st.pt",
        speech_encoder_path=str(tmp_path / "samu.pt"), encoder_view="projected", **DECODER,
    )  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    data = data.rename(tmp_path / "elsewhere" / "vocabularies")
    (data / "train.tsv").unlink()
    wave, lengths = torch.randn(2, 4000), torch.tensor([4000, 4000])

    path = shutil.move(str(tmp_path / "st.pt"), str(tmp_path / "elsewhere" / "st.pt"))
    samu_path = shutil.move(str(tmp_path / "samu.pt"), str(tmp_path / "elsewhere" / "samu.pt"))
    loaded, task = XlsrMbartStModel.from_pretrained(path, str(data))
    tokens = torch.tensor([[2, 4, 5]] * 2)
    assert not loaded.training and len(task.target_dictionary) > 4
    assert torch.equal(loaded(wave, lengths, tokens)[0], translator(wave, lengths, tokens)[0])

    shutil.rmtree(data)
    loaded, _ = SamuXlsrModel.from_pretrained(samu_path)
    assert torch.equal(loaded(wave, lengths)["embedding"], samu(wave, lengths)["embedding"])

    with pytest.raises(ValueError, match="st.pt: .*samu_xlsr, found one of xlsr_mbart_st"):
        SamuXlsrModel.from_pretrained(path)
    with pytest.raises(FileNotFoundError, match="expected the folder of the manifests"):
        XlsrMbartStModel.from_pretrained(path, str(data))
    other = make_data(tmp_path / "other", "quick foxes")
    with pytest.raises(ValueError, match="target vocabulary of"):
        XlsrMbartStModel.from_pretrained(path, str(other))
