"""What one cluster is like: a small YAML file, so that a run file moves between clusters by one word.

A profile is looked for by name in the user's own folder (``$GRPO_HPC_PROFILES``, else ``~/.config/grpo-hpc/profiles``)
and then among those that ship with the package (``slurm/profiles``); a name with a slash or ``.yaml`` is a file.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_core import PydanticCustomError

from grpo_hpc.config import RunConfig
from grpo_hpc.config.document import read_yaml
from grpo_hpc.config.fields import field_problems
from grpo_hpc.config.patterns import WallTime, matching, wall_seconds
from grpo_hpc.config.plain_yaml import dump_yaml
from grpo_hpc.config.problems import Problem, raise_problems, without_secrets
from grpo_hpc.config.sections import Section
from grpo_hpc.config.site_paths import NodeText, expanded
from grpo_hpc.errors import ConfigError
from grpo_hpc.files import with_home
from grpo_hpc.shipped import shipped

Executor = Literal["local", "slurm", "submitit"]
Runtime = Literal["none", "apptainer", "docker", "podman", "pyxis"]
_IN_OPTION = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)=([^,=]+)")
_SECRETS = (
    "what stands in a profile is written into job.sh. Put NAME=value into the file that `secrets` names, or set the "
    "variable in the shell that you submit from and name it under `inherit`"
)
# These stand in #SBATCH lines, which know no reliable quoting; Slurm's own names need nothing else.
Word = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_.,:@+=/|&*!()\[\]-]+",
        "stands in a line of #SBATCH: letters, digits and _ . , : @ + = / | & * ! ( ) [ ] -, without blanks",
    ),
]
SlurmName = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_][A-Za-z0-9_.,:@+=/-]*",
        "must be a name of Slurm's: letters, digits and _ . , : @ + = / -, without blanks",
    ),
]
Option = Annotated[Word, matching(r"-.+", "must be an option of sbatch, as in --reservation=course")]
GpuType = Annotated[
    str, matching(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", "must be a type of GPU, as in h100: letters, digits and _ . + -")
]
Memory = Annotated[
    str,
    matching(r"[0-9]+([KMGTPkmgtp](i?[Bb])?)?", "must be a whole number with K, M, G or T, as in 64G; 0 is all of it"),
]
Interface = Annotated[
    str,
    matching(
        r"\^?=?[A-Za-z0-9][A-Za-z0-9_.:@-]*(,[A-Za-z0-9][A-Za-z0-9_.:@-]*)*",
        "must be names of network interfaces with commas, as in ib0, or as NCCL writes them: =eth0,eth1 (these very "
        "names) or ^docker0 (all but these)",
    ),
]
Module = Annotated[str, matching(r"(?s)[^-].*", "must be the name of a module, not an option")]
_BASH = (
    *("UID", "EUID", "PPID", "GROUPS", "BASHOPTS", "SHELLOPTS", "BASH_VERSINFO", "BASH_ARGV0", "BASH_COMMAND"),
    *("BASHPID", "BASH_SUBSHELL", "RANDOM", "SRANDOM", "SECONDS", "LINENO", "EPOCHSECONDS", "EPOCHREALTIME", "HISTCMD"),
    *("FUNCNAME", "DIRSTACK", "PIPESTATUS", "IFS", "_", "run_dir", "inside"),
)
Name = Annotated[
    str,
    matching(
        r"[A-Za-z_][A-Za-z0-9_]*",
        "must be the name of a variable: letters, digits and _, and no digit at the beginning",
    ),
    matching(rf"(?!({'|'.join(_BASH)})$).*", "is a variable of bash, or of the script itself: choose another name"),
]


class Floors(Section):
    """What the check at the start of every attempt demands of the nodes."""

    enabled: bool = Field(default=True, description="check the nodes before a model is loaded")
    seconds: float = Field(default=180, gt=0, le=1e6, description="time that the whole check may take")
    free_gib: float = Field(default=1, ge=0, le=1e9, description="free space in the run directory and in scratch")
    clock_skew_s: float = Field(
        default=5, gt=0, le=1e6, description="largest difference between the clocks of two nodes"
    )
    bandwidth_gbps: float = Field(
        default=0, ge=0, le=1e6, description="least bus bandwidth of an all-reduce over all ranks, in GB/s; 0 takes any"
    )
    exclude_node: bool = Field(
        default=False, description="exclude a node that fails from the job and requeue, instead of ending it"
    )


class Profile(Section):
    """One cluster."""

    executor: Executor = Field(default="slurm", description="who starts the processes")
    runtime: Runtime = Field(default="none", description="container runtime that the processes run in")
    image: str | None = Field(default=None, min_length=1, description="container image: a SIF file, or its name")
    python: str | None = Field(
        default=None, min_length=1, description="Python of the processes; absent: this one, or the image's python3"
    )
    account: SlurmName | None = Field(default=None, description="account that pays")
    partition: SlurmName | None = Field(default=None, description="partition, or several with commas")
    qos: SlurmName | None = Field(default=None, description="quality of service")
    constraint: Word | None = Field(default=None, description="features that nodes must have")
    options: list[Option] = Field(default=[], description="further sbatch options, as in --reservation=course")
    gres: Literal["gpus-per-node", "gres", "none"] = Field(
        default="gpus-per-node", description="how GPUs are asked for: --gpus-per-node, --gres=gpu, or not at all"
    )
    gpu_type: GpuType | None = Field(default=None, description="type of GPU in that request")
    gpu: str | None = Field(
        default=None,
        min_length=1,
        description="hardware that a run is planned for whose file names none, as in resources.gpu; absent: what "
        "gpu_type says",
    )
    gpus_per_node: int | None = Field(default=None, ge=1, le=1024, description="GPUs that one node has")
    cpus_per_node: int | None = Field(
        default=None, ge=1, le=65_536, description="CPU cores that a job asks for on each node"
    )
    memory: Memory | None = Field(default=None, description="memory that a job asks for on each node; 0 is all of it")
    exclusive: bool = Field(default=False, description="whole nodes only")
    time_limit: WallTime | None = Field(default=None, description="wall time of one job")
    save_before_s: int = Field(
        default=300, ge=1, le=10**6, description="seconds before the wall time at which a run saves"
    )
    requeue: bool = Field(default=True, description="the site lets a job requeue itself")
    chain: int = Field(
        default=1, ge=1, le=1000, description="jobs that are queued behind one another, where it does not"
    )
    modules: list[Module] = Field(default=[], description="environment modules that are loaded")
    binds: list[str] = Field(default=[], description="folders that are also seen in the container")
    scratch: NodeText | None = Field(
        default=None, min_length=1, description="fast folder on every node, for TMPDIR, as in $SLURM_TMPDIR"
    )
    cache: NodeText | None = Field(
        default=None,
        min_length=1,
        description="folder on every node that keeps compiled kernels of containers between jobs; absent: scratch",
    )
    network_interface: Interface | None = Field(
        default=None,
        description="network of NCCL and Gloo, such as ib0; also =eth0,eth1 or ^docker0, as NCCL has it",
    )
    environment: dict[Name, NodeText] = Field(
        default={}, description="variables that are set, as in /opt/lib:$LD_LIBRARY_PATH; never a secret"
    )
    inherit: list[Name] = Field(default=[], description="secret variables that the submitting shell passes on")
    secrets: str | None = Field(
        default=None, min_length=1, description="file with NAME=VALUE lines, readable by its owner alone (0600)"
    )
    preflight: Floors = Floors()

    @property
    def left_open(self) -> list[str]:
        """Keys that say nothing here and may be said by sbatch's variables, as in ``SBATCH_ACCOUNT``."""
        return [key for key in ("account", "partition", "qos", "constraint") if getattr(self, key) is None]

    @property
    def warned_s(self) -> int | None:
        """Seconds from Slurm's warning to the time limit of a job; None where no warning comes."""
        return self.save_before_s if self.time_limit is not None and self.executor != "local" else None


