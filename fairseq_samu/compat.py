"""The only place that knows about versions of torch, numpy, omegaconf and fairseq.

Supported: fairseq-fixed 0.12.3.1 with torch 2.x on Python 3.11 and newer, and fairseq 0.12.2 with
torch 1.12 on Python 3.10. Each function says which versions need it; :func:`apply` makes all
repairs and changes nothing where nothing is broken.

What needs no repair:

- torchaudio. No module that a fairseq command loads at start-up imports it; fairseq does so inside
  the functions that read and transform audio, which this package does not call. It may be absent or
  broken (some builds raise ``OSError`` on import, which fairseq's guards for ``ImportError`` miss).
- The other compiled parts of fairseq: ``token_block_utils_fast`` serves language models,
  ``libbase`` and ``libnat`` serve model families other than speech translation, and for
  ``ngram_repeat_block_cuda`` fairseq has a replacement of its own.
- hydra-core 1.0 or 1.3 and omegaconf 2.0 or 2.3, as long as the fields of option dataclasses are
  ``int``, ``float``, ``bool``, ``str``, ``Optional[...]``, ``List[...]`` or ``ChoiceEnum``.
  omegaconf 2.0 does not know ``str | None``, and fairseq neither ``list[str]`` nor annotations
  that are strings (``from __future__ import annotations``).
"""

import argparse
import collections
import importlib
import logging
import os
import pickle
import re
import sys
import types
import typing
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import Any

import numpy as np
import omegaconf
import torch
from fairseq import checkpoint_utils, nan_detector, scoring
from fairseq.data.dictionary import Dictionary
from fairseq.distributed import utils as fairseq_distributed
from fairseq.logging import meters
from fairseq.models.transformer.transformer_config import (
    DecoderConfig,
    EncDecBaseConfig,
    QuantNoiseConfig,
    TransformerConfig,
)
from fairseq.scoring import bleu
from omegaconf.base import ContainerMetadata, Metadata

from fairseq_samu import uncompiled

_TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
# Since 2.6, torch.load() reads with an allow-list unless told otherwise, and additions to the list
# can be given under the name that the file stores.
_TORCH_READS_SAFELY = _TORCH_VERSION >= (2, 6)

#: Under autocast on a CPU, the encoder's backward pass in torch 1.12 ends with "expected scalar type
#: BFloat16 but found Float".
CPU_BF16_TRAINS = _TORCH_VERSION >= (2, 0)

#: ``adamw(fused=True)`` came to CUDA with torch 2.0, to the CPU with 2.4.
FUSED_ADAM = _TORCH_VERSION >= (2, 4)

#: Environment variable: checkpoints that may run code, or their folders, separated as in PATH. No option of
#: a command, because checkpoints record those, and none shall vouch for itself.
TRUSTED_CHECKPOINTS = "FAIRSEQ_SAMU_TRUST_CHECKPOINTS"

logger = logging.getLogger(__name__)

# How numpy pickles scalars and arrays.
_PICKLED_FUNCTIONS = ("scalar", "_reconstruct")


def apply() -> None:
    """Make fairseq work with the installed versions. A second call changes nothing."""
    _name_numpy_2_modules()
    _allow_checkpoint_globals()
    _read_as_load_checkpoint()
    _replace_missing_batching()
    _replace_missing_libbleu()
    _accept_aliases_of_user_dir()
    _name_nan_gradients()


# --- Checkpoints ---


