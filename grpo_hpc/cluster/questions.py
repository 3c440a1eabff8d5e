"""The questions from which a cluster profile is made, and writing it to where profiles are looked up."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_hpc.cluster.detect import Partition, Site
from grpo_hpc.cluster.profile import Profile, profile_folders, read_profile
from grpo_hpc.cluster.secrets import read_secrets
from grpo_hpc.config.fields import field_problems
from grpo_hpc.config.plain_yaml import dump_yaml
from grpo_hpc.errors import ConfigError
from grpo_hpc.files import with_home, write_atomically

Answers = Mapping[str, Any]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _always(_answers: Answers) -> bool:
    return True


def _never(_answers: Answers) -> bool:
    return False


def _nothing(_site: Site, _answers: Answers) -> Any:
    return None


def _on_slurm(answers: Answers) -> bool:
    return answers["executor"] != "local"


def _with_gpus(answers: Answers) -> bool:
    return _on_slurm(answers) and answers["gpus_per_node"] is not None


@dataclass(frozen=True)
class Question:
    """One key of a profile, which is also its option on the command line.

    Attributes:
        default: the answer that is offered; None offers to leave the key out.
        applies: there is something to ask, given the answers so far.
        required: it cannot be left out, given the answers so far.
        example: shown where an answer is not written as it must be.
    """

    key: str
    default: Callable[[Site, Answers], Any] = _nothing
    applies: Callable[[Answers], bool] = _always
    required: Callable[[Answers], bool] = _never
    example: str = ""

    @property
    def option(self) -> str:
        """Its option."""
        return "--" + self.key.replace("_", "-")

    @property
    def text(self) -> str:
        """What is asked."""
        return str(Profile.model_fields[self.key].description)


def _here(site: Site, answers: Answers) -> Partition | None:
    first = (answers.get("partition") or "").partition(",")[0]
    return site.partition(first or None)


def _partition(site: Site, _answers: Answers) -> str | None:
    """The default partition, unless only another one has GPUs."""
    best = sorted(site.partitions, key=lambda partition: (not partition.gpus, not partition.default))
    return best[0].name if best else None


def _runtime(site: Site, _answers: Answers) -> str:
    return "pyxis" if site.pyxis else "apptainer" if site.apptainer else "none"


def _gpus(site: Site, answers: Answers) -> int | None:
    found = _here(site, answers)
    return found.gpus or None if found else None


def _gres(site: Site, _answers: Answers) -> str:
    return "gpus-per-node" if site.tres else "gres"


def _of_partition(name: str) -> Callable[[Site, Answers], Any]:
    return lambda site, answers: getattr(_here(site, answers), name, None)


QUESTIONS = (
    Question("executor", lambda site, _: "local" if site.problem else "slurm", required=_always),
    Question("partition", _partition, _on_slurm),
    Question("account", lambda site, _: site.account, _on_slurm),
    Question("qos", applies=_on_slurm),
    Question("constraint", applies=_on_slurm),
    Question("runtime", _runtime, required=_always),
    Question("image", applies=lambda answers: answers["runtime"] != "none", required=_always),
    Question("gpus_per_node", _gpus),
    Question("gres", _gres, _with_gpus, required=_always),
    Question("gpu_type", _of_partition("gpu_type"), lambda a: _with_gpus(a) and a["gres"] != "none"),
    Question("exclusive", _of_partition("exclusive"), _on_slurm),
    Question("cpus_per_node", applies=lambda answers: _on_slurm(answers) and not answers["exclusive"]),
    Question("memory", lambda _, answers: "0" if answers["exclusive"] else None, _on_slurm, example="64G"),
    # submitit itself would set a limit of five minutes
    Question(
        "time_limit",
        _of_partition("time_limit"),
        _on_slurm,
        lambda answers: answers["executor"] == "submitit",
        "30:00 (minutes), 12:00:00 or 1-00:00:00",
    ),
    Question("requeue", lambda site, _: site.requeue, _on_slurm),
    Question("chain", lambda *_: 2, lambda answers: _on_slurm(answers) and not answers["requeue"]),
    Question("network_interface", applies=_on_slurm),
    Question("scratch"),
    Question("secrets"),
)


def check_answer(question: Question, value: Any, site: Site) -> None:
    """Refuse a value that a profile cannot hold, or a partition that the cluster does not have.

    Raises:
        ConfigError, EnvironmentProblem: says what is wrong with it.
    """
    from pydantic import ValidationError

    try:
        Profile.model_validate({question.key: value})
    except ValidationError as error:
        said = field_problems(error, Profile)[0].text
        hint = f"Write it as in {question.example}." if question.example else ""
        raise ConfigError(f"{question.key} cannot be {value!r}: {said}", hint) from None
    if question.key == "secrets":
        read_secrets(with_home(value))
    known = [partition.name for partition in site.partitions]
    for name in str(value).split(",") if question.key == "partition" and known else ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"Did you mean '{near[0]}'? " if near else ""
            raise ConfigError(f"this cluster has no partition '{name}'", f"{meant}There are {', '.join(known)}.")


def path_of(name: str) -> Path:
    """Where the profile ``name`` belongs: the first folder in which profiles are looked up.

    Raises:
        ConfigError: it is no name.
    """
    if not _NAME.fullmatch(name) or name.endswith(".yaml"):
        raise ConfigError(
            f"'{name}' is no name for a profile", "Use letters, digits, '.', '_' and '-', as in mysite; no path."
        )
    return profile_folders()[0] / f"{name}.yaml"


def write_profile(name: str, answers: Answers, site: Site) -> Path:
    """Write the profile, read it back, and return its path.

    Raises:
        ConfigError: the folder cannot be written.
    """
    path = path_of(name)
    values = {key: value for key, value in answers.items() if value is not None}
    about = f" of the cluster {site.name}" if site.name else ""
    text = f"# Profile{about}, written by `grpo-hpc cluster add`.\n{dump_yaml(values)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}", "GRPO_HPC_PROFILES names another folder."
        ) from None
    if read_profile(path) != Profile.model_validate(values):
        raise AssertionError(f"{path} does not read back as it was written")
    return path
