"""Nearest neighbours between two sets of vectors, of speech or of text, by cosine.

Speech → text, speech → speech, text → speech:

    python -m fairseq_samu.search --queries data/test.samu.npy --corpus data/train.labse.npy
    python -m fairseq_samu.search --queries data/test.samu.npy --corpus data/train.samu.npy
    python -m fairseq_samu.search --text "the cat eats" --corpus data/train.samu.npy

Vectors of speech come from `fairseq_samu.embed`, those of texts from `data_prep.embed_text`. The rows
that NAME.<model>.npy belongs to are looked for in NAME.tsv or NAME.txt beside it. Prints tab-separated
columns: query (its id or text, or its row), rank from 1, score (cosine), row of the corpus from 0, and
id and text of that row.
"""

import argparse
import importlib.util
import logging
import signal
from pathlib import Path
from typing import Optional, Sequence, Tuple

from data_prep.embed_text import LABSE, load_teacher
from fairseq_samu.labelled_vectors import Label, LabelledVectors, open_labelled
from fairseq_samu.nearest import nearest_neighbours
from fairseq_samu.utterances import AUDIO_COLUMN

COLUMNS = ("query", "rank", "score", "row", "id", "text")


def embed_texts(texts: Sequence[str], teacher: str, device: Optional[str]) -> LabelledVectors:
    """Vectors of texts by a sentence-transformers model.

    Args:
        texts: what to embed.
        teacher: name or folder of the model.
        device: where it computes; None = a GPU if there is one.

    Raises:
        ModuleNotFoundError: the extra ``teacher`` is not installed.
        ValueError: it cannot be loaded.
    """
    model = load_teacher(teacher, device)
    vectors = model.encode(list(texts))
    return LabelledVectors(vectors, lambda row: Label("", texts[row]), "text", model.sha256)


def _query_name(label: Label, row: int) -> str:
    return label.id or label.text.strip() or str(row)


def _open_both(args: argparse.Namespace) -> Tuple[LabelledVectors, LabelledVectors]:
    corpus = open_labelled(args.corpus, args.corpus_rows)
    if args.queries is not None:
        queries = open_labelled(args.queries, args.query_rows)
    else:
        queries = embed_texts(args.text, args.teacher, "cpu" if args.cpu else None)
    found = queries.vectors.shape[1]
    if found != corpus.vectors.shape[1]:
        raise ValueError(
            f"{args.corpus}: expected vectors of the queries' width {found}, found "
            f"{corpus.vectors.shape[1]}: an encoder and the teacher it was trained towards have the same"
        )
    models = {side.model_sha256 for side in (queries, corpus) if side.model_sha256}
    if AUDIO_COLUMN not in (queries.column, corpus.column) and len(models) > 1:
        raise ValueError(
            f"{args.corpus}: expected texts embedded by the teacher of the queries, found another one"
        )
    return queries, corpus


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_samu.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--queries", type=Path, metavar="A.npy", help="vectors to search for")
    what.add_argument("--text", nargs="+", help="sentences to search for")
    parser.add_argument(
        "--teacher", default=LABSE, metavar="NAME_OR_FOLDER",
        help="sentence-transformers model that embeds --text, the one that the encoder was trained "
        "towards (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--corpus", type=Path, required=True, metavar="B.npy", help="vectors to search among"
    )
    for side, option in (("queries", "--query-rows"), ("corpus", "--corpus-rows")):
        parser.add_argument(
            option, type=Path, metavar="FILE",
            help=f"rows of --{side}: a manifest, or a .txt with one item a line (default: see above)",
        )  # fmt: skip
    parser.add_argument("--top-k", type=int, default=5, help="neighbours (default: %(default)s)")
    parser.add_argument(
        "--exact", action="store_true",
        help="search with numpy, even where FAISS (the extra `search`) is installed",
    )  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="do not embed --text on a GPU")
    args = parser.parse_args(argv)
    if args.top_k < 1:
        parser.error(f"--top-k: expected at least 1, found {args.top_k}")
    use_faiss = not args.exact and importlib.util.find_spec("faiss") is not None
    try:
        queries, corpus = _open_both(args)
        scores, rows = nearest_neighbours(queries.vectors, corpus.vectors, args.top_k, use_faiss)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print("\t".join(COLUMNS))
    for query in range(len(rows)):
        name = _query_name(queries.label(query), query)
        for rank, (row, score) in enumerate(zip(rows[query].tolist(), scores[query]), start=1):
            found = corpus.label(row)
            columns = (name, rank, f"{score:.4f}", row, found.id, found.text)
            print(*(_cell(column) for column in columns), sep="\t")


def _cell(value: object) -> str:
    """Text of a cell; a line of a file may have tabs in it."""
    return " ".join(str(value).split())


if __name__ == "__main__":
    # Importing fairseq has switched the debugging messages of all libraries on.
    logging.getLogger().setLevel(logging.WARNING)
    # As other commands do, end without a word where the reader has enough: `… | head`.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
