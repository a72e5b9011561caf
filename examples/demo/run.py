"""From nothing to translated speech: speak a corpus, train on it, translate unseen speech, score.

    python examples/demo/run.py --out demo_out

Every step is one of the commands that a user would type; it is printed before it runs, and its output
goes to ``demo_out/log``. A step that has finished is not done again: run the same line to go on.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from tqdm import tqdm

from data_prep.manifest import read_column

REPOSITORY = Path(__file__).resolve().parents[2]
USER_DIR = REPOSITORY / "fairseq_samu"
SOURCE_LANGS = ["es", "fr", "it"]
TARGET_LANG = "en"
UTTERANCES = 1500
MAX_UPDATE = 1000


class Demo:
    """Runs steps once each, shows what they do, and keeps how long they took.

    Args:
        out: folder of everything that the demo makes.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.data = out / "data"
        self.times = out / "seconds.json"
        (out / "log").mkdir(parents=True, exist_ok=True)
        self.seconds: Dict[str, float] = (
            json.loads(self.times.read_text()) if self.times.is_file() else {}
        )

    def step(self, name: str, what: str, run: Callable[[], None]) -> None:
        """Run a step unless an earlier call has finished it."""
        if name in self.seconds:
            print(f"== {what}: done before, in {self.seconds[name]:.0f} s")
            return
        print(f"== {what}", flush=True)
        start = time.time()
        run()
        self.seconds[name] = round(time.time() - start, 1)
        self.times.write_text(json.dumps(self.seconds, indent=2) + "\n")
        print(f"   {self.seconds[name]:.0f} s", flush=True)

    def call(
        self, module: str, *arguments: object, log: str, stdin: str = "", updates: int = 0
    ) -> str:
        """Run ``python -m module``, with a progress bar when it trains; return what it printed."""
        line = [sys.executable, "-m", module, *map(str, arguments)]
        shown = {"fairseq_cli.": "fairseq-", "data_prep.": "python -m data_prep."}
        name = next((new + module[len(old) :] for old, new in shown.items() if module.startswith(old)),
                    f"python -m {module}")  # fmt: skip
        print(f"   $ {name} {shlex.join(line[3:])}", flush=True)
        path = self.out / "log" / f"{log}.txt"
        printed: List[str] = []
        process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(stdin)
        process.stdin.close()
        bar = tqdm(
            total=updates, unit="update", disable=not updates, file=sys.stdout, mininterval=2
        )
        with open(path, "w", encoding="utf-8") as file:
            for text in process.stdout:
                file.write(text)
                printed.append(text)
                _show_progress(bar, text)
        bar.close()
        if process.wait() != 0:
            sys.exit(f"{name} failed; the end of {path}:\n{''.join(printed[-15:])}")
        return "".join(printed)


def _show_progress(bar: "tqdm[None]", text: str) -> None:
    """Move the bar by a line of fairseq's JSON log."""
    match = re.search(r"\| (train_inner|dev) \| (\{.*\})", text)
    if match is None:
        return
    entry = json.loads(match[2])
    prefix = "dev_" if match[1] == "dev" else ""
    bar.update(int(entry[f"{prefix}num_updates"]) - bar.n)
    shown = {
        key: entry[prefix + key]
        for key in ("nll_loss", "ctc_loss", "bleu")
        if prefix + key in entry
    }
    bar.set_postfix(shown)


def translation_options(demo: Demo) -> List[object]:
    """Options of the translation stage."""
    return [
        demo.data, "--user-dir", USER_DIR, "--task", "speech_to_text_samu",
        "--train-subset", "train", "--valid-subset", "dev",
        "--transcript-dictionary", "dict_src.txt",
        "--transcript-sentencepiece-model", "spm_src.model",
        "--arch", "xlsr_mbart_st_tiny", "--ctc",
        "--criterion", "label_smoothed_nll", "--label-smoothing", "0.1", "--ctc-weight", "0.5",
        "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--weight-decay", "0.01",
        "--clip-norm", "1.0", "--lr", "0.002",
        "--lr-scheduler", "polynomial_decay", "--warmup-updates", "100",
        "--total-num-update", MAX_UPDATE, "--max-update", MAX_UPDATE,
        "--max-tokens", "960000", "--cpu", "--num-workers", "1", "--seed", "1",
        "--eval-bleu", "--eval-beam", "1", "--eval-max-len", "40",
        "--validate-interval", "4", "--no-epoch-checkpoints",
        "--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric",
        "--log-format", "json", "--log-interval", "20", "--save-dir", demo.out / "translation",
    ]  # fmt: skip


