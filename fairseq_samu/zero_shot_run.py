"""Trains translation on some source languages and translates a split of all of them."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any, Dict, List, Sequence

from fairseq import options

import fairseq_samu
from data_prep.atomic import ReplacedFile
from fairseq_samu.stages import Stages

#: Options of training that fairseq-generate has to be given alike, unless it gets its own.
SHARED = (
    "--user-dir", "--task", "--cpu", "--num-workers", "--max-tokens", "--batch-size", "--audio-root",
    "--dictionary", "--sentencepiece-model", "--transcript-dictionary", "--transcript-sentencepiece-model",
    "--normalize", "--max-source-positions", "--min-source-positions", "--max-target-positions",
    "--lang-tag-template", "--lang-tag-map", "--detokenizer",
)  # fmt: skip
#: Options that the run itself sets, per command.
SET_HERE = {
    "fairseq-train": ("--save-dir", "--source-langs"),
    "fairseq-generate": ("--path", "--gen-subset", "--results-path"),
}


class ZeroShotRun:
    """One system: its training, and its translations of a split.

    Finished steps are not repeated and an interrupted training goes on. Another training command than
    that of the first call is refused; another generation command translates again.

    Args:
        data: folder of manifests and vocabularies.
        seen: source languages to train on.
        out: folder of the system: checkpoints, logs, translations.
        split: what to translate.
        train_options: options of fairseq-train.
        generate_options: options of fairseq-generate.

    Attributes:
        generated: what fairseq-generate writes.
        audio_root: folder that relative audio paths start from.

    Raises:
        ValueError: options that cannot be, or are not those of the first call.
    """

    def __init__(
        self,
        data: Path,
        seen: Sequence[str],
        out: Path,
        split: str,
        train_options: Sequence[str],
        generate_options: Sequence[str],
    ) -> None:
        self.out = out
        self._record = out / "commands.json"
        self.split = split
        self.generated = out / f"generate-{split}.txt"
        train = _grouped("fairseq-train", train_options)
        train.setdefault("--user-dir", [str(fairseq_samu.USER_DIR)])
        train.setdefault("--task", ["speech_to_text_samu"])
        train.setdefault("--log-format", ["json"])
        generate = _grouped("fairseq-generate", generate_options)
        for option in SHARED:
            if option in train:
                generate.setdefault(option, train[option])
        generate.setdefault("--scoring", ["sacrebleu"])
        self.audio_root = Path(_value(train, "--audio-root", str(data)))
        updates = _value(train, "--max-update", "0")
        if not updates.isdecimal():
            raise ValueError(
                f"options of fairseq-train: --max-update: expected a number, found {updates!r}"
            )
        self.updates = int(updates)
        folder = str(data.resolve())
        self.train = [folder, *_line(train), "--source-langs", ",".join(seen),
                      "--save-dir", str(out / "checkpoints")]  # fmt: skip
        self.generate = [
            folder,
            *_line(generate),
            "--gen-subset",
            split,
            "--results-path",
            str(out),
        ]
        _check_generate_options(self.generate)
        self._check_recorded()

    def __call__(self) -> None:
        """Train and translate, as far as that is not done.

        Raises:
            SystemExit: a command failed, or training left no checkpoint.
        """
        stages = Stages(self.out)
        if self._recorded().get("generate") != self.generate or not self.generated.is_file():
            stages.forget("generate")
        commands = {"train": self.train, "generate": self.generate}
        record = ReplacedFile(self._record)
        record.temporary.write_text(json.dumps(commands, indent=2) + "\n", encoding="utf-8")
        record.commit()
        stages.step(
            "train",
            f"Train {self.out.name}",
            lambda: stages.call(
                "fairseq_cli.train", *self.train, log="train", updates=self.updates
            ),
        )
        stages.step(
            "generate",
            f"Translate {self.split} with {self.out.name}",
            lambda: stages.call(
                "fairseq_cli.generate", *self.generate, "--path", self._checkpoint(), log="generate"
            ),
        )

    def _checkpoint(self) -> Path:
        """The best checkpoint, or the last one where there was no validation."""
        folder = self.out / "checkpoints"
        for name in ("checkpoint_best.pt", "checkpoint_last.pt"):
            if (folder / name).is_file():
                return folder / name
        raise SystemExit(f"{folder}: expected checkpoint_best.pt or checkpoint_last.pt, found none")

    def _recorded(self) -> Dict[str, List[str]]:
        if not self._record.is_file():
            return {}
        try:
            commands = json.loads(self._record.read_text("utf-8"))
            return {name: [str(part) for part in line] for name, line in commands.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self._record}: expected the commands of earlier calls, found: {error}; give another "
                "--name or --out"
            ) from error

    def _check_recorded(self) -> None:
        recorded = self._recorded().get("train", self.train)
        if recorded == self.train:
            return
        old, new = (_grouped("", line[1:]) for line in (recorded, self.train))
        old["data"], new["data"] = recorded[:1], self.train[:1]
        changes = [
            f"{option}: {_shown(old.get(option))}, now {_shown(new.get(option))}"
            for option in {**old, **new}
            if old.get(option) != new.get(option)
        ]
        raise ValueError(
            f"{self.out}: was trained with other options ({'; '.join(changes) or 'in another order'}); "
            "expected the same, or another --name or --out"
        )


def _grouped(command: str, line: Sequence[str]) -> Dict[str, List[str]]:
    """Option → its values, of a command line without positional arguments.

    Raises:
        ValueError: something before the first option, an option twice, or one that the run sets itself.
    """
    found: Dict[str, List[str]] = {}
    values: List[str] = []
    for position, token in enumerate(line):
        if token.startswith("--"):
            option, equals, value = token.partition("=")
            if option in SET_HERE.get(command, ()) or option in found:
                reason = "is given twice" if option in found else "is set by this command"
                raise ValueError(f"options of {command}: {option} {reason}")
            values = found[option] = [value] if equals else []
        elif position == 0:
            raise ValueError(f"options of {command}: expected an option first, found {token!r}")
        else:
            values.append(token)
    return found


def _value(train: Dict[str, List[str]], option: str, default: str) -> str:
    values = train.get(option, [default])
    if len(values) != 1:
        raise ValueError(f"options of fairseq-train: {option}: expected one value, found {values}")
    return values[0]


def _line(grouped: Dict[str, List[str]]) -> List[str]:
    return [token for option, values in grouped.items() for token in (option, *values)]


def _shown(values: Any) -> str:
    return "absent" if values is None else shlex.join(values) or "set"


def _check_generate_options(line: Sequence[str]) -> None:
    """Let fairseq read its options now, not after a training.

    Raises:
        ValueError: fairseq-generate would refuse them.
    """

    def fail(message: str) -> None:
        raise ValueError(f"options of fairseq-generate: {message}")

    parser: argparse.ArgumentParser = options.get_generation_parser()
    parser.error = fail  # type: ignore[assignment,method-assign]
    options.parse_args_and_arch(parser, input_args=list(line))
