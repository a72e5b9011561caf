"""A corpus of noise: whole files, and channels of a recording."""

import functools

from data_prep.clips import Place
from data_prep.corpus import Corpus, CorpusRow

RATE = 44_100


def rows(speech, split):
    for i in range(20):
        yield CorpusRow(
            f"{split}-{i}", Place(f"{speech}/{i}.wav"), f"uno {i}", "es", f"one {i}", "en", "ana"
        )
    for i in range(20):
        place = Place(f"{speech}/long.flac", 0.25 * i, 0.2, i % 2)
        yield CorpusRow(f"{split}-long-{i}", place, f"dos {i}", "es", f"two {i}", "en", "eva")


def corpus(speech, splits=("train", "dev")):
    return Corpus(
        "example", {}, {split: functools.partial(rows, speech, split) for split in splits},
        published_rows={("train", "es", "en"): 41},
    )  # fmt: skip
