"""Reports over several systems: tables, averages, groups, chart, page, and what is refused."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import sacrebleu
import soundfile

from fairseq_samu.report_page import spread
from fairseq_samu.zero_shot import main
from fairseq_samu.zero_shot_report import averages_of, resource_group

HEADER = "id audio n_frames tgt_text speaker src_text src_lang tgt_lang".split()
TEXTS = [
    "the cat eats the bread near the old house",
    "a dog runs through the big red house",
    "the girl drinks cold water in the morning",
    "an old man sees a small tree & a <b>bird</b>",
]
HOSTILE = '<script>alert("1")</script></p><img src=x onerror=alert(2)> & |'


@pytest.fixture
def data(tmp_path):
    """A test split of es, it, zh-CN → en, 4 rows each, with the output of two systems."""
    rows, outputs = [HEADER], {"base": [], "samu": []}
    time = np.arange(8000) / 16000
    for number, lang in enumerate(("es", "it", "zh-CN")):
        for i, text in enumerate(TEXTS):
            row = 4 * number + i
            path = tmp_path / f"{lang}{i}.wav"
            soundfile.write(path, 0.5 * np.sin(2 * np.pi * (200 + 50 * row) * time), 16000)
            rows.append([f"{lang}-{i}", path.name, "8000", text, "s", f"source {row}", lang, "en"])
            words = text.split()
            for name, wrong in (("base", 2 + number), ("samu", 1)):
                hypothesis = " ".join(["uh"] * wrong + words[wrong:])
                outputs[name] += [f"T-{row}\t{text}", f"D-{row}\t-0.1\t{hypothesis}"]
    (tmp_path / "test.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    for name, lines in outputs.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return tmp_path


def report(data, *arguments, seen="es"):
    main(
        ["report", "--data", str(data), "--seen", seen, "--out", str(data / "out"), "--resamples", "50",
         "--system", f"samu={data / 'samu.txt'}", "--system", f"base={data / 'base.txt'}",
         *map(str, arguments)]
    )  # fmt: skip
    return json.loads((data / "out" / "zero_shot.json").read_text())


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_scores_are_those_of_sacrebleu_and_averages_plain_means(data):
    results = report(data, "--baseline", "base")
    assert list(results["systems"]) == ["base", "samu"]
    bleu = {}
    for number, pair in enumerate(("es-en", "it-en", "zh-CN-en")):
        entry = results["pairs"][pair]
        assert entry["sentences"] == 4
        hypotheses = [" ".join(["uh"] + text.split()[1:]) for text in TEXTS]
        expected = sacrebleu.corpus_bleu(hypotheses, [TEXTS]).score
        assert entry["systems"]["samu"]["bleu"]["score"] == pytest.approx(expected)
        hypotheses = [
            " ".join(["uh"] * (2 + number) + text.split()[2 + number :]) for text in TEXTS
        ]
        bleu[pair] = sacrebleu.corpus_bleu(hypotheses, [TEXTS]).score
        assert entry["systems"]["base"]["bleu"]["score"] == pytest.approx(bleu[pair])
        expected = sacrebleu.corpus_chrf(hypotheses, [TEXTS]).score
        assert entry["systems"]["base"]["chrf"]["score"] == pytest.approx(expected)
    averages = results["averages"]
    assert {name: entry["pairs"] for name, entry in averages.items()} == {
        "seen": ["es-en"], "unseen": ["it-en", "zh-CN-en"], "high": ["es-en"],
        "medium": ["it-en", "zh-CN-en"], "all": ["es-en", "it-en", "zh-CN-en"],
    }  # fmt: skip
    expected = (bleu["it-en"] + bleu["zh-CN-en"]) / 2
    assert averages["unseen"]["systems"]["base"]["bleu"]["score"] == pytest.approx(expected)
    expected = sum(bleu.values()) / 3
    assert averages["all"]["systems"]["base"]["bleu"]["score"] == pytest.approx(expected)
    difference = averages["all"]["systems"]["samu"]["bleu"]
    assert difference["difference"] == pytest.approx(difference["score"] - expected)
    # A single pair's average is the pair.
    assert averages["seen"]["systems"] == {
        name: {metric: pytest.approx(values) for metric, values in scores.items()}
        for name, scores in results["pairs"]["es-en"]["systems"].items()
    }
    assert "p" not in averages["seen"]["systems"]["base"]["bleu"]


def test_markdown_has_a_row_for_every_pair_and_average_with_signatures(data):
    results = report(data, "--baseline", "base")
    text = (data / "out" / "zero_shot.md").read_text()
    bleu = text[text.index("## BLEU") : text.index("## chrF2")].splitlines()
    assert bleu[2] == "| pair | sentences | base | samu | Δ | p |"
    assert [line.split(" | ")[0].strip("| ") for line in bleu[4:12]] == [
        "es-en", r"it-en\*", r"zh-CN-en\*", "**seen (1 pair)**", r"**unseen\* (2 pairs)**",
        "**high (1 pair)**", r"**medium\* (2 pairs)**", "**all (3 pairs)**",
    ]  # fmt: skip
    entry = results["averages"]["unseen"]["systems"]
    cells = bleu[8].strip("| ").split(" | ")
    assert cells[1:3] == [
        "8", f"{entry['base']['bleu']['score']:.1f} ± {entry['base']['bleu']['ci']:.1f}",
    ]  # fmt: skip
    assert cells[4:] == [
        f"{entry['samu']['bleu']['difference']:+.1f}",
        f"{entry['samu']['bleu']['p']:.4f}",
    ]
    version = sacrebleu.__version__
    assert (
        f"nrefs:1|bs:50|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}" in text
    )
    assert results["sacrebleu"] == version


def test_without_a_baseline_nothing_is_compared(data):
    results = report(data)
    assert results["baseline"] is None
    assert "p" not in results["pairs"]["es-en"]["systems"]["samu"]["bleu"]
    assert "| pair | sentences | samu | base |" in (data / "out" / "zero_shot.md").read_text()
    assert not (data / "out" / "report.html").exists()


@pytest.mark.parametrize(
    "pair, group",
    [("fr-en", "high"), ("ca-en", "high"), ("zh-CN-en", "medium"), ("pt_BR-en", "medium"),
     ("sv-SE-en_US", "low"), ("cy-en", "low"), ("ET-en", "low"), ("cs-en", None), ("fr-de", None)],
)  # fmt: skip
def test_resource_groups_are_those_of_covost_into_english(pair, group):
    source, target = pair.rsplit("-", 1)
    assert resource_group((source, target)) == group


def test_averages_without_members_are_left_out():
    pairs = [("cs", "en"), ("de", "fr")]
    assert averages_of(pairs, ["cs", "de"]) == {
        "seen": ["cs-en", "de-fr"], "all": ["cs-en", "de-fr"],
    }  # fmt: skip


def test_the_chart_shows_bars_in_the_colours_of_both_systems(data):
    from matplotlib.image import imread

    report(data, "--baseline", "base")
    image = imread(data / "out" / "zero_shot.png")[..., :3]
    height, width = image.shape[:2]
    assert height == 630 and width >= 960
    colours, counts = np.unique((image.reshape(-1, 3) * 255).round(), axis=0, return_counts=True)
    areas = {tuple(colour.astype(int)): count for colour, count in zip(colours, counts)}
    assert areas[(0x99, 0x99, 0x99)] > 10_000 and areas[(0x00, 0x72, 0xB2)] > 10_000
    # The seen languages' background lies left of that of the unseen.
    seen, unseen = (
        np.argwhere((image * 255).round().astype(int) == colour)[:, 1]
        for colour in ((0xEE, 0xF4, 0xFA), (0xFD, 0xF3, 0xE3))
    )
    assert np.median(seen) < np.median(unseen)


class Page(HTMLParser):
    """Elements and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_is_one_file_with_audio_and_texts_as_they_are(data):
    change(data / "samu.txt", "D-8\t-0.1\t", f"D-8\t-0.1\t{HOSTILE}")
    change(data / "test.tsv", "source 8", HOSTILE)
    report(data, "--baseline", "base", "--page", "--page-examples", "2")
    text = (data / "out" / "report.html").read_text()
    page = Page(text)
    assert not page.of("script") and not page.of("b")
    assert HOSTILE in page.texts  # the transcript, letter by letter
    assert any(found.startswith(HOSTILE + "uh") for found in page.texts)
    assert TEXTS[3] in page.texts  # a reference
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#"))
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in page.of("meta")[1]["content"]
    (chart,) = page.of("img")
    assert base64.b64decode(chart["src"].split(",")[1]).startswith(b"\x89PNG")

    players = page.of("audio")
    assert len(players) == 6 and all("controls" in player for player in players)
    for player, row in zip(players, (0, 3, 4, 7, 8, 11)):
        kind, content = player["src"].split(";base64,")
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
        assert kind == "data:audio/flac" and rate == 16000 and len(wave) == 8000
        pitch = np.abs(np.fft.rfft(wave)).argmax() * 2  # bins of 2 Hz
        assert pitch == 200 + 50 * row
    score = sacrebleu.sentence_chrf("uh " + TEXTS[3].split(" ", 1)[1], [TEXTS[3]]).score
    assert f"{score:.0f}" in page.texts


