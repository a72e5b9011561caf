"""What came of a corpus: for every split and language pair, what was dropped, what is there twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_prep.archive import SAMPLE_RATE
from data_prep.journal import Journal

# What splits may share → column of the journal.
SHARED = {"speech": "audio_key", "id": "id", "transcript and translation": "text_key"}


@dataclass(frozen=True)
class PairSummary:
    """The utterances of a split in one language pair.

    Attributes:
        src_lang: source language.
        tgt_lang: target language; empty where there are only transcripts.
        rows: utterances of the manifest.
        hours: of them.
        mean_seconds: mean length.
        longest_seconds: greatest length.
        characters_per_second: of the transcripts, or the translations where there are none.
        published_rows: what the corpus's authors state; None if they do not.
        dropped: rows of the corpus in this pair that cannot be used.
    """

    src_lang: str
    tgt_lang: str
    rows: int
    hours: float
    mean_seconds: float
    longest_seconds: float
    characters_per_second: float
    published_rows: int | None
    dropped: int = 0

    @property
    def name(self) -> str:
        """For people: "es→en", or "es" where there are only transcripts."""
        return f"{self.src_lang}→{self.tgt_lang}" if self.tgt_lang else self.src_lang


@dataclass(frozen=True)
class SplitSummary:
    """What was made of a split.

    Attributes:
        rows: of the manifest.
        hours: of them.
        dropped: rows that cannot be used.
        reasons: kind of trouble → how many of them.
        changes: text rule and text ("NFC:src") → rows whose text it changed.
        pairs: by language pair.
    """

    rows: int
    hours: float
    dropped: int
    reasons: dict[str, int]
    changes: dict[str, int]
    pairs: tuple[PairSummary, ...]

    def __str__(self) -> str:
        """One line for the terminal."""
        length = f"{self.hours:,.1f} h" if self.hours >= 1 else f"{60 * self.hours:.1f} min"
        return f"{self.rows:,} rows, {length}; {self.dropped:,} dropped"


@dataclass(frozen=True)
class Duplicates:
    """What occurs in several splits: so many different ones."""

    what: str
    splits: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Summary:
    """What came of a corpus.

    Attributes:
        corpus: its name.
        splits: by name of the manifest.
        duplicates: between splits.
        meta: what was prepared and how.
    """

    corpus: str
    splits: dict[str, SplitSummary]
    duplicates: tuple[Duplicates, ...]
    meta: dict[str, Any]

    @classmethod
    def of(cls, journal: Journal) -> Summary:
        """Sums up what a journal knows."""
        meta = journal.meta
        published = {(a, b, c): rows for a, b, c, rows in meta["published_rows"]}
        splits = {split: _split_summary(journal, split, published) for split in meta["splits"]}
        return cls(meta["corpus"], splits, tuple(_duplicates(journal, meta["splits"])), meta)

    @classmethod
    def from_json(cls, text: str) -> Summary:
        """Reads what `to_json` wrote."""
        read = json.loads(text)
        for split in read["splits"].values():
            split["pairs"] = tuple(PairSummary(**pair) for pair in split["pairs"])
        return cls(
            read["corpus"],
            {name: SplitSummary(**split) for name, split in read["splits"].items()},
            tuple(
                Duplicates(found["what"], tuple(found["splits"]), found["count"])
                for found in read["duplicates"]
            ),
            read["meta"],
        )

    def to_json(self) -> str:
        """For programs."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"

    def remarks(self) -> list[str]:
        """What to look at: other row counts than published, and what several splits share."""
        found = [
            f"{name}, {pair.name}: {pair.rows:,} rows, published {pair.published_rows:,}"
            for name, split in self.splits.items()
            for pair in split.pairs
            if pair.published_rows not in (None, pair.rows)
        ]
        shared = [
            f"{duplicates.count:,} × the same {duplicates.what} in {' and '.join(duplicates.splits)}"
            for duplicates in self.duplicates
        ]
        return found + shared

    def to_markdown(self, unusable: str = "dropped") -> str:
        """For people.

        Args:
            unusable: what to call rows that cannot be used.
        """
        head = (
            "split", "pair", "rows", "published", "hours", "mean s", "longest s", "characters/s", unusable,
        )  # fmt: skip
        table = [head, ("---",) * 2 + ("---:",) * (len(head) - 2)]
        for name, split in self.splits.items():
            for pair in split.pairs:
                table.append((
                    name, pair.name, f"{pair.rows:,}",
                    "" if pair.published_rows is None else f"{pair.published_rows:,}",
                    f"{pair.hours:.2f}", f"{pair.mean_seconds:.2f}", f"{pair.longest_seconds:.2f}",
                    f"{pair.characters_per_second:.1f}", f"{pair.dropped:,}",
                ))  # fmt: skip
            elsewhere = split.dropped - sum(pair.dropped for pair in split.pairs)
            if elsewhere or not split.pairs:  # of no known language
                table.append((name, "", "0", *("",) * 5, f"{elsewhere:,}"))
        lines = [f"# {self.corpus}", "", *(f"| {' | '.join(cells)} |" for cells in table), ""]
        for name, split in self.splits.items():
            lines += [
                f"- {name}: {unusable}, {reason}: {n:,}" for reason, n in split.reasons.items()
            ]
            lines += [
                f"- {name}: text changed by {rule}: {n:,}" for rule, n in split.changes.items()
            ]
        lines += [f"- {remark}" for remark in self.remarks()]
        return "\n".join(lines).rstrip("\n") + "\n"


