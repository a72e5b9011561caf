"""Both sides of the benchmark's searches find the same."""

import pytest

pytest.importorskip("transformers")

from benchmarks import decoding
from benchmarks.comparison import Comparison
from benchmarks.sizes import SIZES


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Comparison]:
    return decoding.measure(tmp_path_factory.mktemp("decoding"), SIZES["tiny"], "cpu", 1)


def test_hypotheses_are_the_same(rows: list[Comparison]) -> None:
    beside_fairseq = [row for row in rows if row.peer == decoding.FAIRSEQ]
    assert len(beside_fairseq) == 7
    for row in beside_fairseq:
        equal, _, total = row.same.split(" ")[:3]
        assert equal == total != "0", row
    for peer in (decoding.HUGGING_FACE, decoding.TEXT_MODEL):
        (row,) = [row for row in rows if row.peer == peer]
        assert "hypotheses of 8 of 8 sentences are the same" in row.same


def test_sentences_a_second_are_counted() -> None:
    batch = {"net_input": {"src_tokens": decoding.torch.zeros(3, 2, 1)}}
    called = []
    runs = {name: lambda name=name: called.append(name) or name for name in ("ours", "theirs")}
    speed, found = decoding.sentences_a_second(runs, 3, batch, repeats=2)
    assert called == ["ours", "theirs"] * (2 + decoding.WARM_UP)
    assert found == {"ours": "ours", "theirs": "theirs"}
    assert all(len(values) == 2 and min(values) > 0 for values in speed.values())


def test_what_differs_is_counted() -> None:
    def found(*scores: float) -> list[list[dict[str, decoding.Tensor]]]:
        return [
            [{"tokens": decoding.torch.tensor([4, 2]), "score": decoding.torch.tensor(s)}]
            for s in scores
        ]

    other = found(-1.0, -2.0)
    other[1][0]["tokens"] = decoding.torch.tensor([5, 2])
    text = decoding.compare(found(-1.0, -1.5), other)
    assert text == "1 of 2 hypotheses are the same, scores differ by 5e-01 at most"
