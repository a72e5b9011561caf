"""Embed utterances with a trained SAMU encoder.

    python -m fairseq_samu.embed --path samu.pt --data data --splits dev test
    python -m fairseq_samu.embed --path samu.pt --audio hello.wav recording.mp3
    python -m fairseq_samu.embed --path samu.pt --audio-list clips.txt

Beside every SPLIT.tsv (clips.txt; with --audio as audio.samu.npy in the current folder), or in the
folder of --out, it writes, for a checkpoint called samu.pt,

    SPLIT.samu.npy       (rows, dimension) float16, of length 1; row i is that of row i of the manifest
    SPLIT.samu.rows.npy  (rows,) a hash of every row's audio, as the manifest names it
    SPLIT.samu.json      checkpoint, its SHA-256, rows, dimension, and the SHA-256 of the audio column

which are the files that `data_prep.embed_text` writes for texts: `fairseq_samu.search` compares any with
any. Files that are there and fit are kept; a run that was killed goes on where it was when the same
command is given again.
"""

import argparse
import hashlib
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data_prep.embed_text import default_teacher_name, vectors_name
from data_prep.vector_files import VectorFiles, row_hash
from fairseq_samu.data.audio import AudioError
from fairseq_samu.data.manifest_index import ManifestError
from fairseq_samu.models import SamuXlsrModel
from fairseq_samu.tasks import SpeechToTextSamuTask
from fairseq_samu.utterances import AUDIO_COLUMN, Utterances, open_files, open_manifest, read_list

#: Bytes of a checkpoint hashed at a time.
HASH_BLOCK = 1 << 24


class Encoder(NamedTuple):
    """A trained SAMU encoder.

    Attributes:
        model: returns the ``embedding`` of a batch.
        task: the task it was trained with, without its vocabularies.
        name: file name of the checkpoint.
        sha256: of the checkpoint.
        dimension: width of a vector.
    """

    model: torch.nn.Module
    task: SpeechToTextSamuTask
    name: str
    sha256: str
    dimension: int


class _Batches(Dataset):  # type: ignore[type-arg]
    """Batches of utterances. Errors are handed over: a worker process would wrap what it raises."""

    def __init__(self, utterances: Utterances, batches: List[NDArray[np.int64]]) -> None:
        self._utterances = utterances
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Union[Dict[str, Any], ValueError]:
        dataset, items = self._utterances.dataset, []
        for row in self._batches[number].tolist():
            try:
                items.append(dataset[row])
            except ManifestError as error:  # names file and row already
                return error
            except AudioError as error:
                return AudioError(f"{self._utterances.place(row)}: {error}")
        return dict(dataset.collater(items))


