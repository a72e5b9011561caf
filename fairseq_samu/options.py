"""Lists the plugin's options, which ``fairseq-train --help`` leaves out.

    python -m fairseq_samu.options                  # everything
    python -m fairseq_samu.options xlsr_mbart_st    # one task, model, criterion or optimiser

On the command line of fairseq they are written as shown; in YAML they stand under ``task``, ``model``,
``criterion`` and ``optimizer`` with underscores.
"""

import argparse
from typing import Any, Dict, Optional, Sequence, Tuple

from fairseq.dataclass.utils import gen_parser_from_dataclass

from fairseq_samu.criterions import LabelSmoothedNllConfig, MseToLabseConfig
from fairseq_samu.models import ConnectorStConfig, SamuXlsrConfig, XlsrMbartStConfig
from fairseq_samu.optim import GroupedAdamConfig
from fairseq_samu.tasks import SpeechToTextSamuConfig

COMPONENTS: Dict[str, Tuple[str, Any]] = {
    "speech_to_text_samu": ("--task", SpeechToTextSamuConfig),
    "xlsr_mbart_st": ("--arch", XlsrMbartStConfig),
    "connector_st": ("--arch", ConnectorStConfig),
    "samu_xlsr": ("--arch", SamuXlsrConfig),
    "label_smoothed_nll": ("--criterion", LabelSmoothedNllConfig),
    "mse_to_labse": ("--criterion", MseToLabseConfig),
    "grouped_adam": ("--optimizer", GroupedAdamConfig),
}


def describe(name: str) -> str:
    """Help text of a component's options with their defaults."""
    option, config_class = COMPONENTS[name]
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        add_help=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    gen_parser_from_dataclass(parser.add_argument_group(f"{option} {name}"), config_class())
    return parser.format_help().strip()


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_samu.options",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("component", nargs="?", choices=list(COMPONENTS), help="default: all")
    component = parser.parse_args(argv).component
    print("\n\n".join(map(describe, [component] if component else COMPONENTS)))


if __name__ == "__main__":
    main()
