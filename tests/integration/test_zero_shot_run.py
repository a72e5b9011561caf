"""Train on one source language, score all, compare; and go on where it was."""

import json

import pytest

from fairseq_samu.zero_shot import main


@pytest.fixture
def options(tiny_model, tiny_training):
    return [*tiny_model, *tiny_training, "--max-update", "2"]


def line(corpus, out, options, *more, name="samu", seen="es"):
    return [
        str(part)
        for part in ["run", corpus, "--seen", seen, "--name", name, "--out", out, "--beam", "1",
                     "--max-len-b", "10", "--resamples", "40", *more, "--", *options]
    ]  # fmt: skip


def refused(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_trains_on_the_seen_languages_and_scores_all(corpus, tmp_path, options, capsys):
    out = tmp_path / "out"
    main(line(corpus, out, options, "--page", "--page-examples", "1"))
    shown = capsys.readouterr().out
    assert "$ fairseq-train " in shown and "--source-langs es " in shown
    assert "train: 2 of 2 updates, nll_loss" in shown
    log = (out / "samu" / "log" / "train.txt").read_text()
    assert "nll_es-en" in log and "nll_fr-en" not in log and "nll_en-fr" not in log
    rows = len((corpus / "test.tsv").read_text().splitlines()) - 1
    generated = (out / "samu" / "generate-test.txt").read_text()
    assert len([text for text in generated.splitlines() if text.startswith("D-")]) == rows
    results = json.loads((out / "zero_shot.json").read_text())
    assert {pair: entry["seen"] for pair, entry in results["pairs"].items()} == {
        "es-en": True, "fr-en": False, "en-fr": False,
    }  # fmt: skip
    for name in ("zero_shot.md", "zero_shot.png", "report.html"):
        assert (out / name).stat().st_size > 1000

    # The same again does nothing but the report; another beam translates, but does not train.
    main(line(corpus, out, options))
    shown = capsys.readouterr().out
    assert "Train samu: done before" in shown and "Translate test with samu: done before" in shown
    again = line(corpus, out, options)
    again[again.index("--beam") + 1] = "2"
    main(again)
    shown = capsys.readouterr().out
    assert "Train samu: done before" in shown and "$ fairseq-generate" in shown
    # What was deleted is made again.
    (out / "samu" / "generate-test.txt").unlink()
    main(again)
    assert "$ fairseq-generate" in capsys.readouterr().out
    # Another training is refused.
    error = refused(capsys, line(corpus, out, [*options, "--dropout", "0.2"]))
    assert "--dropout: absent, now 0.2" in error
    error = refused(capsys, line(corpus, out, options, seen="es,fr"))
    assert "--source-langs: es, now es,fr" in error

    # A second system is compared with the first, whose outputs are its own.
    copy = tmp_path / "copy.txt"
    copy.write_text(generated)
    main(line(corpus, out, options, "--baseline", copy))
    results = json.loads((out / "zero_shot.json").read_text())
    assert results["baseline"] == "baseline" and list(results["systems"]) == ["baseline", "samu"]
    copy.write_text("".join(f"{text}\n" for text in generated.splitlines() if "D-3\t" not in text))
    assert "each of the" in refused(capsys, line(corpus, out, options, "--baseline", copy))


def test_what_cannot_work_is_refused_before_training(corpus, tmp_path, options, capsys):
    out = tmp_path / "out"
    error = refused(capsys, line(corpus, out, options, seen="de"))
    assert "each once: en, es, fr; found de" in error
    assert "after --, found none" in refused(capsys, line(corpus, out, []))
    error = refused(capsys, line(corpus, out, options, "--beem", "3"))
    assert "fairseq-generate" in error and "--beem" in error
    error = refused(capsys, line(corpus, out, [*options, "--save-dir", "x"]))
    assert "options of fairseq-train: --save-dir is set by this command" in error
    error = refused(capsys, line(corpus, out, [*options, "--arch", "x"]))
    assert "--arch is given twice" in error
    assert "found 'data'" in refused(capsys, line(corpus, out, ["data", *options]))
    assert "found 'a/b'" in refused(capsys, line(corpus, out, options, name="a/b"))
    error = refused(capsys, line(corpus, out, options, "--baseline", tmp_path / "nowhere.txt"))
    assert "nowhere.txt" in error
    for wrong, message in (
        (["--max-update"], "--max-update: expected one value, found []"),
        (["--max-update", "1e3"], "--max-update: expected a number, found '1e3'"),
        (["--audio-root"], "--audio-root: expected one value, found []"),
    ):
        assert message in refused(capsys, line(corpus, out, [*options[:-2], *wrong]))
    for option, value, message in (
        ("--beam", "0", "--beam: expected at least 1, found 0"),
        ("--resamples", "10", "--resamples: expected at least 40"),
        ("--seed", "-1", "--seed: expected 0 or more, found -1"),
    ):
        assert message in refused(capsys, line(corpus, out, options, option, value))
    assert not out.exists()
    (out / "samu").mkdir(parents=True)
    for damaged in ('{"train": ["da', "[]"):
        (out / "samu" / "commands.json").write_text(damaged)
        error = refused(capsys, line(corpus, out, options))
        assert "commands.json: expected the commands of earlier calls" in error
