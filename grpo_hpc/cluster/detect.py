"""What Slurm's commands tell about a cluster, for ``grpo-hpc cluster add``."""

from __future__ import annotations

import getpass
import os
import re
import shutil
from dataclasses import dataclass

from grpo_hpc.cluster import slurm
from grpo_hpc.cluster.sbatch_options import gpus
from grpo_hpc.errors import EnvironmentProblem


@dataclass(frozen=True)
class Partition:
    """A partition, and the largest kind of node in it.

    Attributes:
        time_limit: longest job as Slurm writes it; None without a limit.
        gpus: of one node; 0 without.
        exclusive: jobs always get whole nodes.
    """

    name: str
    default: bool
    time_limit: str | None
    nodes: int
    gpus: int
    gpu_type: str | None
    cpus: int
    exclusive: bool = False


@dataclass(frozen=True)
class Site:
    """A cluster as this machine sees it; all empty where there is no Slurm.

    Attributes:
        name: of the cluster.
        partitions: those that take jobs, the default one first.
        tres: Slurm can be asked for GPUs per node; otherwise with --gres.
        requeue: jobs may be requeued.
        pyxis: srun knows containers.
        problem: why Slurm told nothing.
    """

    name: str = ""
    partitions: tuple[Partition, ...] = ()
    account: str | None = None
    tres: bool = True
    requeue: bool = True
    pyxis: bool = False
    apptainer: bool = False
    problem: str = ""

    def partition(self, name: str | None) -> Partition | None:
        """A partition by name, or the one that jobs go to which name none."""
        return next(
            (found for found in self.partitions if found.name == name or (name is None and found.default)), None
        )


def detect() -> Site:
    """Ask Slurm. What one command does not tell is left to the others, and to the person who is asked."""
    apptainer = any(shutil.which(name) for name in ("apptainer", "singularity"))
    try:
        shown = slurm.call(["sinfo", "-h", "-o", "%P|%a|%l|%D|%G|%c"])
    except EnvironmentProblem as error:
        return Site(apptainer=apptainer, problem=error.message)
    if not (found := partitions(shown, exclusive_partitions(_said("scontrol", "show", "partition", "-o")))):
        said = f"sinfo names no partition that takes jobs; it printed '{shown[:200]}'"
        return Site(apptainer=apptainer, problem=said)
    config = settings(_said("scontrol", "show", "config"))
    account = _said("sacctmgr", "-n", "-P", "show", "user", _user(), "format=DefaultAccount")
    return Site(
        name=config.get("ClusterName", ""),
        partitions=found,
        account=account.partition("\n")[0].strip() or None,
        tres="tres" in config.get("SelectType", "tres"),
        requeue=config.get("JobRequeue", "1") == "1",
        pyxis="--container-image" in _said("srun", "--help"),
        apptainer=apptainer,
    )


def partitions(sinfo: str, exclusive: frozenset[str] = frozenset()) -> tuple[Partition, ...]:
    """Partitions from lines ``name*|up|time limit|nodes|gres|cpus``, for each kind of node; others are passed over."""
    found: dict[str, Partition] = {}
    for line in sinfo.splitlines():
        columns = line.split("|")
        if len(columns) != 6 or not columns[3].isdecimal():
            continue
        name, available, limit, nodes, gres, cpus = columns
        default = name.endswith("*")
        name = name.removesuffix("*")
        if available != "up":
            continue
        gpu_type, most = max(gpus(gres).items(), key=lambda kind: kind[1], default=(None, 0))
        size = int(re.sub(r"\D", "", cpus) or 0)
        here = Partition(
            name, default, time_limit(limit), int(nodes), most, gpu_type, size, exclusive=name in exclusive
        )
        if name not in found or (here.gpus, here.nodes) > (found[name].gpus, found[name].nodes):
            found[name] = here
    return tuple(sorted(found.values(), key=lambda partition: not partition.default))


def time_limit(text: str) -> str | None:
    """A time limit as a profile writes it; None for no limit."""
    if text in ("infinite", "UNLIMITED", "n/a"):
        return None
    return f"{text}:00" if re.fullmatch(r"\d+", text) else text


def settings(scontrol: str) -> dict[str, str]:
    """``Name = value`` lines of scontrol show config."""
    pairs = (line.partition("=") for line in scontrol.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def exclusive_partitions(scontrol: str) -> frozenset[str]:
    """Names of the partitions whose nodes are not shared."""
    rows = [dict(word.partition("=")[::2] for word in line.split()) for line in scontrol.splitlines()]
    whole = (row for row in rows if row.get("OverSubscribe", "").startswith("EXCLUSIVE"))
    return frozenset(row["PartitionName"] for row in whole if "PartitionName" in row)


def _user() -> str:
    """The user's name; the number where the machine has no name for it, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _said(*command: str) -> str:
    """What a command prints; nothing when it cannot, as on sites without accounting."""
    try:
        return slurm.call(command)
    except EnvironmentProblem:
        return ""
