"""fairseq-generate and fairseq-interactive on a trained checkpoint."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def checkpoint(corpus, tiny_model, tiny_training, run_fairseq, tmp_path_factory) -> Path:
    """A model that has learnt enough to give different hypotheses for different speech."""
    save_dir = tmp_path_factory.mktemp("checkpoint")
    run_fairseq(
        "train", corpus, *tiny_model, *tiny_training, "--max-update", "400", "--log-interval", "50",
        "--disable-validation", "--save-dir", save_dir,
    )  # fmt: skip
    return save_dir / "checkpoint_last.pt"


def generate(run_fairseq, corpus, checkpoint, *options):
    return run_fairseq(
        "generate", corpus, "--task", "speech_to_text_samu", "--path", checkpoint, "--cpu",
        "--gen-subset", "test", "--beam", "5", "--scoring", "sacrebleu", "--max-len-b", "30", *options,
    ).stdout  # fmt: skip


def lines(output: str, kind: str):
    """Row → text of the T-, H- or D- lines."""
    found = {}
    for line in output.splitlines():
        match = re.match(rf"{kind}-(\d+)\t(.*)", line)
        if match:
            found[int(match[1])] = match[2].split("\t")[-1]
    return found


@pytest.fixture(scope="module")
def generated(run_fairseq, corpus, checkpoint) -> str:
    return generate(run_fairseq, corpus, checkpoint, "--max-tokens", "1600000")


def test_batching_changes_no_hypothesis(run_fairseq, corpus, checkpoint, generated):
    alone = generate(run_fairseq, corpus, checkpoint, "--batch-size", "1")
    assert lines(alone, "D") == lines(generated, "D")
    assert len(set(lines(alone, "D").values())) > 3, "the model says the same whatever it hears"


def test_every_row_gets_the_tag_of_its_target_language(corpus, generated):
    header, *rows = (corpus / "test.tsv").read_text(encoding="utf-8").splitlines()
    column = header.split("\t").index("tgt_lang")
    hypotheses = lines(generated, "H")
    assert len(hypotheses) == len(rows)
    for number, row in enumerate(rows):
        assert hypotheses[number].startswith(f"<lang:{row.split(chr(9))[column]}> ")
    assert not any("<lang" in text for text in lines(generated, "D").values())


def test_the_tag_adds_nothing_to_the_score(generated):
    """It is given and was never trained; the model's opinion of it means nothing."""
    positional = lines(generated, "P")
    assert positional
    assert {text.split()[0] for text in positional.values()} == {"0.0000"}
    for row, text in positional.items():
        values = [float(value) for value in text.split()]
        score = float(re.search(rf"^H-{row}\t(\S+)", generated, re.M)[1])
        assert score == pytest.approx(sum(values) / len(values), abs=1e-3)


def test_bleu_is_that_of_the_sacrebleu_command(tmp_path, generated):
    hypotheses, references = lines(generated, "D"), lines(generated, "T")
    for name, texts in (("hyp", hypotheses), ("ref", references)):
        (tmp_path / name).write_text(
            "".join(f"{texts[i]}\n" for i in sorted(texts)), encoding="utf-8"
        )
    for metric, printed in (("bleu", r"BLEU = ([\d.]+)"), ("chrf", r"chrF2 = ([\d.]+)")):
        expected = subprocess.run(
            [sys.executable, "-m", "sacrebleu", str(tmp_path / "ref"), "-i", str(tmp_path / "hyp"),
             "-m", metric, "-b", "-w", "2"],
            check=True, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip
        assert float(re.findall(printed, generated)[-1]) == pytest.approx(
            float(expected), abs=0.005
        )
    assert re.search(r"nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:", generated)


def test_score_command_agrees_with_sacrebleu(corpus, tmp_path, generated):
    output = tmp_path / "generate-test.txt"
    output.write_text(generated, encoding="utf-8")
    table = subprocess.run(
        [sys.executable, "-m", "fairseq_samu.score", str(output), "--manifest",
         str(corpus / "test.tsv"), "--out-dir", str(tmp_path / "scores")],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    for pair in ("en-fr", "es-en", "fr-en"):
        expected = subprocess.run(
            [sys.executable, "-m", "sacrebleu", str(tmp_path / "scores" / f"ref.{pair}.txt"), "-i",
             str(tmp_path / "scores" / f"hyp.{pair}.txt"), "-b", "-w", "1"],
            check=True, stdout=subprocess.PIPE, text=True,
        ).stdout.strip()  # fmt: skip
        assert f"| {pair} |" in table
        row = next(line for line in table.splitlines() if line.startswith(f"| {pair} |"))
        assert row.split("|")[3].strip() == expected


def test_interactive_translates_paths_from_standard_input(
    run_fairseq, corpus, checkpoint, generated, tmp_path
):
    """The same rows give the same hypotheses, whether they come from a manifest or as paths."""
    header, *rows = (corpus / "test.tsv").read_text(encoding="utf-8").splitlines()
    names = header.split("\t")
    audio, target = names.index("audio"), names.index("tgt_lang")
    wanted = [i for i, row in enumerate(rows) if row.split("\t")[target] == "en"][:3]
    paths = []
    for number, i in enumerate(wanted):
        archive, offset, length = rows[i].split("\t")[audio].rsplit(":", 2)
        data = Path(archive).read_bytes()[int(offset) : int(offset) + int(length)]
        paths.append(tmp_path / f"{number}.flac")
        paths[-1].write_bytes(data)
    output = run_fairseq(
        "interactive", corpus, "--task", "speech_to_text_samu", "--path", checkpoint, "--cpu",
        "--beam", "5", "--max-len-b", "30", "--target-lang", "en", "--buffer-size", "3",
        "--batch-size", "3", stdin="".join(f"{path}\n" for path in paths),
    ).stdout  # fmt: skip
    found = lines(output, "D")
    expected = lines(generated, "D")
    assert [found[i] for i in range(3)] == [expected[i] for i in wanted]


def test_interactive_needs_a_target_language(run_fairseq, corpus, checkpoint, tmp_path):
    result = run_fairseq(
        "interactive", corpus, "--task", "speech_to_text_samu", "--path", checkpoint, "--cpu",
        "--target-lang", "de", stdin=f"{tmp_path / 'absent.wav'}\n", check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert "absent.wav" in result.stdout or "valid" in result.stdout
