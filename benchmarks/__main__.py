"""Measures this project and what a user would run instead, alternately, on one machine.

    python -m benchmarks --out bench_out

Results appear in OUT/results.md and OUT/results.json after each work. A run that was stopped goes on with
the works that are missing. Models and data stay in the folder: remove it when done. Nothing else should run
on the machine. benchmarks/README.md says what is compared with what.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison import read_results, table, write_results
from benchmarks.sizes import SIZES

#: Modules here with ``measure(out, size, device, repeats) -> list[Comparison]``.
WORKS = (
    "start_up",
    "samu_update",
    "data_loading",
    "translation_update",
    "decoding",
    "connector_update",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for results, and for the models they are of"
    )
    parser.add_argument(
        "--only", nargs="+", choices=WORKS, metavar="WORK", default=WORKS,
        help=f"measure these works alone: {', '.join(WORKS)}",
    )  # fmt: skip
    parser.add_argument(
        "--size", choices=list(SIZES), default="small",
        help="small: for a CPU; large: XLS-R 300M and mBART-50, for a GPU; tiny: to see it run, not to "
        "measure (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N",
        help="how often each side is measured, after a first time that does not count; the table has "
        "medians and quartiles (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--again", action="store_true", help="measure works that OUT has results of already, too"
    )
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats: expected at least 1, found {args.repeats}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: expected a CUDA device, found none")
    settings = {"size": args.size, "device": args.device, "repeats": args.repeats}
    results: dict[str, Any] = {"machine": _machine(args.device), "settings": settings, "works": {}}
    stored = args.out / "results.json"
    if stored.is_file():
        found = read_results(stored)
        if found["settings"] != settings or found["machine"] != results["machine"]:
            parser.error(
                f"{stored}: expected results of {settings} on {results['machine']}, found "
                f"{found['settings']} on {found['machine']}: give another --out"
            )
        results = found
    args.out.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.INFO)
    for name in args.only:
        if name in results["works"] and not args.again:
            print(f"== {name}: there already (--again measures it again)", flush=True)
            continue
        print(f"== {name}", flush=True)
        work = importlib.import_module(f"benchmarks.{name}")
        begin, load = time.perf_counter(), os.getloadavg()[0]
        folder = args.out / name
        folder.mkdir(exist_ok=True)
        rows = work.measure(folder, SIZES[args.size], args.device, args.repeats)
        took = round(time.perf_counter() - begin, 1)
        results["works"][name] = {"comparisons": rows, "seconds": took, "load_at_start": load}
        write_results(args.out, results)
        print("\n".join(table(rows)), f"took {took} s", sep="\n", flush=True)
    print(f"{args.out / 'results.md'}: written")


def _machine(device: str) -> dict[str, str]:
    """What the results depend on."""
    found = {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, "
        f"{torch.get_num_threads()} threads",
    }
    if device == "cuda":
        found["GPU"] = torch.cuda.get_device_name()
    found["software"] = ", ".join(
        [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
        + [
            f"{name} {number}"
            for name in ("fairseq", "fairseq-fixed", "transformers")
            if (number := _version(name))
        ]  # fmt: skip
    )
    return found


def _processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
