"""From nothing to a translator for languages that never had a translation.

    python examples/demo/run.py --out demo_out

Six languages are spoken by a synthesiser, with transcripts; translations into English exist for two of
them. A small multilingual teacher embeds sentences (LaBSE's recipe in miniature), a speech encoder learns
to land on the teacher's vector of what was said, in all six languages (SAMU-XLS-R), and a decoder learns
to translate the two. Then all six are translated, four of them zero-shot. Beside it stands a baseline:
the same encoder, trained for as many updates on the same transcripts, without the teacher.

Every step is a command that a user would type; it is printed before it runs, and what it says goes to
OUT/log. A step that has finished is not done again: run the same line to go on.
"""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from data_prep.manifest import read_column
from fairseq_samu.stages import Stages

USER_DIR = Path(__file__).resolve().parents[2] / "fairseq_samu"
SOURCE_LANGS = ["es", "fr", "it", "pt", "de", "ca"]
SEEN_LANGS = ["es", "fr"]
TARGET_LANG = "en"
UTTERANCES = 1500
SYSTEMS = ["samu", "baseline"]

# Updates of 60 s of speech (translation: 120 s).
CTC_UPDATES = 500
ENCODER_UPDATES = 1500
# The baseline's decoder starts from frames that say less; it gets the time to catch up on es and fr.
TRANSLATION_UPDATES = {"samu": 400, "baseline": 800}

# Every command has one thread: two trainings run side by side, and a second thread gains little.
OPTIMIZER = [
    "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--weight-decay", "0.01",
    "--clip-norm", "1.0", "--lr", "0.002", "--lr-scheduler", "polynomial_decay",
]  # fmt: skip
LOGGING = [
    "--log-format", "json", "--log-interval", "20", "--no-epoch-checkpoints", "--cpu",
    "--num-workers", "1", "--seed", "1",
]  # fmt: skip
# 80 log-mel energies, 25 frames a second: a third of the time of convolutions over samples.
ENCODER = [
    "--encoder-features", "log_mel", "--encoder-conv-layers", "[(128, 3, 2), (128, 3, 2)]",
]  # fmt: skip


