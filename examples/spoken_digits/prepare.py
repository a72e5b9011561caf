"""Join human recordings of digits into sequences with French and German translations.

    python examples/spoken_digits/prepare.py --recordings recordings.zip --out digits

Reads the Free Spoken Digit Dataset (``{digit}_{speaker}_{take}.wav``, 8 kHz) from a zip or a folder and
writes one flac archive and the manifests of four splits. A sequence has two to six digits of one
speaker with short pauses; each is paired with number words in French and in German.

    train         two speakers, takes 10 and up
    dev           the same speakers, takes 5 to 9
    test_takes    the same speakers, takes 0 to 4: recordings never heard
    test_speaker  the third speaker: a voice never heard
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import soundfile
import soxr

from data_prep.archive import SAMPLE_RATE, FlacArchive, encode_flac
from data_prep.manifest import ManifestRow, ManifestWriter

WORDS = {
    "en": "zero one two three four five six seven eight nine".split(),
    "fr": "zéro un deux trois quatre cinq six sept huit neuf".split(),
    "de": "null eins zwei drei vier fünf sechs sieben acht neun".split(),
}

Recordings = Dict[Tuple[str, int, int], np.ndarray]


def read_recordings(path: Path) -> Recordings:
    """Read all recordings at 16 kHz.

    Args:
        path: a zip or a folder of ``{digit}_{speaker}_{take}.wav``.

    Returns:
        (speaker, take, digit) → float32 (S,).

    Raises:
        ValueError: no such recordings there.
    """
    recordings: Recordings = {}
    for name, data in _wav_files(path):
        parts = Path(name).stem.split("_")
        if len(parts) != 3 or not (parts[0].isdigit() and parts[2].isdigit()):
            raise ValueError(f"{path}: expected DIGIT_SPEAKER_TAKE.wav, found {name}")
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        digit, speaker, take = int(parts[0]), parts[1], int(parts[2])
        recordings[speaker, take, digit] = soxr.resample(wave, rate, SAMPLE_RATE)
    if not recordings:
        raise ValueError(f"{path}: expected recordings named DIGIT_SPEAKER_TAKE.wav, found none")
    return recordings


def _wav_files(path: Path) -> Iterator[Tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.wav")):
            yield file.name, file.read_bytes()
        return
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected a zip or a folder of recordings, found neither")
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".wav"):
                yield name, archive.read(name)


def make_sequence(
    recordings: Recordings, speaker: str, takes: Sequence[int], rng: np.random.Generator
) -> Tuple[np.ndarray, List[int]]:
    """Join two to six random digits of a speaker, with 50 to 200 ms of silence between them.

    Returns:
        The waveform, float32 (S,) at 16 kHz, and its digits.
    """
    digits = [int(digit) for digit in rng.integers(0, 10, size=rng.integers(2, 7))]
    pieces: List[np.ndarray] = []
    for digit in digits:
        pieces.append(recordings[speaker, int(rng.choice(takes)), digit])
        pieces.append(np.zeros(int(rng.uniform(0.05, 0.2) * SAMPLE_RATE), dtype=np.float32))
    return np.concatenate(pieces[:-1]), digits


def prepare_spoken_digits(
    recordings_path: Path, out: Path, test_speaker: str, train: int, test: int, seed: int
) -> None:
    """Write archive and manifests.

    Args:
        recordings_path: zip or folder of the recordings.
        out: folder to write to.
        test_speaker: whose voice is kept for ``test_speaker``.
        train: sequences of the training split.
        test: sequences of each other split.
        seed: of every random choice.

    Raises:
        ValueError: unusable recordings, or no such speaker.
    """
    recordings = read_recordings(recordings_path)
    speakers = sorted({speaker for speaker, _, _ in recordings})
    if test_speaker not in speakers:
        raise ValueError(
            f"--test-speaker: expected one of {', '.join(speakers)}, found {test_speaker}"
        )
    heard = [speaker for speaker in speakers if speaker != test_speaker]
    takes = sorted({take for _, take, _ in recordings})
    splits = {
        "train": (heard, [take for take in takes if take >= 10], train),
        "dev": (heard, [take for take in takes if 5 <= take < 10], test),
        "test_takes": (heard, [take for take in takes if take < 5], test),
        "test_speaker": ([test_speaker], takes, test),
    }
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with FlacArchive(out / "audio.zip") as archive:
        for split, (voices, split_takes, count) in splits.items():
            with ManifestWriter(out / f"{split}.tsv") as manifest:
                for i in range(count):
                    speaker = voices[i % len(voices)]
                    wave, digits = make_sequence(recordings, speaker, split_takes, rng)
                    audio = archive.add(f"{split}/{i:05d}.flac", encode_flac(wave))
                    for target in ("fr", "de"):
                        manifest.write(
                            ManifestRow(
                                id=f"{split}-{i:05d}-{target}",
                                audio=audio,
                                n_frames=len(wave),
                                tgt_text=" ".join(WORDS[target][digit] for digit in digits),
                                speaker=speaker,
                                src_text=" ".join(WORDS["en"][digit] for digit in digits),
                                src_lang="en",
                                tgt_lang=target,
                            )
                        )


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--recordings", type=Path, required=True, help="zip or folder of recordings"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--test-speaker", default="theo", help="the voice kept for testing")
    parser.add_argument("--train", type=int, default=3000, help="training sequences")
    parser.add_argument("--test", type=int, default=200, help="sequences of each other split")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    try:
        prepare_spoken_digits(
            args.recordings, args.out, args.test_speaker, args.train, args.test, args.seed
        )
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
