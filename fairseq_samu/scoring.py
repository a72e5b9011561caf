"""BLEU and chrF through sacreBLEU: from sums of statistics in validation, from strings elsewhere."""

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from fairseq.scoring.bleu import SacrebleuScorer
from sacrebleu.metrics import BLEU, CHRF

from fairseq_samu import compat


class PairScorer:
    """BLEU and chrF2 of one target language.

    Both are functions of counts summed over sentences. Keeping the sums, not the sentences, lets workers
    add theirs up: the score of a whole validation set is exact on any number of workers.

    Args:
        target_lang: chooses BLEU's tokeniser as sacreBLEU does (``zh``, ``ja-mecab``, ``ko-mecab``, else
            ``13a``).
    """

    def __init__(self, target_lang: str) -> None:
        self.bleu = BLEU(trg_lang=target_lang)
        self.chrf = CHRF()

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Summed statistics of some sentences, shape (28,): 10 for BLEU, then 18 for chrF2."""
        return self.sentence_statistics(hypotheses, references).sum(0)

    def sentence_statistics(
        self, hypotheses: Sequence[str], references: Sequence[str]
    ) -> np.ndarray:
        """Statistics of each of N sentences, shape (N, 28)."""
        refs = [list(references)]
        # The public corpus_score() does these same two calls, but only on a whole corpus at once.
        bleu = np.asarray(self.bleu._extract_corpus_statistics(hypotheses, refs))
        chrf = np.asarray(self.chrf._extract_corpus_statistics(hypotheses, refs))
        return np.concatenate([bleu, chrf], axis=1).astype(np.float64)

    def scores(self, statistics: np.ndarray) -> Tuple[float, float]:
        """BLEU and chrF2 (0 to 100) of summed statistics, shape (28,)."""
        sums = [int(round(value)) for value in statistics]
        bleu = self.bleu._compute_score_from_stats(sums[:10])
        chrf = self.chrf._compute_score_from_stats(sums[10:])
        return float(bleu.score), float(chrf.score)


#: Length of the vector of PairScorer.statistics: 2 lengths + 2 × 4 n-gram orders, 3 × 6 character orders.
STATISTICS_SIZE = 28


def corpus_scores(
    hypotheses: Sequence[str], references: Sequence[str], target_lang: str
) -> Dict[str, Any]:
    """Score a corpus as sacreBLEU's command line does.

    Returns:
        ``bleu``, ``chrf`` (0 to 100), ``sentences`` and the signatures of both metrics.
    """
    bleu, chrf = BLEU(trg_lang=target_lang), CHRF()
    refs = [list(references)]
    return {
        "sentences": len(hypotheses),
        "bleu": bleu.corpus_score(hypotheses, refs).score,
        "chrf": chrf.corpus_score(hypotheses, refs).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


class SignedSacrebleuScorer(SacrebleuScorer):  # type: ignore[misc]
    """fairseq's ``--scoring sacrebleu``, on raw text, with chrF2 and the signatures of both.

    fairseq tokenises first and then tells sacreBLEU that there is nothing to tokenise, so that no
    signature it could print would be true.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.ref: List[str] = []
        self.pred: List[str] = []
        tokenizer = "char" if cfg.sacrebleu_char_level else cfg.sacrebleu_tokenizer
        self.bleu = BLEU(tokenize=str(tokenizer), lowercase=cfg.sacrebleu_lowercase)
        self.chrf = CHRF(lowercase=cfg.sacrebleu_lowercase)

    def add_string(self, ref: str, pred: str) -> None:
        """Add one reference and its hypothesis, both detokenised."""
        self.ref.append(ref)
        self.pred.append(pred)

    def score(self, order: int = 4) -> float:
        """Corpus BLEU, 0 to 100."""
        return float(self.bleu.corpus_score(self.pred, [self.ref]).score)

    def result_string(self, order: int = 4) -> str:
        """BLEU in sacreBLEU's own format, chrF2, and the signature of each."""
        bleu = self.bleu.corpus_score(self.pred, [self.ref])
        chrf = self.chrf.corpus_score(self.pred, [self.ref])
        return (
            f"{bleu.format()} | {self.bleu.get_signature()}\n"
            f"{chrf.format()} | {self.chrf.get_signature()}"
        )


compat.replace_scorer("sacrebleu", SignedSacrebleuScorer)
