"""What the encoder embeds: the rows of a manifest, or audio files."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from fairseq_samu.data.audio import AudioError, audio_duration, read_bytes
from fairseq_samu.data.audio_paths_dataset import AudioPathsDataset
from fairseq_samu.data.audio_presence import check_audio_present
from fairseq_samu.data.manifest import Manifest
from fairseq_samu.data.manifest_index import ManifestError
from fairseq_samu.data.speech_to_text_dataset import SpeechToTextSamuDataset
from fairseq_samu.data.waveform_dataset import WaveformDataset
from fairseq_samu.tasks import SpeechToTextSamuTask

#: The column of a manifest that speech vectors are made from, in their sidecar.
AUDIO_COLUMN = "audio"

#: Rows whose audio is read before the work begins.
CHECKED_EXAMPLES = 20

# No target is longer than that many tokens: texts do not matter here.
_NO_LIMIT = 2**31 - 1


class Utterances(NamedTuple):
    """What is to be embedded.

    Attributes:
        dataset: the audio; rows are numbered from 0.
        specs: the audio of every row, as it was named.
        stem: path of the vectors, without the name of the encoder.
        place: a row → where it stands, for messages.
        extra: entries of the sidecar beside the usual ones.
    """

    dataset: WaveformDataset
    specs: Sequence[str]
    stem: Path
    place: Callable[[int], str]
    extra: Dict[str, Any]


class _AudioColumn(Sequence[str]):
    """The audio of every row of a manifest, read when it is asked for."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def __len__(self) -> int:
        return len(self._manifest)

    def __getitem__(self, row: Any) -> Any:
        return self._manifest.cell(row, AUDIO_COLUMN)

    def __iter__(self) -> Iterator[str]:
        return (self._manifest.cell(row, AUDIO_COLUMN) for row in range(len(self)))


def open_manifest(path: Path, audio_root: Path, task: SpeechToTextSamuTask) -> Utterances:
    """The utterances of a manifest; every row has to be usable.

    Args:
        path: the manifest ``NAME.tsv``.
        audio_root: folder that relative audio paths start from.
        task: of the encoder; says how waveforms are normalised and how long they may be.

    Raises:
        ManifestError: no such manifest, or a row whose audio is missing, too short or too long, or
            one of the examples that is broken.
    """
    manifest = Manifest(path)
    check_audio_present(manifest, str(audio_root))
    limits = task.cfg.min_source_positions, task.cfg.max_source_positions
    wrong = (manifest.n_frames < limits[0]) | (manifest.n_frames > limits[1])
    if wrong.any():
        row = int(wrong.argmax())
        found = f"{manifest.n_frames[row]} ({int(wrong.sum())} of {len(manifest)} rows are not)"
        raise ManifestError(_outside(manifest.location(row), limits, found))
    dataset = SpeechToTextSamuDataset(
        manifest,
        audio_root=str(audio_root),
        encode_target=None,
        pad=1,
        eos=2,
        prefix_size=0,
        normalize=task.input_normalization == "utterance",
        shuffle=False,
        min_samples=limits[0],
        max_samples=limits[1],
        max_target_tokens=_NO_LIMIT,
    )
    dataset.check_examples(CHECKED_EXAMPLES)
    return Utterances(
        dataset, _AudioColumn(manifest), path.with_suffix(""), manifest.location, extra={}
    )


def open_files(
    specs: Sequence[str], stem: Path, source: str, task: SpeechToTextSamuTask, audio_root: str = ""
) -> Utterances:
    """Audio files or slices of archives, in the order given.

    Args:
        specs: as in the ``audio`` of a manifest.
        stem: path of the vectors, without the name of the encoder.
        source: where the files are listed, for messages.
        task: of the encoder.
        audio_root: folder that relative paths start from.

    Raises:
        AudioError: no files, or one that is missing, no audio, too short or too long.
    """
    if not specs:
        raise AudioError(f"{source}: expected audio files, found none")
    limits = task.cfg.min_source_positions, task.cfg.max_source_positions
    lengths, digest = [], hashlib.sha256()
    for number, spec in enumerate(specs, start=1):
        place = f"{source}:{number}"
        try:
            lengths.append(audio_duration(spec, audio_root))
            digest.update(hashlib.sha256(read_bytes(spec, audio_root)).digest())
        except AudioError as error:
            raise AudioError(f"{place}: {error}") from error
        if not limits[0] <= lengths[-1] <= limits[1]:
            raise AudioError(_outside(f"{place}: {spec}", limits, str(lengths[-1])))
    normalize = task.input_normalization == "utterance"
    dataset = AudioPathsDataset(specs, lengths, normalize, audio_root)
    # Another recording often has the name of the last one.
    extra = {"files_sha256": digest.hexdigest()}
    return Utterances(dataset, specs, stem, partial(_line, source), extra)


def _outside(place: str, limits: Tuple[int, int], found: str) -> str:
    return (
        f"{place}: expected {limits[0]} to {limits[1]} samples at 16 kHz, as in training, found {found}; "
        "cut or remove it, or raise --max-source-positions"
    )


def _line(source: str, row: int) -> str:
    return f"{source}:{row + 1}"


def read_list(path: Path) -> List[str]:
    """Lines of a UTF-8 text file, as any editor ends them.

    Raises:
        ValueError: an empty line, or a file that is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, found: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(f"{path}:{number}: expected one item a line, found an empty line")
    return lines