def test_examples_are_spread_evenly():
    assert spread(10, 3) == [0, 4, 9]
    assert spread(2, 3) == [0, 1]
    assert spread(5, 1) == [0]


def test_names_and_options_that_do_not_fit_are_refused(data, capsys):
    base = ["report", "--data", data, "--out", data / "out"]
    system = ["--system", f"samu={data / 'samu.txt'}"]
    error = refused(capsys, *base, *system, "--seen", "es,fr")
    assert "test.tsv, each once: es, it, zh-CN; found fr" in error
    assert "found es, es" in refused(capsys, *base, *system, "--seen", "es,es")
    seen = ["--seen", "es"]
    assert "'samu' twice" in refused(capsys, *base, *system, *system, *seen)
    error = refused(capsys, *base, *system, *seen, "--baseline", "base")
    assert "expected one of samu; found 'base'" in error
    assert "NAME=PATH" in refused(capsys, *base, "--system", data / "samu.txt", *seen)
    assert "found '<b>'" in refused(capsys, *base, "--system", f"<b>={data / 'samu.txt'}", *seen)
    assert "at least 40" in refused(capsys, *base, *system, *seen, "--resamples", "10")
    found = refused(capsys, *base, *system, *seen, "--resamples", "2000000000000")
    assert "at most 1,000,000, found 2000000000000" in found
    found = refused(capsys, *base, *system, *seen, "--seed", "-1")
    assert "--seed: expected 0 or more, found -1" in found
    assert "at least 1" in refused(capsys, *base, *system, *seen, "--page-examples", "0")
    assert "unrecognized" in refused(capsys, *base, *system, *seen, "--beam", "5")
    assert "nowhere.txt" in refused(capsys, *base, "--system", "a=nowhere.txt", *seen)
    assert not (data / "out").exists()


def test_outputs_that_do_not_cover_the_split_are_refused(data, capsys):
    line = ["report", "--data", data, "--out", data / "out", "--seen", "es",
            "--system", f"samu={data / 'samu.txt'}", "--system", f"base={data / 'base.txt'}"]  # fmt: skip
    text = (data / "base.txt").read_text()
    (data / "base.txt").write_text(re.sub(r"[TD]-5\t.*\n", "", text))
    error = refused(capsys, *line)
    assert "system 'base'" in error and "each of the 12 rows" in error and "found 11" in error
    assert f"{data / 'test.tsv'}:7" in error
    (data / "base.txt").write_text(text + "D-12\t-0.1\tone too many\n")
    assert "hypothesis for row 12" in refused(capsys, *line)
    (data / "base.txt").write_text(re.sub(r"T-(\d+)\t.*", r"T-\1\tanother split", text))
    assert "expected the manifest of the split" in refused(capsys, *line)
    assert not (data / "out").exists()
