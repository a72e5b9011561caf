"""Language tags: the symbol in front of a target text that says which language it is in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Symbols that are language tags in fairseq's, mBART's, M2M-100's or NLLB's dictionaries.
_KNOWN_TAG = re.compile(r"<lang:\S+>|\[[a-z]{2,3}_\w+\]|__[a-z]{2,3}__|[a-z]{3}_[A-Z][a-z]{3}")


def parse_tag_map(text: str) -> dict[str, str]:
    """Read ``fr=fr_XX,en=en_XX``.

    Raises:
        ValueError: an entry that is not ``language=name``, or a language named twice.
    """
    mapping: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        lang, _, name = (part.strip() for part in entry.partition("="))
        if not lang or not name or lang in mapping:
            raise ValueError(
                "expected language=name, every language once, separated by commas; "
                f"found {entry!r} in {text!r}"
            )
        mapping[lang] = name
    return mapping


class LanguageTags:
    """Tags of the languages of a dictionary.

    Args:
        template: the tag with ``{}`` for the language: ``<lang:{}>``, ``[{}]`` (mBART), ``{}``
            (NLLB); empty for text without tags. A template that does not mark both ends cannot tell
            tags from other symbols: its languages are those of the mapping.
        mapping: names of languages inside the tag where they differ, such as ``{"fr": "fr_XX"}``.
        dictionary: fairseq dictionary of the target text.

    Attributes:
        prefix_size: tokens in front of every target, 0 or 1.

    Raises:
        ValueError: a template without exactly one ``{}``.
    """

    def __init__(self, template: str, mapping: Mapping[str, str], dictionary: Any) -> None:
        if template and template.count("{}") != 1:
            raise ValueError(f"expected a language tag template with one {{}}, found {template!r}")
        self.template = template
        self.mapping = dict(mapping)
        self.dictionary = dictionary
        self.prefix_size = 1 if template else 0
        self._before, _, self._after = template.partition("{}")
        self._lang_of = self._find_tags() if template else {}

    def tag(self, lang: str) -> str:
        """Tag of a language, whether the dictionary has it or not."""
        return self.template.replace("{}", self.mapping.get(lang, lang))

    def index(self, lang: str) -> int:
        """Dictionary index of a language's tag.

        Raises:
            ValueError: the dictionary has no such tag.
        """
        tag = self.tag(lang)
        if self.template == "{}" and _KNOWN_TAG.fullmatch(tag) and tag in self.dictionary:
            self._lang_of.setdefault(tag, lang)  # NLLB's look like no other symbol
        if tag not in self._lang_of:
            # Of another template, if this one matches nothing.
            tags = list(self._lang_of) or list(
                filter(_KNOWN_TAG.fullmatch, self.dictionary.symbols)
            )
            raise ValueError(
                f"language {lang!r}: expected its tag {tag!r} (template {self.template!r}, map "
                f"{self.mapping}) in the dictionary of {len(self.dictionary)} symbols, "
                f"found: {', '.join(tags) or 'no tags'}"
            )
        return int(self.dictionary.index(tag))

    def valid(self) -> list[str]:
        """Languages whose tags are in the dictionary."""
        return list(self._lang_of.values())

    def split(self, text: str) -> tuple[str | None, str]:
        """Take the tag off a decoded text.

        Returns:
            The tag's language, None if the text begins with no tag of the dictionary; and the rest.
        """
        text = text.lstrip()
        if self._after:
            end = text.find(self._after, len(self._before)) + len(self._after)
        else:
            end = len(text.partition(" ")[0])
        lang = self._lang_of.get(text[:end])
        return lang, text if lang is None else text[end:].lstrip()

    def _find_tags(self) -> dict[str, str]:
        """Language of every tag in the dictionary; of two languages with one tag the first."""
        lang_of: dict[str, str] = {}
        for lang in self.mapping:
            if self.tag(lang) in self.dictionary:
                lang_of.setdefault(self.tag(lang), lang)
        if self._before and self._after:
            tag = re.compile(rf"{re.escape(self._before)}(\S+){re.escape(self._after)}")
            for symbol in self.dictionary.symbols[self.dictionary.nspecial :]:
                match = tag.fullmatch(symbol)
                if match:
                    lang_of.setdefault(symbol, match[1])
        return lang_of