def profile_folders() -> list[Path]:
    """Where profiles lie: the user's own folder, then the shipped one."""
    own = os.environ.get("GRPO_HPC_PROFILES") or with_home("~/.config/grpo-hpc/profiles")
    return [Path(own), shipped("slurm") / "profiles"]


def profiles() -> dict[str, Path]:
    """Every profile by its name; the user's own hide shipped ones."""
    folders = [folder for folder in reversed(profile_folders()) if folder.is_dir()]
    found = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix == ".yaml"]
    return {path.stem: path for path in found}


def find_profile(name: str) -> Path:
    """The file of a profile.

    Raises:
        ConfigError: there is none of that name.
    """
    known = profiles()
    path = with_home(name) if "/" in name or name.endswith(".yaml") else known.get(name)
    if path is None or not path.is_file():
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"Did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"there is no cluster profile '{name}'",
            f"{meant}Profiles: {', '.join(known)}. `grpo-hpc cluster add` writes one.",
        )
    return path


def read_profile(path: Path) -> Profile:
    """Read and check a profile.

    Raises:
        ConfigError: lists every mistake.
    """
    document = read_yaml(path, "cluster profile", "partition: gpu")
    problems, profile = list(document.problems), None
    try:
        profile = Profile.model_validate(document.values)
    except ValidationError as error:
        problems += field_problems(error, Profile)
    raise_problems(_without_secrets(document.values, problems), str(path), document.places)
    if profile is None:
        raise AssertionError("what is no profile has at least one problem")
    return profile


