"""The command that runs a program inside an image, for the checks of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpo_hpc.images.build import Tool


def inside(tool: Tool, image: str, device: str, binds: Sequence[str] = ()) -> list[str]:
    """Prefix of a command that reads its standard input and runs in ``image``, in the working directory of the caller.

    Args:
        image: SIF file or sandbox folder (Apptainer), or name of an image (Docker, Podman).
        device: ``cuda`` makes the GPUs visible.
        binds: folders that are seen inside under the same path, besides the working directory.
    """
    here = str(Path.cwd())
    folders = list(dict.fromkeys([here, *(str(Path(bind).absolute()) for bind in binds)]))
    cuda = device == "cuda"
    if tool == "apptainer":
        flags = ["--cleanenv", "--pwd", here, *(["--nv"] if cuda else [])]
        return ["apptainer", "exec", *flags, *(part for f in folders for part in ("--bind", f)), image]
    gpus = {"docker": ["--gpus", "all"], "podman": ["--device", "nvidia.com/gpu=all"]}[tool] if cuda else []
    volumes = [part for f in folders for part in ("--volume", f"{f}:{f}")]
    flags = ["--rm", "--interactive", "--network=host", "--ipc=host", "--workdir", here]
    return [tool, "run", *flags, *gpus, *volumes, image]
