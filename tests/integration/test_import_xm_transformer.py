"""A model that fairseq's own task and model trained, translating as before in this project."""

import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
from fairseq.data import Dictionary
from fairseq.models.speech_to_text.xm_transformer import XMTransformerModel, base_architecture
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model
from fairseq.sequence_generator import SequenceGenerator

from data_prep.manifest import ManifestRow, ManifestWriter
from fairseq_samu import compat
from fairseq_samu.import_xm_transformer import import_xm_transformer, main
from fairseq_samu.models import XlsrMbartStModel

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = "the cat eats bread a dog runs fast".split()
XLSR = Wav2Vec2Config(
    extractor_mode="layer_norm", conv_bias=True, layer_norm_first=True,
    conv_feature_layers="[(16, 20, 10), (16, 8, 4), (32, 4, 4), (32, 4, 2)]",
    encoder_layers=2, encoder_embed_dim=24, encoder_ffn_embed_dim=40, encoder_attention_heads=4,
    conv_pos=8, conv_pos_groups=4, quantize_targets=True, latent_vars=4, final_dim=6,
)  # fmt: skip

#: All that an adaptor of fairseq can have, and a decoder as mBART's.
TRAINED = [
    "--arch", "xm_transformer_trainable", "--normalize", "--encoder-proj", "--adaptor-proj",
    "--adaptor-layernorm", "--adaptor-n-layers", "2", "--decoder-embed-dim", "16",
    "--decoder-ffn-embed-dim", "48", "--decoder-layers", "2", "--decoder-attention-heads", "4",
    "--decoder-normalize-before", "--layernorm-embedding", "--decoder-learned-pos",
    "--share-decoder-input-output-embed", "--activation-fn", "gelu",
]  # fmt: skip

#: Some versions of fairseq cannot train their own model: it lacks options that its encoder asks for.
USER_DIR = """
import fairseq_samu
from fairseq.models import register_model_architecture
from fairseq.models.speech_to_text.xm_transformer import base_architecture

@register_model_architecture("xm_transformer", "xm_transformer_trainable")
def trainable(args):
    args.load_ema, args.freeze_regex = False, None
    base_architecture(args)
"""


