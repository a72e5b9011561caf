import sys

import pytest

from data_prep.teacher_model import ARCHITECTURES, build_model

TEXTS = ["Le chien mord l'homme.", "The dog bites the man.", "the man bites the dog"]


def test_without_sentence_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fairseq-samu\[teacher\]'"):
        build_model(TEXTS, "bag", 100, 8, seed=1)


@pytest.mark.parametrize(
    ("architecture", "dimension", "message"),
    [
        ("lstm", 8, r"expected an architecture of .*, found 'lstm'"),
        ("transformer", 6, "expected a dimension divisible by 4, found 6"),
    ],
)
def test_model_that_cannot_be_is_an_error(architecture, dimension, message):
    with pytest.raises(ValueError, match=message):
        build_model(TEXTS, architecture, 100, dimension, seed=1)


class TestWithSentenceTransformers:
    @pytest.fixture(autouse=True)
    def torch(self):
        pytest.importorskip("sentence_transformers", reason="needs the extra `teacher`")
        import torch

        return torch

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_vectors_have_length_1_and_ignore_case(self, torch, architecture):
        model = build_model(TEXTS, architecture, 100, 8, seed=1, device="cpu")
        vectors = model.encode([*TEXTS, TEXTS[1].upper()], convert_to_tensor=True)
        assert vectors.shape == (4, 8)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(4), atol=1e-5)
        assert torch.allclose(vectors[1], vectors[3], atol=1e-6)

    def test_bag_is_the_mean_of_subword_embeddings(self, torch):
        model = build_model(TEXTS, "bag", 100, 8, seed=1, device="cpu")
        bag, dense, _ = model
        subwords = bag.tokenizer.encode(TEXTS[0], add_special_tokens=False).ids
        assert len(subwords) > 3
        expected = dense.linear(bag.embedding.weight[subwords].mean(dim=0))
        expected = torch.nn.functional.normalize(expected, dim=0)
        found = model.encode(TEXTS[0], convert_to_tensor=True)
        assert torch.allclose(found, expected, atol=1e-6)

    def test_only_the_transformer_knows_word_order(self, torch):
        swapped = ["the dog bites the man", "the man bites the dog"]
        for architecture, same in (("bag", True), ("transformer", False)):
            model = build_model(TEXTS, architecture, 100, 16, seed=1, device="cpu")
            first, second = model.encode(swapped, convert_to_tensor=True)
            assert torch.allclose(first, second, atol=1e-5) == same

    def test_padding_changes_nothing(self, torch):
        model = build_model(TEXTS, "transformer", 100, 16, seed=1, device="cpu")
        alone = model.encode(TEXTS[2], convert_to_tensor=True)
        padded = model.encode([TEXTS[2], " ".join(TEXTS * 4)], convert_to_tensor=True)[0]
        assert torch.allclose(alone, padded, atol=1e-6)

    def test_unknown_characters_have_a_vector(self, torch):
        model = build_model(TEXTS, "bag", 100, 8, seed=1, device="cpu")
        assert model.encode("日本語", convert_to_tensor=True).norm() == pytest.approx(1.0)

    def test_other_random_numbers_stay_as_they_were(self, torch):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        build_model(TEXTS, "transformer", 100, 8, seed=1, device="cpu")
        assert torch.equal(torch.rand(3), expected)
