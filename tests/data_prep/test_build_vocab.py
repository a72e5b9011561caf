"""SentencePiece models and the dictionaries that go with them."""

import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from fairseq.data import Dictionary

from data_prep import build_vocab as module
from data_prep import vocabulary_files
from data_prep.build_vocab import build_vocab, language_tags, parse_tag_map
from data_prep.manifest import ManifestRow, ManifestWriter

SUBJECTS = ["Le roi", "La reine", "Un garçon", "Une fille"]
VERBS = ["cherche", "achète", "vend", "oublie"]
OBJECTS = ["une clé", "le sac à dos", "l'assiette", "un livre"]


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "train.tsv"
    with ManifestWriter(path) as writer:
        for a in SUBJECTS:
            for b in VERBS:
                for c in OBJECTS:
                    writer.write(
                        ManifestRow(
                            f"{a}{b}{c}", "a.zip:0:1", 9, f"{a} {b} {c} !", "", b, "fr", "fr"
                        )
                    )
    return path


@pytest.mark.parametrize("model_type, size", [("bpe", 80), ("unigram", 40), ("char", 1000)])
def test_fairseq_numbers_pieces_as_the_model_does(manifest, tmp_path, model_type, size):
    result = build_vocab([manifest], tmp_path, "tgt_text", model_type, size, ["fr", "en"])
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    dictionary = Dictionary.load(str(tmp_path / "dict.txt"))
    assert model.get_piece_size() == result.pieces
    for index in range(model.get_piece_size()):
        assert dictionary[index] == model.id_to_piece(index)
    assert (dictionary.bos(), dictionary.pad(), dictionary.eos(), dictionary.unk()) == (0, 1, 2, 3)
    assert (model.bos_id(), model.pad_id(), model.eos_id(), model.unk_id()) == (0, 1, 2, 3)
    # Tags come last, sorted.
    assert [dictionary[len(dictionary) - 2], dictionary[len(dictionary) - 1]] == list(result.tags)
    assert result.tags == ("<lang:en>", "<lang:fr>")
    assert len(dictionary) == result.pieces + 2 == result.symbols + 4
    if model_type != "char":
        assert result.pieces == size
    sentence = "La fille oublie le sac à dos !"
    pieces = model.encode(sentence, out_type=str)
    assert [dictionary.index(piece) for piece in pieces] == model.encode(sentence)
    assert model.decode(pieces) == sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dict.txt", "spm.model", "train.tsv",
    ]  # fmt: skip


def test_characters_of_transcripts(manifest, tmp_path):
    build_vocab([manifest], tmp_path, "src_text", "char", 1000)
    dictionary = Dictionary.load(str(tmp_path / "dict_src.txt"))
    assert set(dictionary.symbols[4:]) == set("▁") | set("".join(VERBS))
    assert (tmp_path / "spm_src.model").is_file()
    fewer = build_vocab([manifest], tmp_path / "fewer", "src_text", "char", 10)
    assert fewer.pieces == 10


