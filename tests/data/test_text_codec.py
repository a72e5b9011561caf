"""Text encoding against SentencePiece itself, and the way back."""

import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary

from fairseq_samu.data.language_tags import LanguageTags
from fairseq_samu.data.text_codec import TextCodec

SENTENCES = [
    "the cat eats bread",
    "the girl drinks water",
    "l'eau est là",
    "a big red house & garden",
]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text").write_text("\n".join(SENTENCES * 5), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "spm"), vocab_size=60, model_type="bpe",
        character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "spm.model"


@pytest.fixture(scope="module")
def dictionary(model_path):
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
    symbols = Dictionary()
    for i in range(model.get_piece_size()):
        if not model.is_control(i) and not model.is_unknown(i):
            symbols.add_symbol(model.id_to_piece(i))
    symbols.add_symbol("<lang:en>")
    symbols.add_symbol("<lang:fr>")
    return symbols


@pytest.fixture(scope="module")
def codec(model_path, dictionary):
    return TextCodec(
        model_path, dictionary, LanguageTags("<lang:{}>", {}, dictionary), detokenize=True
    )


def test_tokens_are_tag_pieces_eos(codec, model_path, dictionary):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_path)).encode(
        SENTENCES[0], out_type=str
    )
    tokens = codec.encode_tokens(SENTENCES[0], "en")
    assert tokens.dtype == torch.long
    assert [dictionary[i] for i in tokens] == ["<lang:en>", *pieces, "</s>"]
    assert codec.encode_symbols(SENTENCES[0]).tolist() == tokens[1:-1].tolist()


@pytest.mark.parametrize("sentence", SENTENCES)
def test_decoding_gives_the_text_back(codec, dictionary, sentence):
    tokens = codec.encode_tokens(sentence, "en")
    assert codec.decode(dictionary.string(tokens)) == sentence
    assert codec.decode(codec.encode(sentence)) == sentence


def test_moses_tokenisation_is_undone_by_the_rules_of_the_language(model_path, dictionary):
    tags = LanguageTags("<lang:{}>", {}, dictionary)
    moses = TextCodec(model_path, dictionary, tags, detokenize=True)
    plain = TextCodec(model_path, dictionary, tags, detokenize=False)
    assert moses.decode("<lang:en> ▁do ▁n 't ▁stop ▁, ▁cat ▁.") == "do n't stop, cat."
    assert moses.decode("<lang:fr> ▁l' ▁eau ▁! ▁oui") == "l'eau ! oui"  # French spaces
    assert plain.decode("<lang:en> ▁stop ▁, ▁cat ▁.") == "stop , cat ."
    assert plain.decode("<lang:en> ▁a ▁&amp; ▁b") == "a &amp; b"


def test_text_that_fairseq_joined_already_keeps_its_spaces(codec):
    """With --post-process sentencepiece the codec gets plain text."""
    assert codec.decode("<lang:en> the cat eats bread") == "the cat eats bread"


def test_unknown_pieces_stay_visible(codec):
    assert codec.decode("<lang:en> ▁a ▁ <unk> ▁b") == "a <unk> b"


def test_dictionary_of_another_model(model_path, dictionary):
    other = Dictionary()
    for symbol in dictionary.symbols[4:-5]:
        other.add_symbol(symbol)
    with pytest.raises(ValueError, match=r"vocabulary mismatch: 3 of the \d+ pieces.*spm\.model"):
        TextCodec(model_path, other)


def test_no_model_and_no_sentencepiece_model(tmp_path, dictionary):
    with pytest.raises(FileNotFoundError, match="absent.model"):
        TextCodec(tmp_path / "absent.model", dictionary)
    (tmp_path / "text.model").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.model: not a SentencePiece model"):
        TextCodec(tmp_path / "text.model", dictionary)
