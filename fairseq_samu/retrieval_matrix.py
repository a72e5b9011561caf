r"""Retrieval between all languages: which spoken language finds its meaning in which other one?

    python -m fairseq_samu.retrieval_matrix --manifest data/test.tsv --speech samu \
        --against text --teacher labse labse-tgt --out retrieval
    python -m fairseq_samu.retrieval_matrix --manifest data/test.tsv --speech samu \
        --against speech --out retrieval

A row is the language of the spoken query, a column that of the candidates: all distinct texts of that
language in the manifest (transcripts, and with the teacher's vectors of tgt_text the target texts), or all
utterances. Utterances and texts have one meaning if a row of the manifest joins them, or equal texts of
one language do: in a multi-parallel test set the common translation joins all languages. Queries without
a candidate of their meaning are left out. Prints R@1 and writes retrieval.json (R@1, R@5, mean reciprocal
rank, queries and candidates of every cell), retrieval.md and the heat map retrieval.png.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data_prep.extras import needs_extra
from fairseq_samu.data.manifest import Manifest
from fairseq_samu.data.teacher_embeddings import TeacherEmbeddings
from fairseq_samu.retrieval import first_right_ranks, rank_scores
from fairseq_samu.utterances import AUDIO_COLUMN

#: Scores of a cell: their name in JSON → in tables, and digits after the point.
METRICS = {"r1": ("R@1 in %", 1), "r5": ("R@5 in %", 1), "mrr": ("mean reciprocal rank", 3)}
#: What stands in a cell without scores.
EMPTY = "–"
LANG_COLUMN = {"src_text": "src_lang", "tgt_text": "tgt_lang"}

Cell = Optional[Dict[str, float]]


class Candidates(NamedTuple):
    """Utterances or texts of one language.

    Attributes:
        files: vectors (N, E) of whole files, mapped from disk; texts of two columns lie in two.
        places: (C, 2) file and row of every candidate.
        meanings: (C,) number of each one's meaning.
    """

    files: Sequence[NDArray[Any]]
    places: NDArray[np.int64]
    meanings: NDArray[np.int64]

    def read(self, keep: Any = slice(None)) -> Tensor:
        """Vectors of length one, float32, of some candidates."""
        places = self.places[keep]
        found = np.empty((len(places), self.files[0].shape[1]), np.float32)
        for number, vectors in enumerate(self.files):
            mine = places[:, 0] == number
            found[mine] = vectors[places[mine, 1]]
        return F.normalize(torch.from_numpy(found), dim=1)


def row_meanings(manifest: Manifest) -> NDArray[np.int64]:
    """Number (N,) of every row's meaning: rows that share a transcript or a target text have one.

    Rows are joined over several steps too: es–en and en–fr by their English.
    """
    parent = list(range(len(manifest)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: Dict[Tuple[str, str], int] = {}
    for row in range(len(manifest)):
        for column, lang_column in LANG_COLUMN.items():
            text = manifest.cell(row, column)
            if text:
                other = first.setdefault((manifest.cell(row, lang_column), text), row)
                parent[root(row)] = root(other)
    return np.array([root(row) for row in range(len(manifest))])


def utterances_by_language(
    manifest: Manifest, speech: NDArray[Any], meanings: NDArray[np.int64]
) -> Dict[str, Candidates]:
    """The utterances of every source language."""
    langs = np.array([source for source, _ in manifest.pairs])[manifest.pair_ids]
    found = {}
    for lang in sorted(set(langs.tolist())):
        rows = np.flatnonzero(langs == lang)
        places = np.stack([np.zeros_like(rows), rows], axis=1)
        found[lang] = Candidates([speech], places, meanings[rows])
    return found


def texts_by_language(
    manifest: Manifest, teachers: Sequence[TeacherEmbeddings], meanings: NDArray[np.int64]
) -> Dict[str, Candidates]:
    """The distinct texts of every language, in all columns that were embedded."""
    places: Dict[str, Dict[str, Tuple[int, int]]] = {}
    for number, teacher in enumerate(teachers):
        for row in range(len(manifest)):
            of_lang = places.setdefault(manifest.cell(row, LANG_COLUMN[teacher.column]), {})
            of_lang.setdefault(manifest.cell(row, teacher.column), (number, row))
    files = [teacher.vectors for teacher in teachers]
    found = {}
    for lang, of_lang in sorted(places.items()):
        where = np.array(list(of_lang.values()))
        found[lang] = Candidates(files, where, meanings[where[:, 1]])
    return found


def retrieval_cell(queries: Candidates, candidates: Candidates, same: bool) -> Cell:
    """Scores of the queries that have a candidate of their meaning; None without any.

    Args:
        queries: utterances of one language.
        candidates: utterances or texts of one language.
        same: the candidates are the queries: an utterance is not to find itself.
    """
    numbers, counts = np.unique(candidates.meanings, return_counts=True)
    keep = np.flatnonzero(np.isin(queries.meanings, numbers[counts > int(same)]))
    if len(keep) == 0:
        return None
    ranks = first_right_ranks(
        queries.read(keep),
        candidates.read(),
        torch.from_numpy(queries.meanings[keep]),
        torch.from_numpy(candidates.meanings),
        itself=torch.from_numpy(keep) if same else None,
    )
    return {**rank_scores(ranks), "queries": len(keep), "candidates": len(candidates.meanings)}


def retrieval_matrix(
    queries: Dict[str, Candidates], candidates: Dict[str, Candidates]
) -> Dict[str, Dict[str, Cell]]:
    """Cells by language of the query and of the candidates."""
    return {
        lang: {
            other: retrieval_cell(of_lang, among, same=among is of_lang)
            for other, among in candidates.items()
        }
        for lang, of_lang in queries.items()
    }


def _values(cells: Dict[str, Dict[str, Cell]], metric: str) -> NDArray[np.float64]:
    """One score of all cells, NaN where there is none."""
    return np.array(
        [[cell[metric] if cell else np.nan for cell in row.values()] for row in cells.values()]
    )


def markdown(cells: Dict[str, Dict[str, Cell]], metric: str, against: str) -> str:
    """A table of one score, with the mean of every row."""
    title, digits = METRICS[metric]
    langs = list(next(iter(cells.values())))
    lines = [
        f"{title}: spoken query (row) → {against} (column)",
        "",
        "| | " + " | ".join([*langs, "mean"]) + " |",
        "|---" * (len(langs) + 2) + "|",
    ]
    for lang, row in zip(cells, _values(cells, metric)):
        there = row[~np.isnan(row)]
        numbers = [*row.tolist(), there.mean() if len(there) else np.nan]
        shown = [EMPTY if np.isnan(value) else f"{value:.{digits}f}" for value in numbers]
        lines.append(f"| {lang} | " + " | ".join(shown) + " |")
    if np.isnan(_values(cells, metric)).any():
        lines += ["", _explanation(against)]
    return "\n".join(lines)


def _explanation(against: str) -> str:
    other = "another utterance" if against == "speech" else "a text"
    return f"{EMPTY} no utterance of this language has the meaning of {other} of that language"


def heat_map(cells: Dict[str, Dict[str, Cell]], against: str) -> Any:
    """Draw R@1 of all cells: a matplotlib ``Figure``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    with needs_extra("plot", "the heat map"):
        from matplotlib.figure import Figure
    values = _values(cells, "r1")
    rows, columns = values.shape
    size = 0.55  # inches of a cell
    figure = Figure(
        figsize=(3.2 + size * columns, 1.9 + size * rows), layout="constrained", dpi=150
    )
    axes = figure.add_subplot()
    axes.set_facecolor("0.92")
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="equal")
    for (row, column), value in np.ndenumerate(values):
        text = EMPTY if np.isnan(value) else f"{value:.0f}"
        dark = not np.isnan(value) and value < 60
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(columns), list(next(iter(cells.values()))))
    axes.set_yticks(range(rows), list(cells))
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"language of the {against}")
    axes.set_ylabel("language of the spoken query")
    axes.set_title(f"Speech → {against} retrieval", fontsize="medium")
    bar = figure.colorbar(image, ax=axes, label="R@1 in %")
    bar.outline.set_visible(False)
    if np.isnan(values).any():
        figure.supxlabel(f"{EMPTY} no common meanings", fontsize="small", x=0.02, ha="left")
    return figure


