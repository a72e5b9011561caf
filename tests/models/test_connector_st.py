"""Tests of what connector_st refuses before it loads anything large."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_samu.data.text_model_dictionary import TextModelDictionary
from fairseq_samu.models.connector_st import ConnectorStConfig, ConnectorStModel, _adopt_connector
from fairseq_samu.modules.connector import QFormer
from fairseq_samu.pretrained.file_digest import weights_digest
from fairseq_samu.pretrained.seq2seq import load_seq2seq, source_tokens


@pytest.mark.parametrize(
    "given,message",
    [
        ({"text_model_path": "b"}, "--speech-encoder-path is missing"),
        ({"speech_encoder_path": "a"}, "--text-model-path is missing"),
        (
            {"speech_encoder_path": "a", "text_model_path": "b", "text_prefix": "x"},
            "--text-prefix goes into the text model's encoder: --connect encoder",
        ),
    ],
)
def test_options_that_cannot_be(given: dict[str, str], message: str) -> None:
    cfg = OmegaConf.create({"model": OmegaConf.structured(ConnectorStConfig())})
    cfg.model.update(given)
    task = SimpleNamespace(target_dictionary=TextModelDictionary(["a", "b"], 0, 0, 1, 1))
    with pytest.raises(ValueError, match=message):
        ConnectorStModel.build_model(cfg.model, task)
    task.target_dictionary = None
    with pytest.raises(ValueError, match="connector_st needs target texts"):
        ConnectorStModel.build_model(cfg.model, task)


def connector_checkpoint(path: Any, connector: QFormer, speech: str) -> str:
    weights = {f"encoder.connector.{k}": v for k, v in connector.state_dict().items()}
    record = f'{{"weights of --speech-encoder-path": "{speech}"}}'.encode()
    torch.save({"model": {**weights, "settings_version": torch.tensor(list(record))}}, path)
    return str(path)


def test_a_connector_goes_on_with_its_own_speech_encoder_only(tmp_path: Any) -> None:
    old, new = (QFormer(6, 8, queries=2, dim=4, layers=1, ffn_dim=4) for _ in range(2))
    path = connector_checkpoint(tmp_path / "c.pt", old, "abc")
    with pytest.raises(ValueError, match="with the weights abc, --speech-encoder-path has xyz"):
        _adopt_connector(new, path, "xyz")
    assert not torch.equal(new.queries, old.queries)
    _adopt_connector(new, path, "abc")
    assert torch.equal(new.queries, old.queries)
    with pytest.raises(ValueError, match="other sizes than the options and the text model"):
        _adopt_connector(QFormer(6, 9, queries=2, dim=4, layers=1, ffn_dim=4), path, "abc")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expects a checkpoint of connector_st"):
        _adopt_connector(new, str(tmp_path / "other.pt"), "abc")


def test_a_digest_follows_weights_and_nothing_else(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    digest = weights_digest(str(tmp_path))
    (tmp_path / "README.md").write_text("about")
    assert weights_digest(str(tmp_path)) == digest
    (tmp_path / "model.safetensors").write_bytes(b"weighty")
    assert weights_digest(str(tmp_path)) != digest
    with pytest.raises(FileNotFoundError, match="expected a checkpoint or a folder of one"):
        weights_digest(str(tmp_path / "none"))


def test_folders_that_hold_no_text_model(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder of Hugging Face"):
        load_seq2seq(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"text-to-text model \(marian, .*\), found 'bert'"):
        load_seq2seq(str(tmp_path))
    dictionary = TextModelDictionary(["a", "b"], 0, 0, 1, 1)
    with pytest.raises(FileNotFoundError, match="found none of source.spm"):
        source_tokens(str(tmp_path), "a", dictionary)