class Demo(Stages):
    """The steps of the demo.

    Args:
        out: folder of everything that it makes.
        teacher: folder or name of a sentence-transformers model; None trains a small one.
    """

    def __init__(self, out: Path, teacher: Optional[str] = None) -> None:
        super().__init__(out)
        self.data = out / "data"
        self.teacher = teacher

    def check_teacher(self) -> None:
        """Refuse to mix what was made with one teacher with another's.

        Raises:
            SystemExit: the folder's sentences were embedded by another teacher.
        """
        record = self.out / "options.json"
        teacher = self.teacher
        if teacher is not None and Path(teacher).is_dir():
            teacher = str(Path(teacher).resolve())
        # Without a record: of the time before there were any, when most folders had the small teacher.
        made = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        if "teacher" in self.seconds and made.get("teacher") != teacher:
            old, new = (name or "the small one" for name in (made.get("teacher"), teacher))
            raise SystemExit(
                f"{self.out}: expected --teacher as in the first call, {old}; found {new}: give "
                "another teacher another --out"
            )
        content = json.dumps({"teacher": teacher}) + "\n"
        record.write_text(content, encoding="utf-8")

    def speak(self) -> None:
        """Write sentences of a grammar and speak them."""
        text = self.out / "text"
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("grammar.py")), "--out", str(text),
             "--langs", *SOURCE_LANGS, "--tgt", TARGET_LANG, "--train", str(UTTERANCES),
             "--dev", "50", "--test", "200", "--seed", "1"],
            check=True,
        )  # fmt: skip
        self.call(
            "data_prep.prep_espeak", "--text-dir", text, "--splits", "train", "dev", "test",
            "--src", *SOURCE_LANGS, "--tgt", TARGET_LANG, "--out", self.data,
            "--voices", "", "+m3", "+f2", "--rate", "230", log="speech",
        )  # fmt: skip

    def build_vocabularies(self) -> None:
        """Train the SentencePiece models of target texts and transcripts."""
        for column in ("tgt_text", "src_text"):
            self.call(
                "data_prep.build_vocab", "--manifests", self.data / "train.tsv",
                "--column", column, "--model-type", "bpe", "--vocab-size", 200, "--out", self.data,
                *(["--langs", TARGET_LANG] if column == "tgt_text" else []), log=f"vocab_{column}",
            )  # fmt: skip

    def embed_texts(self) -> None:
        """Train the teacher, unless there is one, and embed all transcripts and translations."""
        teacher = self.teacher or str(self.out / "teacher")
        # Its folder is complete where there is one: an earlier call was killed while it embedded.
        if self.teacher is None and not Path(teacher).exists():
            self.call(
                "data_prep.train_teacher", "--manifests", self.data / "train.tsv", "--out", teacher,
                "--vocab-size", "600", log="teacher",
            )  # fmt: skip
        self.call(
            "data_prep.embed_text", "--manifests",
            *(self.data / f"{split}.tsv" for split in ("train", "dev", "test")),
            "--model", teacher, "--teacher-name", "teacher", "--column", "both", log="embed_text",
        )  # fmt: skip

    def train_encoder(self, name: str, updates: int, *options: object) -> None:
        """Train a ``samu_xlsr`` on transcripts and, if its distance counts, on the teacher's vectors."""
        self.call(
            "fairseq_cli.train", self.data, "--user-dir", USER_DIR, "--task", "speech_to_text_samu",
            "--train-subset", "train", "--valid-subset", "dev", "--teacher", "teacher",
            "--transcript-dictionary", "dict_src.txt",
            "--transcript-sentencepiece-model", "spm_src.model",
            "--arch", "samu_xlsr_tiny", *ENCODER,
            "--criterion", "mse_to_labse", "--transcript-ctc-weight", "1", *options, *OPTIMIZER,
            "--warmup-updates", updates // 10, "--total-num-update", updates,
            "--max-update", updates, "--max-tokens", "960000", "--validate-interval", "4",
            *LOGGING, "--save-dir", self.out / name,
            log=name, updates=updates, threads=1,
        )  # fmt: skip

    def train_semantic_stage(self) -> None:
        """Go on from the CTC encoder: with the teacher, and for the baseline without."""
        start = ["--finetune-from-model", self.out / "ctc" / "checkpoint_last.pt"]
        distances = {"samu": "100", "baseline": "0"}

        def train(name: str) -> None:
            weight = ["--distance-weight", distances[name]]
            self.train_encoder(f"{name}_encoder", ENCODER_UPDATES, *weight, *start)

        self.parallel(*(partial(train, name) for name in SYSTEMS))

    def translate(self, name: str) -> None:
        """Train a decoder on the languages with translations, and translate all languages."""
        encoder = self.out / f"{name}_encoder" / "checkpoint_last.pt"
        view = ["--encoder-view", "projected", "--encoder-view-noise", "0.7"]
        updates = TRANSLATION_UPDATES[name]
        self.call(
            "fairseq_cli.train", self.data, "--user-dir", USER_DIR, "--task", "speech_to_text_samu",
            "--train-subset", "train", "--valid-subset", "dev",
            "--source-langs", ",".join(SEEN_LANGS),
            "--arch", "xlsr_mbart_st_tiny", "--adaptor-layers", "1", *ENCODER,
            "--speech-encoder-path", encoder, "--train-encoder", "none",
            *(view if name == "samu" else []),
            "--criterion", "label_smoothed_nll", "--label-smoothing", "0.1", *OPTIMIZER,
            "--warmup-updates", updates // 10, "--total-num-update", updates,
            "--max-update", updates, "--max-tokens", "1920000", "--validate-interval", "4",
            "--eval-bleu", "--eval-beam", "1", "--eval-max-len", "40",
            *LOGGING, "--save-dir", self.out / name,
            log=f"{name}_translation", updates=updates, threads=1,
        )  # fmt: skip
        output = self.call(
            "fairseq_cli.generate", self.data, "--user-dir", USER_DIR,
            "--task", "speech_to_text_samu", "--gen-subset", "test",
            "--path", self.out / name / "checkpoint_last.pt", "--beam", "5", "--max-len-b", "40",
            "--max-tokens", "1600000", "--cpu", "--no-progress-bar",
            log=f"{name}_generate", threads=1,
        )  # fmt: skip
        self.hypotheses(name).write_text(output, encoding="utf-8")

    def hypotheses(self, name: str) -> Path:
        """Where the translations of a system are."""
        return self.out / f"{name}.generate-test.txt"

    def translate_all(self) -> None:
        """Translate with both systems side by side."""
        self.parallel(*(partial(self.translate, name) for name in SYSTEMS))

    def retrieve(self) -> None:
        """Look up every utterance of the test split among the English sentences."""
        self.call(
            "fairseq_samu.embed", "--path", self.out / "samu_encoder" / "checkpoint_last.pt",
            "--data", self.data, "--splits", "test", "--name", "samu", "--cpu", log="embed",
        )  # fmt: skip
        print(self.call(
            "fairseq_samu.retrieval_matrix", "--manifest", self.data / "test.tsv",
            "--speech", "samu", "--against", "text", "--teacher", "teacher", "teacher-tgt",
            "--out", self.out / "retrieval", log="retrieval",
        ))  # fmt: skip

    def report(self) -> None:
        """Write the tables, the chart and the page."""
        print(self.call(
            "fairseq_samu.zero_shot", "report", "--data", self.data, "--split", "test",
            *(part for name in SYSTEMS for part in ("--system", f"{name}={self.hypotheses(name)}")),
            "--baseline", "baseline", "--seen", ",".join(SEEN_LANGS), "--page", "--out", self.out,
            log="report",
        ))  # fmt: skip

    def translate_one_file(self) -> None:
        """Write one utterance of an unseen language to a file and translate it by its path."""
        rows = zip(*(read_column(self.data / "test.tsv", column)
                     for column in ("src_lang", "audio", "src_text", "tgt_text")))  # fmt: skip
        _, audio, spoken, reference = next(row for row in rows if row[0] not in SEEN_LANGS)
        archive, offset, length = audio.rsplit(":", 2)
        path = self.out / "one_utterance.flac"
        with open(self.data / archive, "rb") as file:
            file.seek(int(offset))
            path.write_bytes(file.read(int(length)))
        output = self.call(
            "fairseq_cli.interactive", self.data, "--user-dir", USER_DIR,
            "--task", "speech_to_text_samu", "--target-lang", TARGET_LANG,
            "--path", self.out / "samu" / "checkpoint_last.pt", "--beam", "5",
            "--max-len-b", "40", "--cpu", log="interactive", stdin=f"{path}\n",
        )  # fmt: skip
        hypothesis = next(line for line in output.splitlines() if line.startswith("D-0"))
        print(f"   spoken:     {spoken}")
        print(f"   translated: {hypothesis.split(chr(9))[2]}")
        print(f"   reference:  {reference}")