def generate(demo: Demo) -> None:
    """Translate the test split and score it per language pair."""
    output = demo.call(
        "fairseq_cli.generate", demo.data, "--user-dir", USER_DIR, "--task", "speech_to_text_samu",
        "--gen-subset", "test", "--path", demo.out / "translation" / "checkpoint_best.pt",
        "--beam", "5", "--max-len-b", "40", "--max-tokens", "1600000", "--scoring", "sacrebleu",
        "--cpu", "--no-progress-bar", log="generate",
    )  # fmt: skip
    (demo.out / "generate-test.txt").write_text(output, encoding="utf-8")
    print(
        demo.call(
            "fairseq_samu.score", demo.out / "generate-test.txt",
            "--manifest", demo.data / "test.tsv", "--out-dir", demo.out / "scores", log="score",
        )
    )  # fmt: skip


def translate_one_file(demo: Demo) -> None:
    """Write one utterance of the test split to a file and translate it by its path."""
    audio, spoken, reference = (
        next(iter(read_column(demo.data / "test.tsv", column)))
        for column in ("audio", "src_text", "tgt_text")
    )
    archive, offset, length = audio.rsplit(":", 2)
    path = demo.out / "one_utterance.flac"
    with open(demo.data / archive, "rb") as file:
        file.seek(int(offset))
        path.write_bytes(file.read(int(length)))
    output = demo.call(
        "fairseq_cli.interactive", demo.data, "--user-dir", USER_DIR,
        "--task", "speech_to_text_samu", "--target-lang", TARGET_LANG,
        "--path", demo.out / "translation" / "checkpoint_best.pt", "--beam", "5",
        "--max-len-b", "40", "--cpu", log="interactive", stdin=f"{path}\n",
    )  # fmt: skip
    hypothesis = next(line for line in output.splitlines() if line.startswith("D-0"))
    print(f"   spoken:     {spoken}")
    print(f"   translated: {hypothesis.split(chr(9))[2]}")
    print(f"   reference:  {reference}")


def write_results(demo: Demo) -> None:
    """Write what was measured to ``results.json``."""
    scores = json.loads((demo.out / "scores" / "scores.json").read_text(encoding="utf-8"))
    install = Path(sys.prefix) / ".install_seconds"
    seconds = {"install": float(install.read_text()) if install.is_file() else 0.0, **demo.seconds}
    seconds["total"] = round(sum(seconds.values()), 1)
    results = {
        "bleu": {"translation": {pair: score["bleu"] for pair, score in scores.items()}},
        "chrf": {"translation": {pair: score["chrf"] for pair, score in scores.items()}},
        "seen": SOURCE_LANGS,
        "seconds": seconds,
    }
    path = demo.out / "results.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(
        f"{path}: {seconds['total']:.0f} s in all, of which {seconds['install']:.0f} s installation"
    )


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder to write to")
    args = parser.parse_args(argv)
    demo = Demo(args.out)

    def speak() -> None:
        text = demo.out / "text"
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("grammar.py")), "--out", str(text),
             "--langs", *SOURCE_LANGS, "--tgt", TARGET_LANG, "--train", str(UTTERANCES),
             "--dev", "50", "--test", "100", "--seed", "1"],
            check=True,
        )  # fmt: skip
        demo.call(
            "data_prep.prep_espeak", "--text-dir", text, "--splits", "train", "dev", "test",
            "--src", *SOURCE_LANGS, "--tgt", TARGET_LANG, "--out", demo.data,
            "--voices", "", "+m3", "+f2", "--rate", "230", log="speech",
        )  # fmt: skip

    def build_vocabularies() -> None:
        for column, kind, size in (("tgt_text", "bpe", 200), ("src_text", "char", 100)):
            demo.call(
                "data_prep.build_vocab", "--manifests", demo.data / "train.tsv", "--column", column,
                "--model-type", kind, "--vocab-size", size, "--out", demo.data,
                *(["--langs", TARGET_LANG] if column == "tgt_text" else []), log=f"vocab_{column}",
            )  # fmt: skip

    demo.step("speech", f"Speak {UTTERANCES} sentences in each of {', '.join(SOURCE_LANGS)}", speak)
    demo.step("vocabulary", "Build the vocabularies", build_vocabularies)
    demo.step(
        "translation",
        "Train a translator with fairseq-train",
        lambda: demo.call("fairseq_cli.train", *translation_options(demo), log="train",
                          updates=MAX_UPDATE) and None,
    )  # fmt: skip
    demo.step("generate", "Translate unseen speech with fairseq-generate", lambda: generate(demo))
    demo.step("interactive", "Translate one file with fairseq-interactive",
              lambda: translate_one_file(demo))  # fmt: skip
    write_results(demo)


if __name__ == "__main__":
    main()