def _without_secrets(values: dict[str, Any], problems: list[Problem]) -> list[Problem]:
    """``problems`` and the secrets in a profile, also those that options of sbatch hand on, as in ``--export``."""
    looked_at = {key: value for key, value in values.items() if key != "secrets"}
    if isinstance(options := values.get("options"), list):
        looked_at["options"] = [dict(_IN_OPTION.findall(str(option))) or option for option in options]
    return without_secrets(looked_at, problems, _SECRETS)


def named_profile(name: str) -> Profile:
    """The profile of that name, with ``~`` and the variables of this shell put into its paths.

    Those of ``scratch``, ``cache`` and ``environment`` stay: the nodes put them in.

    Raises:
        ConfigError: there is no such profile, it is wrong, or a variable is not set here.
    """
    path = find_profile(name)
    profile = read_profile(path)
    found: dict[str, Any] = {}
    for key in ("scratch", "cache"):
        value = getattr(profile, key)
        found[key] = value and str(with_home(value))
    for key in ("image", "python", "gpu", "secrets", "binds"):
        value = getattr(profile, key)
        try:
            found[key] = [expanded(bind) for bind in value] if key == "binds" else value and expanded(value)
        except PydanticCustomError as error:
            raise ConfigError(
                f"{key} in the cluster profile {path} {error.message()}",
                "Only scratch, cache and environment may name what the nodes alone know.",
            ) from None
    return profile.model_copy(update=found)


def profile_of(cfg: RunConfig) -> Profile:
    """The profile that ``cfg`` names, with what the run file says itself put over it.

    Raises:
        ConfigError: there is no such profile, it is wrong, or what it lacks is needed.
    """
    profile = profile_over(cfg)
    require_complete(cfg, profile)
    return profile


def profile_over(cfg: RunConfig) -> Profile:
    """As :func:`profile_of`, also of a profile that cannot start ``cfg``.

    Raises:
        ConfigError: there is no such profile, or it is wrong.
    """
    base = named_profile(cfg.cluster.profile)
    own = {key: getattr(cfg.cluster, key) for key in ("executor", "runtime", "image", "time_limit")}
    return base.model_copy(update={key: value for key, value in own.items() if value is not None})


def dump_profile(profile: Profile) -> str:
    """``profile`` as YAML that :func:`read_profile` reads back."""
    return dump_yaml(profile.model_dump(exclude_none=True))


