"""The plugin registers from anywhere, however it was imported before."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

CHECK = """
from argparse import Namespace
from fairseq import utils
{before}
for path in {paths!r}:
    utils.import_user_module(Namespace(user_dir=path))
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
assert "speech_to_text_samu" in TASK_REGISTRY
assert "xlsr_mbart_st" in ARCH_MODEL_REGISTRY and "xlsr_mbart_st_tiny" in ARCH_MODEL_REGISTRY
assert "label_smoothed_nll" in CRITERION_REGISTRY
import fairseq_samu
print("registered from", fairseq_samu.USER_DIR)
"""


def check(paths, cwd, before="", path=None):
    """Import the plugin as fairseq does, in a fresh process."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    result = subprocess.run(
        [sys.executable, "-c", CHECK.format(paths=[str(p) for p in paths], before=before)],
        cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_from_another_folder(tmp_path: Path) -> None:
    output = check([REPOSITORY / "fairseq_samu"], tmp_path)
    assert str(REPOSITORY / "fairseq_samu") in output


def test_by_a_relative_path() -> None:
    check(["fairseq_samu"], REPOSITORY)
    check(["../fairseq_samu"], REPOSITORY / "tests")


def test_twice_and_imported_before(tmp_path: Path) -> None:
    path = REPOSITORY / "fairseq_samu"
    check([path, path], tmp_path)
    check([path], tmp_path, before="import fairseq_samu, fairseq_samu.tasks", path=REPOSITORY)


def test_through_a_symbolic_link(tmp_path: Path) -> None:
    link = tmp_path / "fairseq_samu"
    link.symlink_to(REPOSITORY / "fairseq_samu")
    check([link, REPOSITORY / "fairseq_samu"], tmp_path)
    check([link], tmp_path, before="import fairseq_samu", path=REPOSITORY)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as ``pip install .`` puts it into site-packages."""
    target = tmp_path_factory.mktemp("site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--target", str(target), str(REPOSITORY)],
        check=True,
    )  # fmt: skip
    return target


def test_after_pip_install(installed: Path, tmp_path: Path) -> None:
    output = check([installed / "fairseq_samu"], tmp_path, path=installed)
    assert str(installed) in output
    assert (installed / "data_prep" / "prep_espeak.py").is_file()
    check([installed / "fairseq_samu"], tmp_path, before="import fairseq_samu", path=installed)


def test_a_name_is_enough_where_fairseq_is_installed_beside(
    installed: Path, tmp_path: Path
) -> None:
    """fairseq looks for a user directory beside its own package: in site-packages that is the plugin."""
    import fairseq

    site = tmp_path / "site"
    site.mkdir()
    # Copied, not linked: fairseq's "beside my package" goes through the link's target.
    shutil.copytree(
        Path(fairseq.__file__).parent,
        site / "fairseq",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copytree(installed / "fairseq_samu", site / "fairseq_samu")
    check(["fairseq_samu"], tmp_path, path=site)
