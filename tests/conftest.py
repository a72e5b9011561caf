"""Fixtures shared by the tests: a small spoken corpus, and fairseq's commands as users run them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest

# Shells have what runs in the background ignore Ctrl-C, and whatever it starts; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]
USER_DIR = REPOSITORY / "fairseq_samu"

#: A model that trains in seconds: 20 ms frames, one layer on either side.
TINY_MODEL = [
    "--arch", "xlsr_mbart_st_tiny",
    "--encoder-conv-layers", "[(16,20,10),(16,8,4),(32,4,4),(32,4,2)]",
    "--encoder-layers", "1", "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "64",
    "--encoder-attention-heads", "2",
    "--decoder-layers", "1", "--decoder-embed-dim", "32", "--decoder-ffn-embed-dim", "64",
    "--decoder-attention-heads", "2",
]  # fmt: skip

#: Training without randomness that a test does not ask for.
TINY_TRAINING = [
    "--task", "speech_to_text_samu", "--criterion", "label_smoothed_nll",
    "--train-subset", "train", "--valid-subset", "dev",
    "--max-tokens", "400000", "--required-batch-size-multiple", "1",
    "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--lr", "0.002",
    "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "10", "--clip-norm", "1.0",
    "--cpu", "--num-workers", "0", "--seed", "1", "--log-format", "json", "--log-interval", "1",
    "--no-progress-bar", "--no-epoch-checkpoints", "--keep-last-epochs", "1",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model() -> List[str]:
    """Options of a model that trains in seconds."""
    return list(TINY_MODEL)


@pytest.fixture(scope="session")
def tiny_training() -> List[str]:
    """Options of a short training run on the spoken corpus."""
    return list(TINY_TRAINING)


@pytest.fixture(scope="session")
def run_fairseq() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs one of fairseq's commands in a process of its own, as a user does."""

    def run(
        command: str,
        *arguments: Any,
        check: bool = True,
        cwd: Optional[Path] = None,
        env: Optional[Dict[str, str]] = None,
        stdin: Optional[str] = None,
        user_dir: Path = USER_DIR,
    ) -> "subprocess.CompletedProcess[str]":
        line = [sys.executable, "-m", f"fairseq_cli.{command}"]
        if command != "hydra_train":
            line += ["--user-dir", str(user_dir)]
        line += [str(argument) for argument in arguments]
        result = subprocess.run(
            line,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        if check and result.returncode != 0:
            pytest.fail(
                f"{' '.join(line)}\nexited with {result.returncode}:\n{result.stdout[-6000:]}"
            )
        return result

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder of a corpus spoken by espeak-ng: es→en, fr→en and en→fr, with its vocabularies."""
    pytest.importorskip("espeakng_loader")
    root = tmp_path_factory.mktemp("corpus")
    text = root / "text"
    text.mkdir()
    rows = {
        "es": [
            "el gato come pan",
            "la niña bebe agua",
            "el perro rojo corre",
            "una casa muy grande",
        ],
        "fr": ["le chat mange du pain", "la fille boit de l'eau", "le chien court", "une maison"],
        "en": ["the cat eats bread", "the girl drinks water", "the dog runs fast", "a big house"],
    }
    for split, repeats in (("train", 6), ("dev", 2), ("test", 2)):
        for source, target in (("es", "en"), ("fr", "en"), ("en", "fr")):
            for lang in (source, target):
                lines = [f"{line} {word}" for line in rows[lang] for word in rows[lang][:repeats]]
                lines = lines[: 4 * min(repeats, 4)]
                (text / f"{split}.{source}-{target}.{lang}").write_text(
                    "".join(f"{line}\n" for line in lines), encoding="utf-8"
                )
    data = root / "data"
    for source, target in (("es", "en"), ("fr", "en"), ("en", "fr")):
        _run_module(
            "data_prep.prep_espeak", "--text-dir", text, "--splits", "train", "dev", "test",
            "--src", source, "--tgt", target, "--out", root / f"{source}-{target}", "--workers", "1",
        )  # fmt: skip
    data.mkdir()
    for split in ("train", "dev", "test"):
        _concatenate([root / f"{pair}" / f"{split}.tsv" for pair in ("es-en", "fr-en", "en-fr")],
                     data / f"{split}.tsv")  # fmt: skip
    manifests = [data / "train.tsv"]
    _run_module("data_prep.build_vocab", "--manifests", *manifests,
                "--vocab-size", "60", "--langs", "en", "fr", "--out", data)  # fmt: skip
    _run_module("data_prep.build_vocab", "--manifests", *manifests, "--column", "src_text",
                "--vocab-size", "60", "--model-type", "char", "--out", data)  # fmt: skip
    return data


def _concatenate(paths: List[Path], out: Path) -> None:
    """Join manifests; audio paths become absolute because each lies in another folder."""
    header = ""
    rows: List[str] = []
    for path in paths:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        audio = header.split("\t").index("audio")
        for line in lines:
            cells = line.split("\t")
            cells[0] = f"{path.parent.name}-{cells[0]}"
            cells[audio] = str(path.parent / cells[audio])
            rows.append("\t".join(cells))
    out.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def _run_module(module: str, *arguments: Any) -> None:
    subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL,
    )  # fmt: skip
