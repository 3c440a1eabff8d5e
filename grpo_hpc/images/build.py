"""Building an image with the tool that is at hand."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from grpo_hpc.errors import EnvironmentProblem
from grpo_hpc.images.context import fill_context, project_folder, use_wheels
from grpo_hpc.images.render import SUFFIX, Format
from grpo_hpc.images.spec import ImageSpec

Tool = Literal["apptainer", "docker", "podman"]
TOOLS: tuple[Tool, ...] = ("apptainer", "docker", "podman")


def format_of(tool: Tool) -> Format:
    """The kind of build file that ``tool`` reads."""
    return "apptainer" if tool == "apptainer" else "dockerfile"


def default_target(name: str, tool: Tool) -> str:
    """File (Apptainer) or tag (Docker, Podman) of an image that was given no other."""
    return f"grpo-hpc-{name}.sif" if tool == "apptainer" else f"localhost/grpo-hpc:{name}"


def as_tool(name: str) -> Tool:
    """``name`` as the type of a tool that builds and runs images."""
    for tool in TOOLS:
        if tool == name:
            return tool
    raise ValueError(f"{name} is none of {TOOLS}")


def build_file(context: Path, tool: Tool) -> Path:
    """Where the build file of ``tool`` lies in ``context``."""
    return project_folder(context) / f"build{SUFFIX[format_of(tool)]}"


def build_command(tool: Tool, file: Path, context: Path, target: str, options: Sequence[str] = ()) -> list[str]:
    """Command that builds ``target``; run it in ``context``.

    Args:
        options: further words for the tool's own ``build``.
    """
    if tool == "apptainer":
        return ["apptainer", "build", "--force", *options, target, str(file)]
    return [tool, "build", "--network=host", *options, "--tag", target, "--file", str(file), str(context)]


def build(
    tool: Tool,
    image: ImageSpec,
    text: str,
    target: str,
    *,
    wheels: Path | None = None,
    pip_conf: Path | None = None,
    options: Sequence[str] = (),
) -> None:
    """Build the rendered ``text``; the tool's own output goes to the terminal.

    Args:
        wheels: folder to install from without an index; becomes the build context.
        pip_conf: pip's settings for a build with an index.

    Raises:
        EnvironmentProblem: the tool is not installed, wheels are missing or the build failed.
    """
    if shutil.which(tool) is None:
        raise EnvironmentProblem(f"{tool} is not installed", f"Build with another tool: {', '.join(TOOLS)}")
    target = str(Path(target).absolute()) if tool == "apptainer" else target
    with TemporaryDirectory(prefix="grpo-hpc-image-") as folder:
        context = wheels.absolute() if wheels else Path(folder)
        if wheels:
            use_wheels(context, image)
        else:
            fill_context(context, image, pip_conf)
        file = build_file(context, tool)
        file.write_text(text)
        done = subprocess.run(build_command(tool, file, context, target, options), cwd=context, check=False)
    if done.returncode:
        raise EnvironmentProblem(f"{tool} build ended with code {done.returncode}", "Its own messages are above.")