def test_the_same_text_gives_the_same_bytes(manifest, tmp_path):
    for folder in ("a", "b"):
        build_vocab([manifest], tmp_path / folder, "tgt_text", "unigram", 40)
    for name in ("spm.model", "dict.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_vocabulary_does_not_replace_one(manifest, tmp_path):
    build_vocab([manifest], tmp_path, vocab_size=80)
    found = {name: (tmp_path / name).read_bytes() for name in ("spm.model", "dict.txt")}
    with pytest.raises(FileExistsError, match="spm.model: expected no model of another vocab"):
        build_vocab([manifest], tmp_path, vocab_size=70)
    # The same model, but numbers of symbols that what was trained with it does not know.
    with pytest.raises(FileExistsError, match="dict.txt: expected no dictionary of another vocab"):
        build_vocab([manifest], tmp_path, vocab_size=80, langs=["fr"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [*sorted(found), "train.tsv"]
    assert all((tmp_path / name).read_bytes() == content for name, content in found.items())
    # The same again is no other one, and transcripts have files of their own.
    build_vocab([manifest], tmp_path, vocab_size=80)
    build_vocab([manifest], tmp_path, "src_text", "char", 1000)


def test_every_manifest_counts(manifest, tmp_path):
    other = tmp_path / "other.tsv"
    other.write_text("id\ttgt_text\n1\tŵŵŵ\n2\t\n", encoding="utf-8")
    result = build_vocab([manifest, other], tmp_path, "tgt_text", "char", 1000)
    assert "ŵ" in Dictionary.load(str(result.dictionary_path)).symbols


def test_language_tags():
    assert language_tags(["fr", "en"], "<lang:{}>", {}) == ("<lang:en>", "<lang:fr>")
    assert language_tags(["fr", "en"], "[{}]", {"fr": "fr_XX"}) == ("[en]", "[fr_XX]")
    assert parse_tag_map("fr=fr_XX,en=en_XX") == {"fr": "fr_XX", "en": "en_XX"}
    assert parse_tag_map("") == {}
    with pytest.raises(ValueError, match="expected language=name, every language once, found 'en'"):
        parse_tag_map("fr=fr_XX,en")
    with pytest.raises(ValueError, match="every language once, found 'en=b'"):
        parse_tag_map("en=a,en=b")
    for template in ("<lang>", "{}{}"):
        with pytest.raises(ValueError, match="template with one {}"):
            language_tags(["fr"], template, {})
    with pytest.raises(ValueError, match="without spaces, found '<lang: fr>'"):
        language_tags(["fr"], "<lang: {}>", {})
    with pytest.raises(ValueError, match="found '<x>' for several"):
        language_tags(["fr", "en"], "<{}>", {"fr": "x", "en": "x"})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"vocab_size": 10}, "cannot make 10 bpe pieces: Vocabulary size is smaller"),
        ({"vocab_size": 9000}, r"cannot make 9000 bpe pieces: .* value <= \d+"),
        ({"column": "speaker"}, "expected column tgt_text or src_text, found 'speaker'"),
        ({"model_type": "word"}, "expected model type bpe, unigram, char, found 'word'"),
        ({"model_type": "char", "langs": ["!"], "lang_tag_template": "{}"}, "found the piece '!'"),
    ],
)
def test_wrong_options_leave_nothing(manifest, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build_vocab([manifest], tmp_path / "out", **{"vocab_size": 80, **options})
    assert not (tmp_path / "out").exists()


def test_no_text_at_all(tmp_path):
    (tmp_path / "m.tsv").write_text("tgt_text\n\n\n")
    with pytest.raises(ValueError, match="there is no text"):
        build_vocab([tmp_path / "m.tsv"], tmp_path)


def test_a_dictionary_that_reads_back_wrongly_is_not_kept(manifest, tmp_path, monkeypatch):
    (tmp_path / "dict.txt").write_text("old")
    monkeypatch.setattr(vocabulary_files, "load_dictionary", lambda path: [])
    with pytest.raises(ValueError, match="does not read back"):
        build_vocab([manifest], tmp_path, vocab_size=80)
    assert (tmp_path / "dict.txt").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dict.txt", "train.tsv"]


def test_the_command(manifest, tmp_path):
    command = [sys.executable, "-m", "data_prep.build_vocab", "--manifests", str(manifest),
               "--out", str(tmp_path), "--langs", "fr", "--lang-tag-template", "[{}]",
               "--lang-tag-map", "fr=fr_XX", "--vocab-size"]  # fmt: skip
    repository = Path(module.__file__).parents[1]
    done = subprocess.run([*command, "80"], cwd=repository, capture_output=True, text=True)
    assert done.stdout == (
        f"{tmp_path}/spm.model: 80 pieces; {tmp_path}/dict.txt: 77 symbols, 1 of them language "
        "tags\n"
    )
    assert Dictionary.load(str(tmp_path / "dict.txt"))[80] == "[fr_XX]"
    failed = subprocess.run([*command, "10"], cwd=repository, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: cannot make 10 bpe pieces")
