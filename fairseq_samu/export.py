"""Write trained parts in the form that other programs read.

    python -m fairseq_samu.export --to hf --path checkpoint_best.pt --out folder

writes the speech encoder of a checkpoint of `samu_xlsr`, `xlsr_mbart_st` or fairseq's wav2vec 2.0 as a
folder for `Wav2Vec2Model.from_pretrained` of Hugging Face's transformers: config.json,
model.safetensors, preprocessor_config.json, and README.md, which describes them. The sentence head of
SAMU, which that library has no class for, lies beside them in sentence_head.safetensors. The folder is
also a `--speech-encoder-path`.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from torch import Tensor

from fairseq_samu.pretrained.huggingface_wav2vec2 import config_of, huggingface_weights
from fairseq_samu.pretrained.wav2vec2 import Wav2VecCheckpoint, load_wav2vec2

README = """\
# Speech encoder

Exported from `{name}` by fairseq_samu.

```python
from transformers import AutoFeatureExtractor, Wav2Vec2Model
extractor = AutoFeatureExtractor.from_pretrained("{folder}")
model = Wav2Vec2Model.from_pretrained("{folder}").eval()
frames = model(**extractor(samples, sampling_rate=16000, return_tensors="pt")).last_hidden_state
```

Waveforms are read at 16 kHz, {normalization}.
"""

GROUP_NORM_README = """
The group norm of this encoder sees the padding beside an utterance: to get the frames it was trained
with, give utterances to transformers one at a time.
"""

HEAD_README = """
`sentence_head.safetensors` holds the sentence head of SAMU-XLS-R (arXiv 2205.08180), which makes one
vector of the frames: `{pooling}` pooling over time, then

```python
embedding = torch.nn.functional.normalize(torch.tanh(pooled @ weight.T + bias), dim=-1)
```

with `weight` = `projection.weight` ({sentence_dim} × {width}) and `bias` = `projection.bias`.{how}
"""

#: How frames (T, D) become ``pooled`` (D,), where few lines say it.
POOLINGS = {
    "attention": "\n`pooled = torch.softmax(frames @ w.T + b, dim=0).T @ frames` with `w` = "
    "`pooling.score.weight` and `b` = `pooling.score.bias`.",
    "mean": "\n`pooled = frames.mean(dim=0)`.",
    "max": "\n`pooled = frames.max(dim=0).values`.",
}


def export_speech_encoder(path: str, out: Path) -> None:
    """Write a speech encoder as a folder of Hugging Face's Wav2Vec2Model.

    Args:
        path: a checkpoint as ``load_wav2vec2`` reads it.
        out: the folder to write.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ImportError: safetensors is not installed.
        ValueError: the checkpoint cannot be read, or its encoder is not all wav2vec 2.0.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("writing safetensors needs safetensors: pip install .[hf]") from error
    checkpoint = load_wav2vec2(path)
    options = checkpoint.options
    features = str(options.get("encoder_features", "waveform"))
    if features != "waveform":
        raise ValueError(
            f"{path}: expected an encoder that reads waveforms, found one that reads {features}: "
            "Wav2Vec2Model cannot"
        )
    weights = huggingface_weights(options, checkpoint.state_dict, path)
    out.mkdir(parents=True, exist_ok=True)
    save_file(_plain(weights), out / "model.safetensors", metadata={"format": "pt"})
    config = {**config_of(options), "architectures": ["Wav2Vec2Model"], "dtype": "float32"}
    _write_json(out / "config.json", config)
    if checkpoint.normalize is not None:
        _write_json(out / "preprocessor_config.json", _preprocessor(checkpoint))
    if checkpoint.head:
        head = out / "sentence_head.safetensors"
        save_file(_plain(checkpoint.head), head, metadata={"format": "pt"})
    (out / "README.md").write_text(_readme(checkpoint, Path(path).name, out), encoding="utf-8")


def _plain(weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Weights of their own memory in single precision, as safetensors wants and everybody reads."""
    return {name: weight.float().contiguous().clone() for name, weight in weights.items()}


def _preprocessor(checkpoint: Wav2VecCheckpoint) -> Dict[str, Any]:
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": checkpoint.normalize,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        # A group norm sees the padding whatever the mask says; transformers pads with zeros then.
        "return_attention_mask": checkpoint.options["encoder_extractor_mode"] == "layer_norm",
        "sampling_rate": 16000,
    }


def _readme(checkpoint: Wav2VecCheckpoint, name: str, out: Path) -> str:
    options = checkpoint.options
    normalization = {
        True: "every utterance normalised to zero mean and unit variance",
        False: "not normalised",
        None: "normalised or not as at the encoder's training, of which the checkpoint says nothing",
    }[checkpoint.normalize]
    text = README.format(name=name, folder=out.resolve().name, normalization=normalization)
    if options["encoder_extractor_mode"] != "layer_norm":
        text += GROUP_NORM_README
    if checkpoint.head:
        pooling = str(options["pooling"])
        text += HEAD_README.format(
            pooling=pooling,
            sentence_dim=options["sentence_dim"],
            width=options["encoder_embed_dim"],
            how=POOLINGS.get(pooling, "\nThe pooling's weights are `pooling.*`."),
        )
    return text


def _write_json(path: Path, content: Dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_samu.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--to", choices=["hf"], required=True, help="what to write")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="what to read")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    try:
        export_speech_encoder(args.path, args.out)
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{args.out}: written")


if __name__ == "__main__":
    main()
