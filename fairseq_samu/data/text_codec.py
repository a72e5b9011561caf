"""Text to dictionary indices and back: SentencePiece, language tag, Moses detokenisation."""

from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from fairseq_samu.data.language_tags import LanguageTags
from fairseq_samu.data.text_model_dictionary import TextModelDictionary


class TextCodec:
    """Encodes text with a SentencePiece model into a fairseq dictionary, and decodes it.

    fairseq's commands take it as their ``bpe``: ``decode`` turns the string of pieces that
    ``Dictionary.string`` gives into plain text.

    Args:
        model_path: the SentencePiece model.
        dictionary: the fairseq dictionary; has to hold every piece of the model.
        tags: language tags put in front of the text; None for text without tags (transcripts).
        detokenize: undo Moses tokenisation after the pieces are joined.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: dictionary and model do not belong together.
    """

    def __init__(
        self,
        model_path: Path,
        dictionary: Any,
        tags: Optional[LanguageTags] = None,
        detokenize: bool = False,
    ) -> None:
        if not Path(model_path).is_file():
            raise FileNotFoundError(f"{model_path}: expected a SentencePiece model, found no file")
        self.dictionary = dictionary
        self.tags = tags
        self.detokenize = detokenize
        self._detokenizers: Dict[str, Any] = {}
        self._load(model_path)

    def _load(self, model_path: Path) -> None:
        try:
            self.model: Any = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{model_path}: not a SentencePiece model ({error})") from error
        self._index_of = self._map_pieces(model_path)

    def _map_pieces(self, model_path: Path) -> np.ndarray:
        """Dictionary index of every piece of the model, shape (pieces,)."""
        pieces = [self.model.id_to_piece(i) for i in range(self.model.get_piece_size())]
        special = [
            self.model.is_control(i) or self.model.is_unknown(i) or self.model.is_unused(i)
            for i in range(len(pieces))
        ]
        unk = self.dictionary.unk()
        indices = [self.dictionary.index(piece) for piece in pieces]
        missing = [
            piece
            for piece, index, skip in zip(pieces, indices, special)
            if index == unk and not skip
        ]
        # MarianMT numbers the pieces of its training texts and takes others as unknown.
        if missing and not isinstance(self.dictionary, TextModelDictionary):
            raise ValueError(
                f"vocabulary mismatch: {len(missing)} of the {len(pieces)} pieces of {model_path} are "
                f"not in the dictionary of {len(self.dictionary)} symbols (first: {missing[:5]}); "
                "expected the dictionary written together with that model"
            )
        return np.asarray(indices, dtype=np.int64)

    def encode_tokens(self, text: str, lang: Optional[str] = None) -> Tensor:
        """Encode one sentence.

        Args:
            text: raw text.
            lang: its language, whose tag goes in front when the codec has tags.

        Returns:
            LongTensor (L,): [tag] pieces </s>.
        """
        prefix = [self.tags.index(lang)] if self.tags and self.tags.prefix_size and lang else []
        eos = [self.dictionary.eos()]
        return torch.cat(
            [torch.tensor(prefix).long(), self.encode_symbols(text), torch.tensor(eos)]
        )

    def encode_symbols(self, text: str) -> Tensor:
        """Encode one sentence as CTC labels: LongTensor (L,) of its pieces and nothing else."""
        return torch.from_numpy(self._index_of[self.model.encode(text)])

    def encode(self, text: str) -> str:
        """Pieces of a sentence joined with spaces, as fairseq's ``bpe`` does it."""
        return " ".join(self.model.encode(text, out_type=str))

    def decode(self, text: str) -> str:
        """Plain text of a string of pieces; a language tag in front chooses the detokeniser's rules."""
        lang: Optional[str] = None
        if self.tags is not None:
            lang, text = self.tags.split(text)
        plain = self._join(text)
        if not self.detokenize:
            return plain
        # Imported where it is used: that takes half a second.
        from sacremoses import MosesDetokenizer

        lang = lang or "en"
        if lang not in self._detokenizers:
            self._detokenizers[lang] = MosesDetokenizer(lang=lang)
        # unescape=False: "&amp;" in raw text is text, not Moses's escape for "&".
        return str(self._detokenizers[lang].detokenize(plain.split(), unescape=False))

    def _join(self, text: str) -> str:
        """Plain text of a string of pieces without a tag."""
        # Joined by hand: an unknown piece ("<unk>", and "<<unk>>" in references) has to stay visible.
        # Without any mark of a word's beginning it was joined already, by --post-process sentencepiece.
        if "\u2581" in text:
            text = text.replace(" ", "").replace("\u2581", " ")
        return text.strip()