def write_corpus(data: Path) -> None:
    """Noise and random words, for fairseq's speech_to_text and, as test.tsv, for this project."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(6):
        samples = int(random.integers(6000, 12000))
        path = data / f"{number}.wav"
        soundfile.write(path, random.standard_normal(samples) * 0.1, 16000)
        rows.append((str(number), str(path), samples, " ".join(random.choice(WORDS, 4)), "s"))
    header = "id\taudio\tn_frames\ttgt_text\tspeaker\ttgt_lang\n"
    lines = ["\t".join(map(str, (*row, "en"))) + "\n" for row in rows]
    for split in ("train_xm", "test_xm"):
        (data / f"{split}.tsv").write_text(header + "".join(lines), encoding="utf-8")
    for split in ("train", "test"):
        with ManifestWriter(data / f"{split}.tsv") as writer:
            for row in rows:
                writer.write(ManifestRow(*row, "hola", "es", "en"))


def write_vocabulary(data: Path, tags: bool) -> None:
    with open(data / "pieces.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(WORDS * 3), model_writer=file, model_type="char", vocab_size=20,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(data / "pieces.model"))
    pieces = [model.id_to_piece(i) for i in range(3, model.get_piece_size())]
    symbols = [*pieces, "<lang:en>", "<lang:fr>"] if tags else pieces
    lines = [f"{symbol} 1\n" for symbol in symbols]
    (data / "symbols.txt").write_text("".join(lines), encoding="utf-8")
    (data / "config.yaml").write_text(
        f"use_audio_input: true\nvocab_filename: symbols.txt\nprepend_tgt_lang_tag: {tags}\n"
        f"bpe_tokenizer: {{bpe: sentencepiece, sentencepiece_model: {data / 'pieces.model'}}}\n",
        encoding="utf-8",
    )


def write_wav2vec2(path: Path) -> None:
    options = {**asdict(XLSR), "_name": "wav2vec2", "latent_temp": list(XLSR.latent_temp)}
    task = {"_name": "audio_pretraining", "data": "gone", "normalize": True}
    torch.manual_seed(0)
    torch.save(
        {
            "args": None,
            "cfg": {"task": task, "model": options, "criterion": None, "lr_scheduler": None},
            "model": Wav2Vec2Model(XLSR).state_dict(),
            "optimizer_history": [
                {"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}
            ],
            "extra_state": {"train_iterator": {}},
        },
        path,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, run_fairseq: Any) -> Path:
    """Folder with the data, ``xm.pt`` as fairseq-train wrote it, and what fairseq-generate said."""
    root = tmp_path_factory.mktemp("xm")
    data = root / "data"
    for folder in (data, root / "plugin", root / "stub" / "torchaudio"):
        folder.mkdir(parents=True)
    write_corpus(data)
    write_vocabulary(data, tags=True)
    write_wav2vec2(root / "w2v.pt")
    (root / "plugin" / "__init__.py").write_text(USER_DIR)
    # fairseq's reader imports torchaudio, and calls it only to resample
    for name in ("__init__.py", "sox_effects.py"):
        (root / "stub" / "torchaudio" / name).write_text("")
    env = {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{root / 'stub'}"}
    given = {"user_dir": root / "plugin", "env": env, "cwd": root}
    common = [
        "data", "--task", "speech_to_text", "--max-source-positions", "100000", "--cpu",
        "--num-workers", "0", "--no-progress-bar",
        # with another multiple, newer ones drop a last batch that is none
        "--required-batch-size-multiple", "1",
    ]  # fmt: skip
    run_fairseq(
        "train", *common, "--train-subset", "train_xm", "--valid-subset", "test_xm",
        "--disable-validation", *TRAINED, "--w2v-path", "w2v.pt", "--max-update", "15",
        "--criterion", "label_smoothed_cross_entropy", "--ignore-prefix-size", "1",
        "--optimizer", "adam", "--lr", "0.01", "--max-tokens", "60000",
        "--save-dir", "save", "--no-epoch-checkpoints", **given,
    )  # fmt: skip
    (root / "save" / "checkpoint_last.pt").rename(root / "xm.pt")
    output = run_fairseq(
        "generate", *common, "--path", "xm.pt", "--gen-subset", "test_xm", "--batch-size", "1",
        "--prefix-size", "1", "--beam", "5", "--nbest", "5", "--max-len-b", "12", "--unnormalized",
        **given,
    ).stdout  # fmt: skip
    (root / "generated.txt").write_text(output, encoding="utf-8")
    return root


def import_model(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "fairseq_samu.import_xm_transformer", "--checkpoint", "xm.pt",
         "--data", "data", "--out", "made/imported.pt", *arguments],
        cwd=root, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip


def hypotheses(output: str, tag: str = "") -> dict[str, list[tuple[float, str, str]]]:
    """(score, pieces, text) of the five best of every utterance."""
    found: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
    pieces = ""
    for line in output.splitlines():
        kind, _, rest = line.partition("-")
        if kind == "H":
            pieces = rest.split("\t")[2]
            assert pieces.startswith(tag)
        if kind == "D":
            number, score, text = rest.split("\t")
            found[number].append((float(score), pieces[len(tag) :].strip(), text))
    return dict(found)


def command(output: str, word: str) -> list[str]:
    """A command that was printed for the user, without its name and the ellipsis."""
    line = next(line for line in output.splitlines() if line.startswith(f"{word}: "))
    return [part for part in shlex.split(line.partition(": ")[2])[1:] if part != "…"]


def test_translates_and_trains_on(trained: Path, run_fairseq: Any) -> None:
    result = import_model(trained)
    assert result.returncode == 0, result.stderr
    printed = result.stdout
    xm = compat.load_checkpoint(str(trained / "xm.pt"))
    (trained / "w2v.pt").unlink()
    (trained / "xm.pt").unlink()

    output = run_fairseq(
        "generate", *command(printed, "translate"), "test", "--cpu", "--nbest", "5",
        "--max-len-b", "12", "--unnormalized", "--max-tokens", "100000", "--num-workers", "0",
        "--no-progress-bar", cwd=trained,
    ).stdout  # fmt: skip
    expected = hypotheses((trained / "generated.txt").read_text(encoding="utf-8"))
    found = hypotheses(output, "<lang:en>")
    assert len(expected) == 6 and found.keys() == expected.keys()
    for number, theirs in expected.items():
        ours = found[number]
        assert len(theirs) == 5 and [h[1:] for h in ours] == [h[1:] for h in theirs]
        # theirs counts the score of the tag, which is that of the utterance
        tags = [their[0] - our[0] for their, our in zip(theirs, ours)]
        assert max(tags) - min(tags) < 2e-3
    assert len({str([h[1] for h in five]) for five in expected.values()}) > 1  # they do listen

    check_logits(trained, xm)

    run_fairseq(
        "train", *command(printed, "train on"), "--criterion", "label_smoothed_nll", "--optimizer",
        "adam", "--lr", "1e-9", "--train-subset", "train", "--valid-subset", "test",
        "--disable-validation", "--max-update", "1", "--max-tokens", "100000", "--cpu",
        "--num-workers", "0", "--save-dir", "further", cwd=trained,
    )  # fmt: skip
    before = compat.load_checkpoint(str(trained / "made" / "imported.pt"))["model"]
    after = compat.load_checkpoint(str(trained / "further" / "checkpoint_last.pt"))["model"]
    assert before.keys() == after.keys()
    assert all(
        torch.allclose(weight.float(), after[k].float(), atol=1e-6) for k, weight in before.items()
    )


@torch.no_grad()
def check_logits(root: Path, state: dict[str, Any]) -> None:
    """In a batch with padding here, what fairseq computes of the utterances one by one."""
    write_wav2vec2(root / "w2v.pt")
    args = state["cfg"]["model"]
    args.w2v_path = str(root / "w2v.pt")
    theirs = build(args, root / "data")
    theirs.load_state_dict(state["model"])
    ours, task = XlsrMbartStModel.from_pretrained(
        str(root / "made" / "imported.pt"), str(root / "data")
    )
    paths = sorted((root / "data").glob("*.wav"))
    waves = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]
    waves = [torch.nn.functional.layer_norm(wave, wave.shape) for wave in waves]
    lengths = torch.tensor([len(wave) for wave in waves])
    tokens = torch.randint(4, len(task.target_dictionary), (len(waves), 7))
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    found = ours(batch, lengths, tokens)[0]
    for row, wave in enumerate(waves):
        expected = theirs(wave[None], lengths[row : row + 1], tokens[row : row + 1])[0]
        torch.testing.assert_close(found[row : row + 1], expected, atol=1e-5, rtol=0)


# --- In this process, with random weights ---------------------------------------------------------


def build(args: Namespace, data: Path) -> Any:
    """fairseq's own model, as its task builds it."""
    dictionary = Dictionary.load(str(data / "symbols.txt"))
    task = SimpleNamespace(target_dictionary=dictionary, multitask_tasks={})
    return XMTransformerModel.build_model(args, task).eval()


