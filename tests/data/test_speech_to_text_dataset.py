import copy
import pickle

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary, iterators
from fairseq.data.data_utils import collate_tokens, numpy_seed
from fairseq.tasks import FairseqTask

from fairseq_samu.data.audio import change_speed, read_audio
from fairseq_samu.data.manifest import Manifest, pair_name
from fairseq_samu.data.manifest_index import COLUMNS, ManifestError
from fairseq_samu.data.speech_to_text_dataset import SpeechToTextSamuDataset

LENGTHS = [4000, 9000, 4000, 16_000, 700, 12_345, 8000, 2500, 3333, 5000]
TEXTS = ["ab", "cde", "a", "édcba", "b", "abcdefghij", "c", "bb", "dd", "e"]


class Codec:
    """One token a letter; counts its work."""

    def __init__(self, prefix_size=1):
        self.dictionary = Dictionary()
        for symbol in ["<en>", "<fr>", *"abcdefghijé"]:
            self.dictionary.add_symbol(symbol)
        self.prefix_size = prefix_size
        self.calls = 0

    def target(self, text, lang):
        self.calls += 1
        prefix = [self.dictionary.index(f"<{lang}>")][: self.prefix_size]
        return torch.tensor([*prefix, *map(self.dictionary.index, text), self.dictionary.eos()])

    def transcript(self, text):
        return torch.tensor([self.dictionary.index(letter) for letter in text])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Manifest of noise in wav files: es-en, fr-en and, of the last two rows, en-fr."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["\t".join(COLUMNS)]
    for row, (length, text) in enumerate(zip(LENGTHS, TEXTS)):
        soundfile.write(root / f"{row}.wav", rng.normal(0.1, 0.1, length), 16_000, subtype="FLOAT")
        source, target = ("en", "fr") if row >= 8 else (("es", "fr")[row % 2], "en")
        cells = [f"utt{row}", f"{row}.wav", str(length), text, "s", text[::-1], source, target]
        lines.append("\t".join(cells))
    (root / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "train.tsv"


def dataset(path, codec=None, **options):
    codec = codec or Codec(options.get("prefix_size", 1))
    defaults = {
        "audio_root": str(path.parent),
        "encode_target": codec.target,
        "pad": codec.dictionary.pad(),
        "eos": codec.dictionary.eos(),
        "prefix_size": codec.prefix_size,
        "normalize": True,
        "shuffle": False,
        "min_samples": 1,
        "max_samples": 10**6,
        "max_target_tokens": 1024,
    }
    return SpeechToTextSamuDataset(Manifest(path), **{**defaults, **options})


def changed(path, tmp_path, row, **cells):
    """Copy of a manifest with some cells of one row changed; its audio stays where it is."""
    lines = path.read_text(encoding="utf-8").splitlines()
    fields = dict(zip(COLUMNS, lines[row + 1].split("\t")), **cells)
    lines[row + 1] = "\t".join(fields[name] for name in COLUMNS)
    copied = tmp_path / "train.tsv"
    copied.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return copied


# Examples and batches


def test_an_example_is_audio_and_tokens(data):
    codec = Codec()
    item = dataset(data, codec, encode_transcript=codec.transcript)[3]
    wave, _ = soundfile.read(data.parent / "3.wav", dtype="float32")
    expected = F.layer_norm(torch.from_numpy(wave), wave.shape)
    torch.testing.assert_close(item["source"], expected, atol=1e-5, rtol=1e-4)
    assert codec.dictionary.string(item["target"], include_eos=True) == "<en> é d c b a </s>"
    assert codec.dictionary.string(item["transcript"]) == "a b c d é"
    assert item["index"] == 3 and item["tgt_text"] == "édcba"
    raw = dataset(data, normalize=False)[3]
    np.testing.assert_array_equal(raw["source"].numpy(), wave)
    assert raw["transcript"] is None


@pytest.mark.parametrize("prefix_size", [0, 1])
def test_a_batch_is_what_fairseq_collates(data, prefix_size):
    codec = Codec(prefix_size)
    speech = dataset(data, codec, prefix_size=prefix_size, encode_transcript=codec.transcript)
    rows = [5, 0, 9]
    items = [speech[row] for row in rows]
    batch = speech.collater(items)

    pad, eos = codec.dictionary.pad(), codec.dictionary.eos()
    targets = [item["target"] for item in items]
    assert batch["id"].tolist() == rows and batch["nsentences"] == 3
    assert torch.equal(batch["target"], collate_tokens(targets, pad))
    previous = collate_tokens(targets, pad, eos, move_eos_to_beginning=True)
    assert torch.equal(batch["net_input"]["prev_output_tokens"], previous)
    assert previous[0, :3].tolist() == [eos, *targets[0][:2].tolist()]
    if prefix_size:
        tags = [[codec.dictionary.index(f"<{lang}>")] for lang in ("en", "en", "fr")]
        assert batch["prefix_tokens"].tolist() == tags
    else:
        assert batch["prefix_tokens"] is None
    assert batch["ntokens"] == sum(len(TEXTS[row]) + 1 for row in rows)

    source, lengths = batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"]
    assert source.shape == (3, 12_345) and source.dtype == torch.float32
    assert lengths.tolist() == [LENGTHS[row] for row in rows]
    for i, item in enumerate(items):
        assert torch.equal(source[i, : lengths[i]], item["source"])
        assert not source[i, lengths[i] :].any()

    assert [speech.manifest.pairs[pair] for pair in batch["pair"]] == [
        ("fr", "en"),
        ("es", "en"),
        ("en", "fr"),
    ]
    assert batch["tgt_text"] == [TEXTS[row] for row in rows]
    assert batch["transcript"].shape == (3, 10)
    assert batch["transcript_lengths"].tolist() == [10, 2, 1]
    assert batch["transcript"][1].tolist()[2:] == [pad] * 8
    assert speech.collater([]) == {}


def test_pairs_may_be_numbered_by_the_caller(data):
    speech = dataset(data, pair_codes=[30, 10, 20])
    assert speech.manifest.pairs == [("en", "fr"), ("es", "en"), ("fr", "en")]
    assert speech.collater([speech[9], speech[0], speech[1]])["pair"].tolist() == [30, 10, 20]


def test_nothing_is_tokenised_before_it_is_needed(data):
    codec = Codec()
    speech = dataset(data, codec, shuffle=True, alpha=0.3, speed_factors=(0.9, 1.0, 1.1))
    speech.filter_indices_by_size(speech.ordered_indices(), (10**6, 1024))
    assert codec.calls == 0
    speech[0]
    assert codec.calls == 1


# Rows left out


def test_rows_outside_the_limits_are_left_out_and_reported(data):
    codec = Codec()
    speech = dataset(data, codec, min_samples=1000, max_samples=12_345, max_target_tokens=7)
    assert [(row.row, row.id, row.reason) for row in speech.overlong] == [
        (3, "utt3", "longer than 12345 samples: 16000"),
        (4, "utt4", "shorter than 1000 samples: 700"),
        (5, "utt5", "target longer than 7 tokens: 12"),
    ]
    # Only rows 3 and 5 have more than 4 bytes; the reason of row 5 takes another call.
    assert codec.calls == 3
    assert len(speech) == 7
    assert sorted(speech.ordered_indices()) == [0, 1, 2, 6, 7, 8, 9]
    report = speech.overlong_report()
    hours = sum(LENGTHS[row] for row in (3, 4, 5)) / 16_000 / 3600
    assert report.startswith(f"3 of 10 rows ({hours:.2f} of ")
    for part in ("1 longer than 12345 samples: utt3", "1 shorter than 1000 samples: utt4"):
        assert part in report


def test_a_limit_is_exact(data):
    at_limit = dataset(data, max_target_tokens=12, max_samples=16_000, min_samples=700)
    assert at_limit.overlong == [] and len(at_limit) == 10
    for limit in ({"max_target_tokens": 11}, {"max_samples": 15_999}, {"min_samples": 701}):
        assert len(dataset(data, **limit).overlong) == 1


def test_reports_name_a_few_ids_of_each_reason(data):
    report = dataset(data, max_samples=3000).overlong_report()
    assert "8 longer than 3000 samples: utt0, utt1, utt2, utt3, utt5, …" in report
    assert "0 of 10 rows" in dataset(data).overlong_report()


def test_the_slowest_and_the_fastest_speed_count(data):
    speech = dataset(data, speed_factors=(0.8, 1.0, 1.25), max_samples=16_000, min_samples=700)
    # 16,000 / 0.8 = 20,000 and 700 / 1.25 = 560; 12,345 / 0.8 = 15,431 fits.
    assert [row.row for row in speech.overlong] == [3, 4]


def test_no_row_left_is_an_error(data):
    with pytest.raises(
        ManifestError, match="train.tsv: expected rows within .*10 longer than 5 samples"
    ):
        dataset(data, max_samples=5)


def test_training_needs_texts(data, tmp_path):
    path = changed(data, tmp_path, 4, tgt_text="")
    with pytest.raises(ManifestError, match="train.tsv:6: expected a tgt_text to train on"):
        dataset(path, shuffle=True)
    assert len(dataset(path)) == 10


def test_only_given_rows_are_used_and_keep_their_numbers(data, tmp_path):
    rows = np.array([1, 3, 5, 7, 8])
    speech = dataset(data, rows=rows, max_samples=12_345, max_target_tokens=7)
    assert [(row.row, row.reason) for row in speech.overlong] == [
        (3, "longer than 12345 samples: 16000"),
        (5, "target longer than 7 tokens: 12"),
    ]
    assert speech.kept.tolist() == [1, 7, 8] and len(speech) == 3
    assert speech.ordered_indices().tolist() == [7, 8, 1]
    assert speech[7]["index"] == 7 and speech[7]["tgt_text"] == TEXTS[7]
    speech.check_examples(10)
    with pytest.raises(ManifestError, match=r"train.tsv:10: expected a tgt_text"):
        dataset(changed(data, tmp_path, 8, tgt_text=""), shuffle=True, rows=rows)
    path = changed(data, tmp_path, 2, tgt_text="")
    speech = dataset(path, shuffle=True, alpha=0.0, rows=rows, audio_root=str(data.parent))
    assert speech.drawn_report() == "en-fr 1 → 2, fr-en 4 → 2"
    assert set(speech.ordered_indices()) <= set(rows)


def test_transcripts_are_enough_without_targets(data, tmp_path):
    codec = Codec()
    path = changed(data, tmp_path, 3, tgt_text="", tgt_lang="")
    options = {"encode_target": None, "prefix_size": 0, "audio_root": str(data.parent)}
    speech = dataset(path, codec, shuffle=True, encode_transcript=codec.transcript, **options)
    assert [pair_name(pair) for pair in speech.manifest.pairs] == ["en-fr", "es-en", "fr", "fr-en"]
    assert speech.drawn_report() == "en-fr 2 → 2, es-en 4 → 4, fr 1 → 1, fr-en 3 → 3"
    rows = speech.ordered_indices()
    kept, _ = speech.filter_indices_by_size(rows, (10**6, 1))
    assert kept.tolist() == rows.tolist() and speech.size(3) == (16_000, 0)
    batch = speech.collater([speech[3], speech[9]])
    assert batch["target"] is None and batch["prefix_tokens"] is None
    assert set(batch["net_input"]) == {"src_tokens", "src_lengths"}
    assert batch["ntokens"] == 16_000 + 5000 and batch["pair"].tolist() == [2, 0]
    assert batch["transcript_lengths"].tolist() == [5, 1]
    assert codec.calls == 0


# Order, sampling, speed


def test_the_order_without_shuffling_is_by_length_then_row(data):
    speech = dataset(data)
    expected = sorted(range(10), key=lambda row: (LENGTHS[row], row))
    assert speech.ordered_indices().tolist() == expected
    speech.set_epoch(2)
    assert speech.ordered_indices().tolist() == expected
    assert speech.can_reuse_epoch_itr_across_epochs
    assert not dataset(data, shuffle=True).can_reuse_epoch_itr_across_epochs
    assert not dataset(data, speed_factors=(0.9, 1.1)).can_reuse_epoch_itr_across_epochs


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Manifest of 3,000 rows without audio, 2,700 of them es-en."""
    rng = np.random.default_rng(0)
    lines = ["\t".join(COLUMNS)]
    for row in range(3000):
        lang = "es" if row % 10 else "fr"
        length = int(rng.integers(5000, 300_000))
        lines.append(f"{row}\t{row}.wav\t{length}\tab\ts\tba\t{lang}\ten")
    path = tmp_path_factory.mktemp("large") / "train.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def order(speech, epoch, global_seed=0):
    speech.set_epoch(epoch)
    with numpy_seed(global_seed):
        return speech.ordered_indices()


def test_a_shuffled_order_depends_on_seed_and_epoch_and_is_nearly_sorted(large):
    speech = dataset(large, shuffle=True)
    first = order(speech, 1)
    assert np.array_equal(np.sort(first), np.arange(3000))
    lengths = speech.sizes[first]
    assert (lengths[1:] / np.maximum.accumulate(lengths)[:-1]).min() > 0.97 / 1.03 - 1e-6
    assert not np.array_equal(lengths, np.sort(lengths))
    assert np.array_equal(first, order(dataset(large, shuffle=True), 1, global_seed=7))
    assert not np.array_equal(first, order(speech, 2))
    assert not np.array_equal(first, order(dataset(large, shuffle=True, seed=2), 1))
    assert np.array_equal(first, order(speech, 1))


def test_language_pairs_are_resampled_when_shuffling(large):
    speech = dataset(large, shuffle=True, alpha=0.0)
    rows = order(speech, 1)
    fr = rows % 10 == 0
    assert len(rows) == len(speech) == 3000
    assert fr.sum() == 1500 and len(set(rows[fr])) == 300 and len(set(rows[~fr])) == 1500
    assert speech.drawn_report() == "es-en 2700 → 1500, fr-en 300 → 1500"
    assert set(order(speech, 2)[~(order(speech, 2) % 10 == 0)]) != set(rows[~fr])
    assert len(set(dataset(large, alpha=0.0).ordered_indices())) == 3000


def test_rows_left_out_are_not_resampled(large):
    limits = {"max_samples": 200_000, "min_samples": 20_000}
    speech = dataset(large, shuffle=True, alpha=0.0, **limits)
    rows = order(speech, 3)
    sizes = speech.sizes[rows]
    assert sizes.max() <= 200_000 and sizes.min() >= 20_000
    kept = 3000 - len(speech.overlong)
    assert abs(len(rows) - kept) <= 1
    assert abs((rows % 10 == 0).sum() - kept / 2) <= 1


def test_speeds_are_drawn_for_every_row_and_epoch(large):
    factors = (0.9, 1.0, 1.1)
    speech = dataset(large, speed_factors=factors)
    n_frames = speech.manifest.n_frames
    drawn = n_frames / speech.sizes
    nearest = np.abs(drawn[:, None] - factors)
    assert nearest.min(axis=1).max() < 2e-4
    assert np.bincount(nearest.argmin(axis=1)).min() > 850
    np.testing.assert_array_equal(dataset(large, speed_factors=factors).sizes, speech.sizes)
    before = speech.sizes
    speech.set_epoch(2)
    assert (speech.sizes != before).mean() > 0.5
    rows = np.array([5, 5, 2000])
    np.testing.assert_array_equal(speech.num_tokens_vec(rows), speech.sizes[rows])
    assert speech.num_tokens(5) == speech.sizes[5]


def test_speed_changes_the_audio_as_it_says(data):
    speech = dataset(data, speed_factors=(0.9, 1.0, 1.1), normalize=False)
    seen = set()
    for epoch in range(1, 8):
        speech.set_epoch(epoch)
        for row, length in enumerate(LENGTHS):
            source = speech[row]["source"].numpy()
            assert len(source) == speech.num_tokens(row)
            speed = min((0.9, 1.0, 1.1), key=lambda factor: abs(length / len(source) - factor))
            wave = read_audio(f"{row}.wav", str(data.parent))
            np.testing.assert_array_equal(source, wave if speed == 1 else change_speed(wave, speed))
            seen.add(speed)
    assert seen == {0.9, 1.0, 1.1}


# Sizes and batches


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (None, 10),
        (9000, 8),
        (9000.5, 8),
        ((9000, 1024), 8),
        ((9000, None), 8),
        ((None, 6), 8),
        ([4000, 4], 5),
        ((10**9, 1024), 10),
    ],
)
def test_filtering_is_fairseqs_own_rule(data, limits, expected):
    speech = dataset(data)
    rows = speech.ordered_indices()
    kept, ignored = speech.filter_indices_by_size(rows, limits)
    within = []
    for row in rows:
        sizes = (LENGTHS[row], len(TEXTS[row]) + 2)
        assert speech.size(row) == sizes
        bounds = limits if isinstance(limits, (tuple, list)) else (limits, None)
        within.append(all(b is None or size <= b for size, b in zip(sizes, bounds)))
    assert kept.tolist() == rows[within].tolist()
    assert ignored == rows[~np.array(within)].tolist()
    assert len(kept) == expected


def test_padding_share(large):
    speech = dataset(large, shuffle=True)
    batches = speech.batch_by_size(order(speech, 1), max_tokens=3_000_000)
    padded = total = 0
    for batch in batches:
        sizes = [speech.num_tokens(row) for row in batch]
        padded += sum(max(sizes) - size for size in sizes)
        total += max(sizes) * len(sizes)
    assert speech.padding_share(batches) == pytest.approx(padded / total)
    assert speech.padding_share(batches) < 0.05
    assert speech.padding_share([[0], [1]]) == 0


class Task(FairseqTask):
    """As little of a task as makes fairseq's batch iterators."""


@pytest.mark.parametrize("workers", [0, 2])
def test_fairseqs_iterator_gives_every_epoch_its_own_speeds(data, workers):
    task = Task(None)
    speech = dataset(data, shuffle=True, speed_factors=(0.5, 2.0), normalize=False)
    seen = {}
    for epoch in (1, 2, 3):
        iterator = task.get_batch_iterator(
            speech, max_tokens=64_000, max_positions=(10**9, 1024), seed=1, epoch=epoch,
            num_workers=workers, required_batch_size_multiple=8,
        )  # fmt: skip
        assert isinstance(iterator, iterators.EpochBatchIterator)
        expected = copy.copy(speech)
        expected.set_epoch(epoch)
        lengths = {}
        for batch in iterator.next_epoch_itr(shuffle=True):
            sources = batch["net_input"]
            lengths.update(zip(batch["id"].tolist(), sources["src_lengths"].tolist()))
            assert sources["src_tokens"].shape[1] == sources["src_lengths"].max()
        assert lengths == dict(enumerate(expected.sizes.tolist()))
        seen[epoch] = lengths
        if workers:
            # Else the garbage collector, which finds fairseq's iterators in a reference cycle,
            # closes the workers' queues before it asks them to stop, and waits 5 s for each.
            iterator.dataloader._iterator._shutdown_workers()
    assert seen[1] != seen[2] != seen[3]


def test_pickles_for_workers_that_are_not_forked(data):
    speech = dataset(data, shuffle=True, speed_factors=(0.9, 1.1))
    speech.set_epoch(4)
    again = pickle.loads(pickle.dumps(copy_without_functions(speech)))
    assert np.array_equal(again.ordered_indices(), speech.ordered_indices())
    assert np.array_equal(again.sizes, speech.sizes)


def copy_without_functions(speech):
    """The codec of these tests is of a module that cannot be imported by name."""
    copied = copy.copy(speech)
    copied.encode_target = None
    return copied


# Bad audio


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"audio": "none.wav"}, "train.tsv:5: none.wav: expected an audio file .* no such file"),
        ({"audio": "train.tsv"}, "train.tsv:5: train.tsv: expected wav, flac"),
        ({"n_frames": "100"}, "train.tsv:5: expected n_frames = 100 .* found 16000 in 3.wav"),
        ({"n_frames": "20000"}, "train.tsv:5: expected n_frames = 20000 .* found 16000"),
        ({"audio": "9.wav"}, "train.tsv:5: expected n_frames = 16000 .* found 5000"),
    ],
)
def test_bad_audio_is_named_with_its_row(data, tmp_path, cells, message):
    speech = dataset(changed(data, tmp_path, 3, **cells), audio_root=str(data.parent))
    speech[2]
    with pytest.raises(ManifestError, match=message):
        speech[3]


def test_lengths_may_differ_a_little(data, tmp_path):
    path = changed(data, tmp_path, 3, n_frames="17000")
    assert len(dataset(path, audio_root=str(data.parent))[3]["source"]) == 16_000


def test_a_target_that_turns_out_too_long_is_named(data):
    codec = Codec()

    def longer_than_its_bytes(text, lang):
        return torch.full((100,), codec.dictionary.eos())

    speech = dataset(data, encode_target=longer_than_its_bytes, max_target_tokens=50)
    with pytest.raises(
        ManifestError, match="train.tsv:5: expected at most 50 target tokens, found 100"
    ):
        speech[3]
