import csv
import multiprocessing
import os
import pickle
import random
import resource
import time
import zipfile

import numpy as np
import pytest
import torch

from fairseq_samu.data import manifest as manifest_module
from fairseq_samu.data import manifest_index
from fairseq_samu.data.manifest import Manifest
from fairseq_samu.data.manifest_index import COLUMNS, ManifestError

HEADER = "\t".join(COLUMNS)


def line(id="a", audio="a.wav", n_frames="16000", tgt_text="hello", speaker="s", src_text="hola",
         src_lang="es", tgt_lang="en"):  # fmt: skip
    return "\t".join([id, audio, n_frames, tgt_text, speaker, src_text, src_lang, tgt_lang])


@pytest.fixture
def write(tmp_path):
    """Writes a manifest from lines or bytes."""

    def write(*lines, header=HEADER, end="\n", name="train.tsv"):
        path = tmp_path / name
        if lines and isinstance(lines[0], bytes):
            path.write_bytes(b"".join(lines))
        else:
            path.write_bytes("".join(text + end for text in (header, *lines)).encode())
        return path

    return write


def random_rows(count, seed=0):
    """Rows with everything that texts hold but tabs and line ends."""
    rng = random.Random(seed)
    words = [
        "\u2028",
        "\x85",
        "\xa0",
        " ",
        "  ",
        "\\t",
        "\\N",
        "\x0b",
        "\x1c",
        "\x01\x08",
        "NULL",
        "",
    ]
    words += ['"quoted"', "'", "l’été", "日本語", "😀", "#", "&amp;", ",", ";", "<s>", "|"]
    for row in range(count):
        text = [" ".join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(3)]
        yield line(
            id=f"é{row}",
            audio=f"b {row}.zip:{row}:17",
            n_frames=str(rng.randint(1, 10 ** rng.randint(1, 12) - 1)),
            tgt_text=text[0],
            speaker=text[1],
            src_text=text[2],
            src_lang=rng.choice(["es", "pt-BR", "zh_Hant"]),
            tgt_lang=rng.choice(["en", "fr"]),
        )


def as_csv_reads_it(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 23])
def test_cells_are_those_that_the_csv_module_reads(write, monkeypatch, block):
    monkeypatch.setattr(manifest_index, "BLOCK_BYTES", block)
    path = write(*random_rows(200))
    expected = as_csv_reads_it(path)
    for manifest in (Manifest(path), Manifest(str(path))):
        assert len(manifest) == 200
        assert [manifest.row(row) for row in range(200)] == expected
        for column in COLUMNS:
            texts = [row[column] for row in expected]
            assert [manifest.cell(row, column) for row in range(200)] == texts
            assert manifest.cells(column, 0, 200) == texts
            assert manifest.cells(column, 37, 38) == texts[37:38]
            assert manifest.cells(column, 150, 200) == texts[150:]
            lengths = manifest.byte_lengths(column)
            assert lengths.dtype == np.int32
            assert lengths.tolist() == [len(text.encode()) for text in texts]
        assert manifest.n_frames.tolist() == [int(r["n_frames"]) for r in expected]
        pairs = [(r["src_lang"], r["tgt_lang"]) for r in expected]
        assert manifest.pairs == sorted(set(pairs))
        assert [manifest.pairs[i] for i in manifest.pair_ids] == pairs
        assert manifest.location(5) == f"{path}:7"


@pytest.mark.parametrize("block", [1, 50, 1 << 23])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_mark_are_not_content(write, monkeypatch, block, end, last, mark):
    monkeypatch.setattr(manifest_index, "BLOCK_BYTES", block)
    rows = list(random_rows(20))
    text = end.join([HEADER, *rows]) + (end if last else "")
    path = write(mark + text.encode())
    for manifest in (Manifest(path), Manifest(path)):
        assert ["\t".join(manifest.row(i).values()) for i in range(len(manifest))] == rows
        assert manifest.columns == list(COLUMNS)
        assert manifest.cell(19, "tgt_lang") in ("en", "fr")
        assert manifest.byte_lengths("tgt_lang").tolist() == [2] * 20