def _open_teachers(manifest: Manifest, names: Sequence[str], dim: int) -> List[TeacherEmbeddings]:
    teachers = [TeacherEmbeddings(manifest, name) for name in names]
    for teacher in teachers:
        if teacher.column not in LANG_COLUMN:
            raise ValueError(f"{teacher.path}: expected vectors of texts, found {teacher.column}")
        if teacher.dim != dim:
            raise ValueError(
                f"{teacher.path}: expected vectors of the encoder's width {dim}, found {teacher.dim}"
            )
        if teacher.model_sha256 != teachers[0].model_sha256:
            raise ValueError(
                f"{teacher.path}: expected the teacher of {teachers[0].path}, found another one"
            )
        teacher.check_vectors()
    return teachers


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_samu.retrieval_matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--manifest", type=Path, required=True, metavar="NAME.tsv")
    parser.add_argument(
        "--speech", required=True, metavar="NAME",
        help="vectors of the utterances: NAME.<this>.npy beside the manifest, or the path of the file",
    )  # fmt: skip
    parser.add_argument("--against", choices=["text", "speech"], default="text")
    parser.add_argument(
        "--teacher", nargs="+", metavar="NAME",
        help="vectors of the texts, for --against text: of transcripts, target texts or both; "
        "names or paths as for --speech",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args(argv)
    if (args.against == "text") != bool(args.teacher):
        parser.error("--against text and --teacher go together")
    try:
        manifest = Manifest(args.manifest)
        speech = TeacherEmbeddings(manifest, args.speech)
        if speech.column != AUDIO_COLUMN:
            raise ValueError(f"{speech.path}: expected vectors of speech, found {speech.column}")
        speech.check_vectors()
        meanings = row_meanings(manifest)
        queries = utterances_by_language(manifest, speech.vectors, meanings)
        candidates = queries
        if args.against == "text":
            teachers = _open_teachers(manifest, args.teacher, speech.dim)
            candidates = texts_by_language(manifest, teachers, meanings)
        cells = retrieval_matrix(queries, candidates)
        args.out.mkdir(parents=True, exist_ok=True)
        results = {"against": args.against, "manifest": str(args.manifest), "cells": cells}
        _write(args.out / "retrieval.json", json.dumps(results, indent=2, ensure_ascii=False))
        tables = [markdown(cells, metric, args.against) for metric in METRICS]
        _write(args.out / "retrieval.md", "\n\n".join(tables))
        print(tables[0])
        heat_map(cells, args.against).savefig(args.out / "retrieval.png")
    except (ModuleNotFoundError, OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    # Importing fairseq has switched the debugging messages of all libraries on.
    logging.getLogger().setLevel(logging.WARNING)
    main()