def load_encoder(
    path: Path, device: str, fp16: bool = False, max_samples: Optional[int] = None
) -> Encoder:
    """Load a checkpoint of ``samu_xlsr``; nothing but the file is needed.

    Args:
        path: the checkpoint.
        device: where the model computes.
        fp16: in half precision.
        max_samples: longest utterance; None = that of training.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no checkpoint of ``samu_xlsr``.
    """
    model, task = SamuXlsrModel.from_pretrained(str(path))
    if max_samples is not None:
        task.cfg.max_source_positions = max_samples
    model = (model.half() if fp16 else model).to(device)
    sha256 = _file_sha256(path)
    return Encoder(model, task, path.name, sha256, model.head.projection.out_features)


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(HASH_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def embed(
    encoder: Encoder, utterances: Utterances, name: str, max_tokens: int, num_workers: int = 0
) -> Tuple[Path, int]:
    """Write the vectors of utterances, unless they are there.

    Batches hold utterances of about the same length, the longest first, so that memory runs out at
    the start or not at all.

    Args:
        encoder: what embeds.
        utterances: what to embed.
        name: what the files are called after.
        max_tokens: samples of a batch at most, padding included; a longer utterance is a batch.
        num_workers: processes that read audio.

    Returns:
        The file of the vectors, and how many were computed just now.

    Raises:
        ValueError: audio that cannot be used, a vector that is not finite, or files of that name
            that hold vectors of texts.
    """
    dataset, rows = utterances.dataset, len(utterances.specs)
    digest, hashes = hashlib.sha256(), np.empty(rows, np.uint64)
    for row, spec in enumerate(utterances.specs):
        digest.update(spec.encode() + b"\n")
        hashes[row] = row_hash(spec.encode())
    sidecar = {
        "model": encoder.name,
        "model_sha256": encoder.sha256,
        "column": AUDIO_COLUMN,
        "rows": rows,
        "dimension": encoder.dimension,
        "dtype": "float16",
        "normalised": True,
        "texts_sha256": digest.hexdigest(),
        **utterances.extra,
    }
    stem = utterances.stem
    stem.parent.mkdir(parents=True, exist_ok=True)
    output = VectorFiles(stem.with_name(f"{stem.name}.{name}"), sidecar)
    there = output.written()
    if isinstance(there, dict) and there.get("column", AUDIO_COLUMN) != AUDIO_COLUMN:
        raise ValueError(
            f"{output.vectors}: expected vectors of speech to write over, found those of "
            f"{there['column']}; choose another --name than {name}"
        )
    if output.is_finished():
        return output.vectors, 0
    vectors, done = output.open()
    order = np.ascontiguousarray(dataset.ordered_indices()[::-1])
    longest = int(dataset.num_tokens_vec(order).max())
    batches = dataset.batch_by_size(order[done:], max_tokens=max(max_tokens, longest))
    loader = DataLoader(
        _Batches(utterances, [np.asarray(batch) for batch in batches]),
        batch_size=None,
        num_workers=num_workers,
    )
    with tqdm(total=rows, initial=done, desc=output.vectors.stem, unit="utterance") as bar:
        finished = done
        for batch in loader:
            if isinstance(batch, ValueError):
                raise batch
            vectors[batch["id"].numpy()] = _embed_batch(encoder, batch, utterances)
            finished += batch["nsentences"]
            bar.update(batch["nsentences"])
            output.save_progress(vectors, finished)
    output.finish(vectors, hashes)
    return output.vectors, rows - done


def _embed_batch(
    encoder: Encoder, batch: Dict[str, Any], utterances: Utterances
) -> NDArray[np.float32]:
    """Vectors (B, E) of a batch."""
    device = next(encoder.model.parameters()).device
    net_input = batch["net_input"]
    with torch.no_grad():
        output = encoder.model(
            net_input["src_tokens"].to(device), net_input["src_lengths"].to(device)
        )
    found: NDArray[np.float32] = output["embedding"].float().cpu().numpy()
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        row = int(batch["id"][int(finite.argmin())])
        raise ValueError(
            f"{utterances.place(row)}: expected a finite vector of {utterances.specs[row]}, found none; "
            "without --fp16 numbers are larger before they overflow"
        )
    return found


def _inputs(args: argparse.Namespace, task: SpeechToTextSamuTask) -> Iterator[Utterances]:
    """What the command line asks to embed, one set of vectors at a time."""
    root = str(args.audio_root or "")
    if args.audio:
        stem = (args.out or Path()) / "audio"
        utterances = open_files(args.audio, stem, "--audio", task, root)
        yield utterances._replace(extra={"audio": list(args.audio), **utterances.extra})
    elif args.audio_list:
        stem = (args.out or args.audio_list.parent) / args.audio_list.stem
        yield open_files(read_list(args.audio_list), stem, str(args.audio_list), task, root)
    else:
        for split in args.splits:
            path = args.data / f"{split}.tsv"
            utterances = open_manifest(path, args.audio_root or args.data, task)
            yield utterances._replace(stem=(args.out or args.data) / split)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_samu.embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--path", type=Path, required=True, metavar="samu.pt", help="checkpoint of samu_xlsr"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="folder of the manifests SPLIT.tsv")
    what.add_argument("--audio", nargs="+", metavar="FILE", help="audio files")
    what.add_argument(
        "--audio-list", type=Path, metavar="LIST.txt", help="text file, one audio file a line"
    )
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="manifests of --data")
    parser.add_argument(
        "--audio-root", type=Path,
        help="folder that relative audio paths start from (default: --data; else the current one)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the vectors (default: see above)")
    parser.add_argument(
        "--name", type=vectors_name,
        help="what the files are called after (default: name of the checkpoint, lower case)",
    )  # fmt: skip
    parser.add_argument(
        "--max-tokens", type=int, default=1_600_000,
        help="samples (16,000 a second) of a batch at most, padding included (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-source-positions", type=int,
        help="longest utterance in samples (default: the one of training)",
    )  # fmt: skip
    parser.add_argument(
        "--num-workers", type=int, default=1, help="processes reading audio (default: %(default)s)"
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--fp16", action="store_true", help="compute in half precision, on a GPU")
    args = parser.parse_args(argv)
    if (args.data is None) != (args.splits is None):
        parser.error("--data and --splits go together")
    if args.max_tokens < 1:
        parser.error(f"--max-tokens: expected at least 1, found {args.max_tokens}")
    if args.num_workers < 0:
        parser.error(f"--num-workers: expected 0 or more, found {args.num_workers}")
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    if args.fp16 and device == "cpu":
        parser.error("--fp16 needs a GPU")
    name = args.name or default_teacher_name(args.path.with_suffix("").name)
    try:
        encoder = load_encoder(args.path, device, args.fp16, args.max_source_positions)
        # All are checked before the first is embedded.
        for utterances in list(_inputs(args, encoder.task)):
            path, computed = embed(encoder, utterances, name, args.max_tokens, args.num_workers)
            how = f"{computed} embedded now" if computed else "already there"
            rows = len(utterances.specs)
            print(f"{path}: {rows} utterances ({how}), {encoder.dimension} numbers each")
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    # Importing fairseq has switched the debugging messages of all libraries on.
    logging.getLogger().setLevel(logging.WARNING)
    main()