def _checkpoint_globals() -> dict[str, Any]:
    """What a fairseq checkpoint may name beside torch's own classes, by the names it stores.

    Nothing here runs code that the file chooses.

    - ``argparse.Namespace``: ``args`` of older checkpoints, and ``cfg.model`` of models without a
      dataclass.
    - numpy scalars, arrays and dtypes: ``best``, ``val_loss`` and meters in ``extra_state``. numpy
      2 renamed ``numpy.core`` to ``numpy._core``; both names lead to what is installed.
    - omegaconf containers: ``cfg`` where it was not made a plain dictionary. fairseq itself sends
      it in this form from the first process to the others, through ``torch.load()``, when a
      distributed run resumes; tensors are replaced by ``_TensorPlaceholder`` on the way.
    - ``Dictionary``: ``task_state`` of HuBERT and of fine-tuned wav2vec 2.0.
    - meters: ``extra_state`` of the earliest checkpoints.
    """
    allowed: list[Any] = [
        argparse.Namespace,
        collections.defaultdict,
        Dictionary,
        fairseq_distributed._TensorPlaceholder,
        meters.AverageMeter,
        meters.StopwatchMeter,
        meters.SumMeter,
        meters.TimeMeter,
        np.dtype,
        np.ndarray,
        omegaconf.AnyNode,
        omegaconf.BooleanNode,
        omegaconf.DictConfig,
        omegaconf.FloatNode,
        omegaconf.IntegerNode,
        omegaconf.ListConfig,
        omegaconf.StringNode,
        ContainerMetadata,
        Metadata,
    ]
    # Types that omegaconf records for the fields of a container.
    allowed += [bool, dict, float, int, list, str, tuple]
    # A dtype is rebuilt by calling numpy.dtype(); torch asks for its concrete class when it sets
    # its state.
    codes = np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?SU"
    allowed += [type(np.dtype(code)) for code in codes]

    named = {f"{item.__module__}.{item.__qualname__}": item for item in allowed}
    named["typing.Any"] = typing.Any
    multiarray = _numpy_multiarray()
    for function in _PICKLED_FUNCTIONS:
        named[f"numpy.core.multiarray.{function}"] = getattr(multiarray, function)
        named[f"numpy._core.multiarray.{function}"] = getattr(multiarray, function)
    return named


def _numpy_multiarray() -> types.ModuleType:
    """The module that rebuilds pickled arrays, renamed in numpy 2."""
    try:
        return importlib.import_module("numpy._core.multiarray")
    except ImportError:
        return importlib.import_module("numpy.core.multiarray")


def _name_numpy_2_modules() -> None:
    """Let numpy before 1.26 read the scalars and arrays that numpy 2 pickled.

    Without it, fairseq on Python 3.10 cannot read a checkpoint that Python 3.11 wrote with numpy 2
    ("No module named 'numpy._core'"). numpy 1.26 ships a stub of that name for this purpose.

    The stub holds what pickles name and is no package: compiled code asks for
    ``numpy._core._multiarray_umath`` first, and must not find a second copy of it.
    """
    multiarray = _numpy_multiarray()
    if multiarray.__name__ == "numpy.core.multiarray":
        stub = types.ModuleType("numpy._core.multiarray", "names that numpy 2 writes into pickles")
        for function in _PICKLED_FUNCTIONS:
            setattr(stub, function, getattr(multiarray, function))
        parent = types.ModuleType("numpy._core", stub.__doc__)
        vars(parent)["multiarray"] = stub
        sys.modules[parent.__name__], sys.modules[stub.__name__] = parent, stub


def _allow_checkpoint_globals() -> None:
    """Let ``torch.load()`` read fairseq's checkpoints with its safety on.

    torch 2.6 and newer refuse every stored name that is not on the allow-list ("Unsupported global:
    GLOBAL argparse.Namespace"): on resuming, generating and fine-tuning. Older versions have no
    list to extend.
    """
    if _TORCH_READS_SAFELY:
        torch.serialization.add_safe_globals(
            [(item, name) for name, item in _checkpoint_globals().items()]
        )


