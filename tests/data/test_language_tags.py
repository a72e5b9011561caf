import pytest
from fairseq.data import Dictionary

from fairseq_samu.data.language_tags import LanguageTags, parse_tag_map


def dictionary(*symbols):
    symbols_of = Dictionary()
    for symbol in ("▁the", "a", "[", "]", "<", "2014", *symbols):
        symbols_of.add_symbol(symbol)
    return symbols_of


@pytest.fixture
def plain():
    return LanguageTags("<lang:{}>", {}, dictionary("<lang:fr>", "<lang:pt-BR>", "<lang:en>"))


@pytest.fixture
def mbart():
    mapping = {"fr": "fr_XX", "en": "en_XX", "xx": "xx_XX"}
    return LanguageTags("[{}]", mapping, dictionary("[fr_XX]", "[en_XX]", "[ja_XX]"))


@pytest.fixture
def nllb():
    mapping = {"fr": "fra_Latn", "en": "eng_Latn", "xx": "xxx_Latn"}
    return LanguageTags("{}", mapping, dictionary("fra_Latn", "eng_Latn"))


def test_tags_and_indices(plain, mbart, nllb):
    for tags, lang, symbol in [
        (plain, "fr", "<lang:fr>"),
        (plain, "pt-BR", "<lang:pt-BR>"),
        (mbart, "fr", "[fr_XX]"),
        (mbart, "fr_XX", "[fr_XX]"),
        (mbart, "ja_XX", "[ja_XX]"),
        (nllb, "en", "eng_Latn"),
    ]:
        assert tags.tag(lang) == symbol
        assert tags.dictionary[tags.index(lang)] == symbol
        assert tags.prefix_size == 1


def test_valid_languages_are_those_in_the_dictionary(plain, mbart, nllb):
    assert plain.valid() == ["fr", "pt-BR", "en"]
    assert mbart.valid() == ["fr", "en", "ja_XX"]
    assert nllb.valid() == ["fr", "en"]
    for tags in (plain, mbart, nllb):
        assert tags.dictionary.unk() not in {tags.index(lang) for lang in tags.valid()}


def test_an_unknown_language_is_refused_with_the_tags_there_are(plain, mbart, nllb):
    with pytest.raises(
        ValueError, match=r"'de': expected its tag '<lang:de>'.*<lang:fr>, <lang:pt-BR>"
    ):
        plain.index("de")
    with pytest.raises(ValueError, match=r"'xx_XX'.*found: \[fr_XX\], \[en_XX\], \[ja_XX\]"):
        mbart.index("xx")
    # Without marks any symbol could pass for a tag.
    with pytest.raises(ValueError, match="'2014'.*found: fra_Latn, eng_Latn"):
        nllb.index("2014")
    other_template = LanguageTags(
        "[{}_XX]", {}, dictionary("<lang:fr>", "[fr]", "eng_Latn", "__fr__")
    )
    with pytest.raises(ValueError, match=r"'\[fr_XX\]'.*found: <lang:fr>, eng_Latn, __fr__"):
        other_template.index("fr")
    with pytest.raises(ValueError, match="found: no tags"):
        LanguageTags("<lang:{}>", {}, dictionary()).index("fr")
    for word in ("unk", "pad"):
        with pytest.raises(ValueError, match="expected its tag"):
            LanguageTags("<{}>", {}, dictionary("<fr>")).index(word)


def test_no_template_no_tags():
    tags = LanguageTags("", {"fr": "x"}, dictionary("<lang:fr>"))
    assert tags.prefix_size == 0 and tags.valid() == []
    assert tags.split("<lang:fr> oui") == (None, "<lang:fr> oui")
    with pytest.raises(ValueError, match="template ''"):
        tags.index("fr")


@pytest.mark.parametrize("template", ["<lang>", "{} {}", "{lang}"])
def test_templates_have_one_place_for_the_language(template):
    with pytest.raises(ValueError, match="one {}"):
        LanguageTags(template, {}, dictionary())


@pytest.mark.parametrize(
    ("tags", "text", "expected"),
    [
        ("plain", "<lang:fr> ▁bon jour", ("fr", "▁bon jour")),
        ("plain", "<lang:pt-BR>olá", ("pt-BR", "olá")),
        ("plain", "  <lang:fr>", ("fr", "")),
        ("plain", "<lang:de> hallo", (None, "<lang:de> hallo")),
        ("plain", "say <lang:fr> oui", (None, "say <lang:fr> oui")),
        ("plain", "<lang:fr", (None, "<lang:fr")),
        ("plain", "", (None, "")),
        ("plain", "a > b", (None, "a > b")),
        ("mbart", "[fr_XX] ▁oui", ("fr", "▁oui")),
        ("mbart", "[ja_XX]", ("ja_XX", "")),
        ("mbart", "[ a ]", (None, "[ a ]")),
        ("nllb", "eng_Latn the cat", ("en", "the cat")),
        ("nllb", "eng_Latnthe cat", (None, "eng_Latnthe cat")),
        ("nllb", "2014 was", (None, "2014 was")),
    ],
)
def test_split_takes_the_tag_off(request, tags, text, expected):
    assert request.getfixturevalue(tags).split(text) == expected


def test_both_marks_alike():
    tags = LanguageTags("__{}__", {}, dictionary("__fr__"))
    assert tags.split("__fr__ oui") == ("fr", "oui")


def test_two_languages_may_share_a_tag():
    tags = LanguageTags("[{}]", {"zh": "zh_CN", "zh-TW": "zh_CN"}, dictionary("[zh_CN]"))
    assert tags.index("zh") == tags.index("zh-TW")
    assert tags.split("[zh_CN] 好") == ("zh", "好")


def test_maps():
    assert parse_tag_map("fr=fr_XX, en = en_XX,") == {"fr": "fr_XX", "en": "en_XX"}
    assert parse_tag_map("") == {}
    for text in ("fr", "fr=", "=fr_XX", "fr=a,fr=b"):
        with pytest.raises(ValueError, match="expected language=name"):
            parse_tag_map(text)


def test_tags_of_nllb_need_no_map():
    tags = LanguageTags("{}", {}, dictionary("fra_Latn", "eng_Latn", "2014"))
    assert tags.index("fra_Latn") == tags.dictionary.index("fra_Latn")
    assert tags.split("fra_Latn oui") == ("fra_Latn", "oui")
