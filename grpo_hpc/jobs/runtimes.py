"""How a command is put into a container: one function per runtime, from a box to words of a shell command.

What comes from people is plain text, which becomes one word as it is; the few ``$VARIABLES`` of ours are
:class:`~grpo_hpc.jobs.bash.Bash`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grpo_hpc.cluster.profile import Runtime
from grpo_hpc.config.site_paths import node_word
from grpo_hpc.errors import ConfigError, EnvironmentProblem
from grpo_hpc.jobs.bash import Bash, line, word

LABEL = Bash('"grpo-hpc=${SLURM_JOB_ID:-}"')
"""What the containers of a job can be found by."""
UNSET = "is in a path of the cluster profile, and is not set on this node"


@dataclass(frozen=True)
class Box:
    """What a container is given.

    Attributes:
        image: SIF file or URI (apptainer), squashfs file or name (pyxis), name (docker, podman).
        folder: working directory.
        binds: folders and files that are seen inside under the same path.
        variables: names of environment variables that are handed in; Apptainer and Pyxis hand in all.
        gpus: make the GPUs visible.
        links: pairs of a path inside and the path outside that is seen there.
        node_binds: further binds, whose variables the node puts in.
        bare: for a look inside: standard input goes in, and no variable besides ``variables``.
    """

    image: str
    folder: str
    binds: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    gpus: bool = False
    bare: bool = False
    links: tuple[tuple[str, str], ...] = ()
    node_binds: tuple[str, ...] = ()

    @property
    def mounts(self) -> list[str]:
        """Options for all binds, as the three tools that take ``--mount`` read them."""
        places = [_csv_mount(path) for path in self.binds]
        places += [_csv_mount(outside, inside) for inside, outside in self.links]
        places += [Bash(node_word(_csv_mount(path), UNSET)) for path in self.node_binds]
        return [option for place in places for option in ("--mount", place)]


@dataclass(frozen=True)
class Wrapping:
    """Words before a command, and options for the ``srun`` that starts it.

    Attributes:
        clean: shell command that removes this job's containers from a node, where they may outlive their step.
    """

    prefix: list[str] = field(default_factory=list)
    srun: list[str] = field(default_factory=list)
    clean: str = ""


def wrap(runtime: Runtime, box: Box | None) -> Wrapping:
    """How ``runtime`` runs a command in ``box``; None is no container.

    Raises:
        ConfigError: the runtime cannot take one of the paths, or the image.
    """
    if runtime == "none" or box is None:
        return Wrapping()
    if box.image.startswith("-"):
        raise ConfigError(f"the image is '{box.image}', which {runtime} would read as an option", "Name an image.")
    return _RUNTIMES[runtime](box)


INSIDE = """
export HOME="$GRPO_HPC_HOME" USER="${USER:-user}"
export LOGNAME="${LOGNAME:-$USER}" TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$HOME/.cache/inductor}"
mkdir -p -m 700 "$HOME"
[ -O "$HOME" ] || { echo "$HOME, the home folder in the container, is not this user's own" >&2; exit 1; }
"""
"""What the shell in a container does first: the user may have no name and no home there, and compiled kernels are kept.

The folder may lie where others can write, and what it holds is run: one that somebody else has made is not used.
"""
HAND_IN_ALL: tuple[Runtime, ...] = ("apptainer", "pyxis")
"""Runtimes that hand in every variable of the shell."""
LEFT_OUTSIDE = (
    *("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "HF_HUB_CACHE"),
    *("TORCH_HOME", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_HOME", "TRITON_CACHE_DIR"),
    *("VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "CUDA_CACHE_PATH"),
)
"""Variables that name the host's Python and its folders, and would enter a container of these."""


def inside(runtime: Runtime, image: str, gpus: bool, binds: Sequence[str] = ()) -> list[str]:
    """A command that runs its arguments in ``image``, in the working directory, with nothing of this environment.

    Raises:
        EnvironmentProblem: the runtime is not installed.
    """
    if shutil.which(runtime) is None:
        raise EnvironmentProblem(f"{runtime} is not installed")
    here = str(Path.cwd())
    folders = dict.fromkeys([here, *(str(Path(bind).absolute()) for bind in binds)])
    words = wrap(runtime, Box(image, here, tuple(folders), gpus=gpus, bare=True)).prefix
    return ["bash", "-c", f'exec {line(*words)} "$@"', "bash"]


def _apptainer(box: Box) -> Wrapping:
    words = ["apptainer", "exec", *(["--cleanenv", "--env=PYTHONNOUSERSITE=1"] if box.bare else [])]
    if box.gpus:
        words.append("--nv")
    words += box.mounts
    return Wrapping([*words, "--pwd", box.folder, box.image])


def _docker(box: Box) -> Wrapping:
    # without --user the files of the run would belong to root
    return _oci("docker", box, ["--user", Bash('"$(id -u):$(id -g)"')], ["--gpus", "all"])


def _podman(box: Box) -> Wrapping:
    return _oci("podman", box, [], ["--device", "nvidia.com/gpu=all"])


def _oci(tool: str, box: Box, more: list[str], gpus: list[str]) -> Wrapping:
    # --init: PID 1 must pass signals on and collect children; --ipc=host: NCCL needs more shared memory than 64 MB
    words = [tool, "run", "--rm", "--init", "--network=host", "--ipc=host", "--label", LABEL, *more]
    words += ["--interactive", "--env=HOME=/tmp", "--env=USER=user"] if box.bare else []  # --user has neither
    if box.gpus:
        words += [*gpus, "--ulimit", "memlock=-1"]
    words += [option for name in box.variables for option in ("--env", name)]
    words += [*box.mounts, "--workdir", box.folder, "--entrypoint", "", box.image]
    # what Slurm kills is the client; the container belongs to a daemon, or to a cgroup of its own
    kill = {"docker": "docker rm --force", "podman": "podman rm --force --time=0"}[tool]  # Podman waits otherwise
    return Wrapping(words, clean=f"{tool} ps --quiet --filter label={LABEL} | xargs --no-run-if-empty {kill}")


def _pyxis(box: Box) -> Wrapping:
    for path in (*box.binds, *box.node_binds, *(path for pair in box.links for path in pair)):
        if set(path) & set(":,"):
            raise ConfigError(f"pyxis cannot bind {path!r}: it has a comma or colon", "Rename the folder.")
    pairs = [*((path, path) for path in box.binds), *box.links]
    mounts = [",".join(f"{outside}:{inside}" for inside, outside in pairs)]
    for path in box.node_binds:
        known = Bash(node_word(path, UNSET))
        mounts += [",", known, ":", known]
    return Wrapping(
        srun=[
            f"--container-image={box.image}",
            word("--container-mounts=", *mounts),
            f"--container-workdir={box.folder}",
            "--no-container-mount-home",
            "--no-container-entrypoint",
        ]
    )


def _csv_mount(path: str, inside: str = "") -> str:
    """A bind mount as all three tools read it: fields of CSV, so that commas and quotes in paths are no matter.

    Args:
        inside: where it is seen, if not under the same path.
    """
    source, destination = (text.replace('"', '""') for text in (path, inside or path))
    return f'type=bind,"source={source}","destination={destination}"'


_RUNTIMES: dict[Runtime, Callable[[Box], Wrapping]] = {
    "apptainer": _apptainer,
    "docker": _docker,
    "podman": _podman,
    "pyxis": _pyxis,
}