class _AllowListUnpickler(pickle.Unpickler):
    """Knows tensors and :func:`_checkpoint_globals`, nothing else. For torch before 2.6."""

    _allowed = _checkpoint_globals()
    # Storages are not in the list: torch resolves their names itself.
    _of_tensors = frozenset(
        {
            "_codecs.encode",
            "collections.Counter",
            "collections.OrderedDict",
            "torch.Size",
            "torch.device",
            "torch._utils._rebuild_parameter",
            "torch._utils._rebuild_tensor",
            "torch._utils._rebuild_tensor_v2",
            "torch.nn.parameter.Parameter",
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, if it may."""
        # Names of Python 2, which torch writes, are resolved as pickle.Unpickler would.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full_name = f"{module}.{name}"
        if full_name in self._allowed:
            return self._allowed[full_name]
        if full_name in self._of_tensors:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"Unsupported global: {full_name}")


class _AllowListPickle:
    """What ``torch.load()`` asks of a ``pickle_module``."""

    Unpickler = _AllowListUnpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        """Read one pickle from an open file."""
        return _AllowListUnpickler(file, **options).load()


def load_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, whatever the version of torch.

    No code from it is run, unless the user has said in ``FAIRSEQ_SAMU_TRUST_CHECKPOINTS`` that this file, or
    all in its folder, may.

    Args:
        path: a file written by ``torch.save()``.

    Returns:
        The dictionary in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file names classes or functions that no checkpoint needs and is not trusted,
            cannot be read, or holds something other than a dictionary.
    """
    state = _read(path, path, map_location="cpu")
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a dictionary, found {type(state).__name__}")
    return state


def _read(file: Any, path: str, **options: Any) -> Any:
    """``torch.load()`` of a path or open file, with its safety on unless ``path`` is trusted."""
    trusted = _is_trusted(path)
    if trusted:
        logger.warning("%s: read without safety, as %s says", path, TRUSTED_CHECKPOINTS)
    if _TORCH_READS_SAFELY:
        options["weights_only"] = not trusted
    elif not trusted:
        options["pickle_module"] = _AllowListPickle
    try:
        return torch.load(file, **options)
    except OSError:
        raise
    except Exception as error:  # a file that is no checkpoint can raise anything
        # torch's own message runs to many lines, most of them on how to switch safety off.
        name = re.search(r"unsupported global:?(?: GLOBAL)? (\S+)", str(error), re.IGNORECASE)
        if trusted or not name:
            unpickled = isinstance(error, pickle.UnpicklingError)
            found = "what torch.save() does not write" if unpickled else repr(error)
            raise ValueError(
                f"{path}: expected a checkpoint that can be read, found {found}"
            ) from error
        raise ValueError(
            f"{path}: expected a checkpoint that can be read safely, found {name[1]} in it, which is not "
            "among the harmless classes that checkpoints are made of: reading it may run any code. If you "
            f"trust whoever made this file, set {TRUSTED_CHECKPOINTS}={os.path.realpath(path)}"
        ) from error


def _is_trusted(path: str) -> bool:
    """Whether the user named the file, or the folder it lies in."""
    named = {
        os.path.realpath(name)
        for name in os.environ.get(TRUSTED_CHECKPOINTS, "").split(os.pathsep)
        if name
    }
    path = os.path.realpath(path)
    return path in named or os.path.dirname(path) in named


class _TorchOfCheckpoints(types.ModuleType):
    """torch, but that ``load()`` reads as :func:`load_checkpoint` does."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        """Read a checkpoint that fairseq has opened."""
        return _read(file, file.name, **options)


def _read_as_load_checkpoint() -> None:
    """Let fairseq's own reading of checkpoints, on resuming and generating, follow the same rules.

    torch before 2.6 would run what is in them; newer ones refuse with advice that does not help in a
    command of fairseq's.
    """
    checkpoint_utils.torch = _TorchOfCheckpoints("torch")


# --- Compiled parts ---


def _replace_missing_batching() -> None:
    """Batch with numpy where ``fairseq.data.data_utils_fast`` is missing.

    So it is in both fairseqs when built without a compiler (``READTHEDOCS=1``); compiled against
    another numpy, it raises ValueError. Without a replacement every epoch ends at "Please build
    Cython components".
    """
    name = "fairseq.data.data_utils_fast"
    try:
        importlib.import_module(name)
    except (ImportError, ValueError):
        replacement = types.ModuleType(name, uncompiled.__doc__)
        for function in ("batch_by_size_vec", "batch_by_size_fn", "batch_fixed_shapes_fast"):
            setattr(replacement, function, getattr(uncompiled, function))
        sys.modules[name] = replacement


def _replace_missing_libbleu() -> None:
    """Count n-grams in Python where ``fairseq.libbleu`` is missing.

    So it is in both fairseqs when built without a compiler. ``fairseq-generate`` needs it for its
    default, ``--scoring bleu``, and otherwise stops with "missing libbleu.so".
    """
    try:
        importlib.import_module("fairseq.libbleu")
    except ImportError:

        def init(self: Any, cfg: Any) -> None:
            self.stat = bleu.BleuStat()
            self.pad, self.eos, self.unk = cfg.pad, cfg.eos, cfg.unk
            self.C = uncompiled.Libbleu
            self.reset()

        bleu.Scorer.__init__ = init


# --- Data loading ---


def stop_workers(epoch_itr: Any) -> None:
    """Stop the worker processes of an epoch iterator that is about to be replaced.

    Every fairseq leaves that to the garbage collector, which finds the iterator in a reference cycle
    and closes the workers' queues before it asks the workers to stop: training then stands still for
    5 s per worker and epoch.

    Args:
        epoch_itr: an ``EpochBatchIterator`` whose batches have all been taken.
    """
    workers = getattr(getattr(epoch_itr, "dataloader", None), "_iterator", None)
    if workers is not None and hasattr(workers, "_shutdown_workers"):
        workers._shutdown_workers()


# --- Registries and configurations ---


class _SameFolders(list[str]):
    """The folders of a package. Another path to one of them counts as being among them."""

    def __contains__(self, path: object) -> bool:
        return any(os.path.realpath(str(path)) == os.path.realpath(folder) for folder in self)


def _accept_aliases_of_user_dir() -> None:
    """Let ``--user-dir`` be a symbolic link to this package after the package was imported.

    Every fairseq looks for the path, as text, in ``__path__`` of the package of that name, and
    stops at "not globally unique". A different folder of the same name is still refused.
    """
    package = sys.modules["fairseq_samu"]
    package.__path__ = _SameFolders(package.__path__)


def _name_nan_gradients() -> None:
    """Let a training whose gradients are not numbers end with fairseq's message that says so.

    Every fairseq then looks for the guilty module with hooks of a kind that every torch applies to
    modules alone whose output is a tensor, or holds one on its first level; fairseq's own encoders
    give a dictionary of lists, and all that is seen is "StopIteration". The hooks on the forward pass
    work, and norms of gradients are logged without any.
    """
    nan_detector.NanDetector.__init__.__defaults__ = (True, False)  # forward, backward


def replace_scorer(name: str, scorer: type) -> None:
    """Make ``--scoring NAME`` build another class; every fairseq refuses to register a name again.

    Args:
        name: a registered scorer other than ``bleu``, which fairseq does not look up.
        scorer: takes the configuration that the replaced class was registered with.
    """
    scoring.SCORER_REGISTRY[name] = scorer


def fresh_transformer_config() -> TransformerConfig:
    """Return a Transformer configuration that shares nothing with any other.

    In fairseq-fixed 0.12.3.1 the defaults of ``encoder``, ``decoder`` and ``quant_noise`` are
    classes where fairseq 0.12.2 has instances, which Python 3.11 forbids as defaults: an option set
    in one configuration would be set in every later one.
    """
    config = TransformerConfig()
    config.encoder = EncDecBaseConfig()
    config.decoder = DecoderConfig()
    config.quant_noise = QuantNoiseConfig()
    return config