def make(root: Path, **given: Any) -> Any:
    """Write ``xm.pt``, in the form without ``cfg`` of older versions, and all it came from."""
    data = root / "data"
    data.mkdir()
    write_vocabulary(data, tags=False)
    write_wav2vec2(root / "w2v.pt")
    args = Namespace(
        **{
            "w2v_path": str(root / "w2v.pt"), "w2v_args": None, "normalize": True, "data": "gone",
            "no_pretrained_weights": True, "freeze_regex": None, "encoder_proj": True,
            "decoder_embed_dim": 24, "decoder_ffn_embed_dim": 32, "decoder_layers": 1,
            "decoder_attention_heads": 2, "max_target_positions": 50, "activation_fn": "relu",
            **given,
        }
    )  # fmt: skip
    base_architecture(args)
    torch.manual_seed(1)
    model = build(args, data)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "w2v_model" not in name:
                parameter.normal_(std=0.4)
    torch.save({"args": args, "model": model.state_dict()}, root / "xm.pt")
    return model


@pytest.mark.parametrize(
    "given,blocks",
    [
        ({}, ""),
        ({"decoder_embed_dim": 16, "adaptor_kernel_size": 5, "adaptor_n_layers": 1}, "projection"),
        ({"adaptor_proj": True, "decoder_normalize_before": True}, "ffn"),
    ],
)
@torch.no_grad()
def test_beams_and_their_scores_are_those_of_fairseq(
    given: dict[str, Any], blocks: str, tmp_path: Path
) -> None:
    theirs = make(tmp_path, **given)
    out = tmp_path / "imported.pt"
    lines = import_xm_transformer(str(tmp_path / "xm.pt"), tmp_path / "data", out)
    assert ("--adaptor-blocks" in " ".join(lines)) == (blocks != "")
    ours, task = XlsrMbartStModel.from_pretrained(str(out), str(tmp_path / "data"))
    saved = compat.load_checkpoint(str(out))["cfg"]["model"]
    assert (saved["adaptor_blocks"], saved["max_target_positions"]) == (blocks, 50)
    dictionary = task.target_dictionary
    for samples in (6000, 9001):
        batch = {"net_input": {"src_tokens": torch.randn(2, samples),
                               "src_lengths": torch.tensor([samples] * 2)}}  # fmt: skip
        five = [
            [[(h["tokens"].tolist(), h["score"].item()) for h in row] for row in
             SequenceGenerator([model], dictionary, beam_size=5, max_len_b=9).generate([model], batch)]
            for model in (theirs, ours)
        ]  # fmt: skip
        for their_row, our_row in zip(*five):
            assert [h[0] for h in our_row] == [h[0] for h in their_row]
            assert [h[1] for h in our_row] == pytest.approx([h[1] for h in their_row], abs=1e-4)


