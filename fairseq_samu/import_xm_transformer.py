"""Make a checkpoint of this project from a speech translation model of fairseq itself.

    python -m fairseq_samu.import_xm_transformer --checkpoint xm.pt --data data --out checkpoint.pt

`xm.pt` was trained with `--task speech_to_text --arch xm_transformer`. `data` is the folder that fairseq read
with it: config.yaml, and the dictionary and SentencePiece model that config.yaml names; audio and manifests
are not needed. `checkpoint.pt` is a trained `xlsr_mbart_st` and needs none of these but the vocabulary files:
fairseq-generate translates with it, fairseq-train trains it on, XlsrMbartStModel.from_pretrained loads it.
The commands are printed.

Translations are those of fairseq for utterances one at a time. fairseq lets the padding beside an utterance
change it (0.12.2 more than later ones); here it does not. Scores leave out the language tag, which fairseq
counts.
"""

import argparse
import logging
import os
import shlex
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
import yaml
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf
from torch import nn

from fairseq_samu import USER_DIR
from fairseq_samu.models.pretrained_decoder import load_weights
from fairseq_samu.pretrained.xm_transformer import XmTransformerCheckpoint, load_xm_transformer
from fairseq_samu.tasks import SpeechToTextSamuConfig

#: fairseq's only template of language tags in speech_to_text.
TAG_TEMPLATE = "<lang:{}>"


def import_xm_transformer(
    checkpoint: str,
    data: Path,
    out: Path,
    *,
    config_yaml: str = "config.yaml",
    w2v_path: Optional[str] = None,
    normalize: str = "utterance",
) -> List[str]:
    """Write an ``xm_transformer`` as a trained ``xlsr_mbart_st``.

    Args:
        checkpoint: the ``xm_transformer``.
        data: folder of its ``config.yaml`` and vocabulary.
        out: the checkpoint to write.
        config_yaml: name of the configuration in that folder.
        w2v_path: the wav2vec 2.0 checkpoint that its training started from, if it is not where it was.
        normalize: how waveforms were normalised, ``utterance`` or ``none``.

    Returns:
        Lines to tell the user: commands that use it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another model, another dictionary than that of its training, or a setting that
            has no counterpart here.
    """
    config = _read_config(data / config_yaml)
    task_options = {**_task_options(config, data, data / config_yaml), "normalize": normalize}
    found = load_xm_transformer(checkpoint, w2v_path)
    task_options["max_target_positions"] = found.decoder.max_target_positions
    cfg = _configuration(data, task_options, found)
    task = tasks.setup_task(cfg.task)
    rows, symbols = (
        found.decoder.state_dict["embed_tokens.weight"].size(0),
        len(task.target_dictionary),
    )
    if rows != symbols:
        raise ValueError(
            f"{data / cfg.task.dictionary}: expected the dictionary that {checkpoint} was trained with, of "
            f"{rows} symbols, found {symbols}"
        )
    model = task.build_model(cfg.model)
    _load(model.encoder.wav2vec2, found.encoder.state_dict, checkpoint)
    _load(model.encoder.adaptor, found.adaptor, checkpoint)
    load_weights(model.decoder, found.decoder)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".part")
    torch.save(_checkpoint(cfg, model), unfinished)
    os.replace(unfinished, out)
    return _messages(found, data, out, task_options)