def require_complete(cfg: RunConfig, profile: Profile) -> None:
    """Refuse a profile that cannot start ``cfg``.

    Raises:
        ConfigError: says what does not go together.
    """
    if profile.python and profile.python.startswith("-"):
        raise ConfigError(
            f"python is '{profile.python}', which would be read as an option", f"Write its path: ./{profile.python}"
        )
    if profile.runtime != "none" and profile.image is None:
        raise ConfigError(
            f"runtime {profile.runtime} needs an image", "Set cluster.image, or image: in the cluster profile."
        )
    if profile.runtime == "none" and profile.image is not None:
        raise ConfigError(
            f"the image {profile.image} would not be used: the runtime is none",
            "Set cluster.runtime to apptainer, docker, podman or pyxis, or leave the image out.",
        )
    if profile.runtime == "none" and profile.cache is not None:
        raise ConfigError(
            f"the cache {profile.cache} would not be used: without a container, libraries keep theirs at home",
            "Leave cache out, or move theirs with environment:, as in XDG_CACHE_HOME.",
        )
    if profile.runtime != "none" and "PATH" in profile.environment:
        raise ConfigError(
            f"environment in the cluster profile sets PATH to {profile.environment['PATH']}, and in a container the "
            "image says where its programs are",
            "Leave PATH out, or name the interpreter with python:.",
        )
    if profile.executor == "submitit" and profile.time_limit is None:
        raise ConfigError(
            "the executor submitit needs a time limit: without one it asks Slurm for five minutes",
            "Set cluster.time_limit, as in 12:00:00, or time_limit: in the cluster profile.",
        )
    _require_time_to_save(profile)
    if profile.executor == "local" and profile.runtime == "pyxis":
        raise ConfigError("pyxis is a part of Slurm; the local executor cannot use it", "Use docker or podman.")
    if profile.executor == "local" and cfg.resources.nodes > 1:
        raise ConfigError(
            f"resources.nodes is {cfg.resources.nodes}, and the local executor starts processes on this machine only",
            "Use resources.nodes=1, or a cluster: cluster.profile=NAME.",
        )
    if cfg.rollout.vllm_mode == "server":
        _require_servers(cfg, profile)
    gpus = profile.gpus_per_node
    if cfg.resources.device == "cuda" and gpus is not None and cfg.resources.nproc_per_node > gpus:
        raise ConfigError(
            f"resources.nproc_per_node is {cfg.resources.nproc_per_node}, and a node of {cfg.cluster.profile} has "
            f"{gpus} GPUs",
            f"Use resources.nproc_per_node={gpus} and more nodes.",
        )


def _require_time_to_save(profile: Profile) -> None:
    limit = wall_seconds(profile.time_limit) if profile.time_limit else None
    if profile.executor != "local" and limit is not None and profile.save_before_s >= limit:
        raise ConfigError(
            f"the time limit {profile.time_limit} is {limit} s, and save_before_s is {profile.save_before_s}: every "
            "job would be told to save and stop as soon as it starts",
            f"Set save_before_s in the cluster profile to {max(1, limit // 2)} or less, or cluster.time_limit to more "
            f"than {profile.save_before_s} s.",
        )


def _require_servers(cfg: RunConfig, profile: Profile) -> None:
    ranks, tensor_parallel = cfg.resources.nproc_per_node, cfg.rollout.vllm_tensor_parallel_size
    if profile.executor == "local":
        raise ConfigError(
            "rollout.vllm_mode is server, and the servers need nodes of their own: the local executor has one machine",
            "Use rollout.vllm_mode=colocate, or a cluster: cluster.profile=NAME.",
        )
    if tensor_parallel > ranks:
        raise ConfigError(
            f"rollout.vllm_tensor_parallel_size is {tensor_parallel}: a vLLM server lies within one node, which has "
            f"{ranks} GPUs",
            f"Use rollout.vllm_tensor_parallel_size={ranks} or less.",
        )