def write_results(demo: Demo) -> None:
    """Write what was measured to ``results.json``."""
    pairs = json.loads((demo.out / "zero_shot.json").read_text(encoding="utf-8"))["pairs"]
    matrix = json.loads((demo.out / "retrieval" / "retrieval.json").read_text(encoding="utf-8"))
    retrieval = {lang: matrix["cells"][lang][TARGET_LANG]["r1"] for lang in SOURCE_LANGS}
    install = Path(sys.prefix) / ".install_seconds"
    spent = demo.seconds
    seconds: Dict[str, float] = {
        "install": float(install.read_text()) if install.is_file() else 0.0,
        "speech": spent["speech"],
        "teacher": spent["vocabulary"] + spent["teacher"],
        "samu": spent["ctc"] + spent["samu"],
        "translation": spent["translation"],
        "report": spent["retrieval"] + spent["report"] + spent["interactive"],
    }
    seconds["total"] = sum(seconds.values())
    results = {
        **{
            metric: {
                name: {
                    pair: round(scores["systems"][name][metric]["score"], 1)
                    for pair, scores in pairs.items()
                }
                for name in SYSTEMS
            }
            for metric in ("bleu", "chrf")
        },
        "seen": SEEN_LANGS,
        "retrieval_r1": retrieval,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
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
    parser.add_argument(
        "--teacher",
        help="name or folder of a sentence-transformers model, such as LaBSE's, in place of the small "
        "teacher that is trained otherwise",
    )
    args = parser.parse_args(argv)
    try:
        demo = Demo(args.out, args.teacher)
    except OSError as error:
        parser.error(f"--out: expected a folder to write to, found: {error}")
    demo.check_teacher()
    steps: List[Tuple[str, str, Callable[[], None]]] = [
        ("speech", f"Speak {UTTERANCES} sentences in each of {', '.join(SOURCE_LANGS)}", demo.speak),
        ("vocabulary", "Build the vocabularies", demo.build_vocabularies),
        ("teacher", "Embed the sentences with the teacher", demo.embed_texts),
        ("ctc", "Teach a speech encoder the transcripts",
         lambda: demo.train_encoder("ctc", CTC_UPDATES, "--distance-weight", "0")),
        ("samu", "Teach it the sentence embeddings; beside it the baseline goes on as before",
         demo.train_semantic_stage),
        ("translation", f"Translate from {' and '.join(SEEN_LANGS)}, then from all",
         demo.translate_all),
        ("retrieval", "Search English sentences by speech", demo.retrieve),
        ("report", "Compare the systems", demo.report),
        ("interactive", "Translate one file of a language that had no translations",
         demo.translate_one_file),
    ]  # fmt: skip
    for name, what, run in steps:
        demo.step(name, what, run)
    write_results(demo)


if __name__ == "__main__":
    main()
