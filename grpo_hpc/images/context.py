"""What a build needs beside its build file: the project as a wheel, the pins, pip's settings, and wheels when offline.

A context is a folder with ``requirements.txt``, ``pip.conf`` and, for a build without a network, the wheels of every
pin; its folder ``project`` has what changes more often: the wheel of this package and the build file.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.images.own_wheel import own_wheel, pip
from grpo_hpc.images.spec import ImageSpec, find_file, normalised

_OFFLINE = "[global]\nno-index = true\nfind-links = /context\n"
_OLDEST_GLIBC, _NEWEST_GLIBC = 5, {"3.11": 36, "3.12": 39}
"""Minor versions of the C library: oldest that wheels are built for, and the bases' own by their Python."""


def fill_context(folder: Path, image: ImageSpec, pip_conf: Path | None = None) -> None:
    """Write into ``folder`` what a build with a package index needs; ``pip_conf`` says which index and how.

    Raises:
        EnvironmentProblem: there is no wheel of this package to be had.
    """
    project = project_folder(folder)
    project.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(find_file(image.lock), folder / "requirements.txt")
    (folder / "pip.conf").write_text(pip_conf.read_text() if pip_conf else "")
    own_wheel(project)


def project_folder(context: Path) -> Path:
    """Where in ``context`` the wheel of this package and the build file lie."""
    return context / "project"


def use_wheels(folder: Path, image: ImageSpec) -> None:
    """Make the folder of wheels ``folder`` a context for a build without a network.

    Raises:
        EnvironmentProblem: names the pins that have no wheel there.
    """
    if missing := missing_wheels(folder, image):
        pins = image.requirements()
        shown = ", ".join(f"{name}=={pins[name]}" for name in missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise EnvironmentProblem(
            f"{folder} lacks {len(missing)} of {len(pins)} packages: {shown}",
            "Fill it where there is a network: grpo-hpc image wheels NAME DIR",
        )
    fill_context(folder, image)
    (folder / "pip.conf").write_text(_OFFLINE)


def missing_wheels(folder: Path, image: ImageSpec) -> list[str]:
    """Normalised names of the pins that have no wheel (or, for those built from source, archive) in ``folder``."""
    there = {_name_and_version(file) for file in folder.glob("*") if file.name.endswith((".whl", ".tar.gz"))}
    return sorted(name for name, version in image.requirements().items() if (name, version) not in there)


def download_wheels(folder: Path, image: ImageSpec) -> None:
    """Download the wheels of every pin, for the image's Python, with this machine's pip settings.

    Raises:
        EnvironmentProblem: pip failed; says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    into = ["--no-deps", "--dest", str(folder)]
    if to_fetch := [n for n in missing_wheels(folder, image) if n not in _names(image.source_builds)]:
        pins = image.requirements()
        pip("download", *into, *target_options(image), *(f"{name}=={pins[name]}" for name in to_fetch))
    for requirement in image.source_builds:
        if _names([requirement])[0] in missing_wheels(folder, image):
            pip("download", *into, "--no-binary", requirement.partition("==")[0], requirement)
    use_wheels(folder, image)


def target_options(image: ImageSpec) -> list[str]:
    """pip's options to choose wheels for the image's Python and C library in the place of this machine's."""
    options = ["--only-binary=:all:", "--python-version", image.python, "--implementation", "cp"]
    for abi in (f"cp{image.python.replace('.', '')}", "abi3", "none"):
        options += ["--abi", abi]
    for tag in _platforms(image.python):
        options += ["--platform", tag]
    return options


def _platforms(python: str) -> list[str]:
    """Platform tags that run on the bases with that Python, newest first."""
    machine = platform.machine()
    newest = _NEWEST_GLIBC.get(python, max(_NEWEST_GLIBC.values()))
    modern = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, _OLDEST_GLIBC - 1, -1)]
    return [*modern, *(f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1", "linux"))]


def _name_and_version(file: Path) -> tuple[str, str]:
    """Normalised name and version, without the part after ``+`` that names a build, of a wheel or source archive."""
    if file.name.endswith(".whl"):
        name, version = file.name.split("-")[:2]
    else:
        name, _, version = file.name.removesuffix(".tar.gz").rpartition("-")
    return normalised(name), version.partition("+")[0]


def _names(requirements: list[str]) -> list[str]:
    return [normalised(requirement.partition("==")[0]) for requirement in requirements]
