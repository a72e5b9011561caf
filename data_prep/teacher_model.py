"""Small sentence-embedding models, before training, and the loss that trains them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING

from data_prep.extras import needs_extra

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

ARCHITECTURES = ("bag", "transformer")
SPECIAL_TOKENS = ("<pad>", "<unk>", "<cls>", "<sep>")
# Standard deviation of a bag's embeddings before training. Adam moves every number by about the
# learning rate in an update: from torch's 1.0 it would not get far.
BAG_STD = 0.05
# Of the transformer.
LAYERS, HEADS, MAX_TOKENS = 2, 4, 256


def check_device(device: str | None) -> None:
    """Refuses a device that torch cannot use (`ValueError`).

    Raises:
        ModuleNotFoundError: the extra `teacher` is not installed.
    """
    with needs_extra("teacher", "a sentence-embedding model"):
        import torch
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"expected a device that torch can use here, such as cpu, found {device!r}: {reason}"
        ) from error


def build_model(
    texts: Iterable[str],
    architecture: str,
    vocab_size: int,
    dimension: int,
    seed: int,
    device: str | None = None,
) -> SentenceTransformer:
    """An untrained model: subwords → bag or transformer → mean → linear → length 1.

    Args:
        texts: sentences of all languages, from which the subwords are learned.
        architecture: `bag`, the mean of subword embeddings, or `transformer`, that of what two
            layers of BERT make of them.
        vocab_size: subwords at most.
        dimension: width of the network and length of its vectors.
        seed: of the weights.
        device: such as `cuda:0`; a GPU if there is one by default.

    Raises:
        ModuleNotFoundError: the extra `teacher` is not installed.
        ValueError: an architecture or a dimension that cannot be.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"expected an architecture of {ARCHITECTURES}, found {architecture!r}")
    if architecture == "transformer" and dimension % HEADS:
        raise ValueError(f"expected a dimension divisible by {HEADS}, found {dimension}")
    with needs_extra("teacher", "training a teacher"):
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules
    tokenizer = _train_tokenizer(texts, vocab_size)
    # The global generator, which modules draw their weights from, is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: list[torch.nn.Module]
        if architecture == "bag":
            embeddings = torch.randn(tokenizer.get_vocab_size(), dimension) * BAG_STD
            parts = [modules.StaticEmbedding(tokenizer, embedding_weights=embeddings)]
        else:
            parts = [
                _build_bert(tokenizer, dimension),
                modules.Pooling(dimension, pooling_mode="mean"),
            ]
        parts.append(modules.Dense(dimension, dimension, activation_function=None))
    return SentenceTransformer(modules=[*parts, modules.Normalize()], device=device)


def _train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding of lower-case text: speech has no capitals either."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _build_bert(tokenizer: Tokenizer, dimension: int) -> torch.nn.Module:
    """A small BERT. sentence-transformers takes it from a folder only."""
    import transformers
    from sentence_transformers.sentence_transformer import modules
    from tokenizers.processors import TemplateProcessing

    pad, unk, cls, sep = SPECIAL_TOKENS
    tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(t, tokenizer.token_to_id(t)) for t in (cls, sep)]
    )
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=dimension,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * dimension,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.token_to_id(pad),
    )
    fast_tokenizer = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unk,
        cls_token=cls,
        sep_token=sep,
        model_max_length=MAX_TOKENS,
    )
    with tempfile.TemporaryDirectory() as folder:
        transformers.BertModel(config).save_pretrained(folder)
        fast_tokenizer.save_pretrained(folder)
        return modules.Transformer(folder)


def ranking_loss(
    first: torch.Tensor, second: torch.Tensor, same: torch.Tensor, margin: float, scale: float
) -> torch.Tensor:
    """Additive-margin softmax over the batch, averaged over both directions.

    Args:
        first: sentences, shape (B, D), of length 1.
        second: their translations, shape (B, D), of length 1.
        same: pairs that are translations too, since a sentence occurs twice, shape (B, B). They are
            no wrong answers, and are left out.
        margin: taken off the cosine of the translations.
        scale: of all cosines.

    Source: Yang et al. 2019, arXiv 1902.08564; Feng et al. 2022 (LaBSE), arXiv 2007.01852,
    Section 2.
    """
    import torch
    from torch.nn.functional import cross_entropy

    diagonal = torch.eye(len(first), dtype=torch.bool, device=first.device)
    scores = scale * (first @ second.T - margin * diagonal.to(first.dtype))
    scores = scores.masked_fill(same & ~diagonal, -torch.inf)
    target = torch.arange(len(first), device=first.device)
    return (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2