def change_model(root: Path, change: Any) -> None:
    state = torch.load(
        root / "xm.pt", **({"weights_only": False} if hasattr(torch, "compile") else {})
    )
    change(state)
    torch.save(state, root / "xm.pt")


def add_settings(root: Path, *settings: str) -> None:
    path = root / "data" / "config.yaml"
    path.write_text("\n".join([path.read_text(encoding="utf-8"), *settings]), encoding="utf-8")


def test_a_moved_encoder_and_auxiliary_decoders(tmp_path: Path, capsys: Any) -> None:
    make(tmp_path)
    line = ["--checkpoint", str(tmp_path / "xm.pt"), "--data", str(tmp_path / "data"),
            "--out", str(tmp_path / "imported.pt")]  # fmt: skip
    change_model(tmp_path, lambda state: state["model"].update({"asr_decoder.x": torch.ones(1)}))
    (tmp_path / "w2v.pt").rename(tmp_path / "moved.pt")
    with pytest.raises(SystemExit):
        main(line)
    error = capsys.readouterr().err
    assert "xm.pt: the checkpoint was fine-tuned from" in error and "--w2v-path" in error
    main([*line, "--w2v-path", str(tmp_path / "moved.pt")])
    assert "needs none: asr_decoder\n" in capsys.readouterr().out
    assert (tmp_path / "imported.pt").is_file()


def unlink(name: str) -> Any:
    return lambda root: (root / name).unlink()


def set_option(**options: Any) -> Any:
    return lambda root: change_model(root, lambda state: vars(state["args"]).update(options))


def set_weight(name: str, *shape: int) -> Any:
    weight = {name: torch.zeros(shape)}
    return lambda root: change_model(root, lambda state: state["model"].update(weight))


def without_convolutions(root: Path) -> None:
    def change(state: Any) -> None:
        for name in [name for name in state["model"] if ".adaptor.layers." in name]:
            del state["model"][name]

    change_model(root, change)


@pytest.mark.parametrize(
    "spoil,message",
    [
        (unlink("xm.pt"), "xm.pt"),
        (unlink("data/config.yaml"), "config.yaml: expected the configuration .*found no file"),
        (unlink("data/symbols.txt"), "symbols.txt: expected a fairseq dictionary, found no file"),
        (lambda root: (root / "w2v.pt").replace(root / "xm.pt"), "expected fairseq's xm_transformer"),
        (
            lambda root: (root / "data" / "symbols.txt").open("a").write("new 1\n"),
            r"symbols.txt: expected the dictionary that .*xm.pt was trained with, of \d+ symbols, found",
        ),
        (lambda root: add_settings(root, "eos_token: x"), "config.yaml: eos_token: expected None, found x"),
        (
            lambda root: add_settings(root, "bpe_tokenizer: {bpe: bert}"),
            "config.yaml: bpe_tokenizer: bpe: expected sentencepiece, found bert",
        ),
        (lambda root: add_settings(root, "[}"), "config.yaml: expected YAML"),
        (set_option(remove_weight_norm=True), "xm.pt: remove_weight_norm=False expected, found True"),
        (set_option(no_token_positional_embeddings=True), "no_token_positional_embeddings=False"),
        (without_convolutions, "xm.pt: expected convolutions .*found adaptor_n_layers=0"),
        (set_weight("encoder.adaptor.layernorms.0.weight", 24), "unknown: layernorms.0.weight"),
        (set_weight("encoder.adaptor.layers.0.weight", 20, 24, 3), "decoder's width 24, found 10"),
        (
            set_weight("decoder.layers.0.encoder_attn.k_proj.weight", 24, 32),
            "expected a decoder whose attention reads vectors of its own width 24, found 32",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_file_and_what_is_wrong(
    spoil: Any, message: str, tmp_path: Path, capsys: Any
) -> None:
    make(tmp_path)
    spoil(tmp_path)
    out = tmp_path / "imported.pt"
    with pytest.raises(SystemExit):
        main(
            [
                "--checkpoint",
                str(tmp_path / "xm.pt"),
                "--data",
                str(tmp_path / "data"),
                "--out",
                str(out),
            ]
        )
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not out.exists()