def _read_config(path: Path) -> Dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the configuration that fairseq's speech_to_text read, found no file"
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML, found {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected settings, found {type(config).__name__}")
    return config


def _task_options(config: Dict[str, Any], data: Path, path: Path) -> Dict[str, Any]:
    """Options of this project's task for what ``config.yaml`` says."""
    bpe = config.get("bpe_tokenizer") or {}
    tokenizer = (config.get("pre_tokenizer") or {}).get("tokenizer")
    for setting, value, supported in (
        ("use_audio_input", config.get("use_audio_input", False), (True,)),
        ("use_sample_rate", config.get("use_sample_rate", 16000), (16000,)),
        ("bpe_tokenizer: bpe", bpe.get("bpe"), ("sentencepiece",)),
        ("pre_tokenizer: tokenizer", tokenizer, (None, "moses")),
        (
            "prepend_bos_and_append_tgt_lang_tag",
            config.get("prepend_bos_and_append_tgt_lang_tag", False),
            (False,),
        ),
        ("eos_token", config.get("eos_token"), (None,)),
    ):
        if value not in supported:
            expected = " or ".join(map(str, supported))
            raise ValueError(f"{path}: {setting}: expected {expected}, found {value}")
    model = Path(str(bpe.get("sentencepiece_model", "spm.model")))
    # Archives name the file as it lay when they were made.
    beside = (data / model.name).is_file()
    return {
        "dictionary": str(config.get("vocab_filename", "dict.txt")),
        "sentencepiece_model": model.name if beside else str(model.resolve()),
        "lang_tag_template": TAG_TEMPLATE if config.get("prepend_tgt_lang_tag") else "",
        "detokenizer": tokenizer or "none",
    }


def _configuration(data: Path, task_options: Dict[str, Any], found: XmTransformerCheckpoint) -> Any:
    """The configuration that fairseq-train makes of these options, with its defaults for all others."""
    line = [str(data), "--task", "speech_to_text_samu", "--arch", "xlsr_mbart_st"]
    line += ["--criterion", "label_smoothed_nll"]
    line += _command_line({**task_options, **_model_options(found)})
    args = options.parse_args_and_arch(options.get_training_parser(), input_args=line)
    return convert_namespace_to_omegaconf(args)


def _model_options(found: XmTransformerCheckpoint) -> Dict[str, Any]:
    return {**found.encoder.options, **found.decoder.options, **found.adaptor_options}


def _command_line(values: Dict[str, Any]) -> List[str]:
    """Options with values as on a command line; what is True is a flag, what is False is left out."""
    line = []
    for name, value in values.items():
        if value is not False:
            line.append("--" + name.replace("_", "-"))
            line += [] if value is True else [str(value)]
    return line


def _load(module: nn.Module, weights: Any, path: str) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the weights do not fit the options saved with them: {error}"
        ) from error


def _checkpoint(cfg: Any, model: nn.Module) -> Dict[str, Any]:
    """What fairseq-train would have written, before its first update."""
    return {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model.state_dict(),
        "optimizer_history": [
            {
                "criterion_name": "LabelSmoothedNllCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {},
                "num_updates": 0,
            }
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }


def _messages(
    found: XmTransformerCheckpoint, data: Path, out: Path, task_options: Dict[str, Any]
) -> List[str]:
    given = {k: v for k, v in task_options.items() if v != getattr(SpeechToTextSamuConfig, k)}
    plugin = ["--user-dir", USER_DIR, "--task", "speech_to_text_samu", *_command_line(given)]
    generate = ["fairseq-generate", str(data), *plugin, "--path", str(out), "--beam", "5"]
    train = ["fairseq-train", str(data), *plugin, "--arch", "xlsr_mbart_st"]
    train += ["--finetune-from-model", str(out), "--speech-encoder-path", str(out)]
    train += ["--text-decoder-path", str(out)]
    train += _command_line({k: v for k, v in found.adaptor_options.items() if v != ""})
    lines = [f"{out}: written"]
    if found.auxiliary:
        lines.append(f"left out, translating needs none: {', '.join(found.auxiliary)}")
    return [
        *lines,
        f"With manifests of this project (README, step 1) in {data}:",
        f"translate: {shlex.join(generate)} --gen-subset …",
        f"train on:  {shlex.join(train)} …",
    ]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_samu.import_xm_transformer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="the xm_transformer")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of its config.yaml and vocabulary files"
    )
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint to write")
    parser.add_argument(
        "--config-yaml",
        default="config.yaml",
        help="its name in that folder (default: config.yaml)",
    )
    parser.add_argument(
        "--w2v-path",
        help="the wav2vec 2.0 checkpoint that its training started from, which alone knows the encoder's "
        "shape; needed if it is not where it was then and the checkpoint has no w2v_args",
    )
    parser.add_argument(
        "--normalize",
        choices=["utterance", "none"],
        default="utterance",
        help="waveform normalisation in its training: fairseq 0.12 gives every utterance zero mean and unit "
        "variance, whatever standardize_audio says; 'none' for older ones that did not (default: utterance)",
    )
    args = parser.parse_args(argv)
    try:
        lines = import_xm_transformer(
            args.checkpoint,
            args.data,
            args.out,
            config_yaml=args.config_yaml,
            w2v_path=args.w2v_path,
            normalize=args.normalize,
        )
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    # Importing fairseq has switched the debugging messages of all libraries on.
    logging.getLogger().setLevel(logging.WARNING)
    main()