def count_reasons(journal: Journal, split: str) -> dict[str, int]:
    """Kind of trouble → rows of a split that were dropped for it, in alphabetical order."""
    # The kind ends at the first ": "; SQLite counts equal kinds of many rows.
    return dict(
        journal.query(
            "SELECT substr(reason, 1, CASE instr(reason, ': ') WHEN 0 THEN length(reason) "
            "ELSE instr(reason, ': ') - 1 END) AS kind, COUNT(*) FROM rows "
            "WHERE split = ? AND reason != '' GROUP BY kind ORDER BY kind", split,
        )
    )  # fmt: skip


def _split_summary(
    journal: Journal, split: str, published: dict[tuple[str, str, str], int]
) -> SplitSummary:
    found = {
        (source, target): rest
        for source, target, *rest in journal.query(
            "SELECT src_lang, tgt_lang, SUM(reason = ''), SUM((reason = '') * n_frames), "
            "MAX((reason = '') * n_frames), SUM((reason = '') * characters), SUM(reason != '') FROM rows "
            "WHERE split = ? GROUP BY src_lang, tgt_lang ORDER BY src_lang, tgt_lang", split,
        )
        if source  # else of rows whose language is not known, which all were dropped
    }  # fmt: skip
    pairs = []
    for (source, target), (rows, samples, longest, characters, dropped) in found.items():
        seconds = samples / SAMPLE_RATE
        pairs.append(
            PairSummary(
                source,
                target,
                rows,
                round(seconds / 3600, 4),
                round(seconds / max(rows, 1), 3),
                round(longest / SAMPLE_RATE, 3),
                round(characters / seconds, 2) if seconds else 0.0,
                published.get((split, source, target)),
                dropped,
            )
        )
    changes: Counter[str] = Counter()
    for names, count in journal.query(
        "SELECT changes, COUNT(*) FROM rows WHERE split = ? AND reason = '' AND changes != '' "
        "GROUP BY changes", split,
    ):  # fmt: skip
        changes.update(dict.fromkeys(names.split(), count))
    reasons = count_reasons(journal, split)
    return SplitSummary(
        sum(pair.rows for pair in pairs),
        round(sum(rest[1] for rest in found.values()) / SAMPLE_RATE / 3600, 4),
        sum(reasons.values()),
        reasons,
        dict(sorted(changes.items())),
        tuple(pairs),
    )


def _duplicates(journal: Journal, splits: Sequence[str]) -> list[Duplicates]:
    """What several splits share. Every split is a bit, so that SQLite, on disk, does the grouping."""
    bits = " ".join(f"WHEN ? THEN {1 << i}" for i in range(len(splits)))
    duplicates = []
    for what, key in SHARED.items():
        counts = journal.query(
            f"SELECT mask, COUNT(*) FROM (SELECT SUM(DISTINCT CASE split {bits} END) AS mask FROM rows "
            f"WHERE reason = '' GROUP BY {key}) WHERE mask & (mask - 1) GROUP BY mask ORDER BY mask",
            *splits,
        )
        for mask, count in counts:
            names = tuple(split for i, split in enumerate(splits) if mask >> i & 1)
            duplicates.append(Duplicates(what, names, count))
    return duplicates
