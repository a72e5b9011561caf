"""A self-contained HTML page: score tables, the chart, and utterances to listen to."""

import base64
import html
import io
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import soundfile
from sacrebleu.metrics import CHRF

from fairseq_samu.bootstrap import METRICS
from fairseq_samu.data.audio import SAMPLE_RATE, read_audio
from fairseq_samu.data.manifest import Manifest
from fairseq_samu.zero_shot_report import METRIC_NAMES, PairOutputs, notes, score_table

#: Nothing is loaded from anywhere and nothing runs, whatever a hypothesis says.
CONTENT_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --line: #d0d4d9; --soft: #f4f6f8; --dim: #59636e; --mark: #b35900; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a4149; --soft: #1d2228; --dim: #9aa5b1; --mark: #f0a050; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tr.average { background: var(--soft); font-weight: 600; }
tr.first td { border-top: 2px solid var(--dim); }
.notes { color: var(--dim); font-size: .85rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
article { border: 1px solid var(--line); border-radius: 8px; padding: .8rem; margin: .8rem 0; }
audio { width: 100%; max-width: 30rem; height: 2.4rem; }
.texts { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); }
.texts div { background: var(--soft); border-radius: 6px; padding: .5rem .7rem; }
.texts p { margin: 0; overflow-wrap: anywhere; }
.label { color: var(--dim); font-size: .8rem; display: flex; justify-content: space-between; gap: 1rem; }
.unseen { color: var(--mark); font-weight: 600; }
nav a { margin-right: .8rem; }
"""


def write_page(
    path: Path,
    results: Dict[str, Any],
    outputs: Dict[Tuple[str, str], PairOutputs],
    manifest: Manifest,
    audio_root: str,
    chart: Path,
    examples: int,
) -> None:
    """Write the page as one file that needs no other.

    Args:
        path: the HTML file.
        results: from :func:`fairseq_samu.zero_shot_report.compare`.
        outputs: the translations.
        manifest: the split.
        audio_root: folder that relative audio paths start from.
        chart: the PNG to show.
        examples: utterances to show of each language pair, evenly spread over its rows.

    Raises:
        AudioError: the audio of an example cannot be read.
    """
    title = f"Translation of {Path(manifest.path).stem}"
    links = "".join(f'<a href="#{_e(name)}">{_e(name)}</a> ' for name in results["pairs"])
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_e(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_e(title)}</h1>",
        '<p><img alt="Scores per language as bars; the table below has the numbers" '
        f'src="{_data_uri("image/png", chart.read_bytes())}"></p>',
    ]
    parts += [_table(results, metric) for metric in METRICS]
    parts.append(
        f'<ul class="notes">{"".join(f"<li>{_e(line)}</li>" for line in notes(results))}</ul>'
    )
    parts.append(
        f"<h2>Utterances</h2>\n<p>Evenly spread over the rows of each language pair, not picked by score. "
        f"The number is chrF2 of the sentence.</p>\n<nav>{links}</nav>"
    )
    for pair, output in outputs.items():
        name = "-".join(pair)
        seen = results["pairs"][name]["seen"]
        mark = "" if seen else ' <span class="unseen">zero-shot</span>'
        parts.append(f'<section id="{_e(name)}">\n<h3>{_e(name)}{mark}</h3>')
        for i in spread(len(output.rows), examples):
            parts.append(_example(pair, output, i, manifest, audio_root))
        parts.append("</section>")
    parts.append("</body>\n</html>\n")
    path.write_text("\n".join(parts), encoding="utf-8")


def spread(count: int, wanted: int) -> List[int]:
    """Up to ``wanted`` of ``count`` positions, evenly spread, the same in every call."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, wanted)).round()})


def _table(results: Dict[str, Any], metric: str) -> str:
    head, rows, pairs = score_table(results, metric)
    lines = [f'<h2>{METRIC_NAMES[metric]}</h2>\n<div class="wide"><table><thead><tr>']
    lines += [f'<th scope="col">{_e(cell)}</th>' for cell in head]
    lines.append("</tr></thead><tbody>")
    for number, row in enumerate(rows):
        kind = "average first" if number == pairs else "average" if number > pairs else ""
        cells = "".join(f"<td>{_e(cell)}</td>" for cell in row)
        lines.append(f'<tr class="{kind}">{cells}</tr>')
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def _example(
    pair: Tuple[str, str], output: PairOutputs, i: int, manifest: Manifest, audio_root: str
) -> str:
    """One utterance: its audio, and transcript, reference and hypotheses side by side."""
    row = manifest.row(output.rows[i])
    wave = read_audio(row["audio"], audio_root)
    encoded = io.BytesIO()
    soundfile.write(encoded, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    reference = output.references[i]
    source, target = (lang.replace("_", "-") for lang in pair)
    texts = [
        _text("transcript", row["src_text"], source),
        _text("reference", reference, target),
    ]
    for system, hypotheses in output.hypotheses.items():
        score = CHRF().sentence_score(hypotheses[i], [reference]).score
        texts.append(_text(system, hypotheses[i], target, f"{score:.0f}"))
    return (
        f'<article>\n<p class="label"><span>{_e(row["id"])}</span>'
        f"<span>{len(wave) / SAMPLE_RATE:.1f} s</span></p>\n"
        f'<audio controls preload="metadata" src="{_data_uri("audio/flac", encoded.getvalue())}"></audio>\n'
        f'<div class="texts">{"".join(texts)}</div>\n</article>'
    )


def _text(label: str, text: str, lang: str, score: str = "") -> str:
    return (
        f'<div><p class="label"><span>{_e(label)}</span><span>{score}</span></p>'
        f'<p lang="{_e(lang)}" dir="auto">{_e(text) or "–"}</p></div>'
    )


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _e(text: str) -> str:
    """Text as it is, in HTML: hypotheses and manifests are not to be trusted."""
    return html.escape(text, quote=True)
