"""The wheel of this package itself: from the checkout that it runs from, or packed again from what pip installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.shipped import checkout

_NAME = "grpo-hpc"
_OF_INSTALLERS = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
"""Files of the metadata folder that an installer writes."""


def own_wheel(folder: Path) -> None:
    """Put the wheel of this package into ``folder``, in place of older ones; the code may have changed since.

    Raises:
        EnvironmentProblem: the package is neither installed nor run from a checkout.
    """
    for old in folder.glob("grpo_hpc-*.whl"):
        old.unlink()
    if (root := checkout()) is not None:
        own_backend = ["--no-build-isolation"] if find_spec("hatchling") else []
        pip("wheel", "--no-deps", *own_backend, "--wheel-dir", str(folder), str(root))
        return
    try:
        _pack(distribution(_NAME), folder)
    except PackageNotFoundError:
        raise EnvironmentProblem(
            "there is no wheel of grpo-hpc to put into the image: it is neither installed nor run from a checkout",
            "Install it with pip, or run this in a checkout.",
        ) from None


def pip(*arguments: str) -> None:
    """Run pip of this Python.

    Raises:
        EnvironmentProblem: it failed; says why.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments[:1], "-q", *arguments[1:]]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-3:]
        raise EnvironmentProblem(f"pip {arguments[0]} failed:\n  " + "\n  ".join(errors[-4:]))


def _pack(installed: Distribution, folder: Path) -> None:
    """A wheel is what was installed from it, but for what the installer added (PEP 427)."""
    record, rows = None, []
    with ZipFile(folder / f"grpo_hpc-{installed.version}-py3-none-any.whl", "w", ZIP_DEFLATED) as wheel:
        for file in installed.files or ():
            if file.name == "RECORD":
                record = file.as_posix()
            elif _belongs(file):
                wheel.writestr(ZipInfo(file.as_posix()), file.read_binary(), ZIP_DEFLATED)
                sum_of = f"{file.hash.mode}={file.hash.value}" if file.hash else ""
                rows.append(f"{file.as_posix()},{sum_of},{file.size if file.size is not None else ''}")
        if record is None:
            raise EnvironmentProblem(
                f"the installed grpo-hpc {installed.version} has no list of its files (RECORD)",
                "Install it again with pip.",
            )
        wheel.writestr(ZipInfo(record), "\n".join([*rows, f"{record},,\n"]))


def _belongs(file: PackagePath) -> bool:
    inside = file.parts[0] != ".." and "__pycache__" not in file.parts
    return inside and not (file.parts[0].endswith(".dist-info") and file.name in _OF_INSTALLERS)
