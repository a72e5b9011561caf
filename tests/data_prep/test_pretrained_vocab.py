"""Vocabularies of published models: every symbol has the number of its embedding."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import sentencepiece
from fairseq.data import Dictionary
from fairseq.data.multilingual.multilingual_utils import augment_dictionary

from data_prep import pretrained_vocab as module
from data_prep.pretrained_vocab import FAMILIES, adopt_vocab
from fairseq_samu.data.language_tags import LanguageTags
from fairseq_samu.data.text_codec import TextCodec

#: Numbers that transformers' tests of the published tokenizers expect.
NUMBERS = {
    "mbart-25": {"ar_AR": 250_001, "en_XX": 250_004, "ro_RO": 250_020, "<mask>": 250_026},
    "mbart-50": {"ar_AR": 250_001, "en_XX": 250_004, "mr_IN": 250_038, "<mask>": 250_053},
    "nllb-200": {"ace_Arab": 256_001, "ace_Latn": 256_002, "eng_Latn": 256_047,
                 "fra_Latn": 256_057, "ron_Latn": 256_145, "<mask>": 256_203},
}  # fmt: skip
TEXTS = [
    "le roi cherche une clé",
    "la reine achète un livre",
    "un garçon vend le sac à dos",
    "une fille oublie l'assiette",
]
#: Numbers of rows of the published embeddings, and pieces of the published SentencePiece models.
PUBLISHED = {
    "mbart-25": (250_027, 250_000),
    "mbart-50": (250_054, 250_000),
    "nllb-200": (256_206, 256_000),
}


def train(path, model_type="unigram", vocab_size=120, **options):
    """A SentencePiece model that begins as the published ones do."""
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 3), model_writer=file, model_type=model_type,
            vocab_size=vocab_size, hard_vocab_limit=model_type == "bpe", minloglevel=2, **options,
        )  # fmt: skip
    return path


@pytest.fixture(params=["unigram", "bpe"])
def model_path(request, tmp_path):
    return train(tmp_path / "sentence.bpe.model", request.param, vocab_size=60)


def write_manifest(path, texts):
    path.write_text("id\ttgt_text\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(texts)), "utf-8")
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_symbols_as_the_published_embeddings_have_rows(family):
    rows, pieces = PUBLISHED[family]
    langs, _, last = FAMILIES[family]
    # fairseq's four special symbols stand for the model's three.
    assert 4 + (pieces - 3) + len(langs) + len(last) == rows
    assert len(set(langs)) == len(langs)
    first = 4 + (pieces - 3)
    found = {symbol: first + i for i, symbol in enumerate([*langs, *last])}
    assert {symbol: found[symbol] for symbol in NUMBERS[family]} == NUMBERS[family]


@pytest.mark.parametrize("family", ["mbart-25", "mbart-50"])
def test_the_dictionary_is_that_of_fairseq(family, tmp_path):
    path = train(tmp_path / "sentence.bpe.model")
    adopt_vocab(path, family, tmp_path / "data")
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    theirs = Dictionary()
    for index in range(3, model.get_piece_size()):  # what the published dict.txt lists
        theirs.add_symbol(model.id_to_piece(index))
    augment_dictionary(theirs, FAMILIES[family].langs, "mbart")
    assert Dictionary.load(str(tmp_path / "data" / "dict.txt")).symbols == theirs.symbols


def their_tokenizer(family, model):
    """The tokenizer of transformers, with its own numbers; reading files, it needs protobuf."""
    transformers = pytest.importorskip("transformers")
    converters = pytest.importorskip("transformers.convert_slow_tokenizer")
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    if family == "mbart-25":
        proto = SimpleNamespace(pieces=[SimpleNamespace(piece=p, score=s) for p, s in pieces])
        vocab = converters.MBartConverter.vocab(None, proto)
        return transformers.MBartTokenizer(vocab=vocab)
    if family == "mbart-50":
        return transformers.MBart50Tokenizer(vocab=pieces)
    vocab = converters.NllbConverter.convert_from_spm(vocab=pieces)["vocab"]
    return transformers.NllbTokenizer(vocab=vocab)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_are_those_of_transformers(family, tmp_path):
    path = train(tmp_path / "sentence.bpe.model")
    result = adopt_vocab(path, family, tmp_path / "data")
    theirs = their_tokenizer(family, sentencepiece.SentencePieceProcessor(model_file=str(path)))
    dictionary = Dictionary.load(str(tmp_path / "data" / "dict.txt"))
    for symbol in dictionary.symbols[: result.pieces + 1]:
        assert dictionary.index(symbol) == theirs.convert_tokens_to_ids(symbol), symbol
    if family == "nllb-200":  # whose merges, tags and mask transformers reads from other files
        return
    assert len(theirs) == len(dictionary)
    assert dictionary.index("<mask>") == theirs.mask_token_id
    tags = LanguageTags(FAMILIES[family].template, {}, dictionary)
    for lang in FAMILIES[family].langs:
        assert tags.index(lang) == theirs.convert_tokens_to_ids(lang)
    codec = TextCodec(tmp_path / "data" / "spm.model", dictionary)
    for text in TEXTS:
        theirs_of_text = theirs.encode(text, add_special_tokens=False)
        assert codec.encode_symbols(text).tolist() == theirs_of_text


def test_pruning_keeps_the_segmentation_and_says_which_rows_stay(model_path, tmp_path):
    whole, pruned = tmp_path / "whole", tmp_path / "pruned"
    manifests = [write_manifest(tmp_path / f"{i}.tsv", [TEXTS[i], ""]) for i in range(2)]
    adopt_vocab(model_path, "mbart-25", whole)
    result = adopt_vocab(model_path, "mbart-25", pruned, manifests)
    everything = Dictionary.load(str(whole / "dict.txt"))
    dictionary = Dictionary.load(str(pruned / "dict.txt"))
    kept = json.loads((pruned / "dict.rows.json").read_text())
    assert kept["checkpoint_rows"] == len(everything) > len(dictionary)
    assert [everything[row] for row in kept["rows"]] == dictionary.symbols
    assert dictionary.symbols[-26:] == everything.symbols[-26:]  # languages and <mask>
    assert len(dictionary) == result.symbols + 4 == result.pieces + 1 + 25 + 1

    before = TextCodec(whole / "spm.model", everything)
    after = TextCodec(pruned / "spm.model", dictionary)
    for text in TEXTS[:2]:
        assert after.encode(text) == before.encode(text)
    # A word of the same letters is spelled, one of others is unknown.
    assert dictionary.unk() not in after.encode_symbols("la clé cherche un roi livre ci").tolist()
    assert dictionary.unk() in after.encode_symbols("gç").tolist()
    assert not (whole / "dict.rows.json").exists()


def test_only_what_is_needed_stays(tmp_path):
    path = train(tmp_path / "sentence.bpe.model")
    result = adopt_vocab(
        path, "mbart-25", tmp_path, [write_manifest(tmp_path / "m.tsv", ["le roi"])]
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    used = set(model.encode("le roi", out_type=str)) | set("▁leroi")
    assert {s for s in Dictionary.load(str(result.dictionary_path)).symbols[4:-26]} == used


def test_a_vocabulary_that_is_not_pruned_removes_the_rows(tmp_path):
    path = train(tmp_path / "sentence.bpe.model")
    adopt_vocab(path, "mbart-25", tmp_path, [write_manifest(tmp_path / "m.tsv", TEXTS[:1])])
    assert (tmp_path / "dict.rows.json").exists()
    (tmp_path / "spm.model").unlink()
    (tmp_path / "dict.txt").unlink()
    adopt_vocab(path, "mbart-25", tmp_path)
    assert not (tmp_path / "dict.rows.json").exists()


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.model: expected a SentencePiece model"):
        adopt_vocab(tmp_path / "no.model", "mbart-50", tmp_path)
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(ValueError, match="text.model: not a SentencePiece model"):
        adopt_vocab(tmp_path / "text.model", "mbart-50", tmp_path)
    own = train(tmp_path / "own.model", bos_id=0, pad_id=1, eos_id=2, unk_id=3)
    with pytest.raises(ValueError, match="begin with <unk>, <s>, </s>; found <s>, <pad>, </s>"):
        adopt_vocab(own, "mbart-50", tmp_path)
    path = train(tmp_path / "sentence.bpe.model")
    with pytest.raises(ValueError, match="to prune the vocabulary to, found none"):
        adopt_vocab(path, "mbart-50", tmp_path, [write_manifest(tmp_path / "m.tsv", [""])])
    assert not (tmp_path / "dict.txt").exists()


def test_the_command(tmp_path):
    path = train(tmp_path / "sentence.bpe.model")
    command = [sys.executable, "-m", "data_prep.build_vocab", "--out", str(tmp_path)]
    pretrained = ["--pretrained", "mbart-50", "--sentencepiece-model", str(path)]

    def run(*options):
        repository = module.__file__.rsplit("/", 2)[0]
        return subprocess.run([*command, *options], cwd=repository, capture_output=True, text=True)

    done = run(*pretrained)
    first, second = done.stdout.splitlines()
    assert first.endswith("symbols, 52 of them language tags")
    assert second.startswith("train with --lang-tag-template '[{}]' --lang-tag-map en=en_XX,…")
    assert Dictionary.load(str(tmp_path / "dict.txt"))[-1] == "<mask>"
    for options, message in [
        ([], "one of --manifests, to train on, --pretrained and --text-model"),
        ([*pretrained, "--manifests", "a.tsv"], "one of --manifests"),
        (pretrained[:2], "--pretrained and --sentencepiece-model together"),
        (["--manifests", "a.tsv", "--prune-to", "a.tsv"], "--prune-to is for the vocabulary of a"),
        (
            [*pretrained, "--column", "src_text", "--langs", "en"],
            "--column, --langs: a published vocabulary is that of target texts as it is",
        ),
    ]:
        failed = run(*options)
        assert failed.returncode == 2 and message in failed.stderr
