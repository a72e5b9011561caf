"""Trains a small sentence-embedding model on translated sentences: a teacher for SAMU-XLS-R.

    python -m data_prep.train_teacher --manifests data/train.tsv --out teacher
    python -m data_prep.embed_text --manifests data/train.tsv data/dev.tsv --model teacher

LaBSE's recipe in miniature, for languages and domains where a small model of one's own is enough:
one subword vocabulary for all languages, one encoder, and a loss that ranks the translation of a
sentence above the other sentences of the batch, by a margin, in both directions. A CPU trains it in
seconds to minutes. What it says at the end is how often the nearest of all held-out sentences of
the other language is the translation (R@1), and the mean cosine of translations.

The translations come from manifests (`src_text` and `tgt_text`; rows with the same target text are
translations of each other) or from text files `NAME.LANG` or `NAME.LANG.gz`, where line i of every
language of a NAME says the same:

    python -m data_prep.train_teacher --text-files corpus.en corpus.de corpus.fr --out teacher

The folder is an ordinary sentence-transformers model: SentenceTransformer("teacher").encode([…]).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_prep.manifest import read_column
from data_prep.parallel_text import decoded_lines
from data_prep.teacher_model import ARCHITECTURES, build_model, check_device, ranking_loss

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


# Learning rates at which each architecture learned fastest.
LEARNING_RATE = {"bag": 5e-3, "transformer": 2e-3}
# Held out at most, unless asked for: this many meanings, this share of all.
HELD_OUT, HELD_OUT_SHARE = 500, 0.1


@dataclass(frozen=True)
class Recipe:
    """How a teacher is trained.

    Attributes:
        architecture: `bag`, the mean of subword embeddings, which knows no word order; or
            `transformer`, two layers of BERT, which does and costs 25 times as much.
        vocab_size: subwords, all languages together.
        dimension: width of the network and length of the vectors.
        updates: training steps.
        batch_size: pairs of sentences a step; all others of the batch are the wrong translations.
        learning_rate: the highest; a tenth of the updates warms up to it, the rest falls to 0.
        margin: by which a translation's cosine has to lead.
        scale: what cosines are multiplied by before the softmax.
        seed: of everything random.
    """

    architecture: str = "bag"
    vocab_size: int = 8000
    dimension: int = 128
    updates: int = 1000
    batch_size: int = 128
    learning_rate: float = LEARNING_RATE["bag"]
    margin: float = 0.3
    scale: float = 20.0
    seed: int = 1


class Retrieval(NamedTuple):
    """How well sentences of a language and their translations in the pivot language lie together.

    Attributes:
        sentences: how many there are to choose from.
        to_pivot: share whose nearest neighbour in the pivot language is their translation (R@1).
        from_pivot: the same from the pivot language into the language.
        cosine: mean cosine of translations; tells teachers apart whose R@1 are perfect.
    """

    sentences: int
    to_pivot: float
    from_pivot: float
    cosine: float


def read_manifests(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Meanings of manifests: every target text with the transcripts that it translates.

    Raises:
        ValueError: a row without a transcript, or no translations at all.
    """
    meanings: dict[tuple[str, str], dict[str, str]] = {}
    for path in paths:
        columns = ("src_lang", "src_text", "tgt_lang", "tgt_text")
        rows = zip(*(read_column(path, column) for column in columns))
        for number, (src_lang, src_text, tgt_lang, tgt_text) in enumerate(rows, start=2):
            if not src_text or not tgt_text:
                empty = "src_text" if tgt_text else "tgt_text"
                raise ValueError(
                    f"{path}:{number}: expected a text in {empty}, found an empty cell"
                )
            meaning = meanings.setdefault((tgt_lang, tgt_text), {tgt_lang: tgt_text})
            meaning.setdefault(src_lang, src_text)
    return _translated(list(meanings.values()), paths)


