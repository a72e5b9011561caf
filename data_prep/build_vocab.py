r"""Writes a SentencePiece model with its fairseq dictionary: trained on manifests, or a published one.

    $ python -m data_prep.build_vocab --manifests data/train.tsv --vocab-size 200 --langs en fr \
          --out data
    data/spm.model: 200 pieces; data/dict.txt: 198 symbols, 2 of them language tags
    $ python -m data_prep.build_vocab --manifests data/train.tsv --column src_text \
          --model-type char --out data
    data/spm_src.model: 70 pieces; data/dict_src.txt: 66 symbols, 0 of them language tags

The first is what targets are written with, the second what an auxiliary CTC loss spells transcripts
with. fairseq gives every piece the number that it has in the SentencePiece model, and language tags
the numbers after them. A decoder that starts from mBART or NLLB needs the numbers of its checkpoint:

    $ python -m data_prep.build_vocab --pretrained mbart-50 \
          --sentencepiece-model mbart50.pretrained/sentence.bpe.model --out data
    data/spm.model: 250000 pieces; data/dict.txt: 250050 symbols, 52 of them language tags
    train with --lang-tag-template '[{}]' --lang-tag-map en=en_XX,…; languages: ar_AR cs_CZ de_DE …

MarianMT, T5 and mT5 come as a folder, and number their special symbols in their own way:

    $ python -m data_prep.build_vocab --text-model opus-mt-en-roa --out data
    data/spm.model: 32000 pieces; data/dict.json: 65001 symbols
    train with --dictionary dict.json --lang-tag-template ''

Causal language models too, with the tokenizer that they are published with:

    $ python -m data_prep.build_vocab --text-model Qwen2-1.5B-Instruct --out data
    data/tokenizer.json: 151646 tokens; data/dict.json: 151936 symbols, <|im_end|> ends a text
    train with --dictionary dict.json --sentencepiece-model tokenizer.json --lang-tag-template ''

With --prune-to train.tsv only the pieces stay that its target texts need, and the embeddings follow.

A spm.model or tokenizer.json that is there already is not replaced by another one: checkpoints need
the one that they were trained with.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import sentencepiece

from data_prep.manifest import read_column
from data_prep.pretrained_vocab import FAMILIES, adopt_vocab
from data_prep.text_model_vocab import adopt_text_model_vocab
from data_prep.vocabulary_files import SPECIAL_SYMBOLS, Vocabulary, write_vocabulary

# Infixes of the file names for each column.
COLUMN_INFIX = {"tgt_text": "", "src_text": "_src"}
MODEL_TYPES = ("bpe", "unigram", "char")
# Options that a published vocabulary leaves nothing to say about.
OF_TRAINING = ("column", "model_type", "vocab_size", "langs", "lang_tag_template", "lang_tag_map")


def build_vocab(
    manifests: Sequence[Path],
    out_dir: Path,
    column: str = "tgt_text",
    model_type: str = "bpe",
    vocab_size: int = 8000,
    langs: Sequence[str] = (),
    lang_tag_template: str = "<lang:{}>",
    lang_tag_map: Mapping[str, str] | None = None,
) -> Vocabulary:
    """Writes `spm.model` and `dict.txt`, for transcripts `spm_src.model` and `dict_src.txt`.

    Args:
        manifests: what to train on.
        out_dir: folder to write to.
        column: "tgt_text" or "src_text"; empty cells are skipped.
        model_type: "bpe", "unigram" or "char" (single characters).
        vocab_size: pieces of the model, the four special symbols included; with "char" at most so
            many, the rarest characters being left out.
        langs: languages that get a tag.
        lang_tag_template: the tag, with "{}" for the language.
        lang_tag_map: names of languages inside the tag where they differ.

    Raises:
        FileExistsError: the folder has another model or dictionary of that name.
        ValueError: an option or a manifest is wrong, or the text does not allow that many pieces.
    """
    if column not in COLUMN_INFIX:
        raise ValueError(f"expected column {' or '.join(COLUMN_INFIX)}, found {column!r}")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"expected model type {', '.join(MODEL_TYPES)}, found {model_type!r}")
    tags = language_tags(langs, lang_tag_template, lang_tag_map or {})

    texts = (text for manifest in manifests for text in read_column(manifest, column) if text)
    if vocab_size <= len(SPECIAL_SYMBOLS):
        raise ValueError(
            f"--vocab-size: expected more than the {len(SPECIAL_SYMBOLS)} special symbols, "
            f"found {vocab_size}"
        )
    serialized = train_sentencepiece(texts, model_type, vocab_size)
    model = sentencepiece.SentencePieceProcessor(model_proto=serialized)
    pieces = [model.id_to_piece(index) for index in range(model.get_piece_size())]
    symbols = pieces[len(SPECIAL_SYMBOLS) :]
    for tag in tags:
        if tag in pieces:
            raise ValueError(f"expected language tags unlike all text, found the piece {tag!r}")
    symbols.extend(tags)

    paths = write_vocabulary(out_dir, COLUMN_INFIX[column], serialized, symbols)
    return Vocabulary(*paths, len(pieces), len(symbols), tags)


def language_tags(
    langs: Sequence[str], template: str, mapping: Mapping[str, str]
) -> tuple[str, ...]:
    """Returns the tag of every language, sorted.

    Raises:
        ValueError: the template has not exactly one "{}", a tag would hold a space, or two
            languages have the same tag.
    """
    if template.count("{}") != 1:
        raise ValueError(f"expected a language tag template with one {{}}, found {template!r}")
    tags = sorted(template.replace("{}", mapping.get(lang, lang)) for lang in set(langs))
    for tag in tags:
        if not tag or tag.split() != [tag]:
            raise ValueError(f"expected language tags without spaces, found {tag!r}")
        if tags.count(tag) > 1:
            raise ValueError(f"expected one tag per language, found {tag!r} for several")
    return tuple(tags)


def train_sentencepiece(texts: Iterable[str], model_type: str, vocab_size: int) -> bytes:
    """Trains a SentencePiece model; the same texts give the same bytes.

    Args:
        texts: sentences.
        model_type: "bpe", "unigram" or "char".
        vocab_size: number of pieces, see `build_vocab`.

    Returns:
        The model file, its first pieces fairseq's special symbols in fairseq's order.

    Raises:
        ValueError: there is no text, or SentencePiece cannot make that many pieces of it.
    """
    buffer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=buffer,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=model_type != "char",
            character_coverage=1.0,
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            # Sums of floats, and so the model, depend on it.
            num_threads=4,
            minloglevel=2,
        )
    except RuntimeError as error:
        # What follows the name and the condition of a line of C++; nothing if the text is missing.
        reason = str(error).rsplit("] ", 1)[-1].split(". Increase")[0] or "there is no text"
        raise ValueError(f"cannot make {vocab_size} {model_type} pieces: {reason}") from error
    return buffer.getvalue()


def parse_tag_map(text: str) -> dict[str, str]:
    """Reads "fr=fr_XX,en=en_XX".

    Raises:
        ValueError: an entry is not `language=name`, or a language is named twice.
    """
    mapping = {}
    for entry in filter(None, text.split(",")):
        lang, separator, name = entry.strip().partition("=")
        if not (lang and separator and name) or lang in mapping:
            raise ValueError(f"expected language=name, every language once, found {entry!r}")
        mapping[lang] = name
    return mapping


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.build_vocab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--manifests",
        nargs="+",
        type=Path,
        metavar="TSV",
        help="manifests of the training data",
    )
    add(
        "--pretrained",
        choices=list(FAMILIES),
        help="take the vocabulary of a published model instead of training one",
    )
    add(
        "--sentencepiece-model",
        type=Path,
        metavar="FILE",
        help="the SentencePiece model published with it, such as sentence.bpe.model",
    )
    add(
        "--text-model",
        type=Path,
        metavar="DIR",
        help="take the vocabulary of a folder of Hugging Face: MarianMT, T5, mT5, or a causal language model "
        "(Llama, Qwen)",
    )
    add(
        "--prune-to",
        nargs="+",
        default=[],
        type=Path,
        metavar="TSV",
        help="manifests: keep only the pieces of their tgt_text of a published vocabulary",
    )
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    add(
        "--column",
        choices=list(COLUMN_INFIX),
        default="tgt_text",
        help="texts to train on (tgt_text); src_text writes spm_src.model and dict_src.txt",
    )
    add("--model-type", choices=MODEL_TYPES, default="bpe", help="kind of pieces (bpe)")
    add(
        "--vocab-size",
        type=int,
        default=8000,
        metavar="N",
        help="number of pieces, at most so many for char (8000)",
    )
    add("--langs", nargs="+", default=[], metavar="LANG", help="languages that get a tag")
    add(
        "--lang-tag-template",
        default="<lang:{}>",
        metavar="TAG",
        help="language tag, with {} for the language (<lang:{}>); [{}] as mBART",
    )
    add(
        "--lang-tag-map",
        default="",
        metavar="LANG=NAME,...",
        help="names inside the tag where they differ from the language, such as fr=fr_XX,en=en_XX",
    )
    return parser


def main() -> None:
    """Runs the command."""
    parser = build_parser()
    options = parser.parse_args()
    sources = (options.manifests, options.pretrained, options.text_model)
    if sum(source is not None for source in sources) != 1:
        parser.error("expected one of --manifests, to train on, --pretrained and --text-model")
    if (options.pretrained is None) != (options.sentencepiece_model is None):
        parser.error("expected --pretrained and --sentencepiece-model together")
    if options.prune_to and options.pretrained is None:
        parser.error("--prune-to is for the vocabulary of a --pretrained model")
    given = [
        "--" + name.replace("_", "-")
        for name in OF_TRAINING
        if getattr(options, name) != parser.get_default(name)
    ]
    if options.manifests is None and given:
        parser.error(f"{', '.join(given)}: a published vocabulary is that of target texts as it is")
    try:
        if options.text_model is not None:
            print(adopt_text_model_vocab(options.text_model, options.out))
            return
        if options.pretrained is not None:
            vocabulary = adopt_vocab(
                options.sentencepiece_model, options.pretrained, options.out, options.prune_to
            )
        else:
            vocabulary = build_vocab(
                options.manifests,
                options.out,
                options.column,
                options.model_type,
                options.vocab_size,
                options.langs,
                options.lang_tag_template,
                parse_tag_map(options.lang_tag_map),
            )
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    print(vocabulary)
    if options.pretrained is not None:
        langs, template, _ = FAMILIES[options.pretrained]
        english = "en_XX" if "en_XX" in langs else "eng_Latn"
        print(
            f"train with --lang-tag-template '{template}' --lang-tag-map en={english},…; languages: "
            + " ".join(langs)
        )


if __name__ == "__main__":
    main()
