"""From an image's description to a Dockerfile or an Apptainer definition. A pure function of text."""

from __future__ import annotations

import re
import shlex
from typing import Literal

import jinja2

from grpo_hpc.images.spec import ImageSpec
from grpo_hpc.shipped import shipped

Format = Literal["dockerfile", "apptainer"]
SUFFIX: dict[Format, str] = {"dockerfile": ".Dockerfile", "apptainer": ".def"}
PREFIX = "/opt/grpo-hpc"
"""Where the Python environment lies inside every image."""


def render(name: str, image: ImageSpec, format: Format) -> str:
    """The build file of ``image``.

    Both formats expect the files of :mod:`grpo_hpc.images.context` in the build context (Docker, Podman) or in the
    working directory (Apptainer).
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped("containers")),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # plain text; words from the list are quoted for the shell in the template
    )
    environment.filters |= {"shell": shlex.quote, "run": _run, "bootstrap": _bootstrap}
    variables = {"GRPO_HPC_IMAGE": name, **image.environment}
    text = environment.get_template("image.j2").render(
        name=name, image=image, format=format, environment=variables, prefix=PREFIX
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _run(commands: str) -> str:
    """Commands, one a line, as one RUN instruction that stops at the first that fails; nothing for no command."""
    lines = commands.strip().splitlines()
    return "RUN " + " \\\n && ".join(lines) if lines else ""


def _bootstrap(base: str) -> str:
    """Head of an Apptainer stage; a base is a registry reference unless it says otherwise, as ``localimage:FILE``."""
    how, colon, source = base.partition(":")
    if colon and how in ("docker-archive", "docker-daemon", "oci-archive", "localimage"):
        return f"Bootstrap: {how}\nFrom: {source}"
    return f"Bootstrap: docker\nFrom: {base.removeprefix('docker.io/').removeprefix('library/')}"