def read_text_files(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Meanings of text files `NAME.LANG` or `NAME.LANG.gz`: the lines with one number of one NAME.

    An empty line means that the sentence is missing in that language.

    Raises:
        ValueError: a name without a language, or with only one; files of different lengths; text
            that is not UTF-8.
    """
    corpora: dict[Path, dict[str, Path]] = {}
    for path in paths:
        name = path.with_suffix("") if path.suffix == ".gz" else path
        if not name.suffix:
            raise ValueError(f"{path}: expected a file name NAME.LANG or NAME.LANG.gz")
        corpora.setdefault(name.with_suffix(""), {})[name.suffix[1:]] = path
    meanings = []
    for name, files in corpora.items():
        if len(files) < 2:
            raise ValueError(f"{name}: expected files of two languages or more, found {[*files]}")
        for number, lines in enumerate(zip_longest(*map(_read_lines, files.values()))):
            if None in lines:
                ended = [*files.values()][lines.index(None)]
                raise ValueError(
                    f"{ended}: expected as many lines as the other files of {name}, found {number}"
                )
            meanings.append({language: line for language, line in zip(files, lines) if line})
    return _translated(meanings, paths)


def _read_lines(path: Path) -> Iterator[str]:
    """Lines, with one space for any white space."""
    return (" ".join(line.split()) for line in decoded_lines(path))


def _translated(meanings: list[dict[str, str]], paths: Sequence[Path]) -> list[dict[str, str]]:
    found = [meaning for meaning in meanings if len(meaning) > 1]
    if not found:
        names = ", ".join(map(str, paths))
        raise ValueError(f"{names}: expected sentences in two languages, found no translations")
    return found


def train_teacher(
    meanings: list[dict[str, str]],
    out: Path,
    recipe: Recipe,
    held_out: int | None = None,
    device: str | None = None,
) -> dict[str, Retrieval]:
    """Trains a teacher and writes it as a folder that sentence-transformers loads.

    The same input gives the same folder on the same machine.

    Args:
        meanings: what to train on, two languages or more each.
        out: the folder to write; it appears when it is complete.
        recipe: how to train.
        held_out: meanings kept for the test of retrieval; a tenth of them, up to 500, by default.
        device: such as `cuda:0`; a GPU if there is one by default.

    Returns:
        Language -> retrieval to and from the pivot language, the one that most meanings have.

    Raises:
        FileExistsError: `out` exists.
        ModuleNotFoundError: the extra `teacher` is not installed.
        OSError: `out` cannot be written.
        ValueError: not enough meanings, a recipe that cannot be, or one that diverges.
    """
    _check(recipe)
    check_device(device)
    if out.exists():
        raise FileExistsError(f"{out}: expected a new folder, found one that exists")
    if held_out is None:
        held_out = min(HELD_OUT, int(len(meanings) * HELD_OUT_SHARE))
    if not 0 <= held_out <= len(meanings) - 2:
        raise ValueError(
            f"expected two meanings or more to train on, found {len(meanings)} of which {held_out} "
            "are held out"
        )
    out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is found before training
    rng = np.random.default_rng(recipe.seed)
    order = rng.permutation(len(meanings))
    test = [meanings[i] for i in order[:held_out]]
    train = [meanings[i] for i in order[held_out:]]

    texts = (text for meaning in train for text in meaning.values())
    model = build_model(
        texts, recipe.architecture, recipe.vocab_size, recipe.dimension, recipe.seed, device
    )
    _fit(model, train, recipe, rng)
    pivot = Counter(language for meaning in meanings for language in meaning).most_common(1)[0][0]
    retrieval = measure_retrieval(model, test, pivot)
    record = {
        "recipe": asdict(recipe),
        "meanings": len(train),
        "sentences": sum(map(len, train)),
        "pivot": pivot,
        "retrieval": {language: found._asdict() for language, found in retrieval.items()},
    }
    _save(model, out, record)
    return retrieval


def _fit(
    model: SentenceTransformer,
    meanings: list[dict[str, str]],
    recipe: Recipe,
    rng: np.random.Generator,
) -> None:
    """Trains a model by translation ranking."""
    import torch

    size = min(recipe.batch_size, len(meanings))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warmup = max(1.0, 0.1 * recipe.updates)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (recipe.updates - step) / recipe.updates / 0.9),
    )
    model.train()
    left: npt.NDArray[np.int64] = np.empty(0, np.int64)
    with tqdm(total=recipe.updates, desc="teacher", unit="update") as bar:
        for _ in range(recipe.updates):
            if len(left) < size:  # the next epoch; a rest smaller than a batch is dropped
                left = rng.permutation(len(meanings))
            batch, left = left[:size], left[size:]
            pairs = [_draw_pair(meanings[i], rng) for i in batch]
            texts = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
            features = {
                name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                for name, value in model.preprocess(texts).items()
            }
            vectors = model(features)["sentence_embedding"]
            same = torch.from_numpy(_equal(texts[:size]) | _equal(texts[size:])).to(model.device)
            loss = ranking_loss(vectors[:size], vectors[size:], same, recipe.margin, recipe.scale)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"expected a finite loss, found {loss.item()} in update {bar.n + 1}: a lower "
                    f"learning rate than {recipe.learning_rate} may help"
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
    model.eval()


def _draw_pair(meaning: dict[str, str], rng: np.random.Generator) -> tuple[str, str]:
    """Sentences of two different languages."""
    texts = list(meaning.values())
    first = int(rng.integers(len(texts)))
    second = (first + 1 + int(rng.integers(len(texts) - 1))) % len(texts)
    return texts[first], texts[second]


def _equal(texts: list[str]) -> npt.NDArray[np.bool_]:
    """Which texts (B,) are the same, shape (B, B)."""
    codes = np.unique(texts, return_inverse=True)[1]
    equal: npt.NDArray[np.bool_] = codes[:, None] == codes[None, :]
    return equal


def measure_retrieval(
    model: SentenceTransformer, meanings: list[dict[str, str]], pivot: str
) -> dict[str, Retrieval]:
    """R@1 of every language to and from the pivot language, over the meanings that have both."""
    languages = sorted({language for meaning in meanings for language in meaning} - {pivot})
    result = {}
    for language in languages:
        both = [meaning for meaning in meanings if language in meaning and pivot in meaning]
        if not both:
            continue
        vectors, pivots = (
            np.asarray(model.encode([meaning[name] for meaning in both], show_progress_bar=False))
            for name in (language, pivot)
        )
        cosines = vectors @ pivots.T
        truth = np.arange(len(both))
        result[language] = Retrieval(
            len(both),
            float((cosines.argmax(axis=1) == truth).mean()),
            float((cosines.argmax(axis=0) == truth).mean()),
            float(cosines.diagonal().mean()),
        )
    return result


def _check(recipe: Recipe) -> None:
    for name in ("vocab_size", "dimension", "updates", "batch_size", "learning_rate", "scale"):
        value = getattr(recipe, name)
        if not 0 < value < math.inf:
            raise ValueError(f"expected {name} > 0, found {value}")
    if not math.isfinite(recipe.margin):
        raise ValueError(f"expected a margin between cosines, found {recipe.margin}")
    if recipe.seed < 0:
        raise ValueError(f"expected a seed ≥ 0, found {recipe.seed}")


def _save(model: SentenceTransformer, out: Path, record: dict[str, Any]) -> None:
    """Writes the folder under another name first: a folder with the real name is complete."""
    temporary = out.with_name(f".{out.name}.tmp")
    if temporary.exists():  # left by a killed run
        shutil.rmtree(temporary)
    model.save(str(temporary), create_model_card=False)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (temporary / "training.json").write_text(text, encoding="utf-8")
    os.replace(temporary, out)


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    default = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.train_teacher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--manifests", nargs="+", type=Path, metavar="NAME.tsv", help="manifests to learn from"
    )
    source.add_argument(
        "--text-files", nargs="+", type=Path, metavar="NAME.LANG", help="text files to learn from"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument(
        "--architecture", choices=ARCHITECTURES, default=default.architecture,
        help="bag: mean of subword embeddings, blind to word order; transformer: two layers of "
        "BERT, 25 times as slow (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--vocab-size", type=int, default=default.vocab_size,
        help="subwords of all languages together (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--dimension", type=int, default=default.dimension,
        help="length of the vectors (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--updates", type=int, default=default.updates, help="training steps (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=default.batch_size,
        help="pairs of sentences a step (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--learning-rate", type=float,
        help=f"highest learning rate (default: {LEARNING_RATE['bag']} for bag, "
        f"{LEARNING_RATE['transformer']} for transformer)",
    )  # fmt: skip
    parser.add_argument(
        "--margin", type=float, default=default.margin,
        help="by which a translation's cosine has to lead (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=float, default=default.scale,
        help="factor on cosines in the softmax (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--held-out", type=int,
        help="meanings kept to measure retrieval (default: a tenth, at most 500)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed, help="default: %(default)s")
    parser.add_argument(
        "--device", help="where it trains, such as cuda:1 or cpu (default: a GPU if there is one)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = build_parser().parse_args(argv)
    learning_rate = args.learning_rate
    if learning_rate is None:
        learning_rate = LEARNING_RATE[args.architecture]
    recipe = Recipe(
        args.architecture, args.vocab_size, args.dimension, args.updates, args.batch_size,
        learning_rate, args.margin, args.scale, args.seed,
    )  # fmt: skip
    start = time.monotonic()
    try:
        if args.manifests:
            meanings = read_manifests(args.manifests)
        else:
            meanings = read_text_files(args.text_files)
        retrieval = train_teacher(meanings, args.out, recipe, args.held_out, args.device)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    pivot = json.loads((args.out / "training.json").read_text(encoding="utf-8"))["pivot"]
    print(f"{args.out}: {len(meanings)} meanings, {time.monotonic() - start:.0f} s; held-out R@1:")
    for language, found in retrieval.items():
        print(
            f"  {language} → {pivot} {found.to_pivot:6.1%}   {pivot} → {language} "
            f"{found.from_pivot:6.1%}   of {found.sentences}, mean cosine {found.cosine:.2f}"
        )


if __name__ == "__main__":
    main()