def test_columns_may_come_in_any_order_and_others_too(write):
    columns = ["split", *reversed(COLUMNS), "gender"]
    cells = dict(zip(COLUMNS, line().split("\t")), split="dev", gender="")
    path = write("\t".join(cells[name] for name in columns), header="\t".join(columns))
    manifest = Manifest(path)
    assert manifest.row(0) == cells
    assert manifest.cell(0, "gender") == "" and manifest.cell(0, "split") == "dev"
    assert manifest.n_frames.tolist() == [16_000] and manifest.pairs == [("es", "en")]


@pytest.mark.parametrize("block", [3, 1 << 23])
@pytest.mark.parametrize(
    ("lines", "row", "message"),
    [
        ([line(), line("b") + "\tmore"], 3, "expected 8 cells separated by tabs, found 9: 'b"),
        ([line(), line("b").rpartition("\t")[0], line("c")], 3, "expected 8 cells.*found 7"),
        ([line(), "b 16000"], 3, "expected 8 cells.*found 1: 'b 16000'"),
        ([line(), "", line("b")], 3, "expected 8 cells.*found an empty line"),
        ([line(), line("b"), ""], 4, "expected 8 cells.*found an empty line"),
        ([line(n_frames="1.5e4")], 2, "n_frames = 16 kHz samples.*found '1.5e4'"),
        ([line(), line("b", n_frames="16000.0")], 3, "found '16000.0'"),
        ([line(), line("b", n_frames="-3")], 3, "found '-3'"),
        ([line(), line("b", n_frames="0")], 3, "found '0'"),
        ([line(), line("b", n_frames=" 1")], 3, "found ' 1'"),
        ([line(), line("b", n_frames="٣")], 3, "found '٣'"),
        ([line(), line("b", n_frames="1" * 13)], 3, "found '1111111111111'"),
        ([line(), line("b", n_frames="")], 3, "expected a value in n_frames, found none"),
        ([line(), line("")], 3, "expected a value in id, found none"),
        ([line(), line("b", audio="")], 3, "expected a value in audio, found none"),
        ([line(), line("b", src_lang="")], 3, "expected a value in src_lang, found none"),
        ([line(), line("b", tgt_lang="")], 3, "expected a value in tgt_lang, found none"),
        ([line(), line("b", tgt_text=""), line("c", tgt_lang="")], 4, "a value in tgt_lang, found none"),
        ([line(), line("b", tgt_text="", tgt_lang=" ")], 3, "languages without spaces, found ' '"),
        ([line(), line("b", tgt_lang="en ")], 3, "expected languages without spaces, found 'en '"),
        ([line(), line("b", src_lang="e s")], 3, "found 'e s'"),
        ([line(), line("b", src_lang="es\xa0")], 3, r"found 'es\\xa0'"),
        ([line(), line("b", tgt_lang="e n"), line("c", src_lang="e s")], 3, "found 'e n'"),
        ([line(), line("b", tgt_text="a\0")], 3, "expected text, found a NUL byte"),
        ([line(tgt_text="\1\2"), line("b", tgt_text="\3\b") + "\t"], 3, "expected 8 cells.*found 9"),
        ([line(), line("b"), line("c"), line("b"), line()], 5,
         "expected an id of its own, found 'b' as in line 3"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(write, monkeypatch, block, lines, row, message):
    monkeypatch.setattr(manifest_index, "BLOCK_BYTES", block)
    path = write(*lines)
    with pytest.raises(ManifestError, match=message) as error:
        Manifest(path)
    assert str(error.value).startswith(f"{path}:{row}: ")
    assert not (path.parent / ".train.tsv.index").exists()


@pytest.mark.parametrize("block", [40, 1 << 20])
def test_equal_hashes_of_other_ids_are_no_error(write, monkeypatch, block):
    monkeypatch.setattr(manifest_index, "BLOCK_BYTES", block)
    hash_cells = manifest_index.hash_cells

    def equal_for_ids(block, begin, end, **after):
        hashes = hash_cells(block, begin, end, **after)
        return hashes % 2 if begin[0] == 0 else hashes

    monkeypatch.setattr(manifest_index, "hash_cells", equal_for_ids)
    assert len(Manifest(write(*(line(name) for name in ("a", "b", "cc", "dd", "e"))))) == 5
    with pytest.raises(ManifestError, match=":6: .*found 'dd' as in line 4"):
        Manifest(write(*(line(name) for name in ("a", "b", "dd", "cc", "dd", "e"))))


@pytest.mark.parametrize("block", [100, 1 << 20])
@pytest.mark.parametrize("longest", [(1 << 16) - 1, 1 << 16])
def test_rows_of_more_than_64_kib_are_found_again(write, monkeypatch, block, longest):
    monkeypatch.setattr(manifest_index, "BLOCK_BYTES", block)
    rows = [line(f"{i}", tgt_lang=("en", "fr")[i % 2]) for i in range(9)]
    rows[4] = line("4", tgt_text="x" * (longest - len(line("4", tgt_text="")) - 1))
    assert len(rows[4]) + 1 == longest
    path = write(*rows)
    for manifest in (Manifest(path), Manifest(path)):
        assert ["\t".join(manifest.row(i).values()) for i in range(9)] == rows
        assert manifest.n_frames.tolist() == [16_000] * 9
        assert manifest.pair_ids.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
        assert manifest.cells("tgt_lang", 3, 6) == ["fr", "en", "fr"]
        assert manifest.byte_lengths("tgt_text").tolist()[3:6] == [5, longest - 28, 5]
        width = 2 if longest < 1 << 16 else 4
        assert manifest._cell_ends.itemsize == width


def test_distinct_cells_are_those_that_there_are(write):
    audio = ["b.wav", "a.wav", "b.wav", "a.wav", "café.wav", "b.wav"]
    manifest = Manifest(write(*(line(f"{i}", audio=name) for i, name in enumerate(audio))))
    assert manifest.distinct_cells("audio", 0, 6) == ["b.wav", "a.wav", "café.wav"]
    assert manifest.distinct_cells("audio", 3, 6) == ["a.wav", "café.wav", "b.wav"]
    assert manifest.distinct_cells("src_lang", 2, 6) == ["es"]
    # The last cell is empty, and no newline comes behind it.
    rows = [line(f"{i}", tgt_text="", tgt_lang=lang) for i, lang in enumerate(["", "en", ""])]
    manifest = Manifest(write("\n".join([HEADER, *rows]).encode()))
    assert manifest.distinct_cells("tgt_lang", 0, 3) == ["", "en"]
    assert manifest.distinct_cells("tgt_lang", 2, 3) == [""]


def test_limits_of_the_index_are_not_passed_silently(write, monkeypatch):
    langs = ["es", "fr", "de", "es", "it"]
    path = write(*(line(f"{i}", src_lang=lang) for i, lang in enumerate(langs)))
    monkeypatch.setattr(manifest_index, "MAX_PAIRS", 3)
    with pytest.raises(
        ManifestError, match=":6: expected 3 language pairs at most, found one more"
    ):
        Manifest(path)
    monkeypatch.setattr(manifest_index, "MAX_PAIRS", 4)
    assert Manifest(path).pairs == [(lang, "en") for lang in ("de", "es", "fr", "it")]
    path = write(line(), line("b", src_text="x" * 100))
    monkeypatch.setattr(manifest_index, "MAX_ROW_BYTES", 99)
    with pytest.raises(ManifestError, match=":3: expected a row of 99 bytes at most, found 129"):
        Manifest(path)
    # Rows that are not read to their end.
    monkeypatch.setattr(manifest_index, "BLOCK_BYTES", 30)
    path = write(line(), line("b", src_text="é" * 10_000), line("c"))
    with pytest.raises(ManifestError, match=":3: .* 99 bytes at most, found more than 120"):
        Manifest(path)


@pytest.mark.parametrize(
    ("content", "row", "message"),
    [
        (b"", 1, "expected a header row with the columns id audio .* found nothing"),
        (b"\n", 1, "found nothing"),
        (HEADER.encode(), 2, "expected at least one row below the header, found none"),
        (HEADER.encode() + b"\n", 2, "expected at least one row"),
        (line().encode() + b"\n", 1, r"found only \['a', 'a.wav'.*missing: id audio n_frames"),
        (HEADER.replace("\t", ",").encode() + b"\n", 1, "separated by tabs"),
        (HEADER.replace("tgt_lang", "lang").encode() + b"\n", 1, "missing: tgt_lang"),
        (f"{HEADER}\tid\n{line()}\tb\n".encode(), 1, "every column once"),
        (f"{HEADER}\t{'x' * 65_536}\n{line()}\tx\n".encode(), 1, "less than 65536 bytes, found more"),
        (f"{HEADER}\n{line()}\n".encode("utf-16"), 1, "expected UTF-8"),
        (f"{HEADER}\n{line()}\n{line('b', tgt_text='café')}\n".encode("latin-1"), 3,
         r"expected UTF-8, found the bytes b'\\xe9"),
        (f"{HEADER}\n{line()}\n".encode() + "é".encode()[:1], 3, "expected UTF-8"),
    ],
)  # fmt: skip
def test_bad_files_are_named(write, content, row, message):
    path = write(content)
    with pytest.raises(ManifestError, match=message) as error:
        Manifest(path)
    assert str(error.value).startswith(f"{path}:{row}: ")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ManifestError, match="none.tsv: expected a manifest, found: No such file"):
        Manifest(tmp_path / "none.tsv")
    with pytest.raises(ManifestError, match=f"{tmp_path}.*directory"):
        Manifest(tmp_path)


# The stored index


@pytest.fixture
def builds(monkeypatch):
    """Counts how often an index is built."""
    calls = []
    build = manifest_module.build_index

    def count(*args):
        calls.append(args[1])
        return build(*args)

    monkeypatch.setattr(manifest_module, "build_index", count)
    return calls


def contents(manifest):
    rows = [manifest.row(row) for row in range(len(manifest))]
    return rows, manifest.n_frames.tolist(), manifest.pairs


def test_a_second_open_uses_the_stored_index(write, builds):
    path = write(*random_rows(50))
    first, second = Manifest(path), Manifest(path)
    assert builds == [str(path)]
    assert contents(first) == contents(second)
    assert [p.name for p in path.parent.iterdir() if p != path] == [".train.tsv.index"]
    assert [p.name for p in (path.parent / ".train.tsv.index").iterdir()] == ["index.bin"]
    # What stays in memory is mapped from the file.
    for manifest in (first, second):
        for array in (manifest.n_frames, manifest.pair_ids, manifest._starts, manifest._cell_ends):
            while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
                array = array.base
            assert isinstance(array, np.memmap)


def test_a_changed_manifest_of_the_same_size_is_indexed_again(write, builds):
    path = write(line("a", n_frames="111"), line("b", n_frames="22", tgt_text="yes"))
    before = path.stat()
    assert Manifest(path).n_frames.tolist() == [111, 22]
    write(line("a", n_frames="11"), line("b", n_frames="222", tgt_text="yes"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    assert Manifest(path).n_frames.tolist() == [11, 222]
    assert len(builds) == 2
    # Larger, with the old time.
    with open(path, "a") as file:
        file.write(line("c") + "\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert len(Manifest(path)) == 3


def test_another_manifest_of_the_same_size_and_time_is_indexed_again(write):
    path = write(line("a", n_frames="111"), line("b", n_frames="22", tgt_text="yes"))
    before = path.stat()
    assert Manifest(path).n_frames.tolist() == [111, 22]
    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    write(line("a", n_frames="11"), line("b", n_frames="222", tgt_text="yes"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert Manifest(path).n_frames.tolist() == [11, 222]


def test_a_changed_manifest_with_a_bad_row_is_refused(write):
    path = write(line())
    Manifest(path)
    write(line(), line("b", n_frames="x"))
    with pytest.raises(ManifestError, match="train.tsv:3: .*'x'"):
        Manifest(path)


def test_an_index_of_another_layout_is_replaced(write, builds, monkeypatch):
    path = write(*random_rows(5))
    expected = contents(Manifest(path))
    monkeypatch.setattr(manifest_index, "FORMAT", manifest_index.FORMAT + 1)
    assert contents(Manifest(path)) == contents(Manifest(path)) == expected
    assert len(builds) == 2


def damage(kind, index, rng):
    data = bytearray(index.read_bytes())
    if kind == "flipped":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "longer":
        data += bytes(8)
    elif kind == "npy":
        with open(index, "wb") as file:
            np.save(file, np.frombuffer(data, dtype=np.int64))
        return
    elif kind == "zeros":
        where = rng.randrange(len(data) - 8)
        data[where:] = bytes(len(data) - where)
    elif kind == "pickle":
        data = pickle.dumps(np.arange(1000))
    elif kind == "text":
        data = b"index"
    index.write_bytes(data)
    if kind == "zip":
        with zipfile.ZipFile(index, "w") as archive:
            archive.writestr("arr_0.npy", b"")


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        ("flipped", 150),
        ("cut", 30),
        ("zeros", 10),
        ("longer", 1),
        ("npy", 1),
        ("pickle", 1),
        ("text", 1),
        ("zip", 1),
    ],
)
def test_a_damaged_index_is_replaced(write, builds, kind, times):
    path = write(*random_rows(20))
    expected = contents(Manifest(path))
    rng = random.Random(1)
    for _ in range(times):
        damage(kind, path.parent / ".train.tsv.index" / "index.bin", rng)
        builds.clear()
        assert contents(Manifest(path)) == expected
        assert contents(Manifest(path)) == expected
        assert len(builds) == 1


def test_without_a_place_for_the_index_it_stays_in_memory(write, builds, caplog):
    path = write(*random_rows(20))
    # Also root may not make a folder where a file is.
    (path.parent / ".train.tsv.index").write_text("")
    first, second = Manifest(path), Manifest(path)
    assert contents(first) == contents(second)
    assert len(builds) == 2
    assert "train.tsv: its index stays in memory, cannot store it" in caplog.text


def test_a_disk_that_fills_up_leaves_nothing_behind(write, caplog):
    path = write(*random_rows(20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        manifest = Manifest(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(manifest) == 20
    assert "train.tsv: its index stays in memory, cannot store it" in caplog.text
    assert list((path.parent / ".train.tsv.index").iterdir()) == []


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_many_processes_may_index_at_once(write):
    path = write(*random_rows(20_000))
    expected = as_csv_reads_it(path)
    total = sum(int(row["n_frames"]) for row in expected)
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()

    def open_it():
        barrier.wait()
        manifest = Manifest(path)
        answers.put((len(manifest), int(manifest.n_frames.sum()), manifest.row(19_999)))

    processes = [context.Process(target=open_it) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [(20_000, total, expected[-1])] * 4
    for process in processes:
        process.join()
    assert [p.name for p in (path.parent / ".train.tsv.index").iterdir()] == ["index.bin"]


def test_a_manifest_that_grows_while_it_is_indexed_is_refused(write, monkeypatch):
    path = write(*random_rows(20))
    check_ids = manifest_index._Scan.check_ids

    def check_and_write(scan, fd):
        check_ids(scan, fd)
        with open(path, "a") as file:
            file.write(line("late") + "\n")

    monkeypatch.setattr(manifest_index._Scan, "check_ids", check_and_write)
    with pytest.raises(ManifestError, match="train.tsv: expected a finished file"):
        Manifest(path)


def test_a_manifest_cut_short_while_open_is_an_error(write):
    path = write(*random_rows(20))
    manifest = Manifest(path)
    with open(path, "r+") as file:
        file.truncate(300)
    with pytest.raises(ManifestError, match="train.tsv:21: expected the file that was opened"):
        manifest.row(19)
    with pytest.raises(ManifestError, match="train.tsv:6: expected the file that was opened"):
        manifest.cells("id", 4, 20)


# Processes


def test_pickles_as_its_path(write):
    manifest = Manifest(write(*random_rows(100)))
    data = pickle.dumps(manifest)
    assert len(data) < 500
    assert contents(pickle.loads(data)) == contents(manifest)


class Cells(torch.utils.data.Dataset):
    def __init__(self, manifest):
        self.manifest = manifest

    def __len__(self):
        return len(self.manifest)

    def __getitem__(self, row):
        return self.manifest.cell(row, "tgt_text")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_forked_workers_read_at_the_same_time(write):
    manifest = Manifest(write(*random_rows(500)))
    loader = torch.utils.data.DataLoader(
        Cells(manifest),
        batch_size=5,
        num_workers=2,
        collate_fn=list,
        multiprocessing_context="fork",
    )
    read = [text for batch in loader for text in batch]
    assert read == [manifest.cell(row, "tgt_text") for row in range(500)]


def test_closes_its_file(write):
    path = write(*random_rows(3))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(20):
        Manifest(path)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 1
